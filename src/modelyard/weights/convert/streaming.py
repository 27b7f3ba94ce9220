"""Bytes of tensors from files through `cast/1`, in order, computed a few blocks ahead by threads with memory that is used again.

Knows blocks and dtypes; neither which tensors a model has nor where the result goes.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations import STORAGE, Workspace
from modelyard.derivations.cast import cast_block
from modelyard.errors import InputError, ModelError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Shard

__all__ = ["Block", "Lane", "Piece", "cut"]

_PIECE = 2 << 20
_ELEMENTS = 1 << 14  # of one step of arithmetic: its operands stay in a core's own cache


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of one tensor: where they are, and what dtype they have and get.

    Attributes:
        tensor: Its name, for messages.
        source: The open file (`start` counts as `TensorInfo.start` does), or the bytes in memory.
        start, size: Which bytes.
        before, after: Dtypes as safetensors calls them; equal ones are not touched.
    """

    tensor: str
    source: Shard | NDArray[np.uint8]
    start: int
    size: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Block:
    """A piece's bytes before and after; both are overwritten once the next block is asked for."""

    piece: Piece
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]


def cut(
    tensor: str, source: Shard | NDArray[np.uint8], span: tuple[int, int], dtypes: tuple[str, str]
) -> Iterator[Piece]:
    """The bytes from `span[0]` to `span[1]` in pieces of a few MiB; dtypes are those before and after."""
    start, end = span
    for position in range(start, end, _PIECE):
        yield Piece(tensor, source, position, min(_PIECE, end - position), *dtypes)


class Lane:
    """Threads, and buffers that go round. A context manager.

    Args:
        threads: How many blocks are computed at the same time; None is every core that this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or _usable_cores()
        self._executor = ThreadPoolExecutor(self.threads)
        self._workspaces = [Workspace(_ELEMENTS) for _ in range(self.threads)]
        self._buffers: list[NDArray[np.uint8]] = []  # `append` and `pop` of a list are atomic

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(self, pieces: Iterable[Piece]) -> Iterator[Block]:
        """Each piece's block, in the order of the pieces.

        Raises:
            ModelError: `nan_result`, `infinite_result` or `flush_to_zero`, naming the tensor; `truncated`.
        """
        running: deque[Future[Block]] = deque()
        try:
            for piece in pieces:
                running.append(self._executor.submit(self._compute, piece))
                if len(running) > self.threads:
                    yield from self._next(running)
            while running:
                yield from self._next(running)
        finally:
            # After an error, nobody may still be reading when a file is closed.
            wait([future for future in running if not future.cancel()])

    def _next(self, running: deque[Future[Block]]) -> Iterator[Block]:
        block = running.popleft().result()
        yield block
        if not isinstance(block.piece.source, np.ndarray):
            self._give(block.before)
        if block.after is not block.before:
            self._give(block.after)

    def _compute(self, piece: Piece) -> Block:
        if isinstance(piece.source, np.ndarray):
            before = piece.source[piece.start : piece.start + piece.size]
        else:
            before = self._take(piece.size)
            piece.source.read_into(before.data, piece.start)
        if piece.before == piece.after:
            return Block(piece, before, before)
        kinds = STORAGE[piece.before], STORAGE[piece.after]
        after = self._take(piece.size // kinds[0].itemsize * kinds[1].itemsize)
        workspace = self._workspaces.pop()
        try:
            _cast(piece, before.view(kinds[0]), after.view(kinds[1]), workspace)
        finally:
            self._workspaces.append(workspace)
        return Block(piece, before, after)

    def _take(self, size: int) -> NDArray[np.uint8]:
        """A buffer of `size` bytes, its content undefined."""
        buffer = self._buffers.pop() if self._buffers else np.empty(max(size, 2 * _PIECE), np.uint8)
        return buffer[:size] if buffer.size >= size else np.empty(size, np.uint8)

    def _give(self, part: NDArray[np.uint8]) -> None:
        self._buffers.append(part if part.base is None else part.base)


def _cast(piece: Piece, source: Array, out: Array, workspace: Workspace) -> None:
    infinite = False
    try:
        for start in range(0, source.size, _ELEMENTS):
            part = slice(start, start + _ELEMENTS)
            infinite |= cast_block(source[part], piece.before, out[part], piece.after, workspace)
    except InputError as error:
        what = f"`{show_name(piece.tensor)}` cannot be cast: {error.message}"
        raise ModelError(what, code=error.code, hint=error.hint) from error
    if infinite:
        raise ModelError(
            f"`{show_name(piece.tensor)}` cannot be cast: it holds numbers that {piece.after} has not",
            code="infinite_result",
            hint="bfloat16 and float32 reach 3.4e38, float16 only 65504",
        )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
