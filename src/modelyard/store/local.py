"""A store in a folder of the local disk.

Implements `docs/design/store-format.md`; does not know what its bytes mean, nor that there is a catalog beside them.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     store = LocalStore(Path(folder) / "yard").init()
...     digests = store.put_file([b"some ", b"bytes"])
...     with store.open_file(digests.blake3) as stream:
...         stream.read()
b'some bytes'
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from modelyard.digest import Digest, FileDigests, digest_bytes
from modelyard.errors import ConflictError, IntegrityError, NotFoundError
from modelyard.store import imports, reading
from modelyard.store.filesystem import FileSystem, lock_folder
from modelyard.store.hashing import Hashing, gather, hash_chunks
from modelyard.store.layout import PACKS, Layout, extend_format, format_bytes, frame_entry, read_format, unframe_entry
from modelyard.store.oserrors import explained
from modelyard.store.reading import read_exactly, source
from modelyard.store.writing import IncomingFile, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from modelyard.store.base import Area, ByteArea, ObjectArea

__all__ = ["LocalStore"]

_SMALL = 8 << 20
"""Files up to this size are imported through memory: hashed first, written only when new."""


class LocalStore:
    """A `Store` in the folder `root`.

    Nothing happens on construction; the first use, or `open`, checks that the folder is a yard. Safe to share between
    threads, and with other processes.

    Args:
        root: The yard's folder.
        filesystem: What writes; tests pass one that records or fails.
    """

    def __init__(self, root: Path, filesystem: FileSystem | None = None) -> None:
        self.root = Path(root)
        self._layout = Layout(self.root)
        self._writer = Writer(self._layout.tmp, [self.root, *self._layout.folders()], filesystem or FileSystem())
        self._opened = False
        self._swept = False
        self._packs_announced = False

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    # -- opening -------------------------------------------------------------------------------------------------------

    def init(self) -> LocalStore:
        """Make the folder a yard, or put back the folders that a yard has lost; objects are never touched.

        Raises `InputError` for a newer yard and `IntegrityError` where `format` is not one.
        """
        try:
            read_format(self._layout)
        except NotFoundError:
            new = True
        else:
            new = False
        self._make_folders()
        if new:
            self._keep(self._layout.format_file, format_bytes())
        return self.open()

    def open(self) -> LocalStore:
        """Check that the folder is a yard that this version reads.

        Raises `NotFoundError` when it is none, `InputError` (code ``newer_format``) when it is a newer one, `IntegrityError`
        when it is damaged.
        """
        self._layout.check()
        self._opened = True
        return self

    # -- files ---------------------------------------------------------------------------------------------------------

    def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
        """Store the concatenation of `chunks` as a file or pack; see `Store.put_file`."""
        self._prepare_to_write()
        if area == "packs":
            self._announce_packs()
        with self._writer.incoming() as file:
            digests = _write(file, gather(chunks))
            if not self._holds(digests, area):
                file.publish(self._layout.object(area, digests.blake3), digests.size)
        return digests

    def import_file(
        self,
        path: Path,
        *,
        sha256_of: Callable[[Digest], str | None] | None = None,
        observe: Callable[[bytes], object] | None = None,
        link: bool = False,
    ) -> FileDigests:
        """Store a copy of the file at `path`; see `Store.import_file`."""
        self._prepare_to_write()
        with source(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= _SMALL:
                data = b"".join(read_exactly(stream, path, size))
                if observe is not None:
                    observe(data)
                return self._keep_small(data)
            expected = None
            # Reading and comparing costs a fraction of a write: worth it where a stored file looks alike.
            if (stored := imports.find_alike(stream, self._stored_of(size))) is not None:
                digests, same = imports.compare(stream, path, stored, sha256_of, observe)
                if same:
                    self._make_name_durable(stored)
                    return digests
                stream.seek(0)
                expected, observe = digests.blake3, None  # which was given everything
            digests = self._copy(stream, path, observe, link=link)
            if expected not in {None, digests.blake3}:
                raise reading.changed(path)
            return digests

    def has_file(self, digest: Digest, *, area: ByteArea = "files") -> bool:
        """Whether a regular file is stored under `digest`; says nothing about its bytes."""
        self._check_open()
        return reading.is_regular(self._layout.object(area, digest))

    def open_file(self, digest: Digest, *, area: ByteArea = "files") -> BinaryIO:
        """Open a stored file or pack for reading; its bytes are not verified."""
        self._check_open()
        return os.fdopen(reading.open_regular(self._layout.object(area, digest)), "rb")

    def read_range(self, area: ByteArea, digest: Digest, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a stored file or pack; see `Store.read_range`."""
        self._check_open()
        path = self._layout.object(area, digest)
        with os.fdopen(reading.open_regular(path), "rb", buffering=0) as stream, explained(path, "read"):
            return reading.exact_range(stream, f"`{path}`", start, end)

    def file_path(self, digest: Digest) -> Path:
        """The stored file itself, mode 0444: map or link it, never write to it; its bytes are not verified."""
        self._check_open()
        path = self._layout.object("files", digest)
        reading.regular_size(path)
        return path

    def file_size(self, digest: Digest, *, area: ByteArea = "files") -> int:
        """Length of a stored file or pack in bytes."""
        self._check_open()
        return reading.regular_size(self._layout.object(area, digest))

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        """Read a stored file or pack; `IntegrityError` unless its bytes have this digest."""
        self._check_open()
        reading.verify(self._layout.object(area, digest), digest)

    # -- small objects -------------------------------------------------------------------------------------------------

    def put(self, area: Area, data: bytes) -> Digest:
        """Store a small object; see `Store.put`."""
        self._prepare_to_write()
        digest = digest_bytes(data)
        target = self._layout.object(area, digest)
        if reading.fits(target, digest, len(data)):
            self._make_name_durable(target)
        else:
            self._keep(target, data)
        return digest

    def get(self, area: Area, digest: Digest) -> bytes:
        """A small object's bytes, verified."""
        self._check_open()
        return reading.read_object(self._layout.object(area, digest), digest)

    def has(self, area: Area, digest: Digest) -> bool:
        """Whether an object is stored under `digest`; says nothing about its bytes."""
        self._check_open()
        return reading.is_regular(self._layout.object(area, digest))

    def digests(self, area: ObjectArea) -> Iterator[Digest]:
        """Every digest that is stored in `area`, ascending."""
        self._check_open()
        return self._layout.objects(area)

    def remove(self, area: ObjectArea, digest: Digest) -> None:
        """Remove an object, durably; one that is not there is fine."""
        self._prepare_to_write()
        self._writer.remove(self._layout.object(area, digest))

    # -- journal -------------------------------------------------------------------------------------------------------

    def publish_journal(self, seq: int, entry: bytes) -> None:
        """Store journal entry number `seq`; see `Store.publish_journal`."""
        self._prepare_to_write()
        target = self._layout.journal_entry(seq)
        if self._agrees(seq, entry):
            return
        framed = frame_entry(entry)
        with self._writer.incoming() as file:
            file.write(framed)
            # The name may be taken by a damaged entry, which is replaced, or since a moment ago by somebody else's.
            if not file.publish_new(target, len(framed)) and not self._agrees(seq, entry):
                file.publish(target, len(framed))

    def journal(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The journal's entries in ascending order, each verified; see `Store.journal`."""
        self._check_open()
        for seq in self._layout.journal_numbers():
            if seq <= after:
                continue
            entry = self._entry(seq)
            if entry is not None:
                yield seq, entry
            elif damaged is not None:
                damaged(seq)
            else:
                raise IntegrityError(
                    f"journal entry {seq} of the yard `{self.root}` is damaged",
                    hint="copy it from a backup of the yard; only rebuilding a lost catalog needs it",
                    path=str(self._layout.journal_entry(seq)),
                )

    # -- space ---------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """Bytes that can still be stored."""
        with explained(self.root, "ask for the free space of"):
            found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def remove_leftovers(self) -> int:
        """Remove what dead writers left in `tmp/`; how many files that were.

        Done by itself before an instance's first write. Files of living writers are locked and stay, whatever their age.
        """
        return self._writer.remove_leftovers()

    # -- how it is done ------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._opened:
            self.open()

    def _prepare_to_write(self) -> None:
        self._check_open()
        self._writer.check()
        if not self._swept:
            self._swept = True
            self.remove_leftovers()

    def _make_folders(self) -> None:
        for folder in reversed([self.root, *self.root.parents]):
            if not folder.exists():
                self._writer.make_folder(folder)
                self._writer.sync_folder(folder.parent)
        for folder in self._layout.folders():
            self._writer.make_folder(folder)
        self._writer.sync_folder(self.root)

    def _announce_packs(self) -> None:
        """Say in `format`, durably, that there may be packs: before the first one has a name."""
        if self._packs_announced:
            return
        with lock_folder(self.root):
            found = read_format(self._layout)
            if PACKS not in found["features"]:
                self._keep(self._layout.format_file, extend_format(found, PACKS))
            else:
                self._writer.sync_folder(self.root)  # as in `_holds`
        self._packs_announced = True

    def _copy(
        self, stream: BinaryIO, path: Path, observe: Callable[[bytes], object] | None, *, link: bool
    ) -> FileDigests:
        before = os.fstat(stream.fileno())
        with self._writer.incoming() as file:
            # What is hashed after cloning is our copy: the original may change meanwhile.
            if file.clone(stream.fileno()):
                return self._publish(file, file.digests(observe))
            if not link or (digests := self._link(stream, path, before, observe)) is None:
                return self._publish(file, _write(file, read_exactly(stream, path, before.st_size), observe))
            return digests

    def _link(
        self, stream: BinaryIO, path: Path, before: os.stat_result, observe: Callable[[bytes], object] | None
    ) -> FileDigests | None:
        """Store the original itself by a second name; None, with nothing read, where that cannot be."""
        with self._writer.adopted(path, stream.fileno()) as file:
            if file is None:
                return None
            digests = hash_chunks(read_exactly(stream, path, before.st_size), observe)
            # Asked when the file is read-only already: whoever opens it from here on cannot write.
            return self._publish(file, digests, lambda: reading.check_unchanged(stream.fileno(), before, path))

    def _publish(
        self, file: IncomingFile, digests: FileDigests, check: Callable[[], None] | None = None
    ) -> FileDigests:
        if not self._holds(digests):
            file.publish(self._layout.object("files", digests.blake3), digests.size, check)
        return digests

    def _keep_small(self, data: bytes) -> FileDigests:
        digests = hash_chunks([data])
        if not self._holds(digests):
            self._keep(self._layout.object("files", digests.blake3), data)
        return digests

    def _keep(self, target: Path, data: bytes) -> None:
        with self._writer.incoming() as file:
            file.write(data)
            file.publish(target, len(data))

    def _holds(self, digests: FileDigests, area: ByteArea = "files") -> bool:
        """Whether these very bytes are a stored file or pack, durably."""
        target = self._layout.object(area, digests.blake3)
        if not reading.fits(target, digests.blake3, digests.size):
            return False
        self._make_name_durable(target)
        return True

    def _make_name_durable(self, target: Path) -> None:
        # Whoever published it may not have got to this yet, and we are about to say that it is safe.
        self._writer.ensure_folder(target.parent)
        self._writer.sync_folder(target.parent)

    def _stored_of(self, size: int) -> Iterator[Path]:
        """Every stored file of this size; one that vanishes meanwhile does not count."""
        for digest in self._layout.objects("files"):
            path = self._layout.object("files", digest)
            with suppress(FileNotFoundError):
                if path.lstat().st_size == size:
                    yield path

    def _entry(self, seq: int) -> bytes | None:
        """Journal entry number `seq`, or None when it is missing or damaged."""
        try:
            return unframe_entry(reading.read_object(self._layout.journal_entry(seq)))
        except IntegrityError:
            return None

    def _agrees(self, seq: int, entry: bytes) -> bool:
        """Whether journal entry `seq` is there, sound, durable and says this; `ConflictError` when it says something else."""
        found = self._entry(seq)
        if found is not None and found != entry:
            raise ConflictError(
                f"journal entry {seq} of the yard `{self.root}` is already published and says something else",
                hint="two catalogs may share this store: look at `yard doctor`",
                seq=seq,
            )
        if found is None:
            return False
        self._writer.sync_folder(self._layout.journal)  # as in `_holds`
        return True


def _write(
    file: IncomingFile, chunks: Iterable[bytes], observe: Callable[[bytes], object] | None = None
) -> FileDigests:
    with Hashing(observe) as hashing:
        for chunk in chunks:
            hashing.update(chunk)
            file.write(chunk)
        return hashing.digests()
