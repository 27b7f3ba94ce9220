"""Writing a shard anew where a change needs its tensor whole: read ahead, compute, write behind, a few tensors in memory at most.

Reading and hashing what is read, computing, and hashing and writing the result go on at the same time. Computing stays in the caller's
thread, since how many threads a library uses may belong to the thread that calls it. Knows shards and bytes, no arithmetic.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import blake3

from modelyard.errors import ModelError
from modelyard.weights.pipeline import run_ahead
from modelyard.weights.shards import ShardWriter, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.weights.checkpoint import Checkpoint, Shard
    from modelyard.weights.pipeline import Buffers, Bytes

__all__ = ["Job", "SourceShard", "write_shard"]

_PIECE = 4 << 20


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

    def read(job: Job) -> tuple[Job, Bytes]:
        buffer = buffers.take(job.size)
        job.read(buffer)
        return job, buffer

    with closing(run_ahead(reads, read, jobs, 2)) as done:
        yield from done
