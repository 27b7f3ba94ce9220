"""From logits to tokens: each row by its own rules, judged against transformers' processors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modelyard.weights.generation.loop import Generation, GenerationParams
from modelyard.weights.generation.sampling import choose, keep_likely, penalize
from tiny_models import make_tokenizer


def row(prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **params: Any) -> Generation:
    """An answer in the making, with a given past."""
    return Generation(prompt, GenerationParams(**params), 100, frozenset(), make_tokenizer(), output_ids=list(output))


def random_logits(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    """Normal logits, with a seed."""
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def judge(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """What transformers leaves in, as a mask."""
    ids: Any = torch.zeros(logits.shape[0], 1, dtype=torch.long)
    if top_k:
        logits = TopKLogitsWarper(top_k)(ids, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(ids, logits)
    if min_p:
        logits = MinPLogitsWarper(min_p)(ids, logits)
    return logits > -torch.inf


def before(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """For each token, the probability of all likelier ones among those that top_k leaves, in binary64."""
    ranked, ids = logits.double().sort(dim=-1, descending=True)
    if top_k:
        ranked[:, top_k:] = -torch.inf
    likely = ranked.softmax(dim=-1)
    return torch.empty_like(likely).scatter_(1, ids, likely.cumsum(dim=-1) - likely)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([5, 300, 700]),
    st.sampled_from([0, 1, 3, 290]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_the_kept_tokens_are_those_of_transformers(
    seed: int, size: int, top_k: int, top_p: float, min_p: float
) -> None:
    """top_k, then top_p of what is left, then min_p keep the same tokens as transformers' warpers in that order.

    Both sum probabilities in binary32, in opposite directions: a token may differ whose cumulated probability is `top_p` to within that.
    """
    logits = random_logits(3, size, seed)
    kept = keep_likely(logits, [GenerationParams(top_k=top_k, top_p=top_p, min_p=min_p)] * 3)
    differs = (kept > -torch.inf) != judge(logits, top_k, top_p, min_p)
    assert not (differs & (abs(before(logits, top_k) - top_p) > 1e-5)).any()
    assert torch.equal(kept[kept > -torch.inf], logits[kept > -torch.inf])


def test_each_row_is_cut_by_its_own_parameters() -> None:
    """Rows with different parameters in one batch are each cut as they would be alone."""
    logits = random_logits(4, 600)
    params = [
        GenerationParams(top_k=2),
        GenerationParams(top_p=0.3),
        GenerationParams(),
        GenerationParams(top_k=50, top_p=0.8, min_p=0.2),
    ]
    together = keep_likely(logits, params)
    for at, item in enumerate(params):
        assert torch.equal(together[at : at + 1], keep_likely(logits[at : at + 1], [item]))


def test_a_flat_distribution_is_cut_right() -> None:
    """When top_p reaches past the first look at the likeliest tokens, all of them are ranked."""
    logits = random_logits(1, 5000) * 0.01
    kept = keep_likely(logits, [GenerationParams(top_p=0.9)])
    assert torch.equal(kept > -torch.inf, judge(logits, 0, 0.9, 0.0))
    assert int((kept > -torch.inf).sum()) > 4000


def test_greedy_takes_the_likeliest() -> None:
    """At temperature 0 the token is the arg max, whatever else is asked for."""
    logits = random_logits(3, 50)
    rows = [row(), row(top_k=5), row(top_p=0.5, seed=3)]
    assert choose(logits, rows) == logits.argmax(-1).tolist()


def test_a_tiny_temperature_is_greedy() -> None:
    """A temperature near zero neither overflows nor leaves the likeliest token."""
    logits = random_logits(8, 50) * 100
    assert choose(logits, [row(temperature=1e-30, seed=at) for at in range(8)]) == logits.argmax(-1).tolist()


def test_draws_follow_the_distribution() -> None:
    """Many draws at temperature 1 come out in the proportions of the softmax (a chi-squared bound)."""
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    one = row(temperature=1.0, seed=11)
    counts = Counter(choose(logits, [one])[0] for _ in range(2000))
    expected = {0: 1000.0, 1: 500.0, 2: 300.0, 3: 200.0}
    statistic = sum((counts[token] - n) ** 2 / n for token, n in expected.items())
    assert statistic < 16.3  # the 0.999 quantile at three degrees of freedom


def test_temperature_flattens() -> None:
    """A high temperature gives the unlikely tokens more of the draws than a low one."""
    logits = torch.tensor([[2.0, 0.0]])
    shares = []
    for temperature in (0.3, 5.0):
        one = row(temperature=temperature, seed=1)
        shares.append(sum(choose(logits, [one])[0] == 1 for _ in range(400)) / 400)
    assert shares[0] < 0.05 < 0.3 < shares[1]


def test_a_rows_draw_does_not_depend_on_its_neighbours() -> None:
    """The same seed and logits give the same token alone, first, and last in a batch of others."""
    logits = random_logits(5, 300)
    alone = choose(logits[2:3], [row(temperature=1.5, seed=9, top_p=0.9)])[0]
    for order in ([2, 0, 1], [0, 1, 2], [4, 2, 3, 0]):
        rows = [row(temperature=1.5, seed=9 if at == 2 else at, top_p=0.9) for at in order]
        assert choose(logits[order], rows)[order.index(2)] == alone


def test_penalties_do_not_touch_the_callers_logits() -> None:
    """Sampling leaves the logits as they were."""
    logits = random_logits(2, 20)
    before = logits.clone()
    choose(logits, [row(output=(1, 1), frequency_penalty=1.0), row(temperature=1.0, seed=1, top_k=3)])
    assert torch.equal(logits, before)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    """Every token of prompt and answer has its logit divided, or multiplied when negative."""
    logits = random_logits(1, 30)
    one = row(prompt=(1, 2, 2, 3), output=(4, 4), repetition_penalty=1.7)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[1, 2, 2, 3, 4, 4]]), logits.clone())
    torch.testing.assert_close(penalize(logits[0], one), expected[0])


def test_presence_and_frequency_count_the_answer_only() -> None:
    """Both are taken off by what the answer holds, once and per occurrence, and the prompt does not count."""
    logits = torch.zeros(6)
    one = row(prompt=(5, 5), output=(1, 2, 2), presence_penalty=0.5, frequency_penalty=0.25)
    assert penalize(logits, one).tolist() == [0.0, -0.75, -1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_has_no_token_and_harms_no_other(bad: float, temperature: float) -> None:
    """NaN or +inf in one row gives None there and the right token everywhere else."""
    logits = random_logits(3, 20)
    logits[1, 4] = bad
    rows = [row(), row(temperature=temperature, seed=1), row()]
    chosen = choose(logits, rows)
    assert chosen[1] is None
    assert [chosen[0], chosen[2]] == [int(logits[0].argmax()), int(logits[2].argmax())]
