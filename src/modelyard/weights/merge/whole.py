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

__all__ = ["Job", "SourceShard", "write_shard"]

_PIECE = 4 << 20


@dataclass(frozen=True)
class Job:
    """The next bytes of a file: `read` (in a thread of its own) and then `compute` (in the caller's), None to write what was read."""

    read: Callable[[], Bytes]
    compute: Callable[[Bytes], Bytes] | None = None


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

    def jobs(self, tensor: str, compute: Callable[[Bytes], Bytes] | None = None) -> Iterator[Job]:
        """One tensor's jobs: whole where it is computed, in pieces where its bytes stay. To be run in the order of the file."""
        info = self.header.tensors[tensor]
        step = max(info.end - info.start, 1) if compute is not None else _PIECE
        for start in range(info.start, info.end, step):
            yield Job(self._reader(start, min(step, info.end - start)), compute)

    def digest(self) -> str:
        """The digest of the file, once all its tensors were read."""
        return self._hash.hexdigest()

    def _reader(self, start: int, size: int) -> Callable[[], Bytes]:
        def read() -> Bytes:
            buffer = np.empty(size, np.uint8)
            self._shard.read_into(buffer.data, start)
            self._hash.update(buffer.data)
            return buffer

        return read


def write_shard(
    path: Path,
    specs: Sequence[TensorSpec],
    jobs: Iterable[Job],
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Digest:
    """Write one file from jobs that give its tensors' bytes in order, and return its digest.

    Args:
        path: The file, which must not exist.
        specs: Its tensors.
        jobs: What makes their bytes.
        metadata: The header's metadata.
        progress: Called with the bytes that were written since the last call.
    """
    with (
        ShardWriter(path, specs, metadata) as writer,
        ThreadPoolExecutor(1, "read") as reads,
        ThreadPoolExecutor(1, "write") as writes,
    ):
        writing: Future[None] | None = None
        for job, raw in _read_ahead(jobs, reads):
            made = raw if job.compute is None else job.compute(raw)
            if writing is not None:
                writing.result()
            writing = writes.submit(writer.write, made.data)
            if progress is not None:
                progress(made.size)
        if writing is not None:
            writing.result()
    return writer.digest()


def _read_ahead(jobs: Iterable[Job], reads: ThreadPoolExecutor) -> Iterator[tuple[Job, Bytes]]:
    """The jobs with what they read, the next one being read meanwhile."""
    waiting: deque[tuple[Job, Future[Bytes]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, reads.submit(job.read)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
