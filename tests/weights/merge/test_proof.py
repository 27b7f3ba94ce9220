"""An adapter attached by PEFT against the two merged: right merges hold, wrong ones are seen, whatever the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from adapter_kinds import KINDS
from modelyard.errors import ModelError
from modelyard.weights.merge.proof import prove
from modelyard.weights.parity import failing
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelyard.weights.parity import Check

pytestmark = [pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]


def merge_by_peft(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """A kind's base, its adapter, and what PEFT's own merge makes of them."""
    made = KINDS[name](folder)
    merged: Any = made.attach().merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return made.base, made.adapter, folder / "merged"


def worst(checks: Sequence[Check]) -> float:
    """The largest difference, relative to its scale."""
    return max(check.max_difference / check.scale for check in checks)


@pytest.mark.parametrize(
    ("name", "below"), [("linear-float32-float32", 1e-5), ("rslora-bfloat16", 0.1), ("classifier-picture", 1e-5)]
)
def test_a_right_merge_holds_to_what_its_dtype_rounds(name: str, below: float, tmp_path: Path) -> None:
    """Logits of every batch, and greedy tokens of what writes text; in float32 nearly nothing differs."""
    checks = prove(*merge_by_peft(name, tmp_path))
    assert failing(checks) == []
    assert worst(checks) < below
    assert all(check.tolerance == (0.1 if "bfloat16" in name else 1e-3) for check in checks)
    assert sum(check.tokens == 16 for check in checks) == (0 if "picture" in name else 4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT tells of tied embeddings in several of its own words
def test_a_wrong_merge_of_tied_embeddings_is_seen(tmp_path: Path) -> None:
    """PEFT changes the input embedding with the output layer: off by more than the logits' scale."""
    checks = prove(*merge_by_peft("tied-head", tmp_path), tokens=4)
    assert len(failing(checks)) >= 4
    assert worst(checks) > 0.5


def test_a_model_with_a_tokenizer_is_asked_texts(tmp_path: Path) -> None:
    """By default a fixed few, or the caller's; without a merge at all the difference is the adapter's own."""
    base = save_model(tmp_path / "base", make_llama())
    adapter = save_adapter(tmp_path / "adapter", base)
    checks = prove(base, adapter, base, tokens=0)
    assert [check.name for check in checks] == [f"text {at}: logits" for at in (1, 2, 3, 4)] + ["padded: logits"]
    assert all(not check.holds and check.kl is not None and check.kl > 0.01 for check in checks)
    asked = prove(base, adapter, base, prompts=["my card"], tolerance=1e9, tokens=0)
    assert [(check.name, check.holds) for check in asked] == [("text 1: logits", True)]


def test_a_quantized_base_is_measured_and_nothing_is_asked_of_it(tmp_path: Path) -> None:
    """The adapter on the packed base against an unpacked merge: small differences, without a tolerance unless one is given."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = save_model(tmp_path / "source", make_llama(hidden_size=64, intermediate_size=64))
    make: Any = BitsAndBytesConfig
    packed: Any = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=make(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    save_model(tmp_path / "base", packed)
    adapter = save_adapter(tmp_path / "adapter", source)
    adapted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    attach: Any = PeftModel.from_pretrained
    merged = attach(adapted.dequantize(), str(adapter)).merge_and_unload()
    unpacked = make_llama(hidden_size=64, intermediate_size=64)
    unpacked.load_state_dict({name: value.float() for name, value in merged.state_dict().items()})
    save_model(tmp_path / "merged", unpacked)
    checks = prove(tmp_path / "base", adapter, tmp_path / "merged", tokens=0)
    assert all(check.holds and check.tolerance is None for check in checks)
    assert worst(checks) < 0.1
    away = prove(tmp_path / "base", adapter, source, tokens=0)
    assert worst(away) > 3 * worst(checks)


def test_an_adapter_that_peft_cannot_attach_is_a_typed_error(tmp_path: Path) -> None:
    """A base of another width has no place for it."""
    base = save_model(tmp_path / "base", make_llama())
    adapter = save_adapter(tmp_path / "adapter", base)
    other = save_model(tmp_path / "other", make_llama(hidden_size=16))
    with pytest.raises(ModelError, match="adapter"):
        prove(other, adapter, base)
