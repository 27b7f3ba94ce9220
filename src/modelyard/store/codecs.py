"""Segments in fewer bytes, without loss: `planes/1` alone, `delta/1` against another segment of the same size."""

from __future__ import annotations

import zstandard

from modelyard.errors import IntegrityError

__all__ = ["decode_delta", "decode_planes", "encode_delta", "encode_planes"]


def encode_planes(data: bytes, dtype: str) -> bytes:
    """The payload of `planes/1` for a segment."""
    del dtype
    return zstandard.ZstdCompressor(level=3).compress(data)


def decode_planes(payload: bytes, dtype: str, size: int) -> bytes:
    """The segment of `size` bytes; `IntegrityError` for a payload that is none."""
    del dtype
    try:
        if zstandard.get_frame_parameters(payload).content_size != size:
            raise IntegrityError("a `planes/1` payload of another size")
        return zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"a `planes/1` payload is damaged: {error}") from error


def encode_delta(data: bytes, base: bytes, dtype: str) -> bytes:
    """The payload of `delta/1` for a segment against a base of the same size."""
    mixed = int.from_bytes(data, "little") ^ int.from_bytes(base, "little")
    return encode_planes(mixed.to_bytes(len(data), "little"), dtype)


def decode_delta(payload: bytes, base: bytes, dtype: str, size: int) -> bytes:
    """The segment of `size` bytes; `IntegrityError` for a payload that is none."""
    mixed = int.from_bytes(decode_planes(payload, dtype, size), "little") ^ int.from_bytes(base, "little")
    return mixed.to_bytes(size, "little")
