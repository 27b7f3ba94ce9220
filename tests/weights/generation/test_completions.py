"""Answers of many architectures, alone, in batches and streamed. transformers' own `generate` is the judge."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation.text import TextPieces
from modelyard.weights.load import load
from task_models.text import ARCHITECTURES, gpt2_tokenizer, t5_tokenizer
from tiny_models import VOCABULARY, make_llama, make_tokenizer, save_adapter, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.weights.model import Model

PROMPTS = ["where is my card", "hi", "the quick brown fox jumps over the lazy dog", "one two"]
LENGTH = 14
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def save_gpt2(folder: Path) -> Path:
    """Learned positions, and no padding token anywhere."""
    tokenizer = gpt2_tokenizer()
    ends = tokenizer.eos_token_id
    shape: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.4}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), bos_token_id=ends, eos_token_id=ends, **shape)
    return save_model(folder, transformers.GPT2LMHeadModel(config), tokenizer)


def save_gemma(folder: Path) -> Path:
    """Sliding and full attention in turns; the window is shorter than prompt and answer."""
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
        initializer_range=0.2,
    )
    return save_model(folder, transformers.Gemma3ForCausalLM(config))


def save_mamba(folder: Path) -> Path:
    """A state instead of keys and values."""
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.5}
    return save_model(folder, transformers.MambaForCausalLM(transformers.MambaConfig(**SMALL, **shape)))


def save_t5(folder: Path) -> Path:
    """Relative positions; its configuration says `n_positions` as all of its kin do."""
    tokenizer = t5_tokenizer()
    make: Any = transformers.T5Config
    config = make(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, n_positions=16,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=4.0,
    )  # fmt: skip
    return save_model(folder, transformers.T5ForConditionalGeneration(config), tokenizer)


SAVED: dict[str, Callable[[Path], Path]] = {
    "llama": save_model,
    "gpt2": save_gpt2,
    "gemma3": save_gemma,
    "mamba": save_mamba,
    "t5": save_t5,
    "bart": ARCHITECTURES["text2text-generation"]["bart"],
    "mbart": ARCHITECTURES["text2text-generation"]["mbart"],
}
CONTINUES = {"llama", "gpt2", "gemma3", "mamba"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Tiny models of several architectures, each loaded once."""
    known: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in known:
            torch.manual_seed(3)
            # BART's class also fills masks, which is the task that its name alone means.
            task = "text2text-generation" if "bart" in name else None
            known[name] = load(SAVED[name](tmp_path_factory.mktemp(name)), task=task)
        return known[name]

    return get


def judged(model: Model, prompt: str, **options: Any) -> list[int]:
    """New tokens of transformers' own `generate` for one prompt, up to and with the first EOS."""
    ids = torch.tensor([model.tokenize(prompt)])
    config = model.model.generation_config
    ends = set(torch.tensor(config.eos_token_id).reshape(-1).tolist())
    with torch.no_grad():
        options = {"max_new_tokens": LENGTH, "do_sample": False, **options}
        out = model.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    new: list[int] = out[1:] if model.config.is_encoder_decoder else out[ids.shape[1] :]
    end = next((at for at, token in enumerate(new) if token in ends), len(new))
    return new[: end + 1]


@pytest.mark.parametrize("name", SAVED)
def test_greedy_answers_are_those_of_transformers(loaded: Callable[[str], Model], name: str) -> None:
    """Token by token, alone and in batches of every size, with a padding token or without, for seven architectures."""
    model = loaded(name)
    expected = [judged(model, prompt) for prompt in PROMPTS]
    assert any(len(set(row)) > 1 for row in expected)
    for batch_size in (1, 3, 32):
        found = model.complete(PROMPTS, batch_size=batch_size, max_new_tokens=LENGTH)
        assert [list(answer.token_ids) for answer in found] == expected
    assert {answer.by for answer in found} == {"modelyard" if name in CONTINUES else "transformers"}
    assert [model.generate(prompt, max_new_tokens=LENGTH) for prompt in PROMPTS] == [answer.text for answer in found]


@pytest.mark.parametrize("name", SAVED)
def test_a_stream_is_the_answer(loaded: Callable[[str], Model], name: str) -> None:
    """Pieces joined are the answer, greedy and drawn, by our loop and by transformers', and each holds whole characters."""
    model = loaded(name)
    for options in ({}, {"temperature": 1.4, "seed": 5}, {"temperature": 1.4, "seed": 5, "no_repeat_ngram_size": 2}):
        for prompt in PROMPTS:
            pieces = list(model.stream(prompt, max_new_tokens=LENGTH, **options))
            assert "".join(pieces) == model.generate(prompt, max_new_tokens=LENGTH, **options)
            assert all(pieces)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_beams_of_every_kind_of_model(loaded: Callable[[str], Model], name: str) -> None:
    """Beam search equals transformers' for a decoder without a padding token and for encoder-decoders."""
    model = loaded(name)
    options: dict[str, Any] = {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 2.0}
    found = model.complete(PROMPTS, max_new_tokens=LENGTH, **options)
    assert [list(answer.token_ids) for answer in found] == [judged(model, prompt, **options) for prompt in PROMPTS]


def test_a_drawn_answer_of_an_encoder_decoder_has_a_seed(loaded: Callable[[str], Model]) -> None:
    """With a seed T5's sample is the same alone and in a batch; another seed gives another."""
    model = loaded("t5")
    asked: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": LENGTH}
    alone = [model.generate(prompt, seed=1, **asked) for prompt in PROMPTS]
    assert model.batch_generate(PROMPTS, seed=1, **asked) == alone
    assert model.batch_generate(PROMPTS, seed=2, **asked) != alone


def test_an_encoder_decoder_has_two_bounds(loaded: Callable[[str], Model]) -> None:
    """BART's 64 positions bound prompt and answer each by itself; T5's relative positions bound neither."""
    bart, t5 = loaded("bart"), loaded("t5")
    with pytest.raises(RequestError, match="encoder reads 64"):
        bart.generate("my card " * 60)
    with pytest.raises(RequestError, match="max_new_tokens"):
        bart.generate("hi", max_new_tokens=64)
    assert len(bart.complete(["my card " * 20], max_new_tokens=63, min_new_tokens=63)[0].token_ids) == 63
    assert t5.complete(["where is my card " * 20], max_new_tokens=30, min_new_tokens=30)[0].token_ids


def test_an_answer_length_of_a_summarizer_is_its_default(tmp_path: Path) -> None:
    """`max_length`, `min_length` and beams of a BART's generation_config hold where the caller says nothing."""
    folder = SAVED["bart"](tmp_path)
    config: Any = transformers.GenerationConfig.from_pretrained(folder)
    config.update(max_length=12, min_length=6, num_beams=3, no_repeat_ngram_size=3)
    config.save_pretrained(folder)
    model = load(folder, task="summarization")
    found = model.complete(PROMPTS)
    assert [list(answer.token_ids) for answer in found] == [
        judged(model, prompt, max_new_tokens=None) for prompt in PROMPTS
    ]
    assert all(len(answer.token_ids) <= 11 for answer in found)
    assert len(model.complete(["hi"], max_new_tokens=3)[0].token_ids) == 3


@pytest.mark.parametrize("name", sorted(CONTINUES))
def test_full_text_is_the_prompt_and_the_answer(loaded: Callable[[str], Model], name: str) -> None:
    """`return_full_text=True` puts the prompt before the answer, streamed or not; ids and counts stay the answer's."""
    model = loaded(name)
    asked: dict[str, Any] = {"max_new_tokens": 6}
    new, full = model.complete(["hi"], **asked)[0], model.complete(["hi"], return_full_text=True, **asked)[0]
    prompt = "hi" if name == "gpt2" else "<|user|>hi<|end|><|assistant|>"
    assert full.text == prompt + new.text
    assert full.token_ids == new.token_ids
    assert "".join(model.stream("hi", return_full_text=True, **asked)) == full.text


def test_full_text_keeps_the_space_between(tmp_path: Path) -> None:
    """A tokenizer that marks words by a leading space loses it at the start of an answer; full text has it, since it is
    what all ids decode to together.
    """
    tokenizer = t5_tokenizer()
    model = load(save_model(tmp_path, make_llama(vocab_size=len(tokenizer)), tokenizer))
    spaces = 0
    for seed in range(8):
        asked: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_new_tokens": 4}
        full = model.complete(["where is my card"], return_full_text=True, **asked)[0]
        ids = model.tokenize("where is my card") + list(full.token_ids)
        assert full.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(model.stream("where is my card", return_full_text=True, **asked)) == full.text
        spaces += full.text.startswith("where is my card ")
    assert 0 < spaces < 8


def test_an_encoder_decoder_continues_nothing(loaded: Callable[[str], Model]) -> None:
    """Its answer is no continuation of the prompt, so there is no full text."""
    with pytest.raises(RequestError, match="does not continue its prompt"):
        loaded("t5").generate("hi", return_full_text=True)


def test_token_ids_are_a_prompt(loaded: Callable[[str], Model]) -> None:
    """Ids give what the text that they are of gives; one that the vocabulary does not have is named with its size."""
    model = loaded("gpt2")
    ids = model.tokenize("where is my card")
    assert model.generate(ids, max_new_tokens=9) == model.generate("where is my card", max_new_tokens=9)
    size = model.config.vocab_size
    with pytest.raises(RequestError, match=f"token id {size}, and the model's vocabulary has {size}"):
        model.generate([5, size])
    with pytest.raises(RequestError, match="token id -1"):
        model.generate([5, -1])


def test_a_tokenizer_larger_than_the_model_is_found_out(tmp_path: Path) -> None:
    """A token that the tokenizer has and the embeddings lack is an error with its id instead of a crash."""
    model = load(save_model(tmp_path, make_llama(vocab_size=300), make_tokenizer(None)))
    with pytest.raises(RequestError, match="vocabulary has 300"):
        model.generate("the quick brown fox jumps over the lazy dog")


@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 40}], ids=["ours", "theirs"])
def test_a_stream_is_linear_in_its_length(
    loaded: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Twice the tokens are twice the work: tokens through the model, and ids handed to the tokenizer to decode."""
    model = loaded("mamba")
    decoded: list[int] = []
    forward, decode = type(model.model).forward, TextPieces._decode
    computed: list[int] = []

    def count_tokens(self: Any, input_ids: Any = None, **given: Any) -> Any:
        computed.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **given)

    def count_ids(self: Any, ids: Any) -> str:
        decoded.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(TextPieces, "_decode", count_ids)
    monkeypatch.setattr(model.model, "forward", count_tokens.__get__(model.model))
    work = []
    for length in (100, 200, 400):
        decoded.clear()
        computed.clear()
        tokens = len(model.tokenize("hi"))
        for _ in model.stream("hi", max_new_tokens=length, eos_token_id=[], **options):
            pass
        assert sum(computed) == tokens + length - 1
        work.append(sum(decoded))
    assert work[1] <= 2.2 * work[0]
    assert work[2] <= 2.2 * work[1]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_chosen_per_call(tmp_path: Path) -> None:
    """`adapter=` answers with one, another or none of them, in a batch and in streams that take turns, and leaves the
    active one as it was.
    """
    base = save_model(tmp_path / "base")
    folders = {"fr": save_adapter(tmp_path / "fr", base, seed=1), "de": save_adapter(tmp_path / "de", base, seed=2)}
    model = load(base, adapters=folders)
    assert model.adapters == ("fr", "de")
    asked: dict[str, Any] = {"max_new_tokens": 10}
    alone = {name: load(folder, base=base).generate("hi", **asked) for name, folder in folders.items()}
    plain = load(base).generate("hi", **asked)
    assert len({*alone.values(), plain}) == 3
    assert {name: model.generate("hi", adapter=name, **asked) for name in folders} == alone
    assert model.generate("hi", adapter=None, **asked) == plain
    assert model.generate("hi", **asked) == alone["fr"]
    streams = {name: model.stream("hi", adapter=name, **asked) for name in ("fr", "de", None)}
    pieces: dict[str | None, list[str]] = {name: [] for name in streams}
    while streams:
        for name in list(streams):
            piece = next(streams[name], None)
            if piece is None:
                del streams[name]
            else:
                pieces[name].append(piece)
    streamed = {name: "".join(parts) for name, parts in pieces.items()}
    assert (streamed.pop(None), streamed) == (plain, alone)
    beams = model.generate("hi", adapter="de", num_beams=3, **asked)
    assert beams == load(folders["de"], base=base).generate("hi", num_beams=3, **asked)
    names = [*folders, None] * 3
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda name: model.generate("hi", adapter=name, **asked), names))
    assert answers == [*alone.values(), plain] * 3
    with pytest.raises(RequestError, match="no adapter `es`"):
        model.generate("hi", adapter="es")


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}], ids=str)
def test_memory_that_runs_out_is_explained(
    loaded: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """What torch raises becomes `out_of_memory` with what fits here, by either loop, and in a stream."""
    model = loaded("llama")

    def fail(*_given: Any, **_more: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99000000000 bytes")

    monkeypatch.setattr(model.model.model, "forward", fail)
    with pytest.raises(ModelError) as caught:
        model.generate("hi", max_new_tokens=3, **options)
    assert caught.value.code == "out_of_memory"
    with pytest.raises(ModelError) as caught:
        list(model.stream("hi", max_new_tokens=3, **options))
    assert caught.value.code == "out_of_memory"


def test_a_released_model_and_a_wrong_task_say_so(tmp_path: Path) -> None:
    """A model that was released answers nothing; one whose task is another has no answers."""
    model = load(ARCHITECTURES["text-classification"]["bert"](tmp_path / "bert"))
    with pytest.raises(ModelError, match="does no text-generation"):
        model.generate("hi")
    with pytest.raises(ModelError, match="generates no text"):
        _ = model.defaults
    released = load(save_model(tmp_path / "llama"))
    stream = released.stream("hi", max_new_tokens=4)
    released.release()
    with pytest.raises(ModelError, match="was released"):
        released.generate("hi")
    with pytest.raises(ModelError, match="was released"):
        next(stream)
