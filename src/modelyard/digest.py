"""Digests: what bytes are called.

A `Digest` is a BLAKE3-256 in lower-case hex. Files are hashed once, in one pass, into every hash that somebody else's
protocol needs (`FileDigests`). This module knows nothing of stores or models.

>>> digest_bytes(b"")
Digest('af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262')
>>> digest_bytes(b"").short
'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9'
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import blake3
import rfc8785

from modelyard.errors import InternalError

__all__ = [
    "Digest",
    "FileDigests",
    "HashingReader",
    "canonical_json",
    "digest_bytes",
    "digest_json",
    "hash_stream",
    "read_chunks",
]

_FORM = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20

GIT_BLOB_LIMIT = 1 << 20
"""Files up to this size also get their git blob id, which the Hub's protocol reports for small files."""


class Digest(str):
    """A BLAKE3-256 digest: 64 lower-case hex digits, checked on construction."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Check the form; raises `ValueError` for anything but 64 lower-case hex digits."""
        if not _FORM.fullmatch(text):
            raise ValueError(f"not a BLAKE3 digest: {text[:80]!r}")
        return super().__new__(cls, text)

    def __repr__(self) -> str:
        return f"Digest({str(self)!r})"

    @property
    def short(self) -> str:
        """The first 40 digits: what people and the Hub see."""
        return self[:40]


@dataclass(frozen=True, slots=True)
class FileDigests:
    """The hashes of one file's bytes, all from one pass.

    `git_blob` is the SHA-1 that git gives the same content; None for files over `GIT_BLOB_LIMIT` bytes.
    """

    size: int
    blake3: Digest
    sha256: str
    git_blob: str | None = None


class HashingReader:
    """Iterates over a stream's chunks and hashes what passes; `digests()` is complete once the stream ended."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._blake3 = blake3.blake3()
        self._sha256 = hashlib.sha256()
        self._small = bytearray()
        self._size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._blake3.update(chunk)
            self._sha256.update(chunk)
            self._size += len(chunk)
            if self._size <= GIT_BLOB_LIMIT:
                self._small += chunk
            yield chunk

    def digests(self) -> FileDigests:
        """The hashes of everything that was iterated so far."""
        git = None
        if self._size <= GIT_BLOB_LIMIT:
            # Git names a blob by SHA-1; it is an identifier for the Hub's protocol here, never a check.
            git = hashlib.sha1(b"blob %d\0" % self._size + self._small, usedforsecurity=False).hexdigest()
        return FileDigests(self._size, Digest(self._blake3.hexdigest()), self._sha256.hexdigest(), git)


def read_chunks(stream: BinaryIO, size: int = _CHUNK) -> Iterator[bytes]:
    """Yield a binary stream's bytes in chunks of at most `size`."""
    while chunk := stream.read(size):
        yield chunk


def hash_stream(stream: BinaryIO) -> FileDigests:
    """Hash a binary stream from where it stands to its end."""
    reader = HashingReader(read_chunks(stream))
    for _ in reader:
        pass
    return reader.digests()


def digest_bytes(data: bytes) -> Digest:
    """The digest of `data`."""
    return Digest(blake3.blake3(data).hexdigest())


def canonical_json(value: Mapping[str, Any] | list[Any]) -> bytes:
    """RFC 8785 JSON of integers, strings, lists and maps: one value, one text.

    Floats, booleans and null are refused (`InternalError`): they have no place in what a digest covers.
    """
    _check_plain(value)
    return rfc8785.dumps(value)


def digest_json(value: Mapping[str, Any] | list[Any]) -> Digest:
    """The digest of `canonical_json(value)`."""
    return digest_bytes(canonical_json(value))


def _check_plain(value: object) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InternalError(f"canonical JSON has a key that is no string: {key!r}")
            _check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif isinstance(value, bool) or not isinstance(value, str | int):
        raise InternalError(f"canonical JSON holds integers and strings only, not {value!r}")
