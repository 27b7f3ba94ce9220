"""A loaded model answers: one prompt, many, streamed. transformers' own `generate` is the judge."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation.defaults import read_defaults
from modelyard.weights.load import load
from modelyard.weights.model import Model
from modelyard.weights.untrained import Untrained, UntrainedWarning
from task_models import multimodal, vision
from tiny_models import make_llama, make_tokenizer, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ["where is my card", "hi", "the quick brown fox jumps over the lazy dog", "é", "one two"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny Llama with the tiny chat tokenizer."""
    return load(save_model(tmp_path_factory.mktemp("model")))


def make(tmp_path: Path, **generation: Any) -> Model:
    """A model whose generation_config says what a test wants."""
    llama = make_llama()
    for name, value in generation.items():
        setattr(llama.generation_config, name, value)
    return load(save_model(tmp_path, llama))


def judged(model: Model, prompts: list[str], limit: int) -> list[list[int]]:
    """What transformers generates for a left-padded batch, greedily, up to and with the first EOS."""
    rows = [model.tokenize(prompt) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        out = model.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
    found = []
    for row in out[:, width:].tolist():
        end = row.index(1) + 1 if 1 in row else len(row)
        found.append(row[:end])
    return found


def test_answers_are_those_of_transformers(model: Model) -> None:
    """Greedy token ids equal `generate`'s, one by one and in a left-padded batch, whatever the batch size."""
    expected = judged(model, PROMPTS, 20)
    assert expected == [judged(model, [prompt], 20)[0] for prompt in PROMPTS]
    for batch_size in (1, 2, 32):
        answers = model.complete(PROMPTS, batch_size=batch_size, max_new_tokens=20)
        assert [list(answer.token_ids) for answer in answers] == expected


def test_text_is_the_decoding_of_the_new_tokens(model: Model) -> None:
    """Only new tokens, no control tokens, exactly as the tokenizer decodes them."""
    for answer in model.complete(PROMPTS, max_new_tokens=30):
        assert answer.text == model.processor.decode(list(answer.token_ids), skip_special_tokens=True)


def test_a_stream_joined_is_the_answer(model: Model) -> None:
    """Pieces joined are what `generate` returns, sampled or not, with stop strings or not, and arrive one by one."""
    for params in ({}, {"temperature": 1.3, "seed": 4}, {"temperature": 2.0, "seed": 1, "stop": ["a", "\ufffd\ufffd"]}):
        for prompt in PROMPTS:
            pieces = list(model.stream(prompt, max_new_tokens=40, **params))
            assert "".join(pieces) == model.generate(prompt, max_new_tokens=40, **params)
            assert all(pieces)


def test_a_stream_checks_its_arguments_when_called(model: Model) -> None:
    """A wrong parameter is an error at the call, not at the first piece."""
    with pytest.raises(RequestError, match="top_p"):
        model.stream("hi", top_p=7)


def test_a_sampled_row_does_not_depend_on_its_batch(model: Model) -> None:
    """With a seed each prompt's sample is the one it gets alone; another seed gives another."""
    params: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "max_new_tokens": 25}
    alone = [model.generate(prompt, seed=7, **params) for prompt in PROMPTS]
    assert model.batch_generate(PROMPTS, seed=7, **params) == alone
    assert model.batch_generate(PROMPTS, batch_size=2, seed=7, **params) == alone
    assert model.batch_generate(PROMPTS, seed=8, **params) != alone
    assert model.generate("hi", **params) != model.generate("hi", **params)


def test_a_stop_string_ends_the_answer_before_it(model: Model) -> None:
    """The answer is cut before a stop string that lies across token boundaries, and says `stop`."""
    tried = 0
    for seed in range(12):
        params: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.5, "seed": seed}
        whole = model.complete(["hi"], **params)[0]
        pieces = [model.processor.decode([token], skip_special_tokens=True) for token in whole.token_ids]
        for first, second in pairwise(pieces):
            stop = first[-1:] + second[:1]
            if len(stop) < 2 or "\ufffd" in stop:
                continue
            tried += 1
            cut = model.complete(["hi"], stop=stop, **params)[0]
            assert cut.text == whole.text[: whole.text.index(stop)]
            assert cut.finish_reason == "stop"
    assert tried > 5


def test_every_listed_eos_ends_an_answer(tmp_path: Path) -> None:
    """A generation_config may list several; the tokenizer's and the template's count too."""
    plain = make(tmp_path / "plain").complete(["hi"], max_new_tokens=20)[0]
    third = plain.token_ids[2]
    model = make(tmp_path / "listed", eos_token_id=[399, third])
    answer = model.complete(["hi"], max_new_tokens=20)[0]
    assert (answer.token_ids, answer.finish_reason) == (plain.token_ids[: plain.token_ids.index(third) + 1], "stop")
    assert model.defaults.eos_ids == {399, third, 1}


def test_the_checkpoints_sampling_is_the_default(tmp_path: Path) -> None:
    """What generation_config says holds where the caller says nothing, and only if it samples at all."""
    model = make(tmp_path / "sampled", do_sample=True, temperature=0.7, top_k=20, max_new_tokens=5)
    params = model.defaults.params
    assert (params.temperature, params.top_k, params.top_p) == (0.7, 20, 1.0)
    assert len(model.complete(["hi"], seed=1)[0].token_ids) == 5
    assert model.generate("hi", temperature=0) == model.generate("hi", temperature=0)


def test_what_the_loop_does_not_do_is_listed(tmp_path: Path) -> None:
    """Beam search or banned words in a generation_config are named, so that whoever loads can say so."""
    llama = make_llama()
    llama.generation_config.num_beams = 4
    llama.generation_config.suppress_tokens = [3]
    assert read_defaults(llama, make_tokenizer()).ignored == ("num_beams", "suppress_tokens")


def test_more_than_the_context_is_an_error(model: Model) -> None:
    """The model's 128 positions are a bound that is stated, never a silent cut."""
    with pytest.raises(RequestError, match=r"context of 128|context is 128"):
        model.generate("hi", max_new_tokens=128)
    with pytest.raises(RequestError, match="context is 128"):
        model.generate("my card " * 200)
    tokens = len(model.tokenize("hi"))
    answer = model.complete(["hi"])[0]
    assert len(answer.token_ids) <= 128 - tokens
    assert model.complete(["hi"], max_new_tokens=128 - tokens)[0].text == answer.text


def test_text_is_a_user_message_where_there_is_a_template(model: Model, tmp_path: Path) -> None:
    """A plain prompt is one user message for a chat model and raw text for any other."""
    messages = [{"role": "user", "content": "hi"}]
    assert model.generate("hi", max_new_tokens=8) == model.generate(messages, max_new_tokens=8)
    assert model.tokenize("hi") == model.render(messages)
    raw = load(save_model(tmp_path, tokenizer=make_tokenizer(None)))
    assert raw.tokenize("hi") == raw.processor.encode("hi")
    assert model.render(messages, add_generation_prompt=False) == model.render(messages)[:-1]


def test_no_mode_leaks_to_a_consumer_of_a_stream(model: Model) -> None:
    """Between pieces, gradients and inference mode are as the consumer has them."""
    for _ in model.stream("hi", max_new_tokens=5):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_token_ids_are_a_prompt_too(model: Model) -> None:
    """Ids are taken as they are, and one outside the vocabulary is refused."""
    ids = model.tokenize("hi")
    assert model.prepare(None, {}, ids=ids).prompt_ids == tuple(ids)
    with pytest.raises(RequestError, match="token id 400"):
        model.prepare(None, {}, ids=[400])
    with pytest.raises(RequestError, match="prompt is empty"):
        model.prepare(None, {}, ids=[])


def test_many_prompts_are_a_list(model: Model) -> None:
    """A string where a list of prompts belongs is refused instead of being read letter by letter."""
    with pytest.raises(RequestError, match="no list of prompts"):
        model.batch_generate("hello")
    assert model.batch_generate([]) == []


def test_a_released_model_answers_nothing(tmp_path: Path) -> None:
    """After `release` every question is a ModelError."""
    model = load(save_model(tmp_path))
    model.release()
    with pytest.raises(ModelError, match="was released"):
        model.generate("hi")
    model.release()


def test_logits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    """A model that overflows says so instead of answering with token 0 for ever."""
    model = load(save_model(tmp_path))
    with torch.no_grad():
        model.model.model.norm.weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        model.generate("hi")


def test_a_model_says_what_it_is(model: Model) -> None:
    """Configuration, bare decoder, tokenizer, parameters and bytes are transformers' own; what a load did not say is None."""
    core = model.model
    assert model.config is core.config
    assert model.base_model is core.model
    assert model.tokenizer is model.processor
    assert model.num_parameters() == core.num_parameters() == sum(p.numel() for p in core.parameters())
    assert model.footprint == core.get_memory_footprint()
    assert model.adapters == ()
    assert (model.version, model.base, model.untrained) == (None, None, None)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_bare_model_of_an_adapted_one_is_the_bases(tmp_path: Path) -> None:
    """With an adapter on it, `base_model` and `config` are those of the model beneath, and only its parameters train."""
    base = save_model(tmp_path / "base")
    plain, adapted = load(base), load(save_adapter(tmp_path / "adapter", base), base=base)
    assert type(adapted.base_model) is type(plain.base_model)
    assert adapted.config.to_dict().keys() == plain.config.to_dict().keys()
    assert adapted.num_parameters() > plain.num_parameters()
    assert adapted.num_parameters(trainable=True) == 0
    assert plain.num_parameters(trainable=True) == plain.num_parameters()


def test_a_processor_of_several_parts_has_its_tokenizer(tmp_path: Path) -> None:
    """A model that sees has a tokenizer inside its processor; one that only sees has none, and says so."""
    seeing = load(multimodal.MODELS["image-text-to-text"](tmp_path / "seeing"))
    assert seeing.tokenizer is seeing.processor.tokenizer
    assert seeing.tokenize_text("hi") == seeing.tokenizer.encode("hi")
    blind = load(vision.MODELS["image-classification"](tmp_path / "blind"))
    assert blind.tokenizer is None
    with pytest.raises(ModelError, match="has no tokenizer"):
        blind.tokenize_text("hi")


def test_text_comes_back_from_ids(model: Model) -> None:
    """`detokenize` undoes `tokenize_text`, and names an id that does not exist."""
    assert model.detokenize(model.tokenize_text("where is my card")) == "where is my card"
    assert model.detokenize(model.tokenize("hi"), skip_special=True) == "hi"
    with pytest.raises(RequestError, match="no token 9999"):
        model.detokenize([5, 9999])


def test_modes_and_places_are_switched(tmp_path: Path) -> None:
    """`train` and `eval` switch the mode and give the model back; `to` moves it to a device that is here, and names one
    that is not.
    """
    model = load(save_model(tmp_path))
    assert not model.model.training
    assert model.train() is model
    assert model.model.training
    assert not model.eval().model.training
    assert model.to("cpu") is model
    for device in ("cuda:63", "tpu"):
        with pytest.raises(RequestError):
            model.to(device)


def test_a_model_trains_after_it_has_answered(tmp_path: Path) -> None:
    """No tensor of inference mode stays in the model: gradients flow after both loops and a stream have run."""
    model = load(save_model(tmp_path))
    model.generate("hi", max_new_tokens=3)
    model.generate("hi", max_new_tokens=3, num_beams=2)
    list(model.stream("hi", max_new_tokens=3, no_repeat_ngram_size=2))
    ids = torch.tensor([model.tokenize("where is my card")])
    model.train().model(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.model.parameters() if p.requires_grad)
    assert not any(tensor.is_inference() for tensor in (*model.model.parameters(), *model.model.buffers()))


def test_threads_get_their_own_answers(model: Model) -> None:
    """Four threads that ask one model for different strategies and seeds get what each gets alone."""
    asked: list[dict[str, Any]] = [
        {"num_beams": 3},
        {"no_repeat_ngram_size": 2, "suppress_tokens": [5]},
        {"temperature": 1.4, "seed": 3, "num_beams": 2},
        {"temperature": 1.4, "seed": 4, "typical_p": 0.9},
        {"temperature": 1.4, "seed": 5},
        {"prompt_lookup_num_tokens": 2},
    ]
    alone = [model.generate("where is my card", max_new_tokens=10, **each) for each in asked]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda each: model.generate("where is my card", max_new_tokens=10, **each), asked)
            assert list(found) == alone


def test_untrained_weights_warn_once_whoever_asks(tmp_path: Path) -> None:
    """A model of random weights says so at its first answer, and then no more; the loop of a server says nothing."""
    model = load(save_model(tmp_path))
    model.untrained = Untrained("random", 0, None)
    model.decoder()
    model.prepare("hi", {"max_new_tokens": 1})
    with pytest.warns(UntrainedWarning, match="random weights") as caught:
        model.generate("hi", max_new_tokens=1)
    assert [warning.filename.endswith("test_model.py") for warning in caught] == [True]
    assert model.batch_generate(["hi"], max_new_tokens=1)
    assert "".join(model.stream("hi", max_new_tokens=1)) is not None
    assert model.predict("hi", max_new_tokens=1) is not None


def test_a_model_that_was_trained_since_it_was_loaded_warns_no_more(tmp_path: Path) -> None:
    """One step on random weights in memory, and answers come without a warning."""
    model = load(save_model(tmp_path), random=True)
    ids = torch.tensor([[5, 6, 7]])
    optimizer = torch.optim.SGD(model.train().model.parameters(), lr=0.1)
    model.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert model.eval().generate("hi", max_new_tokens=1) is not None


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (b"hi", "is a bytes"),
        (None, "is a NoneType"),
        (5, "is a int"),
        (iter([1, 2]), "is a list_iterator"),
        (torch.ones(1, 2, dtype=torch.long), "of 1 x 2 numbers"),
        (np.array([0.5]), "is a ndarray"),
        ([True], "is a bool"),
        ({}, "is empty"),
        ({"role": "user", "content": "hi"}, "unknown field"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_kind(model: Model, prompt: Any, words: str) -> None:
    """Bytes are not taken for ids, and the message names what was given."""
    for call in (model.generate, model.stream, model.tokenize):
        with pytest.raises(RequestError, match=words):
            call(prompt)


def test_ids_of_arrays_are_ids(model: Model) -> None:
    """NumPy integers, one-dimensional arrays and tensors are token ids, in and out; unknown ones are refused."""
    ids = model.tokenize("my card")
    answer = model.generate(ids, max_new_tokens=3)
    held: Any
    for held in (np.array(ids), torch.tensor(ids), [np.int64(token) for token in ids], tuple(ids)):
        assert model.tokenize(held) == ids
        assert model.generate(held, max_new_tokens=3) == answer
        assert model.detokenize(held) == model.detokenize(ids)
    for wrong in ([10**9], [-1]):
        with pytest.raises(RequestError, match="vocabulary"):
            model.tokenize(wrong)
    for nothing in (None, 5, "x", b"x"):
        with pytest.raises(RequestError):
            model.detokenize(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"num_beams": 0}, "`num_beams` is 0"),
        ({"num_beams": 1.5}, "`num_beams` is 1.5"),
        ({"no_repeat_ngram_size": -1}, "`no_repeat_ngram_size` is -1"),
        ({"do_sample": "no"}, "`do_sample` is 'no'"),
        ({"return_full_text": "no"}, "`return_full_text` is 'no'"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams have 2 answers"),
    ],
)
def test_values_of_another_kind_are_refused(model: Model, params: dict[str, Any], words: str) -> None:
    """A text is no switch and a fraction no number of beams: refused by name, before anything is computed."""
    with pytest.raises(RequestError, match=words):
        model.generate("hi", max_new_tokens=2, **params)
    for size in ("1", 1.5, True):
        with pytest.raises(RequestError, match="batch_size"):
            model.batch_generate(["hi"], batch_size=size)  # type: ignore[arg-type]
