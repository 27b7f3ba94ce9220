"""Many requests on one model: each gets the answer it would get alone, whoever comes and goes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.engine import EngineRequest, Event, Failed, Finished, Token, TorchEngine, Usage
from modelyard.errors import BusyError, RequestError
from modelyard.weights.load import load
from tiny_models import make_tokenizer, save_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modelyard.weights.model import Model

PROMPTS = [
    "where is my card",
    "hi",
    "the quick brown fox jumps over the lazy dog",
    "é",
    "one two",
    "my card has not arrived",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny Llama with the tiny chat tokenizer."""
    return load(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def engine(model: Model) -> Iterator[TorchEngine]:
    """An engine with three slots, closed at the end."""
    engine = TorchEngine(model, max_running=3, max_waiting=16)
    yield engine
    engine.close()


@pytest.fixture
def paced(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TorchEngine, threading.Semaphore]]:
    """An engine with one slot and a queue of one, which takes a step only when it is allowed to."""
    engine = TorchEngine(model, max_running=1, max_waiting=1)
    allowed = threading.Semaphore(0)
    step = engine._decoder.step

    def wait_and_step() -> Any:
        allowed.acquire()
        return step()

    monkeypatch.setattr(engine._decoder, "step", wait_and_step)
    yield engine, allowed
    for _ in range(1000):
        allowed.release()
    engine.close()


def ask(name: str, text: str, **params: Any) -> EngineRequest:
    """A request with one user message."""
    return EngineRequest(name, messages=[{"role": "user", "content": text}], params=params)


def text_of(events: Iterable[Event]) -> str:
    """The text of a stream of events."""
    return "".join(event.text for event in events if isinstance(event, Token))


def wait_until(condition: Any) -> None:
    """Wait for another thread, at most ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_concurrent_answers_are_those_of_the_model(model: Model, engine: TorchEngine) -> None:
    """Requests from several threads, sampled or greedy, each get exactly what `generate` gives for them alone."""
    params: list[dict[str, Any]] = [{}, {"temperature": 1.4, "seed": 3}, {"stop": ["a"]}]
    wanted = {
        f"{prompt}/{at}": model.generate(prompt, max_new_tokens=15 + 5 * at, **given)
        for prompt in PROMPTS
        for at, given in enumerate(params)
    }
    found: dict[str, str] = {}

    def work(at: int, given: dict[str, Any]) -> None:
        for prompt in PROMPTS:
            name = f"{prompt}/{at}"
            found[name] = text_of(engine.submit(ask(name, prompt, max_new_tokens=15 + 5 * at, **given)))

    threads = [threading.Thread(target=work, args=args) for args in enumerate(params)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_requests_share_steps(engine: TorchEngine) -> None:
    """Three requests in three slots take about as many steps as the longest of them, not their sum."""
    answers = [engine.submit(ask(str(at), prompt, max_new_tokens=20)) for at, prompt in enumerate(PROMPTS[:3])]
    usages = [list(answer)[-1] for answer in answers]
    assert all(isinstance(event, Finished) for event in usages)
    stats = engine.stats()
    assert stats.completion_tokens > stats.steps
    assert stats.prompt_tokens == sum(answer.prompt_tokens for answer in answers)
    assert (stats.running, stats.waiting) == (0, 0)


def test_events_end_with_the_reason_and_the_usage(model: Model, engine: TorchEngine) -> None:
    """One token an event, then `Finished` with what was counted."""
    answer = engine.submit(ask("a", "hi", max_new_tokens=7))
    *tokens, end = list(answer)
    assert end == Finished("length", Usage(answer.prompt_tokens, 7))
    ids = [token for event in tokens if isinstance(event, Token) for token in event.token_ids]
    assert ids == list(model.complete(["hi"], max_new_tokens=7)[0].token_ids)


def test_prompts_come_in_three_forms(model: Model, engine: TorchEngine) -> None:
    """Messages, raw text and token ids; raw text is not wrapped in the chat template."""
    raw = model.tokenize_text("my card")
    answers = [
        engine.submit(EngineRequest("text", prompt="my card", params={"max_new_tokens": 9})),
        engine.submit(EngineRequest("ids", token_ids=raw, params={"max_new_tokens": 9})),
    ]
    assert [answer.prompt_tokens for answer in answers] == [len(raw)] * 2
    texts = {text_of(answer) for answer in answers}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("params", "field"),
    [({"logprobs": 5}, "logprobs"), ({"temperature": -1}, "temperature"), ({"max_new_tokens": 1000}, "max_new_tokens")],
)
def test_what_is_not_honoured_is_refused_by_name(engine: TorchEngine, params: dict[str, Any], field: str) -> None:
    """A parameter that the engine does not know, or cannot grant, is a RequestError before anything is queued."""
    with pytest.raises(RequestError) as caught:
        engine.submit(ask("a", "hi", **params))
    assert caught.value.details["field"] == field
    assert engine.stats().waiting == 0


def test_a_request_has_exactly_one_prompt() -> None:
    """None or two prompts are refused when the request is made."""
    for given in ({}, {"prompt": "x", "token_ids": (1,)}):
        with pytest.raises(RequestError, match="request `a`"):
            EngineRequest("a", **given)  # type: ignore[arg-type]


def test_capabilities_say_what_is_honoured(engine: TorchEngine) -> None:
    """The bounds and the parameters are stated."""
    known = engine.capabilities
    assert (known.engine, known.chat, known.context, known.slots, known.queue) == ("torch", True, 128, 3, 16)
    assert {"temperature", "stop", "seed"} <= set(known.params)


def test_a_full_queue_is_busy(paced: tuple[TorchEngine, threading.Semaphore]) -> None:
    """One runs, one waits, the third is a BusyError; when the first is over there is room again."""
    engine, allowed = paced
    first = engine.submit(ask("1", "hi", max_new_tokens=2))
    wait_until(lambda: engine.stats().running == 1)
    engine.submit(ask("2", "hi", max_new_tokens=1))
    with pytest.raises(BusyError, match="the queue is full"):
        engine.submit(ask("3", "hi"))
    with pytest.raises(RequestError, match="running already"):
        engine.submit(ask("1", "hi"))
    allowed.release()
    allowed.release()
    assert isinstance(list(first)[-1], Finished)
    engine.submit(ask("3", "hi", max_new_tokens=1))


def test_cancelling_takes_one_step(paced: tuple[TorchEngine, threading.Semaphore]) -> None:
    """A running request ends within the step that is under way, as `cancelled`, with what it had; the next one starts."""
    engine, allowed = paced
    running = engine.submit(ask("run", "hi", max_new_tokens=100))
    waiting = engine.submit(ask("wait", "hi", max_new_tokens=1))
    allowed.release()
    events = iter(running)
    assert isinstance(next(events), Token)
    assert engine.cancel("run") is True
    allowed.release()
    rest = list(events)
    assert rest[-1] == Finished("cancelled", Usage(running.prompt_tokens, 1 + len(rest[:-1])))
    assert len(rest) <= 2
    allowed.release()
    assert isinstance(list(waiting)[-1], Finished)
    assert engine.cancel("run") is False


def test_a_waiting_request_is_cancelled_at_once(paced: tuple[TorchEngine, threading.Semaphore]) -> None:
    """It ends without a step being taken."""
    engine, _ = paced
    engine.submit(ask("run", "hi"))
    waiting = engine.submit(ask("wait", "hi"))
    assert engine.cancel("wait") is True
    assert list(waiting) == [Finished("cancelled", Usage(waiting.prompt_tokens, 0))]


def test_leaving_the_iteration_cancels(paced: tuple[TorchEngine, threading.Semaphore]) -> None:
    """A reader that goes away frees the slot."""
    engine, allowed = paced
    answer = engine.submit(ask("a", "hi", max_new_tokens=100))
    allowed.release()
    for _ in answer:
        break
    allowed.release()
    wait_until(lambda: engine.stats().running == 0)


def test_a_request_joins_between_steps(model: Model, paced: tuple[TorchEngine, threading.Semaphore]) -> None:
    """A request that comes while another runs starts at the next step and changes nothing for it."""
    engine, allowed = paced
    engine._scheduler.max_running = 2
    first = engine.submit(ask("1", PROMPTS[0], max_new_tokens=10))
    for _ in range(3):
        allowed.release()
    wait_until(lambda: engine.stats().steps == 3)
    second = engine.submit(ask("2", PROMPTS[2], max_new_tokens=4))
    for _ in range(7):
        allowed.release()
    assert text_of(first) == model.generate(PROMPTS[0], max_new_tokens=10)
    assert text_of(second) == model.generate(PROMPTS[2], max_new_tokens=4)
    assert engine.stats().steps <= 11


def test_a_row_that_is_not_finite_fails_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its reader gets `Failed`; its neighbour gets its answer; the engine goes on."""
    broken = load(save_model(tmp_path_factory.mktemp("nan")))
    token = make_tokenizer().encode("z", add_special_tokens=False)[0]
    with torch.no_grad():
        broken.model.model.embed_tokens.weight[token] = torch.nan
    engine = TorchEngine(broken, max_running=2)
    try:
        bad, good = engine.submit(ask("bad", "z")), engine.submit(ask("good", "my card", max_new_tokens=3))
        assert list(bad) == [Failed("bad_model", "the model's logits are not finite")]
        assert isinstance(list(good)[-1], Finished | Failed)
    finally:
        engine.close()


def test_a_failing_step_fails_its_requests_and_no_more(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the computation itself breaks, everyone in it is told, and the next request is answered."""
    engine = TorchEngine(model, max_running=2)
    step = engine._decoder.step
    broken = threading.Event()
    broken.set()

    def break_once() -> Any:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("out of memory, say")
        return step()

    monkeypatch.setattr(engine._decoder, "step", break_once)
    try:
        assert list(engine.submit(ask("1", "hi"))) == [Failed("internal", "RuntimeError: out of memory, say")]
        assert text_of(engine.submit(ask("2", "hi", max_new_tokens=5))) == model.generate("hi", max_new_tokens=5)
    finally:
        engine.close()


def test_closing_ends_everything(model: Model) -> None:
    """Closing cancels what runs and waits, refuses what comes after, and stops the thread; twice is no error."""
    engine = TorchEngine(model, max_running=1)
    answers = [engine.submit(ask(str(at), "hi")) for at in range(3)]
    engine.close()
    engine.close()
    ends = [list(answer)[-1] for answer in answers]
    assert all(isinstance(end, Finished) for end in ends)
    assert isinstance(ends[-1], Finished)
    assert ends[-1].reason == "cancelled"
    with pytest.raises(BusyError, match="closing"):
        engine.submit(ask("x", "hi"))
    assert not engine._thread.is_alive()


def test_draining_finishes_what_was_taken(model: Model) -> None:
    """With `drain`, every request that was taken gets its whole answer."""
    engine = TorchEngine(model, max_running=1)
    answers = [engine.submit(ask(str(at), "hi", max_new_tokens=6)) for at in range(3)]
    engine.close(drain=True)
    assert {text_of(answer) for answer in answers} == {model.generate("hi", max_new_tokens=6)}
