"""Batches: which rows go together, in which order, and as which tensors.

The order of an epoch is a function of the rows' lengths, the seed and the epoch's number alone, so that a resumed run
sees what the uninterrupted one would have seen. Rows of similar length share a batch: little is padded. Knows no model.
"""

from __future__ import annotations

import bisect
import math
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from modelyard.training.tokens import EncodedRow

__all__ = ["EpochBatches", "collate_packed", "collate_padded", "pack_rows", "plan_epoch"]

IGNORED = -100
"""The label that the loss skips."""

_WINDOW = 50
"""Batches among which rows are sorted by length; larger windows pad less and shuffle less."""


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of rows, batch by batch: every row once, at most `batch_size` a batch, similar lengths together.

    >>> sorted(map(sorted, plan_epoch([3, 9, 3, 9], 2, seed=0, epoch=0)))
    [[0, 2], [1, 3]]
    """
    rng = random.Random(f"modelyard/order/{seed}/{epoch}")  # noqa: S311  # an order, not a secret
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _WINDOW):
        window = sorted(order[start : start + batch_size * _WINDOW], key=lambda position: lengths[position])
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    rng.shuffle(batches)
    return batches


def pack_rows(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put rows into bins of at most `size` tokens, the longest first, each where the least room is left over.

    >>> pack_rows([6, 4, 3, 5], 10)
    [[0, 1], [3, 2]]
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        length = lengths[position]
        place = bisect.bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([position])
            left, number = size - length, len(bins) - 1
        else:
            left, number = room.pop(place)
            bins[number].append(position)
            left -= length
        bisect.insort(room, (left, number))
    return bins


class EpochBatches:
    """The batch sampler of a data loader: the plan of the epoch that was set, one list of positions a batch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose whose order the next iteration follows."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(plan_epoch(self._lengths, self._batch_size, self._seed, self._epoch))


def _padded(parts: Sequence[Sequence[EncodedRow]], pad: int) -> tuple[Any, Any, Any]:
    """Arrays of ids, labels and positions, each of shape (sequences, longest); one sequence for each list of rows."""
    import numpy as np

    width = max(sum(len(row.ids) for row in part) for part in parts)
    ids = np.full((len(parts), width), pad, dtype=np.int64)
    labels = np.full((len(parts), width), IGNORED, dtype=np.int64)
    positions = np.zeros((len(parts), width), dtype=np.int64)
    for line, part in enumerate(parts):
        start = 0
        for row in part:
            end = start + len(row.ids)
            ids[line, start:end] = row.ids
            # The first token of a row must not be predicted from the row before it.
            labels[line, start + 1 : end] = np.where(row.trained[1:], row.ids[1:], IGNORED)
            positions[line, start:end] = np.arange(end - start)
            start = end
    return ids, labels, positions


def collate_padded(pad: int) -> Callable[[Sequence[EncodedRow]], dict[str, Any]]:
    """Make batches of one row a sequence, padded at the end: `input_ids` and `labels`, int64, (rows, longest).

    There is no attention mask: padding comes last, so under causal attention no row's token ever sees it, and the
    faster causal kernel is used.
    """

    def collate(rows: Sequence[EncodedRow]) -> dict[str, Any]:
        import torch

        ids, labels, _ = _padded([[row] for row in rows], pad)
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    return collate


def collate_packed(pad: int) -> Callable[[Sequence[Sequence[EncodedRow]]], dict[str, Any]]:
    """Make batches of several rows a sequence; `position_ids` start again at 0 with each row.

    transformers reads the restart as a border that attention must not cross.
    """

    def collate(bins: Sequence[Sequence[EncodedRow]]) -> dict[str, Any]:
        import torch

        ids, labels, positions = _padded(bins, pad)
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }

    return collate
