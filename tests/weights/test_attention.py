"""The attention that is asked for is the one that is computed with, or an error that says what can be had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import RequestError
from modelyard.weights.load import load
from modelyard.weights.loading import attention, compiled
from modelyard.weights.loading.plan import plan_load
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return save_model(tmp_path_factory.mktemp("model"))


def make_gpt2() -> Any:
    """A tiny GPT-2, for which transformers has no flex attention."""
    from transformers import GPT2Config, GPT2LMHeadModel

    make: Any = GPT2LMHeadModel
    config: Any = GPT2Config
    return make(config(vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=1, bos_token_id=1))


def logits(model: Any) -> torch.Tensor:
    """What a model says of `IDS`."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_eager_and_sdpa_agree(folder: Path) -> None:
    """Both load by name, the configuration says which is used, and the logits agree within rounding."""
    models = {name: load(folder, attention=name) for name in ("eager", "sdpa")}
    for name, model in models.items():
        assert model.config._attn_implementation == name
        assert model.plan.attention == name
    eager, sdpa = (logits(model.model) for model in models.values())
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=1e-4)


def test_without_a_choice_it_is_transformers_default(folder: Path) -> None:
    """Nothing asked for is sdpa where the architecture has it."""
    assert load(folder).config._attn_implementation == "sdpa"
    assert plan_load(folder).attention == "sdpa"


def test_flex_is_accepted_where_a_compiler_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled at its first call, so without a compiler it is refused before anything is loaded."""
    monkeypatch.setattr(compiled, "find_compiler", lambda device="cpu": "/usr/bin/g++")
    assert load(folder, attention="flex").config._attn_implementation == "flex_attention"
    monkeypatch.setattr(compiled, "find_compiler", lambda device="cpu": None)
    with pytest.raises(RequestError, match="needs a C\\+\\+ compiler") as caught:
        load(folder, attention="flex")
    assert caught.value.details["available"] == ["eager", "sdpa"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # transformers passes it
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own compiler
def test_flex_gives_the_same_logits(folder: Path) -> None:
    """Compiled flex attention agrees with eager within rounding, on a CPU too."""
    flex = logits(load(folder, attention="flex").model)
    torch.testing.assert_close(flex, logits(load(folder, attention="eager").model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("flash", "does not run on a CPU"),
        ("flash_attention_2", "does not run on a CPU"),
        ("sdpaa", "did you mean `sdpa`"),
        ("kernels-community/flash-attn", "would fetch and run code"),
        ("paged|sdpa", "for a server of its own"),
    ],
)
def test_what_cannot_be_had_here_names_the_alternatives(folder: Path, name: str, why: str) -> None:
    """The reason is in the message, and what this model and machine can do in the hint and the details."""
    with pytest.raises(RequestError, match="attention") as caught:
        load(folder, attention=name)
    assert why in caught.value.message
    assert caught.value.code == "no_attention"
    assert {"eager", "sdpa"} <= set(caught.value.details["available"])
    assert "eager, sdpa" in str(caught.value.hint)


def test_an_architecture_without_it_is_named(tmp_path: Path) -> None:
    """GPT-2 has no flex attention in transformers; what it has is offered."""
    save_model(tmp_path, make_gpt2())
    with pytest.raises(RequestError, match="not done by `GPT2LMHeadModel`") as caught:
        load(tmp_path, attention="flex")
    assert caught.value.details["available"] == ["eager", "sdpa"]


def test_a_newer_flash_attention_is_preferred_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash` is the newest that is installed; none installed says so."""
    kind = type(make_llama())
    config = make_llama().config
    monkeypatch.setattr(attention, "_installed", lambda name: name != "flash_attention_4")
    assert attention.check("flash", config, model_class=kind, device="cuda:0") == "flash_attention_3"
    monkeypatch.setattr(attention, "_installed", lambda name: False)
    with pytest.raises(RequestError, match="is not installed"):
        attention.check("flash", config, model_class=kind, device="cuda:0")


def test_a_part_that_cannot_do_it_is_told_from_a_broken_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A composite that claims an attention which a part of it lacks is refused with the part's own words."""
    from transformers import LlamaForCausalLM, LlamaModel

    monkeypatch.setattr(LlamaModel, "_supports_flex_attn", False)
    monkeypatch.setattr(LlamaForCausalLM, "_supports_flex_attn", True)
    monkeypatch.setattr(compiled, "find_compiler", lambda device="cpu": "/usr/bin/g++")
    with pytest.raises(RequestError, match="not done by a part of `LlamaForCausalLM`") as caught:
        plan_load(folder, attention="flex")
    assert "flex_attention" not in caught.value.details["available"]
