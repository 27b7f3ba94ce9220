"""`merge`: base and adapter become one model folder, exactly or as PEFT does. Plans, calls an engine, and writes what is not weights.

Works on files and needs no live model; only `check` loads any. The folder appears whole or not at all, an interrupted merge goes on where it was,
and the same inputs give the same bytes. Knows files; what a change does to a tensor is the engines' matter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import ModelError, RequestError
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import FILE, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.merge.exact import MERGE_BLOCK, merge_exact
from modelyard.weights.merge.plan import plan_adapter
from modelyard.weights.merge.quantized import (
    check_choice,
    check_original,
    open_dequantized,
    plain_config,
    quantization_of,
)
from modelyard.weights.output import copy_file, format_json, hash_file, key_of, resumable_folder, write_file
from modelyard.weights.shards import TensorSpec, write_index

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelyard.weights.files import Files
    from modelyard.weights.merge.plan import Plan
    from modelyard.weights.output import Work

    Mode = Literal["exact", "peft"]
    Quantized = Literal["dequantized", "original"]
    Progress = Callable[[int, int], None]

__all__ = ["MODES", "merge", "merge_lora"]

MODES = ("exact", "peft")
_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"


def merge(
    base: Files,
    adapter: Files,
    out: Path,
    *,
    mode: Mode = "exact",
    quantized: Quantized | None = None,
    original: Files | None = None,
    check: bool | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
    block_elements: int = MERGE_BLOCK,
) -> Certificate:
    """Write base + adapter as a new model folder, and return the certificate, which is in the folder too.

    Every kind of LoRA that PEFT 0.21 writes and that is a change of weights: linear layers, `Conv1D`, convolutions, embeddings, experts, DoRA,
    biases, modules saved whole, trained tokens, tied embeddings, heads that the base lacks. What is refused is refused before anything is written.

    Args:
        base: The base model: safetensors, sharded or not, and its `config.json`.
        adapter: A PEFT adapter: `adapter_model.safetensors` and `adapter_config.json`.
        out: A folder that does not exist yet; it appears whole, or not at all.
        mode: `exact`: the operations of docs/design/derivations.md, the same bits on every machine. `peft`: the bits that PEFT's
            `merge_and_unload` gives on this machine.
        quantized: For a quantized base: merge into what it dequantizes to, or into `original`.
        original: The weights that the base was quantized from.
        check: Measure the merged model against the base with the adapter attached; loads both, one after the other.
        progress: Called with (bytes done, bytes in all) of the base's weights.
        threads: Compute threads; None is every core that this process may use. In mode `exact` it cannot change a bit.
        block_elements: How many elements mode `exact` works on at once; cannot change a bit.

    Raises:
        ModelError: The base or the adapter is unsafe, broken or refused (see `plan.plan_adapter`); `nan_result` or `infinite_result`, naming
            the tensor, when the result is not finite numbers.
        RequestError: A mode that there is not, or an answer about quantization that makes no sense.
        ConflictError: `out` exists.
        BusyError: Another process makes this very folder.
        NoSpaceError: The disk is full.
    """
    if mode not in MODES:
        raise RequestError(f"no mode `{mode}`", hint=f"one of {', '.join(MODES)}", field="mode")
    asked = _Request(base, adapter, out, mode, quantized, original, bool(check), progress, threads, block_elements)
    return _run(asked, write_certificate=True)


def merge_lora(
    base: Files,
    adapter: Files,
    out: Path,
    *,
    progress: Progress | None = None,
    block_elements: int = MERGE_BLOCK,
    threads: int | None = None,
) -> Certificate:
    """`merge` in mode `exact`, whose certificate is returned and not written into the folder.

    Raises:
        ModelError, ConflictError, BusyError, NoSpaceError: As `merge`.
    """
    asked = _Request(base, adapter, out, "exact", None, None, False, progress, threads, block_elements)
    return _run(asked, write_certificate=False)


@dataclass(frozen=True)
class _Request:
    """What `merge` was asked for."""

    base: Files
    adapter: Files
    out: Path
    mode: Mode
    quantized: Quantized | None
    original: Files | None
    check: bool
    progress: Progress | None
    threads: int | None
    block_elements: int

    @property
    def options(self) -> dict[str, Any]:
        """What the result follows from, beside the files."""
        made: dict[str, Any] = {"mode": self.mode}
        return made | ({"quantized": self.quantized} if self.quantized else {})

    def key(self) -> str:
        """See `output.key_of`; in mode `peft` the number of threads counts, since it is part of the bits."""
        counted = self.options | ({"threads": self.threads} if self.mode == "peft" else {})
        return key_of("merge", counted, self.base, self.adapter, *([self.original] if self.original else []))


def _run(asked: _Request, *, write_certificate: bool) -> Certificate:
    check_weights(asked.base)
    check_weights(asked.adapter)
    check_choice(asked.base, asked.quantized, asked.original)
    base, config = _open_base(asked)
    adapter = open_checkpoint(asked.adapter, "adapter_model")
    plan = plan_adapter(base, adapter, config)
    with resumable_folder(asked.out, asked.key()) as work:
        made = _merge_weights(asked, plan, base, adapter, work)
        made.options |= asked.options
        if asked.quantized == "dequantized" and made.exactness != THIS_MACHINE:
            made.exactness, made.machine = THIS_MACHINE, describe_machine("torch", "bitsandbytes", "torchao")
        _digest_inputs(made, asked, adapter)
        made.outputs |= _Rest(plan, base, config, work.folder).write(carried_files(base.files, asked.adapter))
        if asked.check:
            _check(made, asked, work)
        if write_certificate:
            made.write(work.folder)
    return made


def _open_base(asked: _Request) -> tuple[Checkpoint, dict[str, Any]]:
    """The weights that are merged into, and their configuration."""
    if asked.quantized == "dequantized":
        return open_dequantized(asked.base), plain_config(asked.base)
    source = asked.base if asked.original is None else asked.original
    if asked.original is not None:
        check_weights(source)
    base = open_checkpoint(source)
    if asked.original is not None:
        check_original(asked.base, base)
    return base, read_json(source, _CONFIG) if _CONFIG in source.names() else {}


def _merge_weights(asked: _Request, plan: Plan, base: Checkpoint, adapter: Checkpoint, work: Work) -> Certificate:
    if asked.mode == "exact":
        return merge_exact(
            plan,
            base,
            adapter,
            work,
            progress=asked.progress,
            threads=asked.threads,
            block_elements=asked.block_elements,
        )
    from modelyard.weights.merge.peft import merge_peft

    return merge_peft(plan, base, adapter, work, progress=asked.progress, threads=asked.threads)


def _digest_inputs(made: Certificate, asked: _Request, adapter: Checkpoint) -> None:
    names = [*sorted(adapter.shards), _ADAPTER]
    made.inputs["adapter"] = {name: str(hash_file(asked.adapter.path(name))) for name in names}
    if asked.quantized == "dequantized":
        # What the engine hashed are the numbers as it read them; what is on disk is what people have.
        made.inputs["base"] = {name: str(hash_file(asked.base.path(name))) for name in sorted(_shards_of(asked.base))}


def _shards_of(files: Files) -> list[str]:
    """The files that hold a model's weights."""
    return list(open_checkpoint(files).shards)


@dataclass(frozen=True)
class _Rest:
    """What a merged folder has beside its weights: the index, the configuration, and everything that goes along with a model."""

    plan: Plan
    base: Checkpoint
    config: Mapping[str, Any]
    folder: Path

    def write(self, carried: Mapping[str, Files]) -> dict[str, str]:
        """Write all of it, and give each file's digest. What an interrupted run left of it is replaced."""
        made: dict[str, str] = {}
        index = self.base.index
        for name in [*carried, *([index] if index else []), FILE]:
            (self.folder / name).unlink(missing_ok=True)
        if index is not None and (self.plan.added or quantization_of(self.base.files)):
            made[index] = str(write_index(self.folder, self._layout(), _index_metadata(self.base)))
        elif index is not None:
            made[index] = str(copy_file(self.base.files, index, self.folder))
        for name, source in carried.items():
            if name == _CONFIG and (self.plan.config or "quantization_config" in read_json(source, name)):
                made[name] = str(write_file(self.folder / name, _changed(self.config, self.plan.config)))
            else:
                made[name] = str(copy_file(source, name, self.folder))
        return made

    def _layout(self) -> dict[str, list[TensorSpec]]:
        """Which file has which tensors: the base's, and in the last one what was added."""
        made = {
            shard: [TensorSpec(name, info.dtype, info.shape) for name, info in header.in_file_order()]
            for shard, header in self.base.shards.items()
        }
        made[list(made)[-1]] += [TensorSpec(name, added.dtype, added.shape) for name, added in self.plan.added.items()]
        return made


def _index_metadata(base: Checkpoint) -> dict[str, Any]:
    found = read_json(base.files, str(base.index)).get("metadata")
    return {key: value for key, value in found.items() if key != "total_parameters"} if isinstance(found, dict) else {}


def _changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> bytes:
    """The configuration with some values changed; a dotted key is one of a part."""
    made: dict[str, Any] = json.loads(json.dumps(config))
    for key, value in values.items():
        *parts, last = key.split(".")
        place = made
        for part in parts:
            place = place[part]
        place[last] = value
    return format_json(made)


def _check(made: Certificate, asked: _Request, work: Work) -> None:
    """Measure the folder as it is against base and adapter; what cannot be attached or measured is said and not an error."""
    from modelyard.weights.files import FolderFiles
    from modelyard.weights.merge.answers import compare_answers
    from modelyard.weights.merge.proof import prove

    try:
        if asked.quantized is None:
            checks = prove(asked.base, asked.adapter, FolderFiles(work.folder), threads=asked.threads)
        else:
            checks = compare_answers(
                asked.base,
                asked.adapter,
                work.folder,
                chosen=asked.quantized,
                original=asked.original,
                mode=asked.mode,
                threads=asked.threads,
            )
    except ModelError as error:
        made.warnings.append(f"the merged model was not measured: {error.message}")
        return
    made.checks = [check.to_dict() for check in checks]
    made.warnings += [
        f"`{check.name}` differs from the adapter attached by {check.max_difference:.3g} on a scale of {check.scale:.3g}"
        for check in checks
        if not check.holds
    ]
