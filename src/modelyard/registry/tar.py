"""The tar that a bundle is: headers that follow from a member's name and size alone, so that a reader can compare them.

Not a reader of tar files: it knows the one form that `docs/design/exchange.md` gives, and says what is wrong with any
other. Knows no bundles and no stores.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from modelyard.errors import InputError, IntegrityError, NotFoundError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BLOCK", "Member", "TarReader", "TarWriter", "end_of", "header", "open_archive", "padding"]

BLOCK = 512
_RECORD = 20 * BLOCK
_CHUNK = 1 << 20
LARGE = 8 << 30
"""From this size on, bytes, eleven octal digits do not hold it: the size goes into a pax header."""

_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a FIFO",
    b"L": "a member with a GNU long name",
    b"K": "a member with a GNU long link",
    b"S": "a sparse file",
    b"g": "a global pax header",
    b"x": "a pax header",
}

Member = tuple[str, int]
"""A member's name and size in bytes."""


def header(name: str, size: int) -> bytes:
    """Everything that comes before a member's bytes.

    >>> len(header("files/" + "0" * 64, 10)), len(header("files/" + "0" * 64, LARGE))
    (512, 1536)
    """
    if size < LARGE:
        return _ustar(name, size, b"0")
    record = f" size={size}\n"
    length = len(record) + 2
    text = f"{length}{record}".encode()
    assert len(text) == length  # noqa: S101  # two digits, for every size that a manifest can hold
    return _ustar("pax/" + name.rpartition("/")[2], length, b"x") + text.ljust(BLOCK, b"\0") + _ustar(name, 0, b"0")


def _ustar(name: str, size: int, kind: bytes) -> bytes:
    text = name.encode("ascii").ljust(100, b"\0")
    head = text + b"0000444\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0
    tail = kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
    total = sum(head) + sum(tail) + 8 * 0x20
    return head + b"%06o\0 " % total + tail


def padding(size: int) -> int:
    """Zeros after `size` bytes, up to the next block."""
    return -size % BLOCK


def end_of(position: int) -> int:
    """How many zeros end an archive whose members end at `position`."""
    return 2 * BLOCK + (-(position + 2 * BLOCK) % _RECORD)


class TarWriter:
    """Writes members to a stream, one after another."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def add(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        """Write a member; `IntegrityError` unless `chunks` are exactly `size` bytes."""
        self._write(header(name, size))
        written = 0
        for chunk in chunks:
            written += len(chunk)
            self._write(chunk)
        if written != size:
            raise IntegrityError(f"`{name}` has {written} bytes, not {size}", hint="yard check --read-data")
        self._write(bytes(padding(size)))

    def close(self) -> None:
        """Write the end; the stream stays open."""
        self._write(bytes(end_of(self._position)))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._position += len(data)


def open_archive(path: Path) -> BinaryIO:
    """Open a bundle for reading.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is not a regular file: a pipe cannot be looked through before anything is stored.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file `{path}`", hint="yard pack NAMESPACE/NAME -o FILE") from None
    except OSError as error:
        raise InputError(f"`{path}` cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"`{path}` is not a regular file", hint="write it to a file first")
    return os.fdopen(descriptor, "rb")


class TarReader:
    """Reads the members that are expected, and refuses everything else.

    Args:
        stream: A file that can seek.
        label: What messages call it.
    """

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self.size = stream.seek(0, os.SEEK_END)
        stream.seek(0)

    def first(self, name: str, limit: int) -> bytes:
        """The first member, whose size is not known beforehand; at most `limit` bytes."""
        found = self._stream.read(BLOCK)
        digits = found[124:135]
        size = int(digits, 8) if len(digits) == 11 and all(48 <= digit < 56 for digit in digits) else -1
        if size < 0 or found != _ustar(name, size, b"0"):
            if found[257:262] != b"ustar":
                raise self._refusal("it is not a tar file", "not_a_bundle")
            raise self._unexpected(found, name)
        if size > limit:
            raise self._refusal(f"its `{name}` has {size} bytes, more than {limit}")
        data = self._stream.read(size)
        if len(data) != size:
            raise self._refusal(f"it ends within `{name}`", "truncated")
        self._pad(size)
        return data

    def check(self, members: list[Member]) -> None:
        """Look through everything after the first member, data skipped: every header, the length, and the end."""
        start = self._stream.tell()
        for name, size in members:
            self._head(name, size)
            after = self._stream.seek(size, os.SEEK_CUR)
            if after > self.size:
                raise self._refusal(f"it ends within `{name}`", "truncated")
            self._pad(size)
        zeros = end_of(self._stream.tell())
        left = self.size - self._stream.tell()
        block = self._stream.read(min(left, BLOCK))
        if any(block):
            raise self._unexpected(block, "the end")
        if left < zeros:
            raise self._refusal("its end is missing", "truncated")
        if left > zeros:
            raise self._refusal(f"{left - zeros} bytes follow its end", "trailing_bytes")
        if any(self._stream.read(zeros - BLOCK)):
            raise self._refusal("there is something in its end", "trailing_bytes")
        self._stream.seek(start)

    def member(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of the next member, which have to be read to their end before anything else is."""
        self._head(name, size)
        left = size
        while left:
            chunk = self._stream.read(min(left, _CHUNK))
            if not chunk:
                raise self._refusal(f"it ends within `{name}`", "truncated")
            left -= len(chunk)
            yield chunk
        self._pad(size)

    def _head(self, name: str, size: int) -> None:
        expected = header(name, size)
        found = self._stream.read(len(expected))
        if found != expected:
            raise self._unexpected(found, name)

    def _pad(self, size: int) -> None:
        count = padding(size)
        found = self._stream.read(count)
        if len(found) != count:
            raise self._refusal("it ends within a block", "truncated")
        if any(found):
            raise self._refusal("there is something between two members")

    def _unexpected(self, found: bytes, expected: str) -> IntegrityError:
        """What is wrong with a header, as far as can be told."""
        if len(found) < BLOCK:
            return self._refusal(f"it ends before `{expected}`", "truncated")
        if not any(found[:BLOCK]):
            return self._refusal(f"`{expected}` is missing")
        name = found[:100].partition(b"\0")[0].decode("latin-1")
        return self._refusal(f"`{show_name(name)}` {_fault(found, name, expected)}")

    def _refusal(self, why: str, code: str = "bad_bundle") -> IntegrityError:
        return IntegrityError(
            f"the bundle `{self._label}` is refused: {why}",
            hint="nothing was unpacked; fetch it again, or pack it again",
            code=code,
        )


def _fault(found: bytes, name: str, expected: str) -> str:
    """What a header that is not the expected one stands for."""
    kind, mode = found[156:157], found[100:107].strip(b" \0")
    special = set(mode) <= set(b"01234567") and int(mode or b"0", 8) & 0o7000
    if kind in _TYPES and not (kind == b"x" and name.startswith("pax/")):
        return f"is {_TYPES[kind]}"
    if name.startswith(("/", "\\")) or ".." in name.split("/"):
        return "leads out of it"
    if special:
        return "has a setuid, setgid or sticky bit"
    if name != expected:
        return f"stands where `{expected}` is expected"
    return "has another header than its index and the format give"
