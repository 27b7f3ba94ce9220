"""Batches: complete, deterministic, little padded; packing changes nothing but the layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelyard.training.batches import EpochBatches, collate_packed, collate_padded, pack_rows, plan_epoch
from modelyard.training.tokens import EncodedRow

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


def row(index: int, *ids: int, trained_from: int = 0) -> EncodedRow:
    """A row whose tokens are trained from a position on."""
    return EncodedRow(index, np.array(ids, dtype=np.int32), np.arange(len(ids)) >= trained_from)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_every_row_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    """An epoch's plan holds every row once, in batches of the size, as many as the sampler says."""
    plan = plan_epoch(lengths, size, seed, epoch)
    assert sorted(position for batch in plan for position in batch) == list(range(len(lengths)))
    assert max(map(len, plan)) <= size
    assert len(plan) == len(EpochBatches(lengths, size, seed))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The same seed and epoch give the same plan; another seed or epoch another."""
    lengths = [n % 17 + 1 for n in range(200)]
    plans = [plan_epoch(lengths, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert plan_epoch(lengths, 8, 0, 0) == plans[0]
    assert plans[0] != plans[1] != plans[2] != plans[0]


def test_similar_lengths_share_a_batch() -> None:
    """Less than a twentieth of the tokens of a batch plan is padding."""
    lengths = [(n * 7919) % 97 + 4 for n in range(2000)]
    plan = plan_epoch(lengths, 16, 0, 0)
    padded = sum(len(batch) * max(lengths[position] for position in batch) for batch in plan)
    assert padded < sum(lengths) * 1.05


@given(LENGTHS)
def test_packing_keeps_every_row_within_the_size(lengths: list[int]) -> None:
    """Every row is in one bin, and no bin is over the size."""
    bins = pack_rows(lengths, 60)
    assert sorted(position for part in bins for position in part) == list(range(len(lengths)))
    assert all(sum(lengths[position] for position in part) <= 60 for part in bins)


def test_padded_batch() -> None:
    """Rows are padded at the end; labels are the trained tokens, never a row's first one."""
    batch = collate_padded(9)([row(0, 1, 2, 3, trained_from=1), row(1, 4, 5)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 5, -100]]
    assert "attention_mask" not in batch


def test_packed_batch() -> None:
    """Packed rows start their positions anew, and no row's first token is predicted from the row before."""
    batch = collate_packed(9)([[row(0, 1, 2), row(1, 3, 4)], [row(2, 5)]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 9, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 4], [-100, -100, -100, -100]]
