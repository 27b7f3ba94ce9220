"""`to_gguf`: a model folder as one .gguf file, tensor by tensor.

Rows are read, cast or made into blocks, and written, a few MiB at a time; a tensor whose rows or columns move (queries and keys of Llama, GPT-2's
matrices) is held whole, twice at most. No model is built. The file is hashed as it is written. Knows tensors, metadata and files; what an
architecture changes is data of `families`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.errors import ModelError
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.convert.gguf.families import find_family
from modelyard.weights.convert.gguf.hyperparameters import check_depth, describe, load_settings
from modelyard.weights.convert.gguf.layout import Placed, check_type, plan_layout
from modelyard.weights.convert.gguf.values import apply_change, from_blocks, recast, to_blocks, undo_change, widened
from modelyard.weights.convert.gguf.vocabulary import describe_tokenizer
from modelyard.weights.files import Files, FolderFiles
from modelyard.weights.output import HashingWriter, copy_file, hash_file, key_of, resumable_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.convert.gguf.families import Family
    from modelyard.weights.convert.gguf.layout import Layout
    from modelyard.weights.convert.gguf.vocabulary import Vocabulary
    from modelyard.weights.output import Work

__all__ = ["CONFIG_KEY", "DTYPES_KEY", "FILE", "GENERATION_KEY", "ORIGINAL_KEY", "SCRATCH", "to_gguf"]

FILE = "model.gguf"
"""The file's name in the folder that `to_gguf` writes."""

CONFIG_KEY, GENERATION_KEY = "modelyard.config", "modelyard.generation_config"
SCRATCH = ".check-"
DTYPES_KEY, ORIGINAL_KEY = "modelyard.dtypes", "modelyard.original."

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama.cpp's `llama_ftype`
_ELEMENTS = 1 << 18
_ALIGNMENT = 32
_POOLINGS = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_LEGAL = ("license", "licence", "notice", "copying", "use_policy")


def to_gguf(
    source: Files | Path | str,
    out: Path | str,
    *,
    type: str = "F16",  # noqa: A002  the format's own word, and the option's name everywhere
    name: str | None = None,
    check: bool = False,
    tolerance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Write a model as `out/model.gguf`, with its licence and `certificate.json` beside it; the rest of it is inside the file.

    Matrices get `type`, vectors stay F32. In the file, beside what llama.cpp reads, are the model's config.json, generation_config.json and
    tokenizer.json, from which `from_gguf` gives back the very model.

    Args:
        source: A model of transformers: safetensors, config.json, tokenizer. Weights F32, F16 or BF16.
        out: A folder that does not exist yet.
        type: `F16`, `F32`, `BF16`, `Q8_0` or `Q4_0`. Of Q4_0, the head (or the embedding that is also the head) is Q8_0; rows that do not fill
            blocks of 32 are F16.
        name: `general.name`; by default what the source is called.
        check: Load the file back and compare what it computes with the source, on fixed inputs, before anything appears at `out`; the
            certificate then is that of an export.
        tolerance: Of that comparison, relative to the largest logit; None is the type's own (`checking.TOLERANCES`).
        progress: Called with (bytes done, bytes in all) of the source's weights.

    Returns:
        The certificate: which tensors were changed and how, what llama.cpp will do otherwise (`warnings`), and the checks.

    Raises:
        RequestError: `unknown_type`.
        ModelError: `unknown_architecture` (it lists those that are there), `unsupported_option`, `unsupported_tokenizer`, `unexpected_tensors`,
            `missing_tensors`, `unsupported_dtype`, `nan_result`, `infinite_result`; `export_differs` when a check fails.
        ConflictError, BusyError, NoSpaceError: As `resumable_folder`.
    """
    check_type(type)
    files = source if isinstance(source, Files) else FolderFiles(source)
    check_weights(files)
    weights = open_checkpoint(files)
    plain, config, family = _read_model(files, len(weights.home))
    layout = plan_layout(weights, config, family, type)
    if layout.head:
        config.architectures = plain["architectures"] = [family.classes[config.model_type][0]]
    keys, factors, warnings = describe(config, family, pooling=_find_pooling(files))
    rows = next(each.shape[0] for each in layout.tensors if each.name == "token_embd.weight")
    vocabulary = describe_tokenizer(files, rows)
    warnings += layout.warnings
    warnings += vocabulary.warnings if vocabulary else ["it has no tokenizer: programs can only give it token ids"]
    exact = type not in {"Q8_0", "Q4_0"}
    options = {"type": type, "name": name, "check": check, "tolerance": tolerance}
    made = Certificate(
        "export" if check else "convert",
        f"gguf {type}",
        options={"type": type, "architecture": family.arch, "model_type": config.model_type},
        exactness=EVERYWHERE if exact else THIS_MACHINE,
        inputs={"source": {each: str(hash_file(files.path(each))) for each in _read_names(files, weights)}},
        matched={"tensors": len(layout.tensors), "left_out": len(layout.left_out)},
        warnings=warnings,
        machine=None if exact else describe_machine("gguf"),
    )
    with resumable_folder(Path(out), key_of("to_gguf", options, files)) as work:
        note = work.finished(FILE)
        if note is None:
            head = _Head(family, _name(name or files.label, vocabulary), type)
            head.add(f"{family.arch}.", keys)
            head.add("", vocabulary.keys if vocabulary else {"tokenizer.ggml.model": ("str", "none")})
            if family.arch == "bert":
                head.add("tokenizer.ggml.", {"token_type_count": ("u32", int(config.type_vocab_size))})
            head.add("", _carried(files, plain, layout))
            note = _write(work, head, weights, layout, factors=factors, progress=progress)
        made.changes = note["changes"]
        made.outputs[FILE] = str(work.digest(FILE))
        for each, home in _legal_files(files).items():
            made.outputs[each] = (
                str(copy_file(home, each, work.folder)) if work.finished(each) is None else str(work.digest(each))
            )
        if check:
            for left in work.folder.glob(f"{SCRATCH}*"):
                shutil.rmtree(left)  # of a run that was killed while it checked
            from modelyard.weights.convert.gguf.checking import check_gguf, refuse_failing

            found = check_gguf(files, work.folder / FILE, tolerance=tolerance)
            made.checks = [each.to_dict() for each in found]
            refuse_failing(found, files.label)
        made.write(work.folder)
    return made


def _read_model(files: Files, tensors: int) -> tuple[dict[str, Any], Any, Family]:
    """config.json as it is and as transformers reads it, and the family."""
    plain = read_json(files, "config.json")
    family = find_family(files.label, model_type=plain.get("model_type"))
    if plain.get("quantization_config"):
        raise ModelError(
            f"`{files.label}` is quantized already",
            code="unsupported_dtype",
            hint="give the model that it was made from",
        )
    known = family.classes[plain["model_type"]]
    named = plain.get("architectures") or [known[0]]
    if named[0] not in known:
        raise ModelError(
            f"`{files.label}` is a `{named[0]}`, which has no GGUF form",
            code="unknown_architecture",
            hint=f"of this model type there are: {', '.join(known)}",
            supported=list(known),
        )
    check_depth(plain, tensors, files.label)
    return plain, load_settings(plain, files.label), family


def _name(label: str, vocabulary: Vocabulary | None) -> str:
    """The last part of where the model is, or a plain word where readers take the name for more.

    llama.cpp looks these tokens up in whatever is called `phi-3`, and transformers takes a `mistral` for an architecture that it then does not know.
    """
    name = label.rstrip("/").rpartition("/")[2]
    tokens = set(vocabulary.keys["tokenizer.ggml.tokens"][1]) if vocabulary else set()
    misled = any(word in name.lower() for word in ("phi-3", "phi3"))
    return (
        "model"
        if name in {"", "mistral"} or (misled and not {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= tokens)
        else name
    )


def _find_pooling(files: Files) -> int | None:
    """How sentence-transformers makes one vector of an encoder's tokens, where its files say so."""
    said = read_json(files, "1_Pooling/config.json") if "1_Pooling/config.json" in files.names() else {}
    return next((number for key, number in _POOLINGS.items() if said.get(key)), None)


def _read_names(files: Files, weights: Checkpoint) -> list[str]:
    kept = {*weights.shards, *carried_files(files, files)}
    return [name for name in files.names() if name in kept]


def _legal_files(files: Files) -> dict[str, Files]:
    carried = carried_files(files, files)
    return {name: home for name, home in carried.items() if name.rpartition("/")[2].lower().startswith(_LEGAL)}


def _carried(files: Files, plain: dict[str, Any], layout: Layout) -> dict[str, tuple[str, Any]]:
    """What no key of llama.cpp holds, under keys of ours that other programs pass over."""
    kept = {key: value for key, value in plain.items() if not key.startswith("_name")}
    keys: dict[str, tuple[str, Any]] = {CONFIG_KEY: ("str", _json(kept))}
    if "generation_config.json" in files.names():
        keys[GENERATION_KEY] = ("str", _json(read_json(files, "generation_config.json")))
    counts: dict[str, int] = {}
    for each in layout.tensors:
        counts[each.dtype] = counts.get(each.dtype, 0) + each.size
    most = max(counts, key=lambda dtype: counts[dtype])
    keys[DTYPES_KEY] = (
        "str",
        _json({"*": most} | {each.name: each.dtype for each in layout.tensors if each.dtype != most}),
    )
    return keys


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Head:
    """The file's metadata, gathered and then encoded by the `gguf` package."""

    def __init__(self, family: Family, name: str, kind: str) -> None:
        import gguf

        writer: Any = gguf.GGUFWriter
        self._types: Any = gguf.GGMLQuantizationType
        self._writer = writer(None, family.arch)
        self._writer.add_type("model")
        self._writer.add_name(name)
        self._writer.add_file_type(_FILE_TYPES[kind])
        if kind in {"Q8_0", "Q4_0"}:
            self._writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    def add(self, prefix: str, keys: dict[str, tuple[str, Any]]) -> None:
        """Keys by their types; an empty array or text is not written, as the format's readers expect."""
        adders = {"u32": "uint32", "f32": "float32", "bool": "bool", "str": "string"}
        for key, (kind, value) in keys.items():
            getattr(self._writer, f"add_{adders.get(kind, 'array')}")(prefix + key, value)

    def add_tensor(self, name: str, shape: tuple[int, ...], kind: str, size: int) -> None:
        """Announce a tensor, in the order in which the bytes will come."""
        self._writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=self._types[kind])

    def encode(self, scratch: Path) -> bytes:
        """Everything before the first tensor's bytes; `scratch` is a file that may be written for a moment."""
        try:
            self._writer.write_header_to_file(scratch)
            self._writer.write_kv_data_to_file()
            self._writer.write_ti_data_to_file()
            self._writer.close()
            data = scratch.read_bytes()
        finally:
            scratch.unlink(missing_ok=True)
        return data + bytes(-len(data) % _ALIGNMENT)


def _write(
    work: Work,
    head: _Head,
    weights: Checkpoint,
    layout: Layout,
    *,
    factors: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """The file itself; its note says what became of each tensor."""
    head.add("", _originals(weights, layout))
    for name, values in factors.items():
        head.add_tensor(name, values.shape, "F32", values.nbytes)
    for each in layout.tensors:
        head.add_tensor(each.name, each.out_shape, each.type, each.size)
    changes: list[dict[str, Any]] = []
    total = sum(info.end - info.start for header in weights.shards.values() for info in header.tensors.values())
    done = 0
    with HashingWriter(work.folder / FILE) as writer:
        writer.write(head.encode(work.folder / "head.gguf"))
        for values in factors.values():
            _append(writer, [values])
        for each in layout.tensors:
            error = _Error()
            _append(writer, _parts(weights, each, error))
            if each.change or each.type != each.dtype:
                changes.append(_describe(each, error))
            info = weights.info(each.source)
            done += info.end - info.start
            if progress is not None:
                progress(done, total)
    note = {"changes": changes}
    work.finish(FILE, writer.digest(), note)
    return note


def _append(writer: HashingWriter, parts: Any) -> None:
    start = writer.size
    for part in parts:
        writer.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    padding = -(writer.size - start) % _ALIGNMENT
    if padding:
        writer.write(bytes(padding))


class _Error:
    """The relative error of blocks: the root of the squares of differences over those of values."""

    def __init__(self) -> None:
        self.squares = self.lost = 0.0

    def add(self, rows: Array, blocks: Array, each: Placed) -> None:
        lost = from_blocks(blocks, each.type, each.name)
        lost -= rows
        self.squares += float(np.vdot(rows, rows))
        self.lost += float(np.vdot(lost, lost))


def _parts(weights: Checkpoint, each: Placed, error: _Error) -> Iterator[Array]:
    """A tensor's bytes in the file, in order."""
    for rows in _rows(weights, each):
        dtype = each.dtype
        values = rows
        if each.change == "plus one":
            values, dtype = apply_change(widened(rows, dtype), each.change), "F32"
        elif each.change:
            values = apply_change(rows, each.change, each.heads)
        if each.type in STORAGE:
            yield recast(values, dtype, each.type, each.source)
            continue
        flat = values.reshape(-1, values.shape[-1])
        step = max(_ELEMENTS // flat.shape[1], 1)
        for start in range(0, len(flat), step):
            wide = widened(flat[start : start + step], dtype)
            blocks = to_blocks(wide, each.type, each.source)
            error.add(wide, blocks, each)
            yield blocks


def _rows(weights: Checkpoint, each: Placed) -> Iterator[Array]:
    """A tensor in pieces of whole rows; in one piece where rows or columns move."""
    if each.change in {"queries", "keys", "transposed"}:
        yield weights.read(each.source)
        return
    info, dtype = weights.info(each.source), STORAGE[each.dtype]
    width = info.shape[-1]
    count = info.elements // width
    step = max(_ELEMENTS // width, 1)
    with weights.open(weights.home[each.source]) as shard:
        for row in range(0, count, step):
            part = np.empty((min(step, count - row), width), dtype)
            shard.read_into(part.reshape(-1).view(np.uint8).data, info.start + row * width * dtype.itemsize)
            yield part


def _originals(weights: Checkpoint, layout: Layout) -> dict[str, tuple[str, Any]]:
    """The bits of norms that a one added and taken away in float32 does not give back: small values lose their last."""
    keys: dict[str, tuple[str, Any]] = {}
    for each in layout.tensors:
        if each.change == "plus one":
            raw = weights.read(each.source)
            there = apply_change(widened(raw, each.dtype), each.change)
            back = recast(undo_change(there, each.change), "F32", each.dtype, each.source)
            if back.tobytes() != raw.tobytes():
                keys[ORIGINAL_KEY + each.name] = ("bytes", raw.tobytes())
    return keys


def _describe(each: Placed, error: _Error) -> dict[str, Any]:
    made: dict[str, Any] = {"tensor": each.source, "name": each.name, "dtype": each.dtype, "type": each.type}
    if each.change:
        made["change"] = each.change
    if error.squares:
        made["relative_error"] = round((error.lost / error.squares) ** 0.5, 5)
    return made
