"""Writing a shard anew where a change needs its tensor whole: read ahead, compute, write behind, a few tensors in memory at most.

Reading and hashing what is read, computing, and hashing and writing the result go on at the same time. Computing stays in the caller's
thread, since how many threads a library uses may belong to the thread that calls it. Knows shards and bytes, no arithmetic.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3
import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.shards import ShardWriter, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.digest import Digest
    from modelyard.weights.checkpoint import Checkpoint, Shard

    Bytes = NDArray[np.uint8]

__all__ = ["Buffers", "Job", "SourceShard", "write_shard"]

_PIECE = 4 << 20


class Buffers:
    """Memory that is used again: a large block costs more to get from the system, page by page, than to fill.

    Lists serve as pools: `append` and `pop` are atomic.
    """

    def __init__(self) -> None:
        self._free: list[Bytes] = []

    def take(self, size: int) -> Bytes:
        """A buffer of exactly `size` bytes, its content undefined."""
        for number in range(len(self._free)):
            if self._free[number].size >= size:
                return self._free.pop(number)[:size]
        if self._free:
            self._free.pop()  # too small: let it go, so that there are never more than are in use at once
        return np.empty(size, np.uint8)

    def give(self, *buffers: Bytes) -> None:
        """Put buffers back; memory that is a library's own is let go."""
        for buffer in buffers:
            owner = buffer if buffer.base is None else buffer.base
            if isinstance(owner, np.ndarray):
                self._free.append(owner)


@dataclass(frozen=True)
class Job:
    """The next bytes of a file.

    Attributes:
        size: How many are read.
        read: Fills a buffer of that size; in a thread of its own.
        compute: Makes bytes of what was read, into a buffer of the same size where it can; in the caller's thread. None keeps
            what was read.
        check: Looks at what was read and what was made; in a third thread.
    """

    size: int
    read: Callable[[Bytes], None]
    compute: Callable[[Bytes, Bytes], Bytes] | None = None
    check: Callable[[Bytes, Bytes], None] | None = None


class SourceShard:
    """A file of the base being read once, in the order of its bytes, and hashed on the way.

    Args:
        base: The checkpoint.
        name: One of its files.
    """

    def __init__(self, base: Checkpoint, name: str) -> None:
        self._shard: Shard = base.open(name)
        if self._shard.header != base.shards[name]:
            self._shard.__exit__(None, None, None)
            raise ModelError(f"`{self._shard.label}` changed while it was read", code="truncated")
        self.header = self._shard.header
        self._hash = blake3.blake3(self._shard.header_bytes)

    def __enter__(self) -> SourceShard:
        return self

    def __exit__(self, *_: object) -> None:
        self._shard.__exit__(None, None, None)

    def keep(self, tensor: str) -> Iterator[Job]:
        """One tensor's jobs where its bytes stay: in pieces. Tensors are to be taken in the order of the file."""
        info = self.header.tensors[tensor]
        for start in range(info.start, info.end, _PIECE):
            yield Job(min(_PIECE, info.end - start), self._reader(start))

    def change(
        self, tensor: str, compute: Callable[[Bytes, Bytes], Bytes], check: Callable[[Bytes, Bytes], None]
    ) -> Job:
        """One tensor's job where it is computed: whole."""
        info = self.header.tensors[tensor]
        return Job(info.end - info.start, self._reader(info.start), compute, check)

    def digest(self) -> str:
        """The digest of the file, once all its tensors were read."""
        return self._hash.hexdigest()

    def _reader(self, start: int) -> Callable[[Bytes], None]:
        def read(buffer: Bytes) -> None:
            self._shard.read_into(buffer.data, start)
            self._hash.update(buffer.data)

        return read


def write_shard(
    path: Path,
    specs: Sequence[TensorSpec],
    jobs: Iterable[Job],
    buffers: Buffers,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Digest:
    """Write one file from jobs that give its tensors' bytes in order, and return its digest.

    Args:
        path: The file, which must not exist.
        specs: Its tensors.
        jobs: What makes their bytes.
        buffers: Memory for what is read and made.
        metadata: The header's metadata.
        progress: Called with the bytes that were written since the last call.
    """
    with (
        ShardWriter(path, specs, metadata) as writer,
        ThreadPoolExecutor(1, "read") as reads,
        ThreadPoolExecutor(1, "write") as writes,
    ):

        def finish(job: Job, raw: Bytes, made: Bytes) -> None:
            if job.check is not None:
                job.check(raw, made)
            writer.write(made.data)
            buffers.give(raw, *(() if made is raw else (made,)))

        writing: Future[None] | None = None
        for job, raw in _read_ahead(jobs, reads, buffers):
            made = raw if job.compute is None else job.compute(raw, buffers.take(raw.size))
            if writing is not None:
                writing.result()
            writing = writes.submit(finish, job, raw, made)
            if progress is not None:
                progress(made.size)
        if writing is not None:
            writing.result()
    return writer.digest()


def _read_ahead(jobs: Iterable[Job], reads: ThreadPoolExecutor, buffers: Buffers) -> Iterator[tuple[Job, Bytes]]:
    """The jobs with what they read, the next one being read meanwhile."""

    def read(job: Job) -> Bytes:
        buffer = buffers.take(job.size)
        job.read(buffer)
        return buffer

    waiting: deque[tuple[Job, Future[Bytes]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, reads.submit(read, job)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
