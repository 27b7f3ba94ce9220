"""What `compare` measures, on runners whose answers are written down."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from modelyard.errors import ModelError
from modelyard.weights.parity import Batch, Check, compare, extend, failing, record

VOCABULARY = 5


class Written:
    """A runner that says what it was given, and greedy tokens if it has some."""

    def __init__(self, tokens: list[list[int]] | None = None, **outputs: Any) -> None:
        self.tokens = tokens
        self.values = {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    def outputs(self, batch: Batch) -> dict[str, Any]:
        """What was written, longer where tokens were put behind."""
        return dict(self.values)

    def generate(self, batch: Batch, tokens: int) -> list[list[int]] | None:
        """What was written."""
        return self.tokens


def batch(rows: int = 1, length: int = 3, mask: Any = None) -> Batch:
    """Some ids."""
    return Batch({"input_ids": np.zeros((rows, length), np.int64)}, mask, "batch")


def test_differences_are_absolute_and_the_tolerance_relative_to_the_scale() -> None:
    """The largest and the mean difference of all values; the same difference holds or not by the output's magnitude."""
    pairs = Written(pooled=[[4.0, -8.0]]), Written(pooled=[[4.5, -8.0]])
    [found] = compare(*pairs, [batch()], tolerance=0.1)
    assert (found.scale, found.max_difference, found.mean_difference, found.holds) == (8.0, 0.5, 0.25, True)
    assert (found.kl, found.top1_agreement, found.tokens) == (None, None, 0)
    [strict] = compare(*pairs, [batch()], tolerance=0.06)
    assert not strict.holds
    assert failing([found, strict]) == [strict]


def test_kl_and_agreement_are_of_softmax_over_the_last_axis() -> None:
    """As scipy-free formulas give them, the mean over positions."""
    one = np.log([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]])
    other = np.log([[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]])
    [found] = compare(Written(logits=one), Written(logits=other), [batch(length=2)])
    assert found.kl == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2, rel=1e-5)
    assert found.top1_agreement == 0.5


def test_masked_positions_count_nowhere() -> None:
    """What padding holds may be anything, no number included; what is kept may not."""
    logits = np.random.default_rng(0).standard_normal((1, 3, VOCABULARY))
    broken = logits.copy()
    broken[0, 0] = np.nan
    mask = np.array([[False, True, True]])
    [found] = compare(Written(logits=logits), Written(logits=broken), [batch(mask=mask)], tolerance=1e-6)
    assert (found.max_difference, found.kl, found.top1_agreement, found.holds) == (0.0, 0.0, 1.0, True)
    [whole] = compare(Written(logits=logits), Written(logits=broken), [batch()])
    assert not whole.holds
    spans = np.array([[9.0, 1.0, 2.0]])
    [found] = compare(Written(start_logits=spans), Written(start_logits=[[14.0, 1.0, 2.0]]), [batch(mask=mask)])
    assert (found.max_difference, found.kl, found.top1_agreement) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_without_a_tolerance(value: float) -> None:
    """NaN and infinities of a candidate fail; JSON has null for them, and they come back as infinite."""
    [found] = compare(Written(pooled=[[1.0, 2.0]]), Written(pooled=[[1.0, value]]), [batch()])
    assert (found.max_difference, found.holds) == (math.inf, False)
    assert found.to_dict()["max_difference"] is None
    assert Check.from_dict(found.to_dict()).max_difference == math.inf


def test_the_same_infinity_on_both_sides_is_no_difference() -> None:
    """A model that masks its outputs with infinities is compared by the others."""
    values = [[1.0, -np.inf]]
    [found] = compare(Written(pooled=values), Written(pooled=values), [batch()], tolerance=0.0)
    assert (found.max_difference, found.scale, found.holds) == (0.0, 1.0, True)


def test_leading_tokens_are_counted_and_a_near_tie_is_excused_by_the_tolerance() -> None:
    """The first token that differs is judged by the reference's own logits of the two."""
    logits = np.zeros((1, 5, VOCABULARY))  # three of the prompt, two of what was written
    logits[0, 3, 1], logits[0, 3, 2], logits[0, 0, 0] = 4.0, 3.5, 10.0
    reference, candidate = Written([[3, 1]], logits=logits), Written([[3, 2]], logits=logits)
    for tolerance, holds in ((0.1, True), (0.02, False), (None, True)):
        found = compare(reference, candidate, [batch()], tolerance=tolerance, tokens=2)[-1]
        assert (found.name, found.tokens, found.equal_tokens) == ("batch: greedy tokens", 2, 1)
        assert (found.max_difference, found.holds) == (0.5, holds)
    assert len(compare(reference, candidate, [batch()], tokens=0)) == 1


def test_a_candidate_without_the_main_output_or_of_another_shape_is_an_error() -> None:
    """What cannot be compared is never passed over; outputs beside the main one may lack."""
    with pytest.raises(ModelError, match="no output `logits`") as caught:
        compare(Written(logits=[[1.0]]), Written(other=[[1.0]]), [batch()])
    assert caught.value.code == "no_output"
    with pytest.raises(ModelError, match="has the shape") as caught:
        compare(Written(logits=[[1.0]]), Written(logits=[[1.0, 2.0]]), [batch()])
    assert caught.value.code == "output_shape"
    assert len(compare(Written(logits=[[1.0]], more=[[1.0]]), Written(logits=[[1.0]]), [batch()])) == 1


def test_a_record_answers_as_its_runner_did() -> None:
    """The same checks, with the reference gone; a batch that was not recorded is an error."""
    logits = np.random.default_rng(0).standard_normal(
        (1, 5, VOCABULARY)
    )  # three of the prompt, two of what was written
    reference, candidate = Written([[1, 2]], logits=logits), Written([[1, 3]], logits=logits + 0.01)
    recorded = record(reference, [batch()], tokens=2)
    assert compare(recorded, candidate, [batch()], tokens=2) == compare(reference, candidate, [batch()], tokens=2)
    with pytest.raises(KeyError):
        recorded.outputs(replace(batch(), name="other"))


def test_tokens_follow_the_prompt_or_the_decoders_start() -> None:
    """Masks grow with the ids; of an encoder-decoder the encoder's inputs stay."""
    ids, mask = np.array([[7, 8]]), np.array([[0, 1]])
    longer, first = extend(Batch({"input_ids": ids, "attention_mask": mask}, None, "a"), [[3, 4]])
    assert longer.inputs["input_ids"].tolist() == [[7, 8, 3, 4]]
    assert longer.inputs["attention_mask"].tolist() == [[0, 1, 1, 1]]
    assert first == 1
    pair = Batch({"input_ids": ids, "decoder_input_ids": np.array([[0, 5, 6]])}, None, "b")
    longer, first = extend(pair, [[3, 4]])
    assert longer.inputs["decoder_input_ids"].tolist() == [[0, 3, 4]]
    assert (longer.inputs["input_ids"].tolist(), first) == ([[7, 8]], 0)
