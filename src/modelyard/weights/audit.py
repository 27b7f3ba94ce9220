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
_WORDS = {"missing": "missing", "unexpected": "unexpected", "mismatched": "of another shape"}


def audit_keys(
    label: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[object],
    allow: Iterable[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Raise `ModelError` unless every tensor of the model came from the file, and every tensor of the file was used.

    Args:
        label: What messages call the folder.
        missing: Tensors that the model has and the file has not.
        unexpected: Tensors that the file has and the model has not.
        mismatched: Tensors whose shapes differ: names, or (name, shape on disk, shape in the model).
        allow: Kinds that are no error: `missing`, `unexpected`, `mismatched`.

    Returns:
        What was allowed, kind to the tensors' names; a mismatched one with its shapes.
    """
    found = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "mismatched": sorted(_show_mismatch(item) for item in mismatched),
    }
    allowed = {kind: tuple(names) for kind, names in found.items() if names and kind in set(allow)}
    faults = {kind: names for kind, names in found.items() if names and kind not in allowed}
    if not faults:
        return allowed
    extra = found["unexpected"]
    hint = f"run `yard doctor` on the folder; or allow it by name: allow={tuple(faults)!r}"
    prefix = next((item for item in _PREFIXES if extra and all(name.startswith(item) for name in extra)), None)
    if prefix:
        hint = f"every name begins with `{prefix}`: save the unwrapped model, or strip the prefix"
    elif any(".base_layer." in name for name in extra):
        hint = "`base_layer` names are an adapter's: save the merged model, or the adapter by itself"
    parts = [f"{len(names)} {_WORDS[kind]} ({_show(names)})" for kind, names in faults.items()]
    raise ModelError(
        f"{label}: the weights are not this architecture's: {'; '.join(parts)}",
        hint=hint,
        missing=faults.get("missing", []),
        unexpected=faults.get("unexpected", []),
        mismatched=faults.get("mismatched", []),
    )


def audit_tensors(
    label: str, model: Any, dtype: Any, *, allow: Iterable[str] = (), strict: bool = True, finite: bool = False
) -> dict[str, tuple[str, ...]]:
    """Raise `ModelError` if a tensor of the model is not there, not finite, or of a dtype that nobody asked for.

    One pass over the weights, nothing allocated. Float32 is always allowed: some architectures keep parts of themselves
    in it whatever they are loaded as, and so do adapters. Packed and integer tensors of a quantized model have no NaN to
    find; a tensor that a device map put on disk is looked for there.

    Args:
        label: What messages call the folder.
        model: The loaded model.
        dtype: The torch dtype that was asked for.
        allow: `nonfinite`, for weights that hold NaN or infinity on purpose.
        strict: Whether another floating-point dtype is a fault; a quantized model chooses its own.

        finite: The values are known to be finite: they are not read.

    Returns:
        What was allowed: `nonfinite` to the tensors' names.
    """
    import torch

    offloaded = _offloaded(model)
    absent, broken, strange = [], [], []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            if not _is_offloaded(name, offloaded):
                absent.append(name)
        elif tensor.is_floating_point() and tensor.numel():
            if strict and tensor.dtype not in {dtype, torch.float32, torch.float64}:
                strange.append(f"{name}: {tensor.dtype}")
                continue
            # A mask's buffer may hold -inf on purpose; a parameter may not.
            if not finite and isinstance(tensor, torch.nn.Parameter) and not _is_finite(tensor):
                broken.append(name)
    allowed: dict[str, tuple[str, ...]] = {}
    if broken and "nonfinite" in set(allow):
        allowed["nonfinite"], broken = tuple(broken), []
    diverged = "the checkpoint is damaged or was saved from a run that diverged; take an earlier one"
    disturbed = "something else loaded a model in this process at the same time; load again, under `LOADING`"
    for names, what, hint in (
        (broken, "hold NaN or infinity", diverged),
        (absent, "are not loaded", disturbed),
        (strange, f"are not {dtype}", disturbed),
    ):
        if names:
            raise ModelError(f"{label}: {len(names)} tensors {what}: {_show(names)}", hint=hint, tensors=names)
    return allowed


def _is_finite(tensor: Any) -> bool:
    """Whether a plain floating-point tensor holds no NaN and no infinity; quantized ones hold neither."""
    import torch

    kinds = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    if tensor.dtype not in kinds or type(tensor.data) is not torch.Tensor:
        return True  # a packed tensor: its own class, or an 8-bit float that aminmax is not made for
    least, most = tensor.detach().aminmax()  # a NaN anywhere is the least and the most
    return bool(least.isfinite() and most.isfinite())


def _offloaded(model: Any) -> tuple[str, ...]:
    """Names of the modules that a device map keeps on disk, or in memory until they run."""
    places = getattr(model, "hf_device_map", None) or getattr(getattr(model, "base_model", None), "hf_device_map", None)
    return tuple(name for name, place in (places or {}).items() if str(place) in {"disk", "cpu"})


def _is_offloaded(name: str, modules: tuple[str, ...]) -> bool:
    plain = name.removeprefix("base_model.model.")
    return any(not module or plain == module or plain.startswith(f"{module}.") for module in modules)


def audit_ties(label: str, model: Any) -> None:
    """Raise `ModelError` if the config says that input and output embeddings are one tensor and they are two."""
    if not getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False):
        return
    try:
        outer, inner = model.get_output_embeddings(), model.get_input_embeddings()
    except NotImplementedError:
        return  # a composite, such as Grounding DINO, that says of no part that it holds the embeddings
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
