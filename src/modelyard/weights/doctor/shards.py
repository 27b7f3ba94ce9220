"""The set of weights that a loader takes: one file, or shards with their index, and what else lies about.

Fills `case.weights` from the headers themselves wherever these are sound, so that a wrong index hides nothing else. Knows
files and tensor names, no architectures.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from modelyard.errors import YardError
from modelyard.weights.checkpoint import Checkpoint
from modelyard.weights.doctor.findings import from_error, make, some
from modelyard.weights.files import check_name, show_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding

__all__ = ["SHARD", "examine_set"]

SHARD = re.compile(r"(?P<stem>.+?)(\.(?P<variant>\w+))?-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
"""A shard's name: `model-00001-of-00002.safetensors`, or of a variant `model.fp16-00001-of-00002.safetensors`."""

_FETCH = "fetch the missing files again"


def examine_set(case: Case) -> Iterator[Finding]:
    """Find the weights; which files are missing, which are too many, and whether the index tells the truth."""
    single, index = f"{case.stem}.safetensors", f"{case.stem}.safetensors.index.json"
    there = {name for name in case.names if name.endswith(".safetensors") and "/" not in name}
    shards = {name for name in there if (found := SHARD.fullmatch(name)) and found["stem"] == case.stem}
    plain = {name for name in shards if not _variant(name)}
    sets: list[set[str]] = []
    if single in there:
        sets.append({single})
        _take(case, {single}, None)
    if index in case.names and index not in case.broken:
        first = not sets
        named = yield from _indexed(case, index, there, wanted=first)
        sets.append(named)
    elif plain and index not in case.names:
        if not sets:
            yield from _without_index(case, plain, index)
        sets.append(plain)
    if not sets and index not in case.names:
        yield from _misnamed(case, there, single)
        return
    used = set().union(*sets)
    others = _alternatives(case, there - used)
    sets += others
    if len(sets) > 1:
        listed = " and ".join(some(sorted(group)) for group in sets)
        what = f"there is more than one set of weights; a loader takes {some(sorted(sets[0]))} of {listed}"
        yield make("two_weight_sets", what, case.mend)
    stray = there - set().union(*sets)
    if stray:
        what = f"no index and no loader names these weight files: {some(sorted(stray))}"
        yield make("stray_weights", what, case.mend)


def _take(case: Case, names: set[str], index: str | None) -> None:
    """Make these files the weights, if each of them is sound."""
    if names and names <= case.headers.keys():
        shards = {name: case.headers[name] for name in sorted(names)}
        home = {tensor: name for name, header in shards.items() for tensor in header.tensors}
        case.weights = Checkpoint(case.files, index, shards, home)


def _indexed(case: Case, index: str, there: set[str], *, wanted: bool) -> Generator[Finding, None, set[str]]:
    """The index against its shards; gives the files that it names. `wanted`: nothing comes before it."""
    label = f"{case.files.label}/{index}"
    loaded = case.json(index)
    weight_map = loaded.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        yield make("bad_index", f"`{label}` has no `weight_map` from tensor to file", case.mend)
        plain = {name for name in there if SHARD.fullmatch(name)}
        if wanted:
            _take(case, plain, None)
        return plain
    named = set(weight_map.values())
    # A shard that the index forgot, and that its own number puts among the others, is no stray: its tensors are needed.
    counts = {found["count"] for shard in named if (found := SHARD.fullmatch(shard))}
    named |= {
        shard
        for shard in there
        if (found := SHARD.fullmatch(shard))
        and found["stem"] == case.stem
        and not found["variant"]
        and found["count"] in counts
    }
    try:
        for shard in sorted(named):
            check_name(shard, label)
    except YardError as error:
        yield from_error(error)
        return set()
    missing = sorted(named - there)
    if missing:
        lost = sum(shard in missing for shard in weight_map.values())
        what = f"`{label}` names shards that are not there: {some(missing)}, with {lost} of {len(weight_map)} tensors"
        yield make("missing_shard", what, _FETCH)
    if named & case.broken or missing:
        return named & there
    yield from _disagreements(case, label, weight_map, named)
    if wanted:
        _take(case, named, index)
    yield from _total(case, index, loaded, named)
    return named


def _disagreements(case: Case, label: str, weight_map: Mapping[str, str], named: set[str]) -> Iterator[Finding]:
    counted = Counter(tensor for shard in named for tensor in case.headers[shard].tensors)
    twice = sorted(tensor for tensor, count in counted.items() if count > 1)
    if twice:
        what = f"{len(twice)} tensors are in more than one shard, and it is anyone's guess which counts: {some(twice)}"
        yield make("duplicate_tensor", what, "save the model again from the process that trained it")
    wrong = sorted(tensor for tensor, shard in weight_map.items() if tensor not in case.headers[shard].tensors)
    absent = [tensor for tensor in wrong if tensor not in counted]
    moved = [tensor for tensor in wrong if tensor in counted]
    unnamed = sorted(set(counted) - set(weight_map))
    parts = []
    if moved:
        where = next(shard for shard in sorted(named) if moved[0] in case.headers[shard].tensors)
        first = f"`{show_name(moved[0])}` is in `{where}` and not in `{show_name(weight_map[moved[0]])}`"
        parts.append(f"{len(moved)} tensors are in another shard than it says ({first})")
    if absent:
        parts.append(f"{len(absent)} tensors are in no shard ({some(absent)})")
    if unnamed:
        parts.append(f"{len(unnamed)} tensors of its shards are not in it ({some(unnamed)})")
    if parts:
        yield make("index_mismatch", f"`{label}` does not agree with its shards: {'; '.join(parts)}", case.mend)


def _total(case: Case, index: str, loaded: Mapping[str, object], named: set[str]) -> Iterator[Finding]:
    metadata = loaded.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(info.end - info.start for shard in named for info in case.headers[shard].tensors.values())
    if said is not None and said != total:
        what = f"`{index}` says {said!r} bytes in all, and the shards hold {total}; tools show the wrong size"
        yield make("total_size", what, case.mend)


def _without_index(case: Case, plain: set[str], index: str) -> Iterator[Finding]:
    counts = {int(found["count"]) for name in plain if (found := SHARD.fullmatch(name))}
    numbers = {int(found["number"]) for name in plain if (found := SHARD.fullmatch(name))}
    whole = len(counts) == 1 and numbers == set(range(1, max(counts) + 1))
    if not whole:
        lacking = sorted(set(range(1, max(counts) + 1)) - numbers)
        what = f"there are shards and no `{index}`, and of {max(counts)} shards these are missing: {lacking}"
        yield make("missing_shard", what, _FETCH)
        return
    what = f"there are {len(plain)} shards and no `{index}`, without which no loader finds them"
    yield make("missing_index", what, case.mend)
    _take(case, plain, None)


def _misnamed(case: Case, there: set[str], single: str) -> Iterator[Finding]:
    """No weights under a name that a loader looks for."""
    if case.broken & there:
        return
    adapters = case.kind == "adapter"
    config = "adapter_config.json" if adapters else "config.json"
    whole = [name for name in sorted(there) if not SHARD.fullmatch(name)]
    if len(whole) == 1 and config in case.names:
        what = f"the weights are in `{show_name(whole[0])}`, and loaders look for `{single}`"
        yield make("misnamed_weights", what, case.mend)
        _take(case, {whole[0]}, None)
        return
    if any(content in {"gguf", "pickle", "hdf5", "msgpack", "onnx", "tflite"} for content in case.contents.values()):
        return
    if any(name in case.broken and case.contents.get(name) == "safetensors" for name in case.names):
        return
    missing = [] if config in case.names else [f"no {config}"]
    missing.append(f"no weights ({single})" if adapters else "no weights (*.safetensors)")
    listed = some(sorted(case.names)) or "nothing"
    what = f"`{case.files.label}` is not a model: it has {' and '.join(missing)} (there is: {listed})"
    yield make("not_a_model", what, "give the folder that `save_pretrained` wrote")


def _alternatives(case: Case, left: set[str]) -> list[set[str]]:
    """Other whole sets among what no index names: variants (`model.fp16.safetensors`) and `consolidated` files."""
    groups: dict[str, set[str]] = {}
    for name in left:
        variant = _variant(name)
        if variant and name.startswith(case.stem):
            groups.setdefault(variant, set()).add(name)
        elif name.startswith("consolidated"):
            groups.setdefault("consolidated", set()).add(name)
    return [groups[key] for key in sorted(groups)]


def _variant(name: str) -> str | None:
    """`fp16` of `model.fp16.safetensors` and of its shards; None for a plain name."""
    shard = SHARD.fullmatch(name)
    if shard:
        return shard["variant"]
    parts = name.split(".")
    return parts[1] if len(parts) == 3 else None
