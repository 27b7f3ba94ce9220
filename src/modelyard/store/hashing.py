"""All hashes of a stream in one pass, beside the disk.

Of the processor time that a gigabyte took on a small machine, 0.8 s were SHA-256, 0.4 s BLAKE3 and 0.7 s a plain copy, so for anything
large SHA-256 runs in one thread and everything else in another. The result is that of `modelyard.digest.HashingReader`. Knows chunks of bytes;
does not know where they come from or go.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from typing import TYPE_CHECKING, Self

import blake3

from modelyard.digest import GIT_BLOB_LIMIT, Digest, FileDigests
from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

__all__ = ["CHUNK", "READ", "Hashing", "Segmenting", "gather", "hash_chunks"]

CHUNK = 1 << 20
"""Bytes read, hashed and written at a time: few calls, and still in the cache from one step to the next."""

READ = 256 << 10
"""Bytes read at a time from a file that is stored meanwhile: a core's own cache holds them, and memory this small is used
again, where Python asks the system for new memory for a MB each time. Of 973 MB on two cores a commit took 1.1 s, and 1.8 s by the MB."""

_ALONE = 4 << 20
"""Below this many bytes a thread costs more than it saves."""
_AHEAD = 32
"""Chunks that may wait for a hash; bounds the memory."""


class Hashing:
    """Hashes what `update` is given; leave the `with` block to end its threads.

    Args:
        observe: Given every chunk too, in order, in a thread of ours where there are more than a few MB; what it raises, `update` or `digests` does.
        sha256: The SHA-256 of these bytes, where somebody knows it and it need not be computed.

    >>> with Hashing() as hashing:
    ...     hashing.update(b"some ")
    ...     hashing.update(b"bytes")
    ...     digests = hashing.digests()
    >>> digests.size, digests.blake3.short[:8]
    (10, '7e52aeb0')
    """

    def __init__(self, observe: Callable[[bytes], object] | None = None, sha256: str | None = None) -> None:
        self._known_sha256 = sha256
        self._blake3 = blake3.blake3()
        self._sha256 = hashlib.sha256()
        # SHA-256 takes as long as all the rest. More threads than two were slower on two cores, and a chunk is still in
        # the cache when one thread looks at it twice.
        self._works: list[list[Callable[[bytes], object]]] = [[self._blake3.update]]
        if observe is not None:
            self._works[0].append(observe)
        if sha256 is None:
            self._works.append([self._sha256.update])
        self._small = bytearray()
        self._size = 0
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def update(self, chunk: bytes) -> None:
        """Hash the next chunk, which must not be changed afterwards."""
        self._size += len(chunk)
        if self._size <= GIT_BLOB_LIMIT:
            self._small += chunk
        if not self._workers and self._size > _ALONE:
            self._workers = [_Worker(works) for works in self._works]
        for worker in self._workers:
            worker.give(chunk)
        if not self._workers:
            for work in itertools.chain.from_iterable(self._works):
                work(chunk)

    def digests(self) -> FileDigests:
        """The hashes of everything so far; nothing may follow."""
        for worker in self._finish():
            worker.check()
        git = None
        if self._size <= GIT_BLOB_LIMIT:
            git = hashlib.sha1(b"blob %d\0" % self._size + self._small, usedforsecurity=False).hexdigest()
        sha256 = self._known_sha256 or self._sha256.hexdigest()
        return FileDigests(self._size, Digest(self._blake3.hexdigest()), sha256, git)

    def _finish(self) -> list[_Worker]:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.finish()
        return workers


class _Worker:
    """Does each of `works` with chunk after chunk, in a thread."""

    def __init__(self, works: Sequence[Callable[[bytes], object]]) -> None:
        self._works = works
        self._failure: BaseException | None = None
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def give(self, chunk: bytes) -> None:
        self.check()
        self._waiting.put(chunk)

    def check(self) -> None:
        """Raise what the work raised."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (chunk := self._waiting.get()) is not None:
            # After a failure the rest is thrown away, so that nobody waits for a place in the queue.
            if self._failure is None:
                try:
                    for work in self._works:
                        work(chunk)
                except BaseException as error:  # noqa: BLE001  raised again in the thread that gives
                    self._failure = error


class Segmenting:
    """The digests of consecutive ranges of a stream, found while it passes.

    Args:
        sizes: The ranges' sizes in bytes, in order; together the whole stream.

    >>> segmenting = Segmenting([3, 2])
    >>> for chunk in (b"ab", b"cd", b"e"):
    ...     segmenting.update(chunk)
    >>> from modelyard.digest import digest_bytes
    >>> segmenting.digests() == (digest_bytes(b"abc"), digest_bytes(b"de"))
    True
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._found: list[str] = []
        self._hasher = blake3.blake3()
        self._missing = sizes[0] if sizes else 0
        self._beyond = 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        view = memoryview(chunk)
        start, end = 0, len(view)
        sizes, found, hasher, missing = self._sizes, self._found, self._hasher, self._missing
        new = blake3.blake3
        # A model may have a hundred thousand segments: nothing is looked up or made in here that need not be.
        while start < end:
            if len(found) == len(sizes):
                self._beyond += end - start
                break
            if missing > end - start:
                hasher.update(view[start:])
                missing -= end - start
                break
            hasher.update(view[start : start + missing])
            start += missing
            found.append(hasher.hexdigest())
            hasher = new()
            missing = sizes[len(found)] if len(found) < len(sizes) else 0
        self._hasher, self._missing = hasher, missing

    def digests(self) -> tuple[Digest, ...]:
        """One digest for each range; `InputError` (code ``changed``) when the stream was shorter or longer than all of them."""
        if self._beyond or len(self._found) != len(self._sizes):
            raise InputError(
                f"a file was not {sum(self._sizes)} bytes long when it was read, as it was when its cut was found",
                hint="try again when nothing writes to it",
                code="changed",
            )
        # Their form needs no second look: BLAKE3 has just written it.
        return tuple(str.__new__(Digest, text) for text in self._found)


def hash_chunks(chunks: Iterable[bytes], observe: Callable[[bytes], object] | None = None) -> FileDigests:
    """The hashes of the concatenation of `chunks`, which `observe` is given too."""
    with Hashing(observe) as hashing:
        for chunk in chunks:
            hashing.update(chunk)
        return hashing.digests()


def gather(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of `CHUNK` or more, but for the last: a network hands out small ones.

    >>> [len(chunk) for chunk in gather([b"a" * 600_000] * 3)]
    [1200000, 600000]
    """
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        # A buffer that the source fills anew would change under the hashing thread.
        held.append(chunk if type(chunk) is bytes else bytes(chunk))
        size += len(chunk)
        if size >= CHUNK:
            yield held[0] if len(held) == 1 else b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)
