"""Small GGUF files for tests, written from the format's description."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from modelyard.weights.gguf import GGUF_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["gguf", "text"]


def text(data: bytes) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(data)) + data


def gguf(
    tensors: Mapping[str, tuple[int, Sequence[int]]],
    *,
    keys: Sequence[bytes] = (),
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """A file with these tensors (type and shape by name), filled with zeros; `keys` are metadata, encoded."""
    infos, data = b"", b""
    for name, (kind, shape) in tensors.items():
        _, block, width = GGUF_TYPES[kind]
        data += bytes(-len(data) % alignment)
        infos += text(name.encode()) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", kind, len(data))
        elements = 1
        for length in shape:
            elements *= length
        data += bytes(elements // block * width)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + infos
    return head + bytes(-len(head) % alignment) + data
