"""An adapter: its factors by themselves, and against the base that it belongs to. Reads headers; runs no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, YardError
from modelyard.weights.architecture import compare_tensors
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import read_json
from modelyard.weights.doctor.findings import SHOWN, from_error, make, some
from modelyard.weights.doctor.numbers import DTYPES, main_dtype
from modelyard.weights.files import show_name
from modelyard.weights.values import read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding
    from modelyard.weights.files import Files

__all__ = ["BaseIds", "examine_adapter"]

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_AGAIN = "train again, or save the adapter again: model.save_pretrained(FOLDER)"


@dataclass(frozen=True)
class BaseIds:
    """Which version of a yard the base should be (`recorded` in the lineage), and which one was `given`."""

    recorded: str
    given: str


@dataclass(frozen=True)
class _Pair:
    """The two factors of one module, as shapes: A is (rank, in), B is (out, rank)."""

    a: tuple[int, ...] | None
    b: tuple[int, ...] | None
    embedding: bool


def examine_adapter(case: Case, base: Files | None, ids: BaseIds | None) -> Iterator[Finding]:
    """Ranks, pairs and shapes of the factors; with a base also targets, dtypes and whether it is the right one."""
    config = case.json("adapter_config.json")
    if ids is not None and ids.recorded != ids.given:
        what = (
            f"its lineage says that it was fine-tuned on the base {ids.recorded[:12]}, and {ids.given[:12]} was given"
        )
        yield make("base_differs", what, f"yard doctor {case.path} takes the base of the lineage")
    if not config.get("base_model_name_or_path"):
        what = "adapter_config.json does not say which base it belongs to"
        yield make("no_base", what, "set `base_model_name_or_path` in adapter_config.json")
    if case.weights is None:
        return
    pairs = _pairs(case.weights)
    if config.get("peft_type") == "LORA":
        if not pairs:
            yield make("empty_adapter", "it is a LoRA without any LoRA factor", _AGAIN)
        yield from _ranks(config, pairs)
    if base is not None:
        yield from _against_base(case, config, pairs, base)


def _pairs(weights: Checkpoint) -> dict[str, _Pair]:
    found: dict[str, dict[str, Any]] = {}
    for name in weights.home:
        factor = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if factor is not None:
            sides = found.setdefault(factor["module"], {"embedding": factor["embedding"] is not None})
            sides[factor["side"]] = weights.info(name).shape
    return {module: _Pair(sides.get("A"), sides.get("B"), sides["embedding"]) for module, sides in found.items()}


def _ranks(config: Mapping[str, Any], pairs: Mapping[str, _Pair]) -> Iterator[Finding]:
    said = config.get("r", 8)  # as PEFT has it where nothing is said
    if type(said) is not int or said < 1:
        what = f"adapter_config.json has the rank {said!r}; a rank is a whole number from 1"
        yield make("bad_rank", what, "train again with a rank of 8 or 16")
    alone = [module for module, pair in pairs.items() if pair.a is None or pair.b is None]
    if alone:
        yield make("unpaired_factor", f"{len(alone)} modules have one of their two factors only: {some(alone)}", _AGAIN)
    bare = bool(
        config.get("target_parameters")
    )  # experts: their factors hold the ranks of all experts, one after another
    wrong = Counter[str]()
    for module, pair in pairs.items():
        if pair.a is None or pair.b is None or not pair.a or len(pair.b) < 2:
            continue
        rank, into, out = pair.a[0], math.prod(pair.a[1:]), pair.b[0]
        wanted = _pattern(config, module)
        who = f"`{show_name(module)}`"
        code, what = "", ""
        if rank == 0 or pair.b[1] == 0:
            code, what = "bad_rank", f"the factors of {who} have rank 0: {pair.a} and {pair.b}"
        elif pair.b[1] != rank:
            code, what = "rank_mismatch", f"the factors of {who} do not fit one another: {pair.a} and {pair.b}"
        elif bare:
            continue
        elif rank > min(into, out):
            code, what = (
                "bad_rank",
                f"the factors of {who} have rank {rank}, more than its smaller side {min(into, out)}",
            )
        elif type(wanted) is int and wanted != rank:
            code, what = (
                "rank_mismatch",
                f"the factors of {who} have rank {rank}, and adapter_config.json says {wanted}",
            )
        if code:
            wrong[code] += 1
            if wrong[code] <= SHOWN:
                yield make(
                    code, what, _AGAIN if code == "bad_rank" else "correct `r` or `rank_pattern` in adapter_config.json"
                )


def _pattern(config: Mapping[str, Any], module: str) -> Any:
    """The rank that the configuration gives to a module, by PEFT's rule."""
    patterns = config.get("rank_pattern")
    for key, rank in patterns.items() if isinstance(patterns, dict) else ():
        if module == key or module.endswith(f".{key}"):
            return rank
        # A pattern of a stranger: one that could take for ever to match is not matched.
        if (
            len(key) > 200
            or len(module) > 256
            or sum(key.count(sign) for sign in "*+{") > 2
            or re.search(r"\)[*+{]", key)
        ):
            continue
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return rank
        except re.error:
            continue
    return config.get("r")


def _against_base(case: Case, config: Mapping[str, Any], pairs: Mapping[str, _Pair], base: Files) -> Iterator[Finding]:
    try:
        theirs = open_checkpoint(base)
        settings = read_json(base, "config.json")
    except YardError as error:
        yield from_error(error)
        return
    if case.weights is None:
        return
    if not config.get("target_parameters"):
        yield from _targets(config, settings, pairs, theirs)
    own, other = main_dtype(case.weights.shards), main_dtype(theirs.shards)
    if own is not None and other is not None and own != other and not (own == "float32" and other in DTYPES.values()):
        what = f"the adapter's tensors are {own} and its base's are {other}: one is cast when they come together"
        yield make("adapter_dtype", what, f"yard convert BASE --dtype {own} --to ./BASE-{own}")
    yield from _copies(case.weights, theirs)


def _targets(
    config: Mapping[str, Any], settings: Mapping[str, Any], pairs: Mapping[str, _Pair], theirs: Checkpoint
) -> Iterator[Finding]:
    made = {f"{module}.weight": _product(pair, config) for module, pair in pairs.items()}
    shapes = {name: shape for name, shape in made.items() if shape is not None}
    missing: list[str]
    mismatched: list[tuple[str, Sequence[int], Sequence[int]]]
    try:
        compared = compare_tensors(settings, shapes)
        missing, mismatched = list(compared.unexpected), list(compared.mismatched)
    except ModelError:
        missing, mismatched = list(shapes), []  # by the names on disk alone
    # What the base holds under this very name is there, whatever this transformers calls it.
    missing = [name for name in missing if name not in theirs.home]
    if missing:
        modules = [name.removesuffix(".weight") for name in missing]
        what = f"{len(modules)} of {len(pairs)} modules that it changes are not in the base `{theirs.files.label}`: {some(modules)}"
        yield make("target_missing", what, "give the base that it was trained on with --base")
    for name, there, wanted in mismatched[:SHOWN]:
        if tuple(reversed(there)) == tuple(wanted):
            continue  # layers that keep their weight the other way round, as GPT-2's
        what = f"`{show_name(name)}` changes a weight of shape {tuple(there)}, and the base's is {tuple(wanted)}"
        yield make("adapter_shape", what, "give the base that it was trained on with --base")


def _product(pair: _Pair, config: Mapping[str, Any]) -> tuple[int, int] | None:
    if pair.a is None or pair.b is None or len(pair.a) != 2 or len(pair.b) != 2:
        return None
    out, into = pair.b[0], pair.a[1]
    return (into, out) if pair.embedding or config.get("fan_in_fan_out") else (out, into)


def _copies(own: Checkpoint, theirs: Checkpoint) -> Iterator[Finding]:
    """PEFT keeps the base's own embeddings beside a LoRA on them: they tell which base it was."""
    for name in own.home:
        plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if ".base_layer." not in name or plain not in theirs.home:
            continue
        ours, base = own.info(name), theirs.info(plain)
        same = (ours.dtype, ours.shape) == (base.dtype, base.shape)
        if same:
            with own.open(own.home[name]) as one, theirs.open(theirs.home[plain]) as other:
                same = all(
                    bytes(a.data) == bytes(b.data)
                    for a, b in zip(read_blocks(one, ours), read_blocks(other, base), strict=True)
                )
        if not same and ours.dtype == base.dtype:
            what = f"it keeps a copy of its base's `{show_name(plain)}`, which is not what `{theirs.files.label}` has"
            yield make("base_differs", what, "give the base that it was trained on with --base")
            return
