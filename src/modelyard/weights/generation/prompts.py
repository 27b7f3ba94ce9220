"""From a prompt to what a model is given: token ids, and pixels and samples where it sees and hears.

A prompt is text, a conversation, token ids, or text with media. Conversations are written by the checkpoint's own
template (`chat`); images, sounds and videos are read from what the caller holds (`media`), never fetched. Knows a
preprocessor; knows no model and no sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation import chat
from modelyard.weights.generation.token_ids import read_ids

__all__ = ["Given", "Prompt", "read_prompt"]

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int] | Mapping[str, Any]
"""Text (one user message where the model has a chat template, else raw text), a conversation, token ids, or `text` with
`images`, `audio` or `videos` for a model whose processor has no template."""

_KINDS = {"image": "images", "audio": "audio", "video": "videos"}

_OF_TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


@dataclass(frozen=True, slots=True)
class Given:
    """What a model is given for one prompt.

    Attributes:
        ids: Token ids of the prompt, placeholders of media included.
        text: The prompt as it was written, where it was raw text; None where it is what `ids` decode to.
        tensors: Everything that the processor made, a batch of one; empty where `ids` are all there is.
    """

    ids: tuple[int, ...]
    text: str | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_media(self) -> bool:
        """Whether there is more to it than tokens."""
        return not set(self.tensors) <= _OF_TOKENS


def read_prompt(processor: Any, tokenizer: Any, prompt: Prompt, *, add_generation_prompt: bool = True) -> Given:
    """The inputs of one prompt.

    Args:
        processor: The model's preprocessor; the tokenizer itself for a model that reads text only.
        tokenizer: Its tokenizer.
        prompt: As `Prompt` says.
        add_generation_prompt: Whether a conversation ends where the assistant's answer begins.

    Raises:
        RequestError: Not a prompt, malformed or too large messages, media that cannot be read or that this model does
            not take.
        ModelError: The chat template or the processor fails.
    """
    if tokenizer is None:
        raise ModelError("this model has no tokenizer, so it takes no prompt", hint="use `predict`")
    if isinstance(prompt, Mapping):
        return _with_media(processor, tokenizer, prompt)
    if isinstance(prompt, str):
        if not chat.has_template(processor) and not chat.has_template(tokenizer):
            return Given(tuple(chat.encode_text(tokenizer, prompt)), prompt)
        prompt = [{"role": "user", "content": prompt}]
    ids = read_ids(prompt)
    if ids:
        return Given(tuple(ids))
    if isinstance(prompt, bytes | bytearray | memoryview | range) or not isinstance(prompt, Sequence):
        kind = type(prompt).__name__
        raise RequestError(
            f"the prompt is a {kind}" + (f" of {shape} numbers" if (shape := _shape(prompt)) else ""),
            hint='text, messages ([{"role": "user", "content": "..."}]), or the token ids of one prompt',
            field="prompt",
        )
    return _conversation(processor, tokenizer, prompt, add_generation_prompt)


def _shape(prompt: Any) -> str:
    """How large an array or a tensor is, in words; empty for anything else."""
    shape = getattr(prompt, "shape", None)
    return " x ".join(str(side) for side in shape) if isinstance(shape, tuple) else ""


def _conversation(processor: Any, tokenizer: Any, messages: object, answering: bool) -> Given:
    # A processor's text is its tokenizer's; only the template may be the processor's own.
    if processor is tokenizer or not (any(_holds_media(messages)) or chat.has_template(processor)):
        ids = tuple(chat.render(tokenizer, messages, add_generation_prompt=answering))
        return Given(ids)
    plain = chat.check_messages(messages, media=True)
    media = _read_media(processor, plain)
    if not chat.has_template(processor):
        return _call(processor, _only_text(plain), media)
    if not _takes_parts(processor):
        plain = [{**message, "content": _joined(message.get("content"))} for message in plain]
    tensors = chat.process(processor, tokenizer, plain, add_generation_prompt=answering)
    ids = tuple(int(token) for token in tensors["input_ids"][0])
    return Given(ids, tensors=tensors)


def _with_media(processor: Any, tokenizer: Any, prompt: Mapping[str, Any]) -> Given:
    """A prompt that is `text` and lists of media, for a processor without a template."""
    names = {"text", *_KINDS, *_KINDS.values()}
    unknown = sorted(set(prompt) - names)
    if unknown:
        raise RequestError(
            f"the prompt has an unknown field `{unknown[0]}`",
            hint="a conversation is a list: `[message]`"
            if "content" in unknown or "role" in unknown
            else f"known: {', '.join(sorted(names))}",
            field="prompt",
        )
    if not prompt:
        raise RequestError(
            "the prompt is empty: it has no field", hint=f"known: {', '.join(sorted(names))}", field="prompt"
        )
    text = prompt.get("text")
    if text is not None:
        chat.encode_text(tokenizer, text)  # checks that it is text, and how long
    parts: list[dict[str, Any]] = []
    for kind, plural in _KINDS.items():
        value = prompt.get(kind, prompt.get(plural))
        several = (
            value if isinstance(value, list | tuple) and not (kind == "video" and plural not in prompt) else [value]
        )
        parts += [{"type": kind, kind: item} for item in several if item is not None]
    media = _read_media(processor, [{"content": parts}])
    if not media:
        return Given(tuple(chat.encode_text(tokenizer, text)), str(text))
    return _call(processor, text, media)


def _call(processor: Any, text: str | None, media: Mapping[str, list[Any]]) -> Given:
    given: dict[str, Any] = {"return_tensors": "pt", **media}
    if text:
        given["text"] = text
    try:
        tensors = dict(processor(**given))
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise RequestError(f"the processor refuses this prompt: {error!s:.500}", field="prompt") from error
    ids = tensors.get("input_ids")
    return Given(tuple(int(token) for token in ids[0]) if ids is not None else (), text or "", tensors)


def _holds_media(messages: object) -> list[bool]:
    """For each part of each message, whether it is more than text; malformed messages are checked elsewhere."""
    found = []
    for message in messages if isinstance(messages, Sequence) and not isinstance(messages, str) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, list | tuple) else ()
        found += [isinstance(part, Mapping) and part.get("type") in _KINDS for part in parts]
    return found


def _read_media(processor: Any, messages: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Every part's picture, sound or frames, read; put back into the parts, and listed by kind.

    A video is put back as pictures where the model takes pictures and no videos.
    """
    from modelyard.weights.media import read_audio, read_image, read_video
    from modelyard.weights.media.video import as_pictures, takes_videos

    found: dict[str, list[Any]] = {}
    pictures_only = getattr(processor, "image_processor", None) is not None and not takes_videos(processor)
    for message in messages:
        parts = message["content"] if isinstance(message.get("content"), list) else []
        for part in list(parts):
            kind = part["type"]
            if kind == "text":
                continue
            source = part.get(kind, part.get("path"))
            if source is None:
                raise RequestError(
                    f"a part of type `{kind}` holds no `{kind}`",
                    hint=f'{{"type": "{kind}", "{kind}": ...}}',
                    field="prompt",
                )
            value: Any
            if kind == "image":
                value = read_image(source)
            elif kind == "video":
                value = read_video(source)
                if pictures_only:  # its frames stand in its place
                    shown = as_pictures(value)
                    at = next(at for at, other in enumerate(parts) if other is part)
                    parts[at : at + 1] = [{"type": "image", "image": frame} for frame in shown]
                    found.setdefault("images", []).extend(shown)
                    continue
            else:
                value = read_audio(source, _rate(processor)).samples
            part.pop("path", None)
            part[kind] = value
            found.setdefault(_KINDS[kind], []).append(value)
    return found


def _rate(processor: Any) -> int:
    """Samples per second that the processor takes."""
    heard = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    rate = getattr(heard, "sampling_rate", None)
    if not isinstance(rate, int):
        raise RequestError("this model takes no sound", field="prompt")
    return rate


def _only_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the one message that a processor without a template can be given."""
    if len(messages) != 1:
        raise RequestError(
            "this model has no chat template, so it takes one message", hint="send the last one alone", field="messages"
        )
    return str(_joined(messages[0].get("content"), text_only=True))


def _joined(content: Any, *, text_only: bool = False) -> Any:
    """Parts of text as one string; unchanged where a part is more than text."""
    if not isinstance(content, list) or (not text_only and any(part["type"] != "text" for part in content)):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _takes_parts(processor: Any) -> bool:
    """Whether the template reads lists of parts, rather than printing them as they are."""
    probe = [{"role": "user", "content": [{"type": "text", "text": "modelyard"}]}]
    try:
        return "{'type'" not in str(chat.apply(processor, probe, add_generation_prompt=False))
    except (ModelError, RequestError):
        return False
