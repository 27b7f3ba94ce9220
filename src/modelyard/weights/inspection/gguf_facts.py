"""What a GGUF file's header says of the model in it. Knows the format's names; reads no tensor."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.weights.gguf import GgufHeader, parse_gguf
from modelyard.weights.hub.ranges import Ranged, open_stream
from modelyard.weights.inspection.counting import Stored

if TYPE_CHECKING:
    from modelyard.weights.files import Files

__all__ = ["GgufFacts", "read_gguf_facts"]


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """The model of a GGUF file: sizes are None where the header does not say.

    Attributes:
        name: As its makers call it.
        architecture: Such as `llama`.
        quantization: The type that most of its parameters are in; None for plain floats.
        layers, hidden, context: Blocks, width, and the longest row in tokens.
        tokens: Entries of its vocabulary.
        special: Role (`eos`, `bos`, `padding`, ...) to the token's id.
        template: SHA-256 of the chat template's UTF-8, in hex; None without one.
        licence: As it says.
    """

    name: str | None
    architecture: str | None
    quantization: str | None
    layers: int | None
    hidden: int | None
    context: int | None
    tokens: int | None
    special: dict[str, int]
    template: str | None
    licence: str | None


def read_gguf_facts(files: Files, name: str) -> tuple[GgufFacts, dict[str, Stored]]:
    """The facts of a GGUF file and its tensors, quantized ones with the elements that their blocks stand for.

    Raises:
        ModelError: As `gguf.read_gguf`.
    """
    with open_stream(files, name, buffered=True) as stream:
        size = files.size(name) if isinstance(files, Ranged) else os.fstat(stream.fileno()).st_size
        header = parse_gguf(stream, size, f"{files.label}/{name}")
    tensors = {
        tensor.name: Stored(tensor.type, _elements(tensor.shape), tensor.end - tensor.start)
        for tensor in header.tensors
    }
    return _facts(header, tensors), tensors


def _facts(header: GgufHeader, tensors: dict[str, Stored]) -> GgufFacts:
    said = header.metadata
    kind = _text(said.get("general.architecture"))
    types: Counter[str] = Counter()
    for stored in tensors.values():
        types[stored.dtype] += stored.elements
    most = types.most_common(1)[0][0] if types else None
    template = _text(said.get("tokenizer.chat_template"))
    return GgufFacts(
        name=_text(said.get("general.name")),
        architecture=kind,
        quantization=None if most in {None, "F32", "F16", "BF16", "F64"} else most,
        layers=_whole(said.get(f"{kind}.block_count")),
        hidden=_whole(said.get(f"{kind}.embedding_length")),
        context=_whole(said.get(f"{kind}.context_length")),
        tokens=_whole(said.get("tokenizer.ggml.tokens")),
        special={
            key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): value
            for key, value in sorted(said.items())
            if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and type(value) is int
        },
        template=hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest() if template else None,
        licence=_text(said.get("general.license")),
    )


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
