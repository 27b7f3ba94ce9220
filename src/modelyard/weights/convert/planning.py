"""What `rewrite` would do to each tensor, from headers and configuration alone: dtype, file, and where its bytes come from.

Knows names, dtypes and shapes; reads no tensor and writes nothing.
"""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.derivations import STORAGE
from modelyard.errors import InputError, ModelError, near_match
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.files import show_name
from modelyard.weights.shards import TensorSpec, parse_size, plan_shards

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelyard.weights.convert.layouts import Group, Layout
    from modelyard.weights.files import Files

__all__ = ["DTYPES", "KEEP", "Asked", "RewritePlan", "TensorPlan", "make_plan"]

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What a cast takes, and what safetensors calls it."""

KEEP = "keep"
"""The dtype of a pattern whose tensors stay as they are."""

_NO_OPERATION = frozenset({"F64"})


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the result.

    Attributes:
        name, shape: Of the tensor as it will be.
        file: Where it will be.
        before, after: Its dtype, as safetensors calls it.
        operation: `copy`, `cast/1`, or what the layout does first: `rename`, `join`, `cut` or `turn`, with `+ cast/1` where both happen.
        size: Its bytes, afterwards.
        sources: The tensors of the source that it is made of.
    """

    name: str
    shape: tuple[int, ...]
    file: str
    before: str
    after: str
    operation: str
    size: int
    sources: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self) | {"shape": list(self.shape), "sources": list(self.sources)}


@dataclass(frozen=True)
class Asked:
    """What `rewrite` was asked for; its fields are that function's arguments."""

    dtype: str | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    shard_size: int | str | None = None
    names: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What was asked, as plain JSON: what was left out is not there."""
        plain = {"dtype": self.dtype, "dtypes": dict(self.dtypes), "shard_size": self.shard_size, "names": self.names}
        return {key: value for key, value in plain.items() if value}


@dataclass(frozen=True)
class RewritePlan:
    """The whole of it.

    Attributes:
        weights: The source.
        tensors: Every tensor of the result, in the order in which it is written.
        groups: Name of a tensor that is not simply copied or renamed, to the group that it is made with.
        renamed: Name in the source to the names that it became (or became part of).
        warnings: What people should know.
        metadata: What the new files' headers say beside what the source's said.
    """

    weights: Checkpoint
    tensors: list[TensorPlan]
    groups: dict[str, Group] = field(default_factory=dict)
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, list[TensorPlan]]:
        """File name to its tensors, in order."""
        made: dict[str, list[TensorPlan]] = {}
        for tensor in self.tensors:
            made.setdefault(tensor.file, []).append(tensor)
        return made


def make_plan(source: Files, asked: Asked) -> RewritePlan:
    """Check everything that can be checked without reading a tensor, and say what is to be done.

    Raises:
        InputError: `unknown_dtype`, `bad_size`, `bad_names`, or `unmatched_pattern`: a pattern that fits no tensor.
        ModelError: As `rewriting.rewrite`.
    """
    for dtype in (asked.dtype, *asked.dtypes.values()):
        _check_dtype(dtype, keep=dtype is not asked.dtype)
    size = None if asked.shard_size is None else parse_size(asked.shard_size)
    check_weights(source)
    adapter = "adapter_config.json" in source.names()
    weights = open_checkpoint(source, "adapter_model" if adapter else "model")
    _refuse_quantized(source, asked)
    layout = _layout(weights, asked, adapter=adapter)
    specs, made_of, renamed = _results(weights, None if layout is None else layout.groups)
    after = _dtypes_after(specs, asked)
    placed = _place(weights, [TensorSpec(s.name, after[s.name], s.shape) for s in specs], size, asked, adapter=adapter)
    tensors = [
        TensorPlan(
            spec.name, spec.shape, placed[spec.name], spec.dtype, after[spec.name],
            _operation(made_of.get(spec.name), spec.dtype != after[spec.name]),
            TensorSpec(spec.name, after[spec.name], spec.shape).size,
            made_of[spec.name].sources if spec.name in made_of else (spec.name,),
        )
        for spec in specs
    ]  # fmt: skip
    joined = {name: group for name, group in made_of.items() if group.operation != "rename"}
    if layout is None:
        return RewritePlan(weights, tensors)
    return RewritePlan(weights, tensors, joined, renamed, layout.warnings, layout.metadata)


def _layout(weights: Checkpoint, asked: Asked, *, adapter: bool) -> Layout | None:
    if asked.names is None:
        return None
    if asked.names not in {"disk", "module"}:
        raise InputError(f"no layout of names `{asked.names}`", code="bad_names", hint="known: disk, module")
    if adapter:
        raise ModelError(
            f"`{weights.files.label}` is an adapter: its tensors have PEFT's names, which follow the module's",
            code="adapter_names",
            hint="give the base model",
        )
    from modelyard.weights.convert.layouts import plan_layout

    return plan_layout(weights, asked.names)


def _results(
    weights: Checkpoint, groups: list[Group] | None
) -> tuple[list[TensorSpec], dict[str, Group], dict[str, tuple[str, ...]]]:
    """The tensors of the result before any cast, what each is made with, and what became of each name."""
    if groups is None:
        specs = [
            TensorSpec(name, info.dtype, info.shape)
            for header in weights.shards.values()
            for name, info in header.in_file_order()
        ]
        return specs, {}, {}
    made_of = {spec.name: group for group in groups for spec in group.results if group.operation != "copy"}
    renamed = {name: tuple(spec.name for spec in group.results) for group in groups for name in group.sources}
    return [spec for group in groups for spec in group.results], made_of, renamed


def _dtypes_after(specs: Iterable[TensorSpec], asked: Asked) -> dict[str, str]:
    """Name to the dtype that it will have. Integers and 8-bit formats stay as they are."""
    made: dict[str, str] = {}
    fitting: dict[str, list[TensorSpec]] = {pattern: [] for pattern in asked.dtypes}
    for spec in specs:
        pattern = next((each for each in asked.dtypes if fnmatch.fnmatchcase(spec.name, each)), None)
        if pattern is not None:
            fitting[pattern].append(spec)
        dtype = asked.dtype if pattern is None else asked.dtypes[pattern]
        wanted = dtype not in {None, KEEP}
        if wanted and spec.dtype in _NO_OPERATION:
            raise _unsupported(spec)
        made[spec.name] = DTYPES[str(dtype)] if wanted and spec.dtype in STORAGE else spec.dtype
    for pattern, fit in fitting.items():
        if not fit and not any(fnmatch.fnmatchcase(name, pattern) for name in made):
            meant = near_match(pattern, made)
            raise InputError(
                f"no tensor fits the pattern `{show_name(pattern)}`",
                code="unmatched_pattern",
                hint=f"did you mean `{meant}`?" if meant else "patterns are globs on whole names: *.mlp.*",
            )
        if fit and asked.dtypes[pattern] != KEEP and not any(spec.dtype in STORAGE for spec in fit):
            raise _unsupported(fit[0])
    return made


def _place(
    weights: Checkpoint, specs: list[TensorSpec], size: int | None, asked: Asked, *, adapter: bool
) -> dict[str, str]:
    """Tensor name to file: the source's own where neither size nor names were asked for."""
    if size is None and asked.names is None:
        return {spec.name: weights.home[spec.name] for spec in specs}
    if size is None and weights.index is not None:
        size = max(sum(info.end - info.start for info in header.tensors.values()) for header in weights.shards.values())
    plan = plan_shards(specs, size, "adapter_model" if adapter else "model")
    if adapter and len(plan) > 1:
        raise ModelError(
            f"`{weights.files.label}` is an adapter: PEFT reads its tensors from one file", code="adapter_shards"
        )
    return {spec.name: file for file, held in plan.items() for spec in held}


def _operation(group: Group | None, cast: bool) -> str:  # a private table of four
    first = group.operation if group is not None else "copy"
    if not cast:
        return first
    return "cast/1" if first == "copy" else f"{first} + cast/1"


def _refuse_quantized(source: Files, asked: Asked) -> None:
    """A quantized model's scales say what its weights mean: casting or renaming them as if they were weights breaks it."""
    if "config.json" not in source.names() or not (asked.dtype or asked.names):
        return
    config = read_json(source, "config.json").get("quantization_config")
    if not config:
        return
    method = config.get("quant_method") if isinstance(config, dict) else None
    what = "cast" if asked.dtype else "renamed"
    raise ModelError(
        f"`{source.label}` is quantized ({show_name(str(method))}), and its scales cannot be {what} like weights",
        code="quantized_source",
        hint="convert the model it was quantized from, or name the tensors to cast: --dtype-of 'PATTERN=bfloat16'",
    )


def _check_dtype(dtype: str | None, *, keep: bool) -> None:
    if dtype is None or dtype in DTYPES or (keep and dtype == KEEP):
        return
    meant = near_match(dtype, DTYPES)
    hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(DTYPES)}"
    raise InputError(f"no dtype `{dtype}`", code="unknown_dtype", hint=hint)


def _unsupported(spec: TensorSpec) -> ModelError:
    return ModelError(
        f"`{show_name(spec.name)}` is {spec.dtype}, and cast/1 takes F32, F16 and BF16",
        code="unsupported_dtype",
        hint=f"leave it as it is: --dtype-of '{show_name(spec.name)}={KEEP}'",
    )
