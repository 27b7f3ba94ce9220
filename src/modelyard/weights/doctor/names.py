"""The tensors' names and shapes against what the architecture expects: prefixes, missing ones, too many, other shapes, ties."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.architecture import compare_tensors, find_base_class, is_sentence_encoder
from modelyard.weights.doctor.findings import SHOWN, make, some
from modelyard.weights.files import show_name
from modelyard.weights.merge.names import is_head
from modelyard.weights.values import equal_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelyard.weights.architecture import Comparison
    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding

__all__ = ["examine_names", "unwrap"]

_LEADING = ("module.", "_orig_mod.", "base_model.model.")
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_LAYER = re.compile(r"^(.*?\.(?:layers|layer|h|block|blocks)|(?:layers|layer|h|block|blocks))\.(\d+)\.")
_COUNTS = re.compile(r"(layers?|depths?|blocks|stages|experts|layer_types)$")
_MOST = 5000
_TIED_HEADS = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")
_LABELS = re.compile(
    r"(^|\.)(classifier|score|qa_outputs|classification_head|out_proj|cls_classifier|dense)\b.*(weight|bias)$"
)


def unwrap(name: str) -> str:
    """A tensor's name without what training wrappers put into it.

    >>> unwrap("module._orig_mod.model.norm.weight"), unwrap("model.layers.0._orig_mod.mlp.up.weight")
    ('model.norm.weight', 'model.layers.0.mlp.up.weight')
    """
    while found := next((prefix for prefix in _LEADING if name.startswith(prefix)), None):
        name = name[len(found) :]
    for wrapper in _ANYWHERE:
        name = re.sub(rf"(^|\.){re.escape(wrapper)}", r"\1", name)
    return name


def examine_names(case: Case) -> Iterator[Finding]:
    """Compare with the class that config.json names; needs transformers."""
    weights = case.weights
    if weights is None:
        return
    wrapped = list(_wrapping(case, weights))
    yield from wrapped
    if wrapped or not case.config:
        return
    from modelyard.weights.loading.quantization import quiet_imports

    quiet_imports()
    if (asked := _outlandish(case.config)) is not None:
        what = f"config.json asks for `{show_name(asked)}`, more than any model has, and was not built"
        yield make("unknown_architecture", what, "correct config.json, or fetch it again")
        return
    shapes = {name: weights.info(name).shape for name in weights.home}
    try:
        compared = compare_tensors(_expected(case), shapes)
    except ModelError as error:
        hint = "the tensors' names were not checked; see `yard architectures` for what this transformers knows"
        yield make("unknown_architecture", error.message, hint)
        return
    prefix = _common_prefix(case, compared, shapes)
    if prefix is not None:
        what = f"all {len(shapes)} tensor names begin with `{show_name(prefix)}`, so a loader finds none of them"
        yield make("wrapped_names", what, case.mend)
        return
    if case.config.get("quantization_config"):
        yield from _missing(case, _packed(compared, shapes), shapes)
        return
    yield from _missing(case, compared, shapes)
    if case.architecture is not None:  # else only the body is known, and there may be any head
        yield from _unexpected(compared, shapes)
    yield from _mismatched(case, compared.mismatched)
    for name, source in compared.tied.items():
        if name in weights.home and source in weights.home and not equal_tensors(weights, name, source):
            what = f"`{show_name(name)}` and `{show_name(source)}` are tied by config.json and have different values"
            yield make("tied_mismatch", what, case.mend)


def _expected(case: Case) -> Mapping[str, Any]:
    """The configuration with the class that the files are of, where that is not the one that it names."""
    base = find_base_class(str(case.config.get("model_type")))
    if base is None or not is_sentence_encoder(case.architecture, case.names):
        return case.config
    return {**case.config, "architectures": [base]}


def _wrapping(case: Case, weights: Checkpoint) -> Iterator[Finding]:
    """Names that a training wrapper left."""
    names = list(weights.home)
    for prefix in (*_LEADING, *_ANYWHERE[1:]):
        found = [name for name in names if name.startswith(prefix) or (prefix in _ANYWHERE and f".{prefix}" in name)]
        if found:
            begin = "begin with" if prefix in _LEADING and found[0].startswith(prefix) else "hold"
            what = f"{len(found)} of {len(names)} tensor names {begin} `{prefix}`, so a loader finds none of them"
            clear = len({unwrap(name) for name in names}) == len(names)
            unwrapping = "save the model that is inside the wrapper (`accelerator.unwrap_model(model)`)"
            yield make("wrapped_names", what, case.mend if clear else unwrapping)
    layers = [name for name in names if ".base_layer." in name or ".lora_" in name]
    if layers:
        factors = any(".lora_" in name for name in layers)
        what = (
            f"{len(layers)} tensors belong to an adapter that was not merged ({some(layers)}), so a loader skips them"
        )
        saving = "save the adapter by itself (`model.save_pretrained`), commit it, and merge: yard merge REFERENCE"
        yield make("base_layer_names", what, saving if factors else case.mend)


def _common_prefix(case: Case, compared: Comparison, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A first part that all names share and that no tensor has a place with, and without which all have one."""
    first = {name.partition(".")[0] + "." for name in shapes}
    if len(first) != 1 or not compared.unexpected or len(compared.unexpected) < len(shapes) / 2:
        return None
    prefix = first.pop()
    stripped = {name[len(prefix) :]: shape for name, shape in shapes.items() if name != prefix}
    if len(stripped) != len(shapes) or "" in stripped:
        return None
    again = compare_tensors(_expected(case), stripped)
    return prefix if not again.unexpected and len(again.missing) < len(compared.missing) else None


def _outlandish(config: Mapping[str, Any]) -> str | None:
    """A count of layers or the like that would keep this machine busy, as `key: value`; None where all are sensible."""
    stack: list[Any] = [config]
    while stack:
        item = stack.pop()
        if not isinstance(item, dict):
            continue
        for key, value in item.items():
            parts = value if isinstance(value, list) else [value]
            counts = [part for part in parts if type(part) is int]
            if _COUNTS.search(key) and (len(parts) > _MOST or max(counts, default=0) > _MOST):
                return f"{key}: {max(counts, default=len(parts))}"
            stack += parts
    return None


def _packed(compared: Comparison, shapes: Mapping[str, object]) -> Comparison:
    """For quantized weights, which keep each matrix in parts of other names and shapes: a module is there if any part is."""
    modules = {name.rpartition(".")[0] for name in shapes}
    modules |= {module.rpartition(".")[0] for module in modules}
    missing = tuple(name for name in compared.missing if name.rpartition(".")[0] not in modules)
    return replace(compared, missing=missing, unexpected=(), mismatched=())


def _missing(case: Case, compared: Comparison, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    missing = list(compared.missing)
    heads = [name for name in missing if is_head(name) or name.endswith(_TIED_HEADS)]
    if heads and case.config.get("tie_word_embeddings") is False:
        missing = [name for name in missing if name not in heads]
        what = (
            f"config.json unties the embeddings, and there is no {some(heads)}: a loader fills it with random numbers"
        )
        yield make("no_output_layer", what, case.mend)
    if not missing:
        return
    there = _layers(shapes)
    wanted = _layers(missing)
    beyond = bool(wanted) and all(
        (found := _LAYER.match(name)) is not None and found[1] in there and int(found[2]) > max(there[found[1]])
        for name in missing
    )
    if beyond:
        where = next(iter(wanted))
        what = (
            f"config.json makes {max(wanted[where]) + 1} layers `{show_name(where)}`, and the weights hold"
            f" {max(there[where]) + 1}: a loader fills {len(missing)} tensors with random numbers"
        )
        hint = f"correct `num_hidden_layers` in config.json to {max(there[where]) + 1}, or fetch the weights again"
        yield make("layer_count", what, hint)
        return
    what = f"{len(missing)} tensors are missing, and a loader fills them with random numbers: {some(missing)}"
    yield make("missing_tensors", what, "fetch the weights again, or save the whole model again")


def _unexpected(compared: Comparison, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    left = list(compared.unexpected)
    if not left:
        return
    there, extra = _layers(shapes), _layers(left)
    # Whole layers at the end that the configuration does not count.
    where = next((where for where in extra if max(extra[where]) == max(there[where]) and min(extra[where]) > 0), None)
    if where is not None and all((found := _LAYER.match(name)) is not None and found[1] in extra for name in left):
        whole = sum(name.startswith(tuple(f"{where}.{number}." for number in extra[where])) for name in shapes)
        if whole == len(left):
            what = (
                f"config.json makes {min(extra[where])} layers `{show_name(where)}`, and the weights hold"
                f" {max(there[where]) + 1}: {len(left)} tensors are not used"
            )
            hint = f"correct `num_hidden_layers` in config.json to {max(there[where]) + 1}"
            yield make("layer_count", what, hint, level="warning")
            return
    what = f"{len(left)} tensors have no place in the architecture, and are not used: {some(left)}"
    yield make("unexpected_tensors", what, "check that config.json names the class that these weights were saved from")


def _mismatched(case: Case, mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> Iterator[Finding]:
    labels = case.config.get("id2label")
    for name, there, wanted in mismatched[:SHOWN]:
        shown = f"`{show_name(name)}` has the shape {there}, and config.json makes it {wanted}"
        heads = case.task is not None and case.task.head
        if heads and _LABELS.search(name) and there[1:] == wanted[1:] and there[:1] != wanted[:1]:
            said = len(labels) if isinstance(labels, dict) else case.config.get("num_labels", 2)
            what = f"config.json has {said} labels, and the weights hold {there[0]} classes: {shown}"
            yield make("labels_mismatch", what, "correct `id2label` and `label2id` in config.json")
        elif "position_embed" in name and _image_size(case) is not None:
            what = f"config.json has `image_size` {_image_size(case)}, for which the positions are too many or too few: {shown}"
            yield make("image_size", what, "correct `image_size` and `patch_size` in config.json")
        else:
            yield make("mismatched_shape", shown, "config.json and the weights are not of one model: fetch both again")


def _image_size(case: Case) -> object:
    vision = case.config.get("vision_config")
    return case.config.get("image_size") or (vision.get("image_size") if isinstance(vision, dict) else None)


def _layers(names: Mapping[str, object] | Sequence[str]) -> dict[str, set[int]]:
    """Stack of layers to the numbers of those that `names` hold tensors of."""
    found: dict[str, set[int]] = {}
    for name in names:
        layer = _LAYER.match(name)
        if layer:
            found.setdefault(layer[1], set()).add(int(layer[2]))
    return found
