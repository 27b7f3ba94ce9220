"""Bytes of tensors from files through `cast/1`, in order, computed a few blocks ahead by threads with memory that is used again.

Knows blocks and dtypes; neither which tensors a model has nor where the result goes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from modelyard.derivations import STORAGE, Workspace, apply_cast
from modelyard.derivations.cast import cast_block
from modelyard.errors import InputError, ModelError
from modelyard.weights.files import show_name
from modelyard.weights.pipeline import Buffers, run_ahead, usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from modelyard.derivations.numbers import Array
    from modelyard.weights.checkpoint import Shard

__all__ = ["Block", "Lane", "Piece", "cut"]

_PIECE = 2 << 20
_ELEMENTS = 1 << 14  # of one step of arithmetic: its operands stay in a core's own cache
_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}


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
        self.threads = threads or usable_cores()
        self._executor = ThreadPoolExecutor(self.threads)
        self._desks = [_Desk() for _ in range(self.threads)]
        self._buffers = Buffers(least=2 * _PIECE)

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(self, pieces: Iterable[Piece]) -> Iterator[Block]:
        """Each piece's block, in the order of the pieces.

        Raises:
            ModelError: `nan_result`, `infinite_result` or `flush_to_zero`, naming the tensor; `truncated`.
        """
        with closing(run_ahead(self._executor, self._compute, pieces, self.threads + 1)) as blocks:
            for block in blocks:
                yield block
                if not isinstance(block.piece.source, np.ndarray):
                    self._buffers.give(block.before)
                if block.after is not block.before:
                    self._buffers.give(block.after)

    def _compute(self, piece: Piece) -> Block:
        if isinstance(piece.source, np.ndarray):
            before = piece.source[piece.start : piece.start + piece.size]
        else:
            before = self._buffers.take(piece.size)
            piece.source.read_into(before.data, piece.start)
        if piece.before == piece.after:
            return Block(piece, before, before)
        kinds = STORAGE[piece.before], STORAGE[piece.after]
        after = self._buffers.take(piece.size // kinds[0].itemsize * kinds[1].itemsize)
        desk = self._desks.pop()
        try:
            desk.cast(piece, before.view(kinds[0]), after.view(kinds[1]))
        finally:
            self._desks.append(desk)
        return Block(piece, before, after)


class _Desk:
    """One thread's scratch memory."""

    def __init__(self) -> None:
        self.workspace = Workspace(_ELEMENTS)
        self.places = np.empty(_ELEMENTS, np.intp)
        self.exponents = np.empty(_ELEMENTS, np.uint32)

    def cast(self, piece: Piece, source: Array, out: Array) -> None:
        """`cast/1`. Elements of 16 bits have 65536 values, each cast once: looking them up is four times as fast as computing them."""
        infinite = False
        table = _table(piece.before, piece.after) if source.itemsize == 2 else None
        try:
            for start in range(0, source.size, _ELEMENTS):
                part = slice(start, start + _ELEMENTS)
                if table is None or not self._look_up(table, source[part], out[part], piece.after):
                    infinite |= cast_block(source[part], piece.before, out[part], piece.after, self.workspace)
        except InputError as error:
            what = f"`{show_name(piece.tensor)}` cannot be cast: {error.message}"
            raise ModelError(what, code=error.code, hint=error.hint) from error
        if infinite:
            raise ModelError(
                f"`{show_name(piece.tensor)}` cannot be cast: it holds numbers that {piece.after} has not",
                code="infinite_result",
                hint="bfloat16 and float32 reach 3.4e38, float16 only 65504",
            )

    def _look_up(self, table: Array, source: Array, out: Array, after: str) -> bool:
        """Whether every result is a finite number; what is none is left to `cast_block`, which says what it is."""
        bits = out.view(table.dtype)
        places = self.places[: source.size]
        np.copyto(places, source.view(np.uint16))
        table.take(places, out=bits, mode="clip")  # 16 bits never lie outside; `clip` only spares numpy a check
        exponents = self.exponents.view(table.dtype)[: source.size]
        np.bitwise_and(bits, _EXPONENT[after], out=exponents)
        return int(exponents.max(initial=0)) != _EXPONENT[after]


@cache
def _table(before: str, after: str) -> Array:
    """The result of `cast/1` for every finite element of a 16-bit format, by its bits, as bits; what is not finite stays so."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = (patterns & _EXPONENT[before]) != _EXPONENT[before]
    kind = np.dtype(f"<u{STORAGE[after].itemsize}")
    made = np.full(patterns.size, _EXPONENT[after], kind)
    made[finite] = apply_cast(patterns[finite].view(STORAGE[before]), before, after).view(kind)
    return made
