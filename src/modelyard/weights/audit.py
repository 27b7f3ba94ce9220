"""Whether a model that a library loaded is the model that is on disk.

transformers fills tensors that are missing with random numbers and goes on; PEFT leaves adapters at zero. Here that is
an error that lists the tensors. Knows modules and tensors; opens no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["audit_keys", "audit_tensors", "audit_ties"]

_SHOWN = 8
_PREFIXES = ("module.", "_orig_mod.", "base_model.model.")


def audit_keys(label: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[object]) -> None:
    """Raise `ModelError` unless every tensor of the model came from the file, and every tensor of the file was used.

    Args:
        label: What messages call the folder.
        missing: Tensors that the model has and the file has not.
        unexpected: Tensors that the file has and the model has not.
        mismatched: Tensors whose shapes differ: names, or (name, shape on disk, shape in the model).
    """
    absent, extra = sorted(missing), sorted(unexpected)
    wrong = sorted(_show_mismatch(item) for item in mismatched)
    parts = [
        f"{len(names)} {what} ({_show(names)})"
        for what, names in (("missing", absent), ("unexpected", extra), ("of another shape", wrong))
        if names
    ]
    if not parts:
        return
    hint = "run `yard doctor` on the folder"
    prefix = next((item for item in _PREFIXES if extra and all(name.startswith(item) for name in extra)), None)
    if prefix:
        hint = f"every name begins with `{prefix}`: save the unwrapped model, or strip the prefix"
    elif any(".base_layer." in name for name in extra):
        hint = "`base_layer` names are an adapter's: save the merged model, or the adapter by itself"
    raise ModelError(
        f"{label}: the weights are not this architecture's: {'; '.join(parts)}",
        hint=hint,
        missing=absent,
        unexpected=extra,
        mismatched=wrong,
    )


def audit_tensors(label: str, model: Any, dtype: Any) -> None:
    """Raise `ModelError` if a tensor of the model is not there, not finite, or of a dtype that nobody asked for.

    One pass over the weights, nothing allocated. Float32 is always allowed: some architectures keep parts of themselves
    in it whatever they are loaded as, and so do adapters.
    """
    import torch

    absent, broken, strange = [], [], []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            absent.append(name)
        elif tensor.is_floating_point() and tensor.numel():
            if tensor.dtype not in (dtype, torch.float32, torch.float64):
                strange.append(f"{name}: {tensor.dtype}")
                continue
            least, most = tensor.aminmax()  # a NaN anywhere is the least and the most
            # A mask's buffer may hold -inf on purpose; a parameter may not.
            if isinstance(tensor, torch.nn.Parameter) and not (least.isfinite() and most.isfinite()):
                broken.append(name)
    diverged = "the checkpoint is damaged or was saved from a run that diverged; take an earlier one"
    disturbed = "something else loaded a model in this process at the same time; load again, under `LOADING`"
    for names, what, hint in (
        (broken, "hold NaN or infinity", diverged),
        (absent, "are not loaded", disturbed),
        (strange, f"are not {dtype}", disturbed),
    ):
        if names:
            raise ModelError(f"{label}: {len(names)} tensors {what}: {_show(names)}", hint=hint, tensors=names)


def audit_ties(label: str, model: Any) -> None:
    """Raise `ModelError` if the config says that input and output embeddings are one tensor and they are two."""
    if not getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False):
        return
    outer, inner = model.get_output_embeddings(), model.get_input_embeddings()
    if outer is None or inner is None or not hasattr(outer, "weight"):
        return
    if outer.weight.data_ptr() != inner.weight.data_ptr():
        raise ModelError(
            f"{label}: config.json ties the embeddings, but the file holds two that differ",
            hint="set `tie_word_embeddings` to false, or remove the output embedding from the file",
        )


def _show_mismatch(item: object) -> str:
    if isinstance(item, tuple | list) and len(item) == 3:
        name, on_disk, in_model = item
        return f"{name}: {list(on_disk)} on disk, {list(in_model)} by config.json"
    return str(item)


def _show(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
