"""Training options: strict, complete in what they report."""

from __future__ import annotations

import pytest
import yaml

from modelyard.errors import RecipeError
from modelyard.training import TrainConfig


def test_every_wrong_key_is_listed_with_its_near_match() -> None:
    """Unknown keys are all reported at once, each with the option that was probably meant."""
    with pytest.raises(RecipeError) as caught:
        TrainConfig(lerning_rate=1e-4, epoch=3, rank=8)
    assert "`lerning_rate` is not an option; did you mean `learning_rate`?" in caught.value.message
    assert "`epoch` is not an option; did you mean `epochs`?" in caught.value.message
    assert [problem["key"] for problem in caught.value.details["problems"]] == ["lerning_rate", "epoch"]


def test_number_as_text_says_how_to_write_it() -> None:
    """YAML reads 1e-4 as text; the message says so and how to write the number."""
    with pytest.raises(RecipeError, match=r"`learning_rate` is the text '1e-4'.*write 1\.0e-4"):
        TrainConfig(**yaml.safe_load("learning_rate: 1e-4"))
    assert TrainConfig(**yaml.safe_load("learning_rate: 1.0e-4")).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-4),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("rank", 0),
        ("rank", True),
        ("epochs", 0.0),
        ("max_steps", 1.5),
        ("dropout", 1.0),
        ("targets", []),
        ("targets", "q_proj"),
        ("schedule", "cosin"),
        ("dtype", "float16"),
        ("seed", -1),
        ("method", "dpo"),
    ],
)
def test_bounds(name: str, value: object) -> None:
    """A value that no run can use is refused and its key named."""
    with pytest.raises(RecipeError, match=f"`{name}`"):
        TrainConfig(**{name: value})


def test_key_covers_what_changes_the_weights() -> None:
    """Options that change the weights change the key; how often to save and how many threads do not."""
    key = TrainConfig().key
    assert TrainConfig(save_every=7, threads=2).key == key
    assert len({key, TrainConfig(seed=1).key, TrainConfig(targets=["q_proj"]).key, TrainConfig(alpha=16).key}) == 4
