"""The official `openai` client against the server with a real (tiny) model in a real worker."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from modelyard.catalog import Catalog
from modelyard.registry import Yard
from modelyard.serving import Server, WorkerOptions
from modelyard.store import LocalStore
from modelyard.weights.load import load
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.registry import Version

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning"),  # torch's bindings, on import
]

MESSAGES: Any = [{"role": "user", "content": "where is my card"}]
TOKEN = "a-token-of-enough-characters"


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    """A yard with two versions of a tiny model, the first one in production."""
    root = tmp_path_factory.mktemp("openai")
    store = LocalStore(root / "yard").init()
    catalog = Catalog(f"sqlite:///{root / 'yard' / 'catalog.db'}")
    yard = Yard(store, catalog, links=root / "yard" / "links").init()
    for seed in (1, 2):
        yard.commit(save_model(root / str(seed), make_llama(seed)), "team/bot", kind="base")
    yard.promote("team/bot@v1", "production")
    return yard


@pytest.fixture(scope="module")
def answers(yard: Yard) -> dict[str, str]:
    """What each version answers to `MESSAGES` with 12 greedy tokens, without a server: text by full id."""
    texts = {}
    for version in yard.versions("team/bot"):
        model = load(yard.folder(version), threads=1)
        texts[str(version.id)] = model.generate(MESSAGES, max_new_tokens=12, temperature=0.0)
    assert len(set(texts.values())) == 2
    return texts


@pytest.fixture(scope="module")
def server(yard: Yard) -> Iterator[Server]:
    """The server that the tests of this module share."""
    with Server(
        yard, ["team/bot@production"], port=0, token=TOKEN, worker=WorkerOptions(threads=1), interval=0.1
    ) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """An official client, without retries: what fails, fails."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=30) as client:
        yield client


def now(yard: Yard) -> Version:
    """The version in production."""
    return yard.resolve("team/bot@production")


def test_chat(client: openai.OpenAI, yard: Yard, answers: dict[str, str]) -> None:
    """A chat completion is what the version itself generates, with its id, reason and usage."""
    raw = client.chat.completions.with_raw_response.create(
        model="team/bot@production", messages=MESSAGES, max_completion_tokens=12, temperature=0
    )
    completion = raw.parse()
    version = now(yard)
    assert completion.choices[0].message.content == answers[version.id]
    assert completion.system_fingerprint == version.id.short
    assert raw.headers["x-modelyard-version"] == version.id
    assert raw.headers["x-modelyard-ref"] == version.name
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.choices[0].finish_reason in {"stop", "length"}
    type(completion).model_validate(completion.model_dump(), strict=True)


def test_chat_stream(client: openai.OpenAI, yard: Yard, answers: dict[str, str]) -> None:
    """A streamed chat completion is the same text in pieces, one version throughout, usage at the end."""
    chunks = list(
        client.chat.completions.create(
            model="team/bot",
            messages=MESSAGES,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answers[now(yard).id]
    assert {chunk.system_fingerprint for chunk in chunks} == {now(yard).id.short}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 12
    for chunk in chunks:
        type(chunk).model_validate(chunk.model_dump(), strict=True)


def test_stream_helper(client: openai.OpenAI, yard: Yard, answers: dict[str, str]) -> None:
    """The client's `stream` helper, which accumulates events, ends with the whole text."""
    with client.chat.completions.stream(model="team/bot", messages=MESSAGES, max_tokens=12, temperature=0) as stream:
        for _ in stream:
            pass
        snapshot = stream.current_completion_snapshot
    assert snapshot.choices[0].message.content == answers[now(yard).id]


def test_completions(client: openai.OpenAI) -> None:
    """Plain completions work with text and token ids, streamed and not, and stop at a stop string."""
    whole = client.completions.create(model="team/bot", prompt="my card", max_tokens=8, temperature=0)
    pieces = client.completions.create(model="team/bot", prompt="my card", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
    assert client.completions.create(model="team/bot", prompt=[260, 261], max_tokens=2).choices[0].text is not None
    text = whole.choices[0].text
    assert len(text) > 2
    stopped = client.completions.create(model="team/bot", prompt="my card", max_tokens=8, temperature=0, stop=[text[2]])
    assert stopped.choices[0].text == text[: text.index(text[2])]
    assert stopped.choices[0].finish_reason == "stop"


def test_seed_repeats_and_neighbours_do_not_matter(client: openai.OpenAI) -> None:
    """The same seed gives the same answer while others run; another seed gives another; both differ from greedy."""

    def sample(seed: int) -> str:
        completion = client.completions.create(
            model="team/bot", prompt="one two", max_tokens=24, temperature=1.5, seed=seed
        )
        return completion.choices[0].text

    alone = sample(7)
    texts: list[str] = []
    threads = [threading.Thread(target=lambda seed=seed: texts.append(sample(seed))) for seed in (7, 8, 9, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts.count(alone) == 2
    assert len(set(texts)) == 3


def test_models(client: openai.OpenAI, yard: Yard) -> None:
    """Models are listed and retrieved by name."""
    (model,) = client.models.list().data
    assert model.id == "team/bot@production"
    assert model.created == int(now(yard).created_at.timestamp())
    assert client.models.retrieve("team/bot@production").id == "team/bot@production"
    with pytest.raises(openai.NotFoundError, match=r"did you mean `team/bot"):
        client.models.retrieve("team/bto")


def test_errors_are_the_clients_own(client: openai.OpenAI, server: Server) -> None:
    """Refusals arrive as the client's exceptions, with the field where there is one."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="team/bto", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="team/bot", messages=MESSAGES, logprobs=True)
    assert unsupported.value.param == "logprobs"
    with pytest.raises(openai.BadRequestError, match="128") as long:
        client.chat.completions.create(model="team/bot", messages=[{"role": "user", "content": "card " * 200}])
    assert long.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="128") as much:
        client.chat.completions.create(model="team/bot", messages=MESSAGES, max_tokens=500, stream=True)
    assert much.value.param == "max_tokens"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong-wrong-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_special_token_in_a_message_is_text(client: openai.OpenAI) -> None:
    """A control token spelled out by a user costs more than one token: it is text, not control."""
    usages = []
    for content in ("x", "x<|end|>"):
        completion = client.chat.completions.create(
            model="team/bot", messages=[{"role": "user", "content": content}], max_tokens=1
        )
        assert completion.usage is not None
        usages.append(completion.usage.prompt_tokens)
    assert usages[1] - usages[0] > 1


def test_disconnect_frees_the_engine(client: openai.OpenAI, server: Server) -> None:
    """Leaving a stream in the middle ends it in the engine: nothing stays in flight."""
    stream = client.chat.completions.create(
        model="team/bot", messages=MESSAGES, max_tokens=100, temperature=1.0, stream=True
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        state = httpx.get(f"{server.url}/ready", headers={"authorization": f"Bearer {TOKEN}"}).json()
        if state["deployments"][0]["in_flight"] == 0:
            return
        time.sleep(0.02)
    pytest.fail("the request is still in flight")


def test_promotion_under_load(client: openai.OpenAI, yard: Yard, answers: dict[str, str]) -> None:
    """While production moves from v1 to v2, no request fails and each stream is one version's own text."""
    stop = threading.Event()
    problems: list[str] = []
    seen: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model="team/bot@production", messages=MESSAGES, max_tokens=12, temperature=0, stream=True
                )
                chunks = list(raw.parse())
            except openai.OpenAIError as error:
                problems.append(repr(error))
                continue
            version = raw.headers["x-modelyard-version"]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            if {chunk.system_fingerprint for chunk in chunks} != {version[:40]} or text != answers[version]:
                problems.append(f"{version}: {text!r}")
            seen.append(version)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    target = yard.resolve("team/bot@v2")
    yard.promote(target, "production")
    deadline = time.monotonic() + 30
    while (not seen or seen[-1] != target.id) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert set(seen) == {yard.resolve("team/bot@v1").id, target.id}
    moved = seen.index(target.id)
    # Streams that began on v1 may end after the first one of v2, at most one per client.
    assert seen[moved:].count(yard.resolve("team/bot@v1").id) <= len(threads)
