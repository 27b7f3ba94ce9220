"""Rows that join and leave a batch get what they would get alone, for every kind of cache. transformers is the judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from modelyard.weights.generation.decoder import Decoder
from modelyard.weights.generation.loop import Generation, GenerationParams, decode
from tiny_models import VOCABULARY, make_llama, make_tokenizer

PROMPTS = [
    (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17),
    (20,),
    (30, 31, 32, 33, 34),
    (40, 41, 42),
    tuple(range(50, 80)),
]
LIMITS = [5, 24, 12, 18, 9]
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def make_gemma() -> Any:
    """Sliding and full attention in turns; the window is shorter than most sequences here."""
    config = transformers.Gemma3TextConfig(
        **SMALL,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        initializer_range=0.5,
    )
    return transformers.Gemma3ForCausalLM(config)


def make_gpt2() -> Any:
    """Learned positions, which padding must not shift."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.4)
    )


def make_bloom() -> Any:
    """Positions from the mask alone: the forward pass takes none."""
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.4)
    )


def make_mamba() -> Any:
    """A state instead of keys and values."""
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.5)
    )


MODELS = {
    "llama": lambda: make_llama(eos_token_id=None),
    "gemma3": make_gemma,
    "gpt2": make_gpt2,
    "bloom": make_bloom,
    "mamba": make_mamba,
}


def make(name: str) -> Any:
    """A tiny model in eval mode, always the same."""
    torch.manual_seed(3)
    return MODELS[name]().eval()


def alone(model: Any, prompt: tuple[int, ...], limit: int) -> list[int]:
    """What transformers generates, greedily, for one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, eos_token_id=None
        )
    return [int(token) for token in out[0, len(prompt) :]]


def start(prompt: tuple[int, ...], limit: int, **params: Any) -> Generation:
    """An answer that nothing but its limit ends."""
    return Generation(prompt, GenerationParams(**params), limit, frozenset(), make_tokenizer())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_that_join_and_leave_equal_transformers(name: str, rows: int) -> None:
    """Greedy answers in float32 equal `generate`'s, whoever is decoded beside them and whenever they join."""
    model = make(name)
    generations = [start(prompt, limit) for prompt, limit in zip(PROMPTS, LIMITS, strict=True)]
    for _ in decode(Decoder(model), generations, max_rows=rows):
        pass
    for generation, prompt, limit in zip(generations, PROMPTS, LIMITS, strict=True):
        assert generation.output_ids == alone(model, prompt, limit)
        assert generation.finish_reason == "length"


def test_only_column_caches_are_shared() -> None:
    """Architectures with keys and values by column share a forward pass; the others do not."""
    shared = {name: Decoder(make(name)).joinable for name in MODELS}
    assert shared == {"llama": True, "gemma3": True, "gpt2": True, "bloom": False, "mamba": False}


@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba"])
def test_a_removed_row_leaves_the_others_as_they_were(name: str) -> None:
    """Taking the longest row away in the middle changes nothing for the rest, and its padding goes with it."""
    model = make(name)
    decoder = Decoder(model)
    generations = [start(prompt, 12) for prompt in PROMPTS]
    decoder.add(generations)
    for step in range(12):
        if step == 3:
            decoder.remove(generations[4])
        decoder.step()
    assert len(generations[4].output_ids) == 3
    assert len(decoder) == 0
    for generation, prompt in zip(generations[:4], PROMPTS, strict=False):
        assert generation.output_ids == alone(model, prompt, 12)


def test_a_row_may_be_removed_before_its_first_step() -> None:
    """A waiting row leaves without a trace; removing one that is not there is no error."""
    decoder = Decoder(make("llama"))
    generation = start((5, 6), 3)
    decoder.add([generation])
    decoder.remove(generation)
    decoder.remove(generation)
    assert len(decoder) == 0
    assert decoder.step() == []


def test_padding_is_dropped_with_the_row_that_needed_it() -> None:
    """The cache is as wide as its widest row and no wider, once a wider one has left."""
    decoder = Decoder(make("llama"))
    long, short = start(PROMPTS[4], 2), start((20,), 6)
    decoder.add([long, short])
    for _ in range(3):
        decoder.step()
    (batch,) = decoder._batches
    assert batch.padding == [0]
    assert batch.cache.get_seq_length() == batch.width == 1 + 2


def test_inference_mode_does_not_leak() -> None:
    """Between the tokens that a consumer receives, torch is in the mode that the consumer left it in."""
    for _ in decode(Decoder(make("llama")), [start((5,), 3)]):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_a_row_that_is_not_finite_fails_alone() -> None:
    """NaN in one row's logits ends that row with an error; the others go on to their end."""
    model = make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[20] = torch.nan
    broken, sound = start((20,), 5), start((5, 6), 5)
    for _ in decode(Decoder(model), [broken, sound]):
        pass
    assert broken.error is not None
    assert broken.output_ids == []
    assert sound.finish_reason == "length"


def test_closing_the_loop_lets_everything_go() -> None:
    """A consumer that stops early leaves no row and no cache behind."""
    decoder = Decoder(make("llama"))
    progress = decode(decoder, [start((5,), 50)])
    next(progress)
    assert len(decoder) == 1
    progress.close()  # type: ignore[attr-defined]
    assert len(decoder) == 0
