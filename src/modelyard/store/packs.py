"""Packs: many segments in one file, each in its encoding, with an index at the end.

Implements "Packs" of `docs/design/store-format.md`. Knows records and bounds; does not decode a payload, nor know who needs a
segment.

>>> from modelyard.digest import digest_bytes
>>> from modelyard.store import MemoryStore
>>> store = MemoryStore()
>>> with PackWriter(store) as writer:
...     writer.add(digest_bytes(b"segment"), 7, "raw", b"segment")
...     pack, index = writer.close()
>>> read_index(store, pack) == index
True
>>> record = index.segments[0]
>>> store.read_range("packs", pack, record.offset, record.offset + record.length)
b'segment'
"""

from __future__ import annotations

import json
import queue
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

import zstandard

from modelyard.digest import Digest, canonical_json, digest_bytes
from modelyard.errors import InputError, IntegrityError, InternalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from modelyard.store.base import Store

__all__ = ["SEGMENT_LIMIT", "FileRecord", "PackIndex", "PackWriter", "SegmentRecord", "read_index"]

SEGMENT_LIMIT = 64 << 20
"""The largest segment, in bytes."""

_FORMAT = "modelyard/pack/1"
_HEAD, _TAIL = b"YARDPAK1", b"YARDIDX1"
_TRAILER = 32 + 8 + len(_TAIL)
_INDEX_LIMIT = 256 << 20
_AHEAD = 4
"""Payloads that may wait for the disk; with segments of 64 MiB this bounds the memory."""

_HEX64, _HEX40 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


_Record = TypeVar("_Record")


@dataclass(frozen=True)
class SegmentRecord:
    """One segment of a pack.

    Attributes:
        digest: The segment's.
        size: The segment's, in bytes.
        encoding: ``raw``, ``packed``, ``delta`` or ``derived``; a later version's is kept as it is.
        offset: Where its payload starts in the pack; 0 for ``derived``.
        length: Its payload's bytes; 0 for ``derived``.
        params: What the decoder must know.
        inputs: Segments that it is decoded from.
    """

    digest: Digest
    size: int
    encoding: str
    offset: int
    length: int
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Digest, ...] = ()


@dataclass(frozen=True)
class FileRecord:
    """How a file is cut into segments, which may lie in other packs too."""

    digest: Digest
    size: int
    sha256: str
    cut: str
    segments: tuple[Digest, ...]
    git_blob: str | None = None


@dataclass(frozen=True)
class PackIndex:
    """What a pack holds, both in ascending order of digests."""

    segments: tuple[SegmentRecord, ...]
    files: tuple[FileRecord, ...]


class PackWriter:
    """A pack on its way into the store; published by `close`, and not at all when the `with` block is left without it.

    What is added streams into `store` from a thread; a store that fails makes the next call fail with its error.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._segments: dict[Digest, SegmentRecord] = {}
        self._files: dict[Digest, FileRecord] = {}
        self._size = 0
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._payloads = iter(self._waiting.get, None)  # ends once and for all with the first None
        self._thread: threading.Thread | None = None
        self._given_up = False
        self._failure: BaseException | None = None
        self._stored: Digest | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._given_up = True
        self._end()

    @property
    def size(self) -> int:
        """Bytes added so far."""
        return self._size

    def add(
        self,
        digest: Digest,
        size: int,
        encoding: str,
        payload: bytes,
        *,
        params: Mapping[str, Any] | None = None,
        inputs: tuple[Digest, ...] = (),
    ) -> None:
        """Add a segment of `size` bytes in an encoding; one that the pack has already is left out."""
        if digest in self._segments:
            return
        offset = self._size or len(_HEAD)
        record = SegmentRecord(
            digest, size, encoding, offset if payload else 0, len(payload), dict(params or {}), tuple(inputs)
        )
        if (problem := _problem(record)) is not None:
            raise InternalError(f"the segment `{digest[:12]}` cannot be packed: {problem}")
        if not self._size:
            self._give(_HEAD)
        if payload:
            self._give(payload)
        self._segments[digest] = record

    def add_file(self, file: FileRecord) -> None:
        """Note how a file is cut."""
        self._files[file.digest] = file

    def close(self) -> tuple[Digest, PackIndex]:
        """Write the index and publish the pack; `InternalError` when nothing was added."""
        if not self._segments:
            raise InternalError("a pack without segments")
        index = PackIndex(_by_digest(self._segments), _by_digest(self._files))
        text = canonical_json(_to_plain(index))
        if len(text) > _INDEX_LIMIT:
            raise InputError(
                f"a pack with {len(index.segments)} segments has too long an index", hint="write several packs"
            )
        frame = zstandard.ZstdCompressor(level=3).compress(text)
        self._give(frame + bytes.fromhex(digest_bytes(frame)) + len(frame).to_bytes(8, "little") + _TAIL)
        self._end()
        if self._stored is None:
            raise self._failure or InternalError("the pack was closed twice")
        stored, self._stored = self._stored, None
        return stored, index

    def _give(self, data: bytes) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pack", daemon=True)
            self._thread.start()
        self._size += len(data)
        self._waiting.put(data)
        if self._failure is not None:
            raise self._failure

    def _end(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            self._stored = self._store.put_file(self._chunks(), area="packs").blake3
        except _GivenUpError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again in the thread that adds
            self._failure = error
            for _ in self._payloads:  # so that nobody waits for a place in the queue
                pass

    def _chunks(self) -> Iterator[bytes]:
        yield from self._payloads
        if self._given_up:
            raise _GivenUpError


class _GivenUpError(Exception):
    """The pack is not to be published."""


def read_index(store: Store, pack: Digest) -> PackIndex:
    """The index of a stored pack; `IntegrityError` unless everything about it is as specified."""
    size = store.file_size(pack, area="packs")
    if size < len(_HEAD) + _TRAILER:
        raise _damaged(pack, "it is too short")
    trailer = store.read_range("packs", pack, size - _TRAILER, size)
    length = int.from_bytes(trailer[32:40], "little")
    end = size - _TRAILER - length
    if trailer[40:] != _TAIL or store.read_range("packs", pack, 0, len(_HEAD)) != _HEAD or end < len(_HEAD):
        raise _damaged(pack, "it does not begin and end as a pack")
    if length > _INDEX_LIMIT:
        raise _damaged(pack, "its index is too long")
    frame = store.read_range("packs", pack, end, end + length)
    if digest_bytes(frame) != trailer[:32].hex():
        raise _damaged(pack, "its index has another digest")
    try:
        return _parse(_inflate(frame), end)
    except (ValueError, TypeError, KeyError, RecursionError, zstandard.ZstdError) as error:
        raise _damaged(pack, f"its index is no index: {error}") from error


def _inflate(frame: bytes) -> bytes:
    size = zstandard.get_frame_parameters(frame).content_size
    if size > _INDEX_LIMIT:  # also where it is unknown, which is the largest number
        raise ValueError("no size, or too large a one")
    return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)


def _parse(text: bytes, end: int) -> PackIndex:
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in ("segments", "files")):
        raise TypeError("it is no object of lists")
    if not all(isinstance(item, dict) for item in (*found["segments"], *found["files"])):
        raise TypeError("a record is no object")
    if canonical_json(found) != text or found.keys() != {"format", "segments", "files"} or found["format"] != _FORMAT:
        raise ValueError("other keys, another format, or not in canonical form")
    index = PackIndex(
        tuple(_segment_of(item) for item in found["segments"]), tuple(_file_of(item) for item in found["files"])
    )
    for records in (index.segments, index.files):
        digests = [record.digest for record in records]
        if digests != sorted(set(digests)):
            raise ValueError("not in order of digests")
    at = len(_HEAD)
    for record in sorted(index.segments, key=lambda record: record.offset):
        if (problem := _problem(record)) is not None:
            raise ValueError(f"`{record.digest[:12]}`: {problem}")
        if record.length:
            if record.offset != at:
                raise ValueError(f"`{record.digest[:12]}` is not where the payload before it ends")
            at += record.length
    if at != end:
        raise ValueError("the payloads do not end where the index begins")
    return index


_SEGMENT_KEYS = {"digest", "size", "encoding", "offset", "length"}
_FILE_KEYS = {"cut", "digest", "segments", "sha256", "size"}


def _segment_of(item: dict[str, Any]) -> SegmentRecord:
    if not _SEGMENT_KEYS <= item.keys() <= _SEGMENT_KEYS | {"params", "inputs"}:
        raise ValueError("a record has other keys")
    params, inputs = item.get("params", {}), item.get("inputs", [])
    if not isinstance(params, dict) or not isinstance(inputs, list) or not isinstance(item["encoding"], str):
        raise TypeError("a record's value is of the wrong kind")
    numbers = [_count(item[key]) for key in ("size", "offset", "length")]
    return SegmentRecord(
        Digest(item["digest"]), numbers[0], item["encoding"], numbers[1], numbers[2], params, tuple(map(Digest, inputs))
    )


def _file_of(item: dict[str, Any]) -> FileRecord:
    if not _FILE_KEYS <= item.keys() <= _FILE_KEYS | {"git_blob"}:
        raise ValueError("a file has other keys")
    git_blob = item.get("git_blob")
    if not isinstance(item["cut"], str) or not isinstance(item["segments"], list):
        raise TypeError("a file's value is of the wrong kind")
    if not _HEX64.fullmatch(item["sha256"]) or not (git_blob is None or _HEX40.fullmatch(git_blob)):
        raise ValueError("a file's hash is none")
    segments = tuple(map(Digest, item["segments"]))
    return FileRecord(Digest(item["digest"]), _count(item["size"]), item["sha256"], item["cut"], segments, git_blob)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(f"{value!r} is no count of bytes")
    return value


_SHAPES = {
    "raw": (True, False, (0, 0)),
    "packed": (True, True, (0, 0)),
    "delta": (True, True, (1, 1)),
    "derived": (False, True, (0, 1 << 16)),
}
"""Of each encoding: whether it has a payload and params, and how many inputs."""


def _problem(record: SegmentRecord) -> str | None:
    """What is wrong with a record, as far as it can be seen without its payload."""
    if not 1 <= record.size <= SEGMENT_LIMIT:
        return f"its size is {record.size}"
    if (record.length == 0) != (record.offset == 0):
        return "it has a payload or it has none"
    wanted = _SHAPES.get(record.encoding)
    if wanted is None:
        return None  # a later version's: refused where the segment is read, by name
    payload, params, inputs = wanted
    if (record.length > 0, bool(record.params)) != (payload, params) or (
        record.encoding == "raw" and record.length != record.size
    ):
        return f"its payload or params do not fit for `{record.encoding}`"
    if not inputs[0] <= len(record.inputs) <= inputs[1] or record.digest in record.inputs:
        return f"{len(record.inputs)} inputs, or itself, do not fit for `{record.encoding}`"
    return None


def _to_plain(index: PackIndex) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "segments": [_plain_segment(record) for record in index.segments],
        "files": [_plain_file(record) for record in index.files],
    }


def _plain_segment(record: SegmentRecord) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "digest": record.digest,
        "size": record.size,
        "encoding": record.encoding,
        "offset": record.offset,
        "length": record.length,
    }
    if record.params:
        plain["params"] = record.params
    if record.inputs:
        plain["inputs"] = list(record.inputs)
    return plain


def _plain_file(record: FileRecord) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "cut": record.cut,
        "digest": record.digest,
        "segments": list(record.segments),
        "sha256": record.sha256,
        "size": record.size,
    }
    if record.git_blob is not None:
        plain["git_blob"] = record.git_blob
    return plain


def _by_digest(records: dict[Digest, _Record]) -> tuple[_Record, ...]:
    return tuple(records[digest] for digest in sorted(records))


def _damaged(pack: Digest, cause: str) -> IntegrityError:
    return IntegrityError(
        f"the pack `{pack[:12]}` is damaged: {cause}",
        hint="`yard check --read-data` finds what else is damaged; copy the pack from a backup of the yard",
        pack=str(pack),
    )
