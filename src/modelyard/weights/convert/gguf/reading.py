"""`from_gguf`: a .gguf file as a model folder of transformers, tensor by tensor.

The strict header reader goes first; everything that a file says is checked before it is used. Rows are read a few MiB at a time; a tensor whose
rows or columns move back is held whole, twice at most. Knows tensors, metadata and files; what an architecture changes is data of `families`.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.errors import ModelError, RequestError
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checks import check_weights
from modelyard.weights.convert.gguf.families import find_family
from modelyard.weights.convert.gguf.hyperparameters import check_depth, load_settings, settle
from modelyard.weights.convert.gguf.layout import BLOCKS, missing_tensors
from modelyard.weights.convert.gguf.rotation import FACTORS
from modelyard.weights.convert.gguf.tokenizer_files import rebuild_tokenizer
from modelyard.weights.convert.gguf.values import apply_change, from_blocks, recast, undo_change, widened
from modelyard.weights.convert.gguf.writing import CONFIG_KEY, DTYPES_KEY, GENERATION_KEY, ORIGINAL_KEY
from modelyard.weights.files import FolderFiles, SingleFile, check_name, show_name
from modelyard.weights.gguf import GgufHeader, GgufTensor, read_gguf
from modelyard.weights.headers import open_regular
from modelyard.weights.loading.translate import first_line
from modelyard.weights.output import hash_file, key_of, resumable_folder, write_file
from modelyard.weights.shards import ShardWriter, TensorSpec, parse_size, plan_shards, write_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from modelyard.derivations.numbers import Array
    from modelyard.weights.convert.gguf.families import Family
    from modelyard.weights.output import Work

__all__ = ["from_gguf", "read_config"]

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_NAMES = {short: name for name, short in _DTYPES.items()}
_EXACT = {"F32": {"F32", "F16", "BF16"}, "F16": {"F16"}, "BF16": {"BF16"}}
_ELEMENTS = 1 << 18
_SHARD = "5GB"


@dataclass(frozen=True)
class _Found:
    """One tensor of the file on its way to a folder."""

    tensor: GgufTensor
    spec: TensorSpec
    change: str | None
    heads: int
    original: bytes | None


def from_gguf(
    file: Path | str,
    out: Path | str,
    *,
    dtype: str | None = None,
    shard_size: str | int | None = _SHARD,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Write a .gguf file as a model folder: config.json, tokenizer, safetensors, generation_config.json, chat template.

    A file that `to_gguf` wrote gives the very model back: F32, F16 and BF16 to the bit, configuration and tokenizer as they were. Of any other
    file the configuration is rebuilt from its keys and the tokenizer from its tokens; blocks of every type that the `gguf` package reads are read.

    Args:
        file: The file.
        out: A folder that does not exist yet.
        dtype: `float32`, `float16` or `bfloat16`; None is what the model had where the file's numbers hold that, else the file's own float type,
            and float32 for blocks.
        shard_size: The most bytes of tensors in one file, as `shards.parse_size` takes them; None puts all into one.
        progress: Called with (bytes done, bytes in all) of the file's tensors.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is no sound GGUF (`gguf.GGUF_CODES`), of an architecture that is not there (`unknown_architecture`), or its tensors or
            keys do not belong to it (`unexpected_tensors`, `missing_tensors`, `bad_metadata`, `unsupported_tokenizer`, `unsupported_option`),
            or it is one of several parts (`split_file`).
        RequestError: `unknown_dtype`.
        ConflictError, BusyError, NoSpaceError: As `resumable_folder`.
    """
    file = Path(file)
    if dtype is not None and dtype not in _DTYPES:
        raise RequestError(
            f"`{dtype}` is no dtype that is written",
            code="unknown_dtype",
            hint=f"there are {', '.join(_DTYPES)}",
            field="dtype",
        )
    header = read_gguf(file, full=True)
    if header.metadata.get("split.count", 1) not in {0, 1}:
        raise ModelError(
            f"`{file}` is one of {header.metadata['split.count']} parts",
            code="split_file",
            hint="join them first, by llama.cpp's llama-gguf-split --merge",
        )
    with open_regular(file) as stream:
        config, family = read_config(str(file), header, stream)
    found = _plan(header, config, family, dtype, str(file))
    config["dtype"] = _NAMES[_most(found)]
    config.pop("torch_dtype", None)
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 512)
    with _told(str(file)):
        texts, warnings = rebuild_tokenizer(header.metadata, context, str(file))
    texts = _settings(header, config) | texts
    exact = all(each.tensor.type in STORAGE for each in found)
    source = SingleFile(file)
    limit = parse_size(shard_size) if shard_size is not None else None
    made = Certificate(
        "convert",
        "from gguf",
        options={"architecture": family.arch, "dtype": config["dtype"]},
        exactness=EVERYWHERE if exact else THIS_MACHINE,
        inputs={"source": {file.name: str(hash_file(file))}},
        matched={"tensors": len(found)},
        changes=[_describe(each) for each in found if each.change or each.tensor.type != each.spec.dtype],
        warnings=warnings,
        machine=None if exact else describe_machine("gguf"),
    )
    with resumable_folder(Path(out), key_of("from_gguf", {"dtype": dtype, "shard_size": limit}, source)) as work:
        _write(work, file, header, found, made, limit=limit, progress=progress)
        for name, text in texts.items():
            check_name(name, str(file))
            work.finished(name)
            made.outputs[name] = str(write_file(work.folder / name, text.encode("utf-8", "surrogatepass")))
        check_weights(FolderFiles(work.folder))
        made.write(work.folder)
    return made


def read_config(label: str, header: GgufHeader, stream: BinaryIO) -> tuple[dict[str, Any], Family]:
    """The config.json of a file, and its family.

    Args:
        label: The file, for messages.
        header: Its header, read in full.
        stream: The file, open for reading and seeking; only the few factors of its rotation are read.

    Raises:
        ModelError: As `from_gguf`.
    """
    said = header.metadata
    arch = said.get("general.architecture")
    family = find_family(label, arch=arch if isinstance(arch, str) else "")
    prefix = f"{family.arch}."
    own = {key.removeprefix(prefix): value for key, value in said.items() if key.startswith(prefix)}
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"`{label}` has no matrix `token_embd.weight`", code="missing_tensors")
    factors = {name: _read_factors(stream, header, tensors[name]) for name in FACTORS if name in tensors}
    types = tensors.get("token_types.weight")
    if "block_count" in own:
        check_depth({"num_hidden_layers": own["block_count"]}, len(tensors), label)
    with _told(label):
        config = settle(
            own,
            factors,
            family,
            _carried_config(said),
            vocabulary=embedding.shape[1],
            names=tensors.keys(),
            label=label,
        )
    if family.arch == "bert" and types is not None:
        config.setdefault("type_vocab_size", types.shape[1])
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if f"{name}_token_id" not in config and CONFIG_KEY not in said:
            config[f"{name}_token_id"] = said.get(f"tokenizer.ggml.{key}_token_id")
    return config, family


@contextmanager
def _told(label: str) -> Iterator[None]:
    """Values of other kinds than their keys have are the file's fault: a number that is a text, a list that is a number."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"`{label}` has metadata that is not of its kind: {type(error).__name__}: {first_line(error)}",
            code="bad_metadata",
        ) from error


def _carried_config(said: Mapping[str, Any]) -> dict[str, Any] | None:
    text = said.get(CONFIG_KEY)
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read_factors(stream: BinaryIO, header: GgufHeader, tensor: GgufTensor) -> Any:
    if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 1 << 16:
        raise ModelError(f"tensor `{show_name(tensor.name)}` is no vector of F32", code="bad_shape")
    stream.seek(header.data_start + tensor.start)
    return np.frombuffer(stream.read(tensor.end - tensor.start), np.float32)


def _plan(header: GgufHeader, config: Mapping[str, Any], family: Family, dtype: str | None, label: str) -> list[_Found]:
    """Each tensor's name, dtype and shape in the folder."""
    recorded = _recorded(header.metadata)
    alone = str(config["architectures"][0]).endswith("Model") and family.arch == "bert"
    found, unknown = [], []
    for tensor in header.tensors:
        if tensor.name in FACTORS:
            continue
        name = family.source_name(tensor.name)
        if name is None:
            unknown.append(tensor.name)
            continue
        change = family.change(tensor.name)
        to = _DTYPES[dtype] if dtype else _own_dtype(tensor, recorded, header)
        shape = tensor.shape if change == "transposed" else tensor.shape[::-1]
        heads = 0
        if change in {"queries", "keys"}:
            heads = int(
                config["num_attention_heads"]
                if change == "queries"
                else config.get("num_key_value_heads") or config["num_attention_heads"]
            )
            if heads < 1 or shape[0] % (2 * heads):
                raise ModelError(
                    f"tensor `{show_name(tensor.name)}` has {shape[0]} rows, which {heads} heads do not share",
                    code="bad_shape",
                )
        original = header.metadata.get(ORIGINAL_KEY + tensor.name)
        name = name.removeprefix(family.prefix) if alone else name
        found.append(
            _Found(
                tensor, TensorSpec(name, to, shape), change, heads, original if isinstance(original, bytes) else None
            )
        )
    absent = missing_tensors({tensor.name for tensor in header.tensors}, load_settings(config, label), family)
    if absent:
        raise ModelError(
            f"`{label}` lacks tensors of `{family.arch}`: {', '.join(absent[:6])}",
            code="missing_tensors",
            tensors=absent[:100],
        )
    if unknown:
        raise ModelError(
            f"`{label}` has tensors that `{family.arch}` has no place for: {', '.join(show_name(name) for name in unknown[:6])}",
            code="unexpected_tensors",
            tensors=unknown[:100],
        )
    return found


def _recorded(said: Mapping[str, Any]) -> dict[str, str]:
    try:
        found = json.loads(said.get(DTYPES_KEY, "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return (
        {key: value for key, value in found.items() if isinstance(value, str) and value in STORAGE}
        if isinstance(found, dict)
        else {}
    )


def _own_dtype(tensor: GgufTensor, recorded: Mapping[str, str], header: GgufHeader) -> str:
    """What the tensor was, where the file's numbers hold that; a vector beside F16 matrices is F16, and blocks are float32."""
    was = recorded.get(tensor.name, recorded.get("*"))
    matrices = [each.type for each in header.tensors if len(each.shape) > 1 and each.name not in FACTORS]
    main = max(set(matrices), key=matrices.count, default="F32")
    if was is not None and (main not in STORAGE or was in _EXACT[main]):
        return was
    if len(tensor.shape) > 1 and tensor.type in STORAGE and main in STORAGE and tensor.type != "F32":
        return tensor.type
    return main if main in STORAGE else "F32"


def _most(found: list[_Found]) -> str:
    sizes: dict[str, int] = {}
    for each in found:
        sizes[each.spec.dtype] = sizes.get(each.spec.dtype, 0) + each.spec.size
    return max(sizes, key=lambda kind: sizes[kind])


def _settings(header: GgufHeader, config: dict[str, Any]) -> dict[str, str]:
    """config.json and generation_config.json; the latter is rebuilt from the special tokens where the file carries none."""
    files = {"config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    text = header.metadata.get(GENERATION_KEY)
    generation = None
    if isinstance(text, str):
        try:
            generation = json.loads(text)
        except (ValueError, RecursionError):
            generation = None
    if not isinstance(generation, dict) and CONFIG_KEY not in header.metadata:
        generation = {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
        }
    if isinstance(generation, dict) and generation:
        files["generation_config.json"] = json.dumps(generation, indent=2, ensure_ascii=False) + "\n"
    return files


def _write(
    work: Work,
    file: Path,
    header: GgufHeader,
    found: list[_Found],
    made: Certificate,
    *,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    by_name = {each.spec.name: each for each in found}
    plan = plan_shards([each.spec for each in found], limit)
    total = sum(each.tensor.end - each.tensor.start for each in found)
    done = 0

    def advance(specs: list[TensorSpec]) -> None:
        nonlocal done
        done += sum(by_name[spec.name].tensor.end - by_name[spec.name].tensor.start for spec in specs)
        if progress is not None:
            progress(done, total)

    with open_regular(file) as stream:
        for shard, specs in plan.items():
            if work.finished(shard) is not None:
                advance(specs)
            else:
                with ShardWriter(work.folder / shard, specs) as writer:
                    for spec in specs:
                        for part in _parts(stream, header, by_name[spec.name]):
                            writer.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
                        advance([spec])
                work.finish(shard, writer.digest())
            made.outputs[shard] = str(work.digest(shard))
    index = write_index(work.folder, plan)
    if index is not None:
        made.outputs["model.safetensors.index.json"] = str(index)


def _parts(stream: BinaryIO, header: GgufHeader, each: _Found) -> Iterator[Array]:
    """A tensor's elements in the folder's dtype, in order."""
    tensor, to = each.tensor, each.spec.dtype
    whole = each.change in {"queries", "keys", "transposed"} or each.original is not None
    for raw, dtype in _rows(stream, header, tensor, whole=whole):
        if each.change == "plus one":
            wide = raw if dtype == "F32" else widened(raw, dtype)
            yield recast(_minus_one(wide, each), "F32", to, tensor.name)
        else:
            # Rows and columns move as they are; what they are made of changes afterwards, element by element.
            yield recast(undo_change(raw, each.change, each.heads), dtype, to, tensor.name)


def _minus_one(wide: Array, each: _Found) -> Array:
    """The norm before its one was added: the carried bits where they give the file's numbers, else one less."""
    if each.original is not None:
        for dtype in STORAGE:
            if len(each.original) == wide.size * STORAGE[dtype].itemsize:
                kept = widened(np.frombuffer(each.original, STORAGE[dtype]), dtype).reshape(wide.shape)
                if np.array_equal(apply_change(kept, "plus one"), wide):
                    return kept
    return undo_change(wide, "plus one")


def _rows(stream: BinaryIO, header: GgufHeader, tensor: GgufTensor, *, whole: bool) -> Iterator[tuple[Array, str]]:
    """Whole rows of a tensor, and what number type they are in: the file's, or F32 of what was in blocks."""
    shape = tensor.shape[::-1]
    block, width = BLOCKS[tensor.type]
    row_bytes = shape[-1] // block * width
    count = (tensor.end - tensor.start) // row_bytes
    step = count if whole else max(_ELEMENTS // shape[-1], 1)
    for row in range(0, count, step):
        taken = min(step, count - row)
        data = _read(stream, header.data_start + tensor.start + row * row_bytes, taken * row_bytes)
        kept = shape if whole else (taken, shape[-1])
        if tensor.type in STORAGE:
            yield data.view(STORAGE[tensor.type]).reshape(kept), tensor.type
        else:
            yield from_blocks(data.reshape(taken, row_bytes), tensor.type, tensor.name).reshape(kept), "F32"


def _read(stream: BinaryIO, start: int, size: int) -> Any:
    made = np.empty(size, np.uint8)
    done = 0
    while done < size:
        count = os.preadv(stream.fileno(), [made[done:].data], start + done)
        if count == 0:
            raise ModelError("the file became shorter while it was read", code="truncated")
        done += count
    return made


def _describe(each: _Found) -> dict[str, Any]:
    made = {"tensor": each.spec.name, "name": each.tensor.name, "type": each.tensor.type, "dtype": each.spec.dtype}
    return made | ({"change": each.change} if each.change else {})
