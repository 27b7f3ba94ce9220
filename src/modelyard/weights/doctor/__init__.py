"""What is wrong with a checkpoint, by name, and what to do about it.

transformers loads a checkpoint with missing tensors, a `module.` prefix or NaN weights and says nothing but a table in a
log. `diagnose` says it before. It never raises for what it finds: whatever state the folder is in, the answer is a list.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import ModelError, PickleError, YardError
from modelyard.weights.architecture import compare_tensors
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import check_config, check_index, read_json
from modelyard.weights.content import identify, refuse_content
from modelyard.weights.files import show_name
from modelyard.weights.headers import read_header
from modelyard.weights.inspect import inspect
from modelyard.weights.values import equal_tensors, scan_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelyard.weights.files import Files

__all__ = ["Finding", "diagnose"]

_PREFIXES = ("module.", "_orig_mod.", "base_model.model.")
_SHOWN = 5
_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Finding:
    """One thing found: `error` is unusable, `warning` is usable and probably not what is wanted, `info` is good to know."""

    level: Literal["error", "warning", "info"]
    code: str
    message: str
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def diagnose(files: Files) -> list[Finding]:
    """Examine a model or adapter folder; errors first. An empty list means that nothing is wrong.

    Reads every weight once (for values that are not finite numbers). Needs transformers for the comparison with the
    architecture; without a usable `config.json` that part is left out.
    """
    found = [*_files(files)]
    if not any(finding.level == "error" for finding in found):
        try:
            found += _adapter(files) if "adapter_config.json" in files.names() else _model(files)
        except YardError as error:
            found.append(_from_error(error))
    return sorted(found, key=lambda finding: _ORDER[finding.level])


def _files(files: Files) -> Iterator[Finding]:
    """Each file by itself: what it really is, and whether its header and JSON are sound."""
    try:
        names = files.names()
    except ModelError as error:
        yield _from_error(error)
        return
    for name in names:
        try:
            content = identify(files.path(name))
            if content != "html" or name.endswith((".safetensors", ".json")):
                refuse_content(content, f"{files.label}/{show_name(name)}")
            if name.endswith(".safetensors"):
                read_header(files.path(name))
        except YardError as error:
            yield _from_error(error)
    try:
        for name in names:
            if name.endswith(".safetensors.index.json"):
                check_index(files, name)
        check_config(files)
    except YardError as error:
        yield _from_error(error)


def _model(files: Files) -> Iterator[Finding]:
    names = files.names()
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        missing.append("weights (*.safetensors)")
    if missing:
        what = f"`{files.label}` is not a model: it has no {' and no '.join(missing)}"
        yield Finding("error", "not_a_model", what, "give the folder that `save_pretrained` wrote")
        return
    weights = open_checkpoint(files)
    wrapped = list(_wrapping(weights))
    yield from wrapped
    if not wrapped:
        yield from _against_architecture(files, weights)
    yield from _values(weights)
    yield from _stray_weights(files, weights)
    yield from _tokenizer(files)


def _wrapping(weights: Checkpoint) -> Iterator[Finding]:
    """Names that a training wrapper left."""
    names = list(weights.home)
    for prefix in _PREFIXES:
        wrapped = [name for name in names if name.startswith(prefix)]
        if wrapped:
            yield Finding(
                "error",
                "wrapped_names",
                f"{len(wrapped)} of {len(names)} tensor names begin with `{prefix}`, so a loader finds none of them",
                "save the model that is inside the wrapper (`accelerator.unwrap_model(model)`, `model._orig_mod`)",
            )
    layers = [name for name in names if ".base_layer." in name or ".lora_" in name]
    if layers:
        yield Finding(
            "error",
            "base_layer_names",
            f"{len(layers)} tensors belong to an adapter that was not merged ({_some(layers)}), so a loader skips them",
            "save the adapter by itself (`model.save_pretrained`), commit it, and merge: yard merge REFERENCE",
        )


def _against_architecture(files: Files, weights: Checkpoint) -> Iterator[Finding]:
    config = read_json(files, "config.json")
    shapes = {name: weights.info(name).shape for name in weights.home}
    try:
        compared = compare_tensors(config, shapes)
    except ModelError as error:
        yield Finding("warning", error.code, error.message, "the tensors' names were not checked")
        return
    if compared.missing:
        what = f"{len(compared.missing)} tensors are missing, and a loader fills them with random numbers"
        hint = "download or save it again; or `num_hidden_layers` in config.json is wrong"
        yield Finding("error", "missing_tensors", f"{what}: {_some(compared.missing)}", hint)
    if compared.unexpected:
        what = f"{len(compared.unexpected)} tensors have no place in the architecture"
        yield Finding("warning", "unexpected_tensors", f"{what}: {_some(compared.unexpected)}", "they are not used")
    for name, there, wanted in compared.mismatched[:_SHOWN]:
        what = f"`{show_name(name)}` has the shape {there}, and config.json makes it {wanted}"
        yield Finding("error", "mismatched_shape", what, "config.json and the weights are not of one model")
    for name, source in compared.tied.items():
        if name in weights.home and source in weights.home and not equal_tensors(weights, name, source):
            what = f"`{show_name(name)}` and `{show_name(source)}` are tied by config.json and have different values"
            yield Finding("error", "tied_mismatch", what, "set `tie_word_embeddings` to false if both are meant")


def _values(weights: Checkpoint) -> Iterator[Finding]:
    broken, zero = [], []
    for shard in weights.shards:
        with weights.open(shard) as opened:
            for name, info in opened.header.in_file_order():
                scan = scan_tensor(opened, info)
                if scan.nonfinite:
                    broken.append(f"{show_name(name)} ({scan.nonfinite} of {info.elements})")
                elif scan.all_zero and name.endswith("lora_B.weight"):
                    zero.append(name)
    if broken:
        what = f"{len(broken)} tensors hold NaN or infinity: {', '.join(broken[:_SHOWN])}"
        yield Finding("error", "nonfinite", what, "go back to a checkpoint from before training diverged")
    if zero:
        what = f"{len(zero)} LoRA factors are all zero, as before training ({_some(zero)})"
        yield Finding("warning", "untrained", what, "check that the trained adapter was saved")


def _stray_weights(files: Files, weights: Checkpoint) -> Iterator[Finding]:
    extra = [name for name in files.names() if name.endswith(".safetensors") and "/" not in name]
    stray = sorted(set(extra) - set(weights.shards))
    if stray:
        yield Finding("warning", "stray_weights", f"no index names these weight files: {_some(stray)}", "remove them")
    if weights.index is not None:
        said = (read_json(files, weights.index).get("metadata") or {}).get("total_size")
        total = sum(info.end - info.start for header in weights.shards.values() for info in header.tensors.values())
        if said is not None and said != total:
            what = f"`{weights.index}` says {said!r} bytes in all, and the shards hold {total}"
            yield Finding("info", "total_size", what, "nothing reads this number; saving anew corrects it")


def _tokenizer(files: Files) -> Iterator[Finding]:
    seen = inspect(files)
    if seen.task not in {"text-generation", "text-classification", "token-classification", "fill-mask"}:
        return
    names = set(files.names())
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"}:
        what = "there is no tokenizer, so text cannot be given to it"
        yield Finding("warning", "no_tokenizer", what, "copy the tokenizer files of its base beside the weights")
    elif seen.task == "text-generation" and not seen.chat_template:
        what = "there is no chat template, so messages cannot be rendered; plain prompts work"
        yield Finding("info", "no_chat_template", what, "add chat_template.jinja if it was trained on conversations")


def _adapter(files: Files) -> Iterator[Finding]:
    if not any(name.startswith("adapter_model") and name.endswith(".safetensors") for name in files.names()):
        what = f"`{files.label}` has an adapter_config.json and no adapter_model.safetensors"
        yield Finding("error", "not_a_model", what, "save it again: `model.save_pretrained(FOLDER)`")
        return
    weights = open_checkpoint(files, "adapter_model")
    config = read_json(files, "adapter_config.json")
    if config.get("peft_type") == "LORA" and not any(".lora_" in name for name in weights.home):
        yield Finding("error", "empty_adapter", "it is a LoRA without any LoRA factor", "save the adapter again")
    if not config.get("base_model_name_or_path"):
        yield Finding("warning", "no_base", "adapter_config.json does not say which base it belongs to")
    yield from _values(weights)


def _from_error(error: YardError) -> Finding:
    code = "pickle" if isinstance(error, PickleError) else error.code
    return Finding("error", code, error.message, error.hint)


def _some(names: Iterable[str]) -> str:
    listed: Sequence[str] = [show_name(name) for name in names]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
