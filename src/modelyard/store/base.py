"""What every store promises.

A store keeps bytes under their digest and a numbered journal. It knows no models, no names and no users. The conformance
suite `tests/conformance/test_stores.py` runs these promises against every implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from modelyard.digest import Digest, FileDigests

__all__ = ["Area", "ByteArea", "ObjectArea", "Store"]

Area = Literal["manifests", "reports"]
"""Where small objects live: read and written whole."""

ByteArea = Literal["files", "packs"]
"""Where large objects live: streamed in, read in ranges."""

ObjectArea = Literal["files", "packs", "manifests", "reports"]
"""Everything that is called by a digest."""


class Store(Protocol):
    """Bytes by digest.

    Whatever stores something returns only when it is durable, may be repeated without harm, and leaves either the whole
    object or nothing. Two calls, threads or processes may store the same bytes at the same time. Reading what is missing, or is
    not a regular file, is an `IntegrityError` with the code ``missing`` or ``damaged``: who is unsure asks `has` first.
    Where the disk fails: `NoSpaceError` when it is full, else a `YardError` that names the path.
    """

    def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
        """Store the concatenation of `chunks` (of any size) as a file or pack; hashes come from the same pass.

        A damaged file that is stored under the same digest is replaced. An exception out of `chunks` is passed on
        and stores nothing.
        """
        ...

    def import_file(
        self,
        path: Path,
        *,
        sha256_of: Callable[[Digest], str | None] | None = None,
        observe: Callable[[bytes], object] | None = None,
        link: bool = False,
    ) -> FileDigests:
        """Store a copy of the regular file at `path`; sharing its blocks where the disk can.

        `observe` is given every byte once and in order, in the pass that hashes, possibly in another thread; what it raises is
        passed on. `link` allows a hard link to the original, which is made read-only, where blocks cannot be shared and the
        file systems allow it; elsewhere a copy is stored.

        Bytes that are stored already are only read; `sha256_of`, asked for the SHA-256 that somebody recorded when they were
        stored first, then spares most of the work. `NotFoundError` when there is no such file, `InputError` when it is not
        a regular one, or changed while it was read.
        """
        ...

    def has_file(self, digest: Digest, *, area: ByteArea = "files") -> bool:
        """Whether a regular file is stored under `digest`; says nothing about its bytes."""
        ...

    def open_file(self, digest: Digest, *, area: ByteArea = "files") -> BinaryIO:
        """Open a stored file or pack for reading; its bytes are not verified."""
        ...

    def read_range(self, area: ByteArea, digest: Digest, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a stored file or pack, not verified; `IntegrityError` when it ends before that."""
        ...

    def file_path(self, digest: Digest) -> Path:
        """A real, read-only file that holds these bytes and may be mapped or linked; they are not verified."""
        ...

    def file_size(self, digest: Digest, *, area: ByteArea = "files") -> int:
        """Length of a stored file or pack in bytes."""
        ...

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        """Read a stored file or pack; `IntegrityError` unless its bytes have this digest."""
        ...

    def put(self, area: Area, data: bytes) -> Digest:
        """Store a small object; a damaged one of the same digest is replaced."""
        ...

    def get(self, area: Area, digest: Digest) -> bytes:
        """A small object's bytes, verified: `IntegrityError` unless they have this digest."""
        ...

    def has(self, area: Area, digest: Digest) -> bool:
        """Whether an object is stored under `digest`; says nothing about its bytes."""
        ...

    def digests(self, area: ObjectArea) -> Iterator[Digest]:
        """Every digest that is stored in `area`, in ascending order, as of some moment during the iteration."""
        ...

    def remove(self, area: ObjectArea, digest: Digest) -> None:
        """Remove an object, durably; one that is not there is fine."""
        ...

    def publish_journal(self, seq: int, entry: bytes) -> None:
        """Store journal entry number `seq` (0 to 2^63 - 1).

        The same entry again is fine and replaces a damaged one; another entry under the same number is a `ConflictError`.
        """
        ...

    def journal(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The journal's entries in ascending order, each verified; `IntegrityError` at the first that is damaged.

        Only those with numbers above `after` are read. `damaged`, where given, is told the number of each damaged entry,
        which is passed over.
        """
        ...

    def free_bytes(self) -> int | None:
        """Bytes that can still be stored, or None where nobody can tell."""
        ...
