"""Every decoding strategy of transformers' `generate`, on a loaded model. transformers' own call is the judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from modelyard.errors import RequestError
from modelyard.weights.generation.loop import GenerationDefaults, GenerationParams
from modelyard.weights.generation.strategies import read_request
from modelyard.weights.load import load
from tiny_models import make_llama, make_tokenizer, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.weights.model import Model

PROMPTS = ["where is my card", "hi", "the quick brown fox jumps over the lazy dog"]
LENGTH = 12

# What transformers does with one prompt without drawing anything.
STRATEGIES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4},
    "beams of their own length": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "several beams": {"num_beams": 4, "num_return_sequences": 3},
    "n-grams": {"no_repeat_ngram_size": 2},
    "n-grams of the prompt": {"encoder_no_repeat_ngram_size": 2},
    "banned words": {"bad_words_ids": [[300], [5, 6]]},
    "suppressed": {"suppress_tokens": [5, 6, 300]},
    "suppressed at first": {"begin_suppress_tokens": [5, 300]},
    "forced last": {"forced_eos_token_id": 1},
    "least length": {"min_length": 16},
    "least new length": {"min_new_tokens": 9},
    "guidance": {"guidance_scale": 1.5},
    "watermark": {"watermarking_config": {"bias": 3.0, "greenlist_ratio": 0.25}},
    "bias": {"sequence_bias": {(10,): 50.0}},
    "decay": {"exponential_decay_length_penalty": (3, 1.8)},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "normalized": {"renormalize_logits": True, "num_beams": 2},
    "penalty of the prompt": {"encoder_repetition_penalty": 1.6},
    "two at once": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.4},
    "static cache": {"cache_implementation": "static"},
    "prefill in chunks": {"prefill_chunk_size": 4},
    "early exit": {"assistant_early_exit": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny Llama with the tiny chat tokenizer."""
    return load(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Another one, which drafts for it."""
    return load(save_model(tmp_path_factory.mktemp("draft"), make_llama(seed=5)))


def judged(model: Model, prompt: Any, **options: Any) -> list[list[int]]:
    """New tokens of transformers' own `generate` for one prompt, up to and with the first EOS."""
    ids = torch.tensor([model.tokenize(prompt)])
    options = {"max_new_tokens": LENGTH, "do_sample": False, **options}
    with torch.no_grad():
        out = model.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    rows = [row[ids.shape[1] :] for row in out.tolist()]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_gives_what_transformers_gives(model: Model, name: str) -> None:
    """Token by token, alone and in a batch, and the text of a stream is the same; transformers' loop is named."""
    options = STRATEGIES[name]
    expected = [row for prompt in PROMPTS for row in judged(model, prompt, **options)]
    found = model.complete(PROMPTS, max_new_tokens=LENGTH, **options)
    assert [list(answer.token_ids) for answer in found] == expected
    assert {answer.by for answer in found} == {"transformers"}
    if "num_return_sequences" not in options:
        assert [model.generate(prompt, max_new_tokens=LENGTH, **options) for prompt in PROMPTS] == [
            a.text for a in found
        ]
        pieces = [list(model.stream(prompt, max_new_tokens=LENGTH, **options)) for prompt in PROMPTS]
        assert ["".join(row) for row in pieces] == [answer.text for answer in found]


def test_a_forced_first_token_is_forced_where_an_answer_is_all_there_is(model: Model) -> None:
    """The first token is forced only behind a prompt of one token, which is what transformers does."""
    assert model.complete([[20]], max_new_tokens=3, forced_bos_token_id=7)[0].token_ids[0] == 7


def test_most_strategies_change_the_answer(model: Model) -> None:
    """The comparisons above compare something: most of the strategies answer otherwise than greedy decoding does."""
    plain = [list(answer.token_ids) for answer in model.complete(PROMPTS, max_new_tokens=LENGTH)]
    other = sum(judged(model, PROMPTS[0], **options)[0] != plain[0] for options in STRATEGIES.values())
    assert other >= 10


def test_assisted_decoding_is_greedy_decoding(model: Model, draft: Model) -> None:
    """A draft changes no greedy answer, whether it is a model of ours or of transformers; the draft stays as it was."""
    before = draft.model.generation_config.to_dict()
    plain = model.complete(PROMPTS, max_new_tokens=LENGTH)
    for assistant in (draft, draft.model):
        found = model.complete(PROMPTS, max_new_tokens=LENGTH, assistant_model=assistant)
        assert [answer.token_ids for answer in found] == [answer.token_ids for answer in plain]
        assert found[0].by == "transformers"
    assert draft.model.generation_config.to_dict() == before


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.02},
        {"eta_cutoff": 0.02},
        {"top_h": 0.4},
        {"no_repeat_ngram_size": 2, "top_k": 5},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_a_seed_repeats_what_is_drawn(model: Model, options: dict[str, Any]) -> None:
    """With a seed an answer is the same alone, in a batch, streamed and again; and nobody else's draws are disturbed."""
    asked: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": LENGTH, **options}
    torch.manual_seed(11)
    expected = float(torch.rand(()))
    torch.manual_seed(11)
    alone = [model.generate(prompt, seed=4, **asked) for prompt in PROMPTS]
    assert float(torch.rand(())) == expected
    assert model.batch_generate(PROMPTS, seed=4, **asked) == alone
    assert ["".join(model.stream(prompt, seed=4, **asked)) for prompt in PROMPTS] == alone
    others = [model.batch_generate(PROMPTS, seed=seed, **asked) for seed in range(5, 9)]
    assert any(other != alone for other in others)


def test_a_sampler_draws_only_what_it_allows(model: Model) -> None:
    """Every token drawn under `typical_p` is one that transformers' own warper leaves."""
    answer = model.complete(["hi"], typical_p=0.3, temperature=1.5, seed=2, max_new_tokens=LENGTH)[0]
    ids = torch.tensor([model.tokenize("hi")])
    warpers = transformers.LogitsProcessorList(
        [transformers.TemperatureLogitsWarper(1.5), transformers.TypicalLogitsWarper(0.3)]
    )
    for token in answer.token_ids:
        with torch.no_grad():
            logits = model.model(ids).logits[:, -1].float()
        allowed: Any = warpers(ids, logits)  # type: ignore[arg-type]  # a LongTensor is no type of its own
        assert torch.isfinite(allowed[0, token])
        ids = torch.cat([ids, torch.tensor([[token]])], dim=-1)


def test_a_seed_that_was_not_given_is_told(model: Model) -> None:
    """`Completion.seed` draws the same answer again, by either loop; a greedy answer has none."""
    for options in ({}, {"typical_p": 0.8}, {"num_beams": 2}):
        asked: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": LENGTH, **options}
        first = model.complete(["hi"], **asked)[0]
        assert model.complete(["hi"], seed=first.seed, **asked)[0] == first
    assert model.complete(["hi"], max_new_tokens=2)[0].seed is None


def test_several_answers_follow_one_another(model: Model) -> None:
    """`num_return_sequences` draws several answers to each prompt: the first is that of the seed, the others differ."""
    asked: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": LENGTH, "seed": 3}
    found = model.batch_generate(PROMPTS, num_return_sequences=3, **asked)
    assert len(found) == 9
    assert found[::3] == model.batch_generate(PROMPTS, **asked)
    assert len(set(found[:3])) == 3
    assert len(model.complete(["hi"], num_return_sequences=2, typical_p=0.9, **asked)) == 2
    with pytest.raises(RequestError, match="greedy decoding has one answer"):
        model.complete(["hi"], num_return_sequences=2)
    with pytest.raises(RequestError, match="gives one answer"):
        model.generate("hi", num_return_sequences=2, **asked)
    with pytest.raises(RequestError, match="a stream is one answer"):
        model.stream("hi", num_return_sequences=2, **asked)


def test_processors_and_criteria_are_taken_as_objects(model: Model) -> None:
    """Logits processors, stopping criteria and a function of allowed tokens, given as transformers' users have them."""
    processor = transformers.SuppressTokensLogitsProcessor([5, 6, 300])
    expected = judged(model, "hi", suppress_tokens=[5, 6, 300])[0]
    for given in (processor, [processor], transformers.LogitsProcessorList([processor])):
        assert list(model.complete(["hi"], max_new_tokens=LENGTH, logits_processor=given)[0].token_ids) == expected
    allowed = model.complete(["hi"], max_new_tokens=5, prefix_allowed_tokens_fn=lambda _row, _ids: [5, 6, 7])[0]
    assert set(allowed.token_ids) <= {5, 6, 7}
    tokens = len(model.tokenize("hi"))
    ended = model.complete(["hi"], stopping_criteria=[lambda ids, _scores: torch.tensor([ids.shape[1] >= tokens + 2])])[
        0
    ]
    assert (len(ended.token_ids), ended.finish_reason) == (2, "stop")


def test_penalties_of_ours_hold_in_their_loop(model: Model) -> None:
    """Presence and frequency penalties, which transformers does not have, give the same beside a rule that changes nothing."""
    asked: dict[str, Any] = {"max_new_tokens": 30, "presence_penalty": 1.0, "frequency_penalty": 0.7}
    ours, theirs = model.complete(PROMPTS, **asked), model.complete(PROMPTS, **asked, renormalize_logits=True)
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in theirs]
    assert (ours[0].by, theirs[0].by) == ("modelyard", "transformers")
    assert ours[0].token_ids != model.complete(PROMPTS[:1], max_new_tokens=30)[0].token_ids


def test_stop_strings_end_beams(model: Model) -> None:
    """A stop string ends a beam, and neither it nor what stands behind it is in the text."""
    for prompt in PROMPTS:
        whole = model.generate(prompt, num_beams=3, max_new_tokens=LENGTH)
        stop = whole[2:4]
        answer = model.complete([prompt], num_beams=3, max_new_tokens=LENGTH, stop=stop)[0]
        assert stop not in answer.text
        assert answer.finish_reason in {"stop", "length"}


def test_a_checkpoint_that_asks_for_beams_gets_beams(tmp_path: Path) -> None:
    """A generation_config's strategy is the default, by name in `defaults.ignored` for whoever steps the loop by itself;
    the caller's word wins over it.
    """
    llama = make_llama()
    llama.generation_config.update(num_beams=4, no_repeat_ngram_size=2, suppress_tokens=[5], do_sample=False)
    model = load(save_model(tmp_path, llama))
    assert model.defaults.ignored == ("num_beams", "no_repeat_ngram_size", "suppress_tokens")
    found = model.complete(PROMPTS, max_new_tokens=LENGTH)
    assert [list(answer.token_ids) for answer in found] == [judged(model, prompt)[0] for prompt in PROMPTS]
    assert {answer.by for answer in found} == {"transformers"}
    off: dict[str, Any] = {"num_beams": 1, "no_repeat_ngram_size": 0, "suppress_tokens": []}
    plain = model.complete(PROMPTS, max_new_tokens=LENGTH, **off)
    assert {answer.by for answer in plain} == {"modelyard"}
    half = model.complete(["hi"], max_new_tokens=LENGTH, num_beams=1, suppress_tokens=[])[0]
    expected = load(save_model(tmp_path / "plain")).complete(["hi"], max_new_tokens=LENGTH, no_repeat_ngram_size=2)[0]
    assert half.token_ids == expected.token_ids


def test_a_checkpoints_length_is_the_default(tmp_path: Path) -> None:
    """`max_length` of a generation_config counts the prompt, as in transformers; the caller's `max_length` does, too."""
    llama = make_llama(eos_token_id=None)
    llama.generation_config.update(max_length=30, eos_token_id=None)
    model = load(save_model(tmp_path, llama, make_tokenizer(None)))
    tokens = len(model.tokenize(PROMPTS[0]))
    answer = model.complete(PROMPTS[:1], eos_token_id=[])[0]
    assert (len(answer.token_ids), answer.finish_reason) == (30 - tokens, "length")
    assert len(model.complete(PROMPTS[:1], max_length=tokens + 4, eos_token_id=[])[0].token_ids) == 4
    with pytest.raises(RequestError, match="no room for an answer"):
        model.generate(PROMPTS[0], max_length=tokens)


def test_a_generation_config_is_taken_apart(model: Model) -> None:
    """An object of transformers gives what its fields by name give, and what is given beside it wins."""
    make: Any = transformers.GenerationConfig
    config = make(num_beams=3, max_new_tokens=7, temperature=0.3)
    found = model.complete(["hi"], generation_config=config)[0]
    assert found == model.complete(["hi"], num_beams=3, max_new_tokens=7)[0]
    assert model.complete(["hi"], generation_config=config, num_beams=1)[0].by == "modelyard"


def test_names_of_transformers_are_known(model: Model) -> None:
    """`do_sample`, `stop_strings` and `eos_token_id` say what they say in transformers."""
    assert model.generate("hi", do_sample=False, max_new_tokens=9) == model.generate("hi", max_new_tokens=9)
    asked: dict[str, Any] = {"seed": 3, "max_new_tokens": 9}
    assert model.generate("hi", do_sample=True, **asked) == model.generate("hi", temperature=1.0, **asked)
    text = model.generate("hi", max_new_tokens=9)
    assert model.generate("hi", stop_strings=text[2:4], max_new_tokens=9) == model.generate(
        "hi", stop=text[2:4], max_new_tokens=9
    )
    ids = model.complete(["hi"], max_new_tokens=9)[0].token_ids
    assert model.complete(["hi"], max_new_tokens=9, eos_token_id=ids[2])[0].token_ids == ids[: ids.index(ids[2]) + 1]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group beam search"),
    ({"constraints": ["a constraint"]}, "constrained beam search"),
    ({"force_words_ids": [[5]]}, "constrained beam search"),
    ({"dola_layers": "high"}, "DoLa"),
    ({"custom_generate": "org/name"}, "never run"),
    ({"trust_remote_code": True}, "never run"),
    ({"streamer": "a streamer"}, "iterator"),
    ({"output_scores": True}, "gives text"),
    ({"token_healing": True}, "end of the prompt"),
    ({"num_beems": 3}, "unknown parameter `num_beems`"),
    ({"typical_p": 0.5}, "draws none"),
    ({"length_penalty": 2.0}, "does nothing without `num_beams`"),
    ({"num_assistant_tokens": 4}, "does nothing without `assistant_model`"),
    ({"do_sample": True, "temperature": 0}, "greedy"),
    ({"do_sample": False, "temperature": 0.5}, "`do_sample` is false"),
    ({"stop": "a", "stop_strings": "b"}, "are the same"),
    ({"num_return_sequences": 0}, "num_return_sequences"),
    ({"eos_token_id": "a"}, "eos_token_id"),
    ({"generation_config": 7}, "generation_config"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_done_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    """Strategies that transformers moved to code on a hub, names nobody knows, and names that would change nothing."""
    with pytest.raises(RequestError, match=words) as caught:
        read_request(given, GenerationDefaults())
    assert caught.value.details["field"] in given


def test_every_field_of_transformers_is_decided_on() -> None:
    """A field that a new transformers adds to GenerationConfig is either taken, refused or named here as no matter."""
    no_matter = {
        "use_cache", "is_assistant", "disable_compile", "compile_config", "low_memory", "transformers_version",
        "continuous_batching_config",
    }  # fmt: skip
    values = {"do_sample": True, "temperature": 1.0, "stop_strings": "a", "eos_token_id": 3, "max_length": 9}
    undecided = []
    make: Any = transformers.GenerationConfig
    for name in make().to_dict():
        if name in no_matter or name.startswith("_"):
            continue
        try:
            read_request({name: values.get(name, 1)}, GenerationDefaults())
        except RequestError as error:
            if "unknown parameter" in error.message:
                undecided.append(name)
    assert undecided == []


def test_ids_in_rules_are_checked_against_the_vocabulary(model: Model) -> None:
    """A banned, forced or biased token that does not exist is an error that names it and the size."""
    for given in (
        {"bad_words_ids": [[5], [400]]},
        {"suppress_tokens": [400]},
        {"forced_eos_token_id": 400},
        {"sequence_bias": {(400,): 1.0}},
        {"sequence_bias": [[[400], 1.0]]},
        {"eos_token_id": [1, 400]},
    ):
        with pytest.raises(RequestError, match=r"token id 400.*vocabulary has 400") as caught:
            model.generate("hi", **given)
        assert caught.value.details["field"] in given


def test_a_refusal_of_transformers_is_a_request_error(model: Model) -> None:
    """What its `generate` raises about a request comes back typed, in its own words."""
    with pytest.raises(RequestError, match="num_mtp_layers"):
        model.generate("hi", use_mtp=True)
    with pytest.raises(RequestError, match="forbid every token"):
        model.generate("hi", suppress_tokens=list(range(400)))
    with pytest.raises(RequestError, match="at most 12"):
        model.generate("hi", max_new_tokens=12, min_new_tokens=13)


def test_nothing_leaks_out_of_a_strategy(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    """Gradient and inference mode are the caller's between pieces, the checkpoint's configuration is as it was, and the
    library prints nothing.
    """
    before = model.model.generation_config.to_dict()
    for _ in model.stream("hi", max_new_tokens=5, no_repeat_ngram_size=2):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    model.complete(PROMPTS, num_beams=2, max_new_tokens=5, top_p=0.5)
    model.complete(PROMPTS, prompt_lookup_num_tokens=2, max_new_tokens=5)
    assert model.model.generation_config.to_dict() == before
    assert capfd.readouterr() == ("", "")


def test_a_request_names_the_loop() -> None:
    """Greedy, sampling and penalties are ours; one field more is transformers'; a checkpoint's idle fields are none."""
    quiet = GenerationDefaults(strategy={"num_beams": 1, "typical_p": 0.9, "length_penalty": 2.0})
    assert (
        read_request({"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}, GenerationDefaults()).by
        == "modelyard"
    )
    assert read_request({}, quiet).by == "modelyard"
    assert read_request({"temperature": 0.7}, quiet).by == "transformers"
    assert read_request({"max_time": 3.0}, GenerationDefaults()).by == "transformers"
    assert read_request({"stop_strings": ["a"]}, GenerationDefaults()).params == GenerationParams(stop=("a",))
