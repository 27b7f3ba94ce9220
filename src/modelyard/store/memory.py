"""A store in memory, for tests and for trying things out.

Ships with the product and passes the same conformance suite as the others, so it can stand in for any of them. Nothing
survives the process. Knows no disk, except that a file that somebody needs a path to is written to a temporary folder.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from modelyard.digest import Digest, FileDigests, HashingReader, digest_bytes
from modelyard.errors import ConflictError, InputError, IntegrityError, NotFoundError
from modelyard.store.layout import frame_entry, unframe_entry
from modelyard.store.oserrors import explained
from modelyard.store.reading import exact_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from modelyard.store.base import Area, ByteArea, ObjectArea

__all__ = ["MemoryStore"]


class MemoryStore:
    """A `Store` in memory; safe to share between threads.

    >>> store = MemoryStore()
    >>> digest = store.put("reports", b"{}")
    >>> store.get("reports", digest)
    b'{}'
    """

    def __init__(self) -> None:
        self._areas: dict[ObjectArea, dict[Digest, bytes]] = {
            "files": {},
            "packs": {},
            "manifests": {},
            "reports": {},
        }
        self._journal: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._folder: Path | None = None

    def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
        """Store the concatenation of `chunks` as a file or pack; see `Store.put_file`."""
        hashing = HashingReader(chunks)
        data = b"".join(hashing)
        digests = hashing.digests()
        with self._lock:
            self._areas[area][digests.blake3] = data
        return digests

    def import_file(
        self,
        path: Path,
        *,
        sha256_of: Callable[[Digest], str | None] | None = None,
        observe: Callable[[bytes], object] | None = None,
        link: bool = False,
    ) -> FileDigests:
        """Store a copy of the file at `path`; see `Store.import_file`.

        Hashes everything, whatever `sha256_of` knows, observes in this thread, and has no names that `link` could add one to.
        """
        del sha256_of, link
        path = Path(path)
        with explained(path, "read"):
            if not path.exists():
                raise NotFoundError(f"there is no file `{path}`", path=str(path))
            if not path.is_file():
                raise InputError(
                    f"`{path}` is not a regular file", hint="only regular files can be stored", path=str(path)
                )
            data = path.read_bytes()
        if observe is not None:
            observe(data)
        return self.put_file([data])

    def has_file(self, digest: Digest, *, area: ByteArea = "files") -> bool:
        """Whether a file is stored under `digest`."""
        return digest in self._areas[area]

    def open_file(self, digest: Digest, *, area: ByteArea = "files") -> BinaryIO:
        """Open a stored file for reading."""
        return io.BytesIO(self._get(area, digest))

    def read_range(self, area: ByteArea, digest: Digest, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a stored file or pack; see `Store.read_range`."""
        return exact_range(io.BytesIO(self._get(area, digest)), f"`{digest[:12]}`", start, end)

    def file_path(self, digest: Digest) -> Path:
        """A read-only copy of the file in a temporary folder that lives as long as this store."""
        data = self._get("files", digest)
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="modelyard-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / digest
            with explained(path, "write"):
                if not path.exists():
                    path.write_bytes(data)
                    path.chmod(0o444)
        return path

    def file_size(self, digest: Digest, *, area: ByteArea = "files") -> int:
        """Length of a stored file in bytes."""
        return len(self._get(area, digest))

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        """`IntegrityError` unless the stored bytes have this digest."""
        self._verified(area, digest)

    def put(self, area: Area, data: bytes) -> Digest:
        """Store a small object; see `Store.put`."""
        digest = digest_bytes(data)
        with self._lock:
            self._areas[area][digest] = bytes(data)
        return digest

    def get(self, area: Area, digest: Digest) -> bytes:
        """A small object's bytes, verified."""
        return self._verified(area, digest)

    def has(self, area: Area, digest: Digest) -> bool:
        """Whether an object is stored under `digest`."""
        return digest in self._areas[area]

    def digests(self, area: ObjectArea) -> Iterator[Digest]:
        """Every digest that is stored in `area`, ascending."""
        with self._lock:
            found = sorted(self._areas[area])
        return iter(found)

    def remove(self, area: ObjectArea, digest: Digest) -> None:
        """Remove an object; one that is not there is fine."""
        with self._lock:
            self._areas[area].pop(digest, None)
            if area == "files" and self._folder is not None:
                (self._folder / digest).unlink(missing_ok=True)

    def publish_journal(self, seq: int, entry: bytes) -> None:
        """Store journal entry number `seq`; see `Store.publish_journal`."""
        with self._lock:
            found = unframe_entry(self._journal[seq]) if seq in self._journal else None
            if found is not None and found != entry:
                raise ConflictError(f"journal entry {seq} is already published and says something else", seq=seq)
            self._journal[seq] = frame_entry(entry)

    def journal(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The journal's entries in ascending order, each verified; see `Store.journal`."""
        with self._lock:
            framed = sorted((seq, stored) for seq, stored in self._journal.items() if seq > after)
        for seq, stored in framed:
            entry = unframe_entry(stored)
            if entry is not None:
                yield seq, entry
            elif damaged is not None:
                damaged(seq)
            else:
                raise IntegrityError(f"journal entry {seq} is damaged")

    def free_bytes(self) -> int | None:
        """None: nobody can tell."""
        return None

    def _get(self, area: ObjectArea, digest: Digest) -> bytes:
        with self._lock:
            try:
                return self._areas[area][digest]
            except KeyError:
                raise IntegrityError(f"`{digest[:12]}` is not in the store", code="missing") from None

    def _verified(self, area: ObjectArea, digest: Digest) -> bytes:
        data = self._get(area, digest)
        if digest_bytes(data) != digest:
            raise IntegrityError(f"`{digest[:12]}` is damaged: its bytes have another digest")
        return data
