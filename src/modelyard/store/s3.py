"""A store under a prefix of a bucket on S3, or on anything that speaks its protocol.

Implements "On S3" of `docs/design/store-format.md`; a folder on this machine caches what is read and holds streams on their way out.
Does not know what its bytes mean, nor that there is a catalog beside them, nor where credentials come from.

::

    location = S3Location.parse("s3://models/yard?region=eu-central-1")
    store = S3Store(location, S3Credentials(key, secret), Path("/var/cache/yard")).init()
    digests = store.put_file([b"some ", b"bytes"])
    store.file_path(digests.blake3)
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import blake3

from modelyard.digest import Digest, FileDigests, digest_bytes
from modelyard.errors import InputError, IntegrityError, InternalError, NotFoundError
from modelyard.store import reading
from modelyard.store.hashing import Hashing, gather, hash_chunks
from modelyard.store.layout import PACKS, extend_format, format_bytes
from modelyard.store.s3_bucket import Bucket
from modelyard.store.s3_cache import ReadCache
from modelyard.store.s3_format import FORMAT_LIMIT, parse_format
from modelyard.store.s3_journal import S3Journal
from modelyard.store.s3_objects import S3Objects
from modelyard.store.s3_transfer import PIECE, ObjectReader, abort_leftovers, piece_size, pieces, read_pieces, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from modelyard.store.base import Area, ByteArea, ObjectArea
    from modelyard.store.s3_bucket import Head
    from modelyard.store.s3_location import S3Credentials, S3Location

__all__ = ["CACHE_BYTES", "S3Store"]

CACHE_BYTES = 50 * 10**9
"""The read cache's bound where nobody names one."""

_LEFT_SECONDS = 7 * 24 * 3600
"""Age at which a multipart upload of another machine counts as dead: nothing tells a slow one from it."""

_OBJECT_LIMIT = 256 << 20
"""Bytes of the longest manifest or report that is read."""


class S3Store:
    """A `Store` under a prefix of a bucket.

    Nothing happens on construction; the first use, or `open`, checks that the prefix is a yard. Safe to share between
    threads, and with other processes and machines.

    Args:
        location: Where.
        credentials: Who.
        cache: A folder on this machine, which other processes may share.
        cache_bytes: Bytes that the files in it may take together.
    """

    def __init__(
        self, location: S3Location, credentials: S3Credentials, cache: Path, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.location = location
        self.cache = ReadCache(Path(cache), cache_bytes)
        self._credentials = credentials
        self._opened = False
        self._swept = False
        self._packs_announced = False

    def __repr__(self) -> str:
        return f"S3Store({str(self.location)!r})"

    # -- opening -------------------------------------------------------------------------------------------------------

    def init(self) -> S3Store:
        """Make the prefix a yard; objects are never touched, and the bucket must be there. Raises as `open`."""
        if self._bucket.get("format", FORMAT_LIMIT) is None and self._bucket.put_new("format", format_bytes()) is None:
            self._bucket.put("format", format_bytes())
        return self.open()

    def open(self) -> S3Store:
        """Check that the prefix is a yard that this version reads.

        Raises:
            AuthError: The credentials do not allow it.
            NotFoundError: It is none, or there is no such bucket.
            InputError: It is a newer yard (code ``newer_format``).
            IntegrityError: Its `format` does not say what it is.
        """
        self._read_format()
        self.cache.prepare()
        (self.cache.root / "uploads").mkdir(exist_ok=True)
        self._opened = True
        return self

    # -- files ---------------------------------------------------------------------------------------------------------

    def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
        """Store the concatenation of `chunks` as a file or pack; see `Store.put_file`.

        A stream longer than a piece goes through a file of the cache first: its name follows from its last byte.
        """
        self._prepare_to_write(area)
        rest = gather(chunks)
        start: list[bytes] = []
        size = 0
        for chunk in rest:
            start.append(chunk)
            size += len(chunk)
            if size > PIECE:
                return self._put_long(start, rest, area)
        return self._put_short(b"".join(start), area)

    def import_file(
        self,
        path: Path,
        *,
        sha256_of: Callable[[Digest], str | None] | None = None,
        observe: Callable[[bytes], object] | None = None,
        link: bool = False,
    ) -> FileDigests:
        """Store a copy of the file at `path`; see `Store.import_file`.

        Hashes everything in one pass, whatever `sha256_of` knows, and reads the file again while it is sent; its bytes are not cached, and
        `link` changes nothing.
        """
        del sha256_of, link
        self._prepare_to_write("files")
        with reading.source(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= PIECE:
                data = b"".join(reading.read_exactly(stream, path, size))
                if observe is not None:
                    observe(data)
                return self._put_short(data, "files")
            digests = hash_chunks(reading.read_exactly(stream, path, size), observe)
            if self._objects.holds("files", digests) is None:
                stream.seek(0)
                self._send("files", digests, stream, path)
        return digests

    def has_file(self, digest: Digest, *, area: ByteArea = "files") -> bool:
        """Whether something is stored under `digest`; says nothing about its bytes."""
        return self._objects.head(area, digest) is not None

    def open_file(self, digest: Digest, *, area: ByteArea = "files") -> BinaryIO:
        """Open a stored file or pack for reading, in the cache where that has what is stored; its bytes are not verified."""
        head = self._objects.found(area, digest)
        if self.cache.etag(digest) == head.etag and (fd := self.cache.open(digest)) is not None:
            return os.fdopen(fd, "rb")
        return io.BufferedReader(ObjectReader(self._bucket, self._objects.name(area, digest), head))

    def read_range(self, area: ByteArea, digest: Digest, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a stored file or pack; see `Store.read_range`."""
        if not 0 <= start <= end:
            raise InternalError(f"{start} to {end} is no range of bytes")
        fd = self._cached(area, digest)
        if fd is not None:
            with os.fdopen(fd, "rb", buffering=0) as stream:
                return reading.exact_range(stream, f"`{self._objects.shown(area, digest)}`", start, end)
        if start == end:
            self._objects.found(area, digest)
            return b""
        data = self._bucket.read(self._objects.name(area, digest), start, end)
        if data is None:
            raise self._objects.missing(area, digest)
        return reading.exact_range(io.BytesIO(data), f"`{self._objects.shown(area, digest)}`", 0, end - start)

    def file_path(self, digest: Digest) -> Path:
        """A file of the cache that holds these bytes, mode 0444; fetched, and verified, when it is not there.

        It stays while this store object lives, a day at most; a link to it stays whole for ever.
        """
        self._check_open()
        self._objects.name("files", digest)
        path = self.cache.take(digest)
        if path is not None and self.cache.etag(digest) is not None:
            return path
        with self.cache.filling(digest):
            path = self.cache.take(digest)
            head = self._objects.found("files", digest)
            if path is None or not reading.fits(path, digest, head.size):
                return self._fetch("files", digest, head)
            self.cache.record(digest, head.etag)
            return path

    def file_size(self, digest: Digest, *, area: ByteArea = "files") -> int:
        """Length of a stored file or pack in bytes."""
        return self._objects.found(area, digest).size

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        """Read a stored file or pack; `IntegrityError` unless its bytes have this digest.

        Where the cache has a file, and the endpoint says by its ETag that the object is the one that the cached bytes came from, those are read.
        Any other file is fetched into the cache; a pack is only read.
        """
        if area == "packs":
            self.verify_stored(digest, area=area)
            return
        head = self._objects.found(area, digest)
        if self.cache.etag(digest) == head.etag and (path := self.cache.take(digest)) is not None:
            if reading.fits(path, digest, head.size):
                return
            self.cache.drop(digest)
        with self.cache.filling(digest):
            self._fetch(area, digest, head)

    def verify_stored(self, digest: Digest, *, area: ByteArea = "files") -> None:
        """As `verify_file`, but every byte comes from the endpoint, whatever the cache has."""
        head = self._objects.found(area, digest)
        hasher = blake3.blake3()
        for chunk in pieces(self._bucket, self._objects.name(area, digest), head):
            hasher.update(chunk)
        self._objects.compare(area, digest, hasher.hexdigest())

    # -- small objects -------------------------------------------------------------------------------------------------

    def put(self, area: Area, data: bytes) -> Digest:
        """Store a small object; see `Store.put`."""
        self._prepare_to_write(area)
        digest = digest_bytes(data)
        self._bucket.put(self._objects.name(area, digest), data, digest=digest)
        return digest

    def get(self, area: Area, digest: Digest) -> bytes:
        """A small object's bytes, verified."""
        self._check_open()
        found = self._bucket.get(self._objects.name(area, digest), _OBJECT_LIMIT)
        if found is None:
            raise self._objects.missing(area, digest)
        self._objects.compare(area, digest, digest_bytes(found))
        return found

    def has(self, area: Area, digest: Digest) -> bool:
        """Whether an object is stored under `digest`; says nothing about its bytes."""
        return self._objects.head(area, digest) is not None

    def digests(self, area: ObjectArea) -> Iterator[Digest]:
        """Every digest that the endpoint lists in `area`, ascending; what was stored a moment ago may not be listed yet."""
        yield from self._objects.listed(area)

    def remove(self, area: ObjectArea, digest: Digest) -> None:
        """Remove an object; one that is not there is fine."""
        self._check_open()
        self._bucket.delete(self._objects.name(area, digest))
        if area in {"files", "packs"}:
            self.cache.drop(digest)

    # -- the journal ---------------------------------------------------------------------------------------------------

    def publish_journal(self, seq: int, entry: bytes) -> None:
        """Store journal entry number `seq`; see `Store.publish_journal`."""
        self._check_open()
        self._journal.publish(seq, entry)

    def journal(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The journal's entries in ascending order, each verified; see `Store.journal`."""
        self._check_open()
        yield from self._journal.entries(after=after, damaged=damaged)

    # -- space ---------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """None: nobody can tell."""
        return None

    def remove_leftovers(self) -> int:
        """Abort multipart uploads that dead processes left: this machine's at once, others' when they are a week old; how many."""
        self._check_open()
        count = abort_leftovers(self._bucket, self.cache.root / "uploads")
        for found in self._bucket.uploads():
            if found.age > _LEFT_SECONDS:
                self._bucket.abort(found.name, found.id)
                count += 1
        return count

    # -- how it is done ------------------------------------------------------------------------------------------------

    @cached_property
    def _bucket(self) -> Bucket:
        return Bucket(self.location, self._credentials)

    @property
    def _objects(self) -> S3Objects:
        self._check_open()
        return self._known_objects

    @cached_property
    def _known_objects(self) -> S3Objects:
        return S3Objects(self._bucket)

    @cached_property
    def _journal(self) -> S3Journal:
        return S3Journal(self._bucket)

    def _check_open(self) -> None:
        if not self._opened:
            self.open()

    def _prepare_to_write(self, area: ObjectArea) -> None:
        self._check_open()
        if not self._swept:
            self._swept = True
            abort_leftovers(self._bucket, self.cache.root / "uploads")
        if area == "packs" and not self._packs_announced:
            found = self._read_format()
            if PACKS not in found["features"]:
                self._bucket.put("format", extend_format(found, PACKS))
            self._packs_announced = True

    def _read_format(self) -> dict[str, Any]:
        found = self._bucket.get("format", FORMAT_LIMIT)
        if found is None:
            raise NotFoundError(f"there is no yard at `{self.location}`", hint=f"yard init --store '{self.location}'")
        return parse_format(found, str(self.location))

    def _put_short(self, data: bytes, area: ByteArea) -> FileDigests:
        digests = hash_chunks([data])
        if self._objects.holds(area, digests) is None:
            self._bucket.put(
                self._objects.name(area, digests.blake3), data, digest=digests.blake3, sha256=digests.sha256
            )
        return digests

    def _put_long(self, start: list[bytes], rest: Iterator[bytes], area: ByteArea) -> FileDigests:
        with self.cache.incoming() as file:
            with Hashing() as hashing:
                while start:
                    chunk = start.pop(0)
                    hashing.update(chunk)
                    file.write(chunk)
                for chunk in rest:
                    hashing.update(chunk)
                    file.write(chunk)
                digests = hashing.digests()
            if (head := self._objects.holds(area, digests)) is None or area == "files":
                path = self.cache.keep(file, digests.blake3, digests.size)
        if head is None:
            with os.fdopen(reading.open_regular(path), "rb", buffering=0) as stream:
                head = self._send(area, digests, stream, path)
        if area == "files":
            self.cache.record(digests.blake3, head.etag)
        else:  # it was there to be sent from: packs are read in ranges
            self.cache.drop(digests.blake3)
        return digests

    def _send(self, area: ByteArea, digests: FileDigests, stream: BinaryIO, path: Path) -> Head:
        """Store what is in the stream, which must have these digests to its end: else nothing is stored."""
        name = self._objects.name(area, digests.blake3)

        def parts() -> Iterator[bytes]:
            hasher = blake3.blake3()
            for part in read_pieces(stream, digests.size, piece_size(digests.size)):
                hasher.update(part)
                yield part
            if hasher.hexdigest() != digests.blake3:
                raise InputError(
                    f"`{path}` changed while it was read",
                    hint="try again when nothing writes to it",
                    code="changed",
                    path=str(path),
                )

        upload(self._bucket, name, parts(), digest=digests.blake3, begun=self.cache.root / "uploads")
        head = self._objects.holds(area, digests)
        if head is None:
            raise IntegrityError(
                f"`{self._objects.shown(area, digests.blake3)}` did not arrive whole", hint="try again"
            )
        return head

    def _fetch(self, area: ByteArea, digest: Digest, head: Head) -> Path:
        """Fetch an object into the cache and verify it on the way."""
        hasher = blake3.blake3()
        with self.cache.incoming() as file:
            for chunk in pieces(self._bucket, self._objects.name(area, digest), head):
                hasher.update(chunk)
                file.write(chunk)
            self._objects.compare(area, digest, hasher.hexdigest())
            path = self.cache.keep(file, digest, head.size)
        self.cache.record(digest, head.etag)
        return path

    def _cached(self, area: ByteArea, digest: Digest) -> int | None:
        """A descriptor on the cached file that equals the stored one, as far as this machine knows."""
        self._check_open()
        self._objects.name(area, digest)
        return self.cache.open(digest) if self.cache.etag(digest) is not None else None
