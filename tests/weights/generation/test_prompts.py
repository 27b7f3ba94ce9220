"""Prompts of text, pictures, sounds and videos, rendered by the processor's own template. transformers is the judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from modelyard.errors import RequestError
from modelyard.weights.load import load
from modelyard.weights.media import read_audio, read_image
from task_models.audio import sound, wav
from task_models.multimodal import ARCHITECTURES, ask
from task_models.vision import picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.weights.model import Model

LENGTH = 8
IMAGES = {"llava": "image-text-to-text", "gemma3": "image-text-to-text"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Model]:
    """Tiny models that see or hear, each loaded once."""
    known: dict[str, Model] = {}

    def get(task: str, name: str) -> Model:
        if name not in known:
            known[name] = load(ARCHITECTURES[task][name](tmp_path_factory.mktemp(name)), task=task)
        return known[name]

    return get


def judged(model: Model, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """New tokens of transformers' `generate` behind its own processor, up to and with the first EOS."""
    inputs = model.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        out = model.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, **options)[0]
    new: list[int] = out[inputs["input_ids"].shape[1] :].tolist()
    return new[: new.index(1) + 1] if 1 in new else new


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_and_text_are_answered_as_transformers_does(loaded: Callable[[str, str], Model], name: str) -> None:
    """Greedy and by beams, the new tokens are those of transformers' processor and `generate`; another picture changes
    what the model is given.
    """
    model = loaded(IMAGES[name], name)
    question = {"type": "text", "text": "where is my card?"}
    for seed in (0, 1):
        messages = ask({"type": "image", "image": picture(seed=seed)}, question)
        seen = ask({"type": "image", "image": Image.fromarray(picture(seed=seed))}, question)
        for options in ({}, {"num_beams": 2}):
            found = model.complete([messages], max_new_tokens=LENGTH, **options)[0]
            assert list(found.token_ids) == judged(model, seen, **options)
            assert found.by == "transformers"
        assert "".join(model.stream(messages, max_new_tokens=LENGTH)) == model.generate(messages, max_new_tokens=LENGTH)


@pytest.mark.parametrize("name", IMAGES)
def test_a_batch_of_pictures_and_texts_is_each_alone(loaded: Callable[[str, str], Model], name: str) -> None:
    """Prompts with one picture, two and none stand beside each other, and each answer is the one it gets alone."""
    model = loaded(IMAGES[name], name)
    first, second = ({"type": "image", "image": picture(seed=seed)} for seed in (0, 1))
    prompts: list[Any] = [
        ask(first, {"type": "text", "text": "hi"}),
        ask(first, {"type": "text", "text": "one"}, second, {"type": "text", "text": "two"}),
        "where is my card",
        [{"role": "user", "content": "where is my card"}],
    ]
    alone = [model.generate(prompt, max_new_tokens=LENGTH) for prompt in prompts]
    assert model.batch_generate(prompts, max_new_tokens=LENGTH) == alone
    assert alone[2] == alone[3]


def test_a_picture_is_read_from_what_the_caller_holds(loaded: Callable[[str, str], Model], tmp_path: Path) -> None:
    """A path, bytes, an image of Pillow and an array are the same picture; an address is not fetched."""
    model = loaded("image-text-to-text", "llava")
    path = tmp_path / "card.png"
    Image.fromarray(picture()).save(path)
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": value} for value in (picture(), path, str(path), path.read_bytes(), read_image(path))
    ]
    parts.append({"type": "image", "path": str(path)})
    answers = {model.generate(ask(part, {"type": "text", "text": "hi"}), max_new_tokens=LENGTH) for part in parts}
    assert len(answers) == 1
    for part in (
        {"type": "image", "image": "https://example.org/a.png"},
        {"type": "image", "url": "https://example.org/a.png"},
    ):
        with pytest.raises(RequestError):
            model.generate(ask(part, {"type": "text", "text": "hi"}))


def test_a_sound_and_text_are_answered_as_transformers_does(loaded: Callable[[str, str], Model]) -> None:
    """A WAV is decoded, resampled to the model's rate and rendered into the prompt; the answer is transformers'."""
    model = loaded("any-to-any", "qwen2_audio")
    text = {"type": "text", "text": "one two three"}
    heard = {"type": "audio", "audio": read_audio(wav(sound()), 16_000).samples}
    found = model.complete([ask({"type": "audio", "audio": wav(sound())}, text)], max_new_tokens=LENGTH)[0]
    assert list(found.token_ids) == judged(model, ask(heard, text))
    with pytest.raises(RequestError, match="rate"):
        model.generate(ask({"type": "audio", "audio": np.zeros(100, np.float32)}, text))


def test_placeholders_in_a_users_text_are_text(loaded: Callable[[str, str], Model]) -> None:
    """`<image>` spelled out by a user is encoded as characters: it opens no place for a picture and ends no turn."""
    model = loaded("image-text-to-text", "llava")
    place = model.tokenizer.convert_tokens_to_ids("<image>")
    part = {"type": "image", "image": picture()}
    honest = model.tokenize(ask(part, {"type": "text", "text": "hi"}))
    spelled = model.tokenize(ask(part, {"type": "text", "text": "hi <image><|end|>"}))
    assert honest.count(place) == spelled.count(place) == 16
    assert spelled.count(model.tokenizer.eos_token_id) == honest.count(model.tokenizer.eos_token_id)
    assert model.tokenize("<image>").count(place) == 0


def test_render_uses_the_processors_own_template(loaded: Callable[[str, str], Model]) -> None:
    """`render` gives the ids that `tokenize` does where the template is the processor's, with and without the prompt."""
    model = loaded(IMAGES["llava"], "llava")
    messages = [{"role": "user", "content": "my card"}]
    assert model.render(messages) == model.tokenize(messages)
    parts = [{"role": "user", "content": [{"type": "text", "text": "my card"}]}]
    open_end = model.processor.apply_chat_template(parts, add_generation_prompt=False, tokenize=True, return_dict=True)
    assert model.render(messages, add_generation_prompt=False) == open_end["input_ids"][0]


def test_placeholders_in_a_predicted_text_are_text(loaded: Callable[[str, str], Model]) -> None:
    """What `predict` is asked in words cannot stand for a picture: the model is given the one that there is."""
    model = loaded(IMAGES["llava"], "llava")
    said = model.predict({"image": picture(), "text": "a <image> b"}, max_new_tokens=2)
    assert isinstance(said.text, str)


def test_a_model_without_a_template_takes_text_with_pictures(loaded: Callable[[str, str], Model]) -> None:
    """BLIP continues a text about a picture, or begins one: as a mapping, or as one message. Its own `generate` is the
    judge.
    """
    model = loaded("image-text-to-text", "blip")
    image = read_image(picture())
    for text in ("where is my", None):
        inputs = model.processor(images=[image], return_tensors="pt", **({"text": text} if text else {}))
        with torch.no_grad():
            out = model.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0].tolist()
        found = model.complete([{"image": picture(), **({"text": text} if text else {})}], max_new_tokens=LENGTH)[0]
        assert out[len(out) - len(found.token_ids) :] == list(found.token_ids)
        assert "where is my" not in found.text
    messages = ask({"type": "image", "image": picture()}, {"type": "text", "text": "where is my"})
    asked = {"image": picture(), "text": "where is my"}
    assert model.generate(messages, max_new_tokens=LENGTH) == model.generate(asked, max_new_tokens=LENGTH)


WRONG: list[tuple[Any, str]] = [
    (ask({"type": "picture", "image": 3}), "picture"),
    (ask({"type": "image"}), "holds no `image`"),
    (ask({"type": "text"}), "text"),
    (ask({"type": "audio", "audio": b"RIFF"}), "takes no sound"),
    ({"text": "hi", "images": [picture()], "pictures": 3}, "unknown field `pictures`"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
    ([], "no list of messages"),
    (7, "the prompt is a int"),
]


@pytest.mark.parametrize(("prompt", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_what_is_no_prompt_is_refused(loaded: Callable[[str, str], Model], prompt: Any, words: str) -> None:
    """An unknown part, a part that holds nothing, a sense that the model lacks: an error that says which."""
    with pytest.raises(RequestError, match=words):
        loaded("image-text-to-text", "llava").generate(prompt)


def test_a_model_that_reads_only_text_refuses_a_picture(tmp_path: Path) -> None:
    """A picture in a message to a language model is named, with what it does take."""
    from tiny_models import save_model

    model = load(save_model(tmp_path))
    with pytest.raises(RequestError, match="reads text only"):
        model.generate(ask({"type": "image", "image": picture()}, {"type": "text", "text": "hi"}))


def test_a_video_is_pictures_to_a_model_of_pictures(loaded: Callable[[str, str], Model]) -> None:
    """A video part stands for its frames, eight of a longer one, where the processor has no video processor that runs."""
    model = loaded("image-text-to-text", "llava")
    film = [picture(seed=seed) for seed in range(15)]
    text = {"type": "text", "text": "hi"}
    asked = ask({"type": "video", "video": film}, text)
    shown = ask(*({"type": "image", "image": frame} for frame in film[::2]), text)
    assert model.generate(asked, max_new_tokens=4) == model.generate(shown, max_new_tokens=4)
    assert asked == ask({"type": "video", "video": film}, text)  # the caller's messages stay as they were


def test_the_frames_of_a_video_reach_the_processor(
    loaded: Callable[[str, str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a processor that takes videos, a video part is handed over in its place, as frames in RGB, in order. (None here can
    turn them into tensors: transformers' video processors need torchvision.)
    """
    from modelyard.weights.generation.prompts import read_prompt

    model = loaded("image-text-to-text", "llava")
    given: list[Any] = []

    def capture(messages: Any, **options: Any) -> Any:
        given.append(messages)
        return {"input_ids": torch.tensor([[5, 6]])} if options["tokenize"] else ""

    monkeypatch.setattr(model.processor, "apply_chat_template", capture)
    monkeypatch.setattr("modelyard.weights.media.video.takes_videos", lambda _processor: True)
    frames = [picture(seed=seed) for seed in range(3)]
    messages = ask({"type": "video", "video": frames}, {"type": "text", "text": "hi"})
    assert read_prompt(model.processor, model.tokenizer, messages).ids == (5, 6)
    part, text = given[-1][0]["content"]
    assert text == {"type": "text", "text": "hi"}
    assert [np.asarray(frame).tolist() for frame in part["video"]] == [frame.tolist() for frame in frames]


def test_a_loop_by_itself_takes_tokens_only(tmp_path: Path) -> None:
    """What the engine steps has no place for pixels: a picture is refused there instead of being left out."""
    model = load(ARCHITECTURES["image-text-to-text"]["gemma3"](tmp_path), task="text-generation")
    text = {"type": "text", "text": "hi"}
    assert model.prepare(ask(text), {}).prompt_ids == model.prepare("hi", {}).prompt_ids
    with pytest.raises(RequestError, match="takes tokens"):
        model.prepare(ask({"type": "image", "image": picture()}, text), {})
