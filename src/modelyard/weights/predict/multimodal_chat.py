"""Text about pictures, sounds and videos: conversations whose parts are of several kinds, answered by `generate`.

A row is a conversation, `[{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": ...}]}]`,
or for models without a chat template `{"image", "text"}`. Parts are `text`, `image`, `audio` and `video`; what they hold
is what `weights.media` reads, never a URL. A video is given to a model that takes pictures and no videos as pictures: some of
its frames, evenly spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError, near_match
from modelyard.weights.generation import chat
from modelyard.weights.media import read_audio, read_image, read_video
from modelyard.weights.media.video import FRAMES, as_pictures, takes_videos
from modelyard.weights.predict.audio_synthesis import seeded
from modelyard.weights.predict.batching import refuse_windows, to_device
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import core, find_tokenizer
from modelyard.weights.predict.results import Text
from modelyard.weights.predict.vision_inputs import generating, named_row, preparing, tensors_of

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["KINDS", "Conversation", "WriteOptions", "encode", "is_one_conversation", "read_conversation", "write"]

KINDS = ("text", "image", "audio", "video")
"""What a part of a message may be."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What `image-text-to-text` and `any-to-any` take.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        temperature: 0 is greedy; above it, tokens are drawn.
        top_p: Draw from the likeliest tokens that have this probability together.
        seed: Of the drawing.
        num_beams: 1 is no beam search.
        frames: Most frames of a video, for a model that takes pictures and no videos.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1
    frames: int = FRAMES

    def __post_init__(self) -> None:
        check_counts(self, "max_new_tokens", "num_beams", "frames")
        if self.temperature < 0:
            raise RequestError(f"`temperature` is {self.temperature}", hint="0 or more", field="temperature")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"`top_p` is {self.top_p}", hint="above 0, at most 1", field="top_p")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with their parts read.

    Attributes:
        messages: As chat templates take them: `content` is a list of `{"type": ...}`, texts with their `text`.
        images: Pillow images, in order.
        sounds: `Audio` at the rate that was asked for, in order.
        videos: Lists of Pillow images, in order.
    """

    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    sounds: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)


def is_one_conversation(inputs: Any) -> bool:
    """Whether `inputs` is one row: a list of messages is one, a list of such lists several."""
    if not isinstance(inputs, list | tuple):
        return True
    return bool(inputs) and all(isinstance(item, Mapping) and "role" in item for item in inputs)


def read_conversation(value: Any, row: int, rate: int = 16_000, frames: int | None = None) -> Conversation:
    """A row with its pictures, sounds and videos read.

    Args:
        value: Messages, or a mapping of `text` and one or several of `image`, `audio`, `video`.
        row: Its number, for messages.
        rate: Samples per second of the sounds.
        frames: Take videos as pictures, at most so many of each; None leaves them videos.

    Raises:
        RequestError: Not a conversation, an unknown role or kind of part, or a part that cannot be read.
    """
    if isinstance(value, str):
        value = {"text": value}
    if isinstance(value, Mapping):
        parts = [
            {"type": kind, kind: value[kind]}
            for kind in ("image", "audio", "video", "text")
            if value.get(kind) is not None
        ]
        unknown = sorted(set(value) - set(KINDS))
        if unknown or not parts:
            raise RequestError(
                f"row {row}: `{unknown[0]}` means nothing here" if unknown else f"row {row} is empty",
                hint=f"messages, or a mapping of {', '.join(KINDS)}",
                field="inputs",
                row=row,
            )
        value = [{"role": "user", "content": parts}]
    if not isinstance(value, list | tuple) or not value:
        raise RequestError(f"row {row} is a {type(value).__name__}, no list of messages", field="inputs", row=row)
    found = Conversation([])
    for at, message in enumerate(value):
        found.messages.append(_read_message(message, f"row {row}, message {at}", found, row, rate, frames=frames))
    return found


def encode(model: Model, conversation: Conversation, row: int) -> dict[str, Any]:
    """The tensors of a conversation, by the model's chat template or, without one, of its text behind its pictures.

    Raises:
        RequestError: The template or the processor refuses it, or the model has no place for a part.
    """
    processor = model.processor
    media: dict[str, Any] = {}
    if conversation.images:
        media["images"] = conversation.images
    if conversation.sounds:
        media["audio"] = [sound.samples for sound in conversation.sounds]
        media["sampling_rate"] = conversation.sounds[0].rate
    if conversation.videos:
        media["videos"] = conversation.videos
    for kind, part in (("images", "image_processor"), ("audio", "feature_extractor"), ("videos", "video_processor")):
        if kind in media and getattr(processor, part, None) is None:
            raise RequestError(f"row {row} has {kind}, and this model takes none", field="inputs", row=row)
    with preparing(model, row):
        if getattr(processor, "chat_template", None):
            text, marked = chat.write(processor, model.tokenizer, conversation.messages)
            given = {**media, "sanitize_control_tokens": True} if marked else media
        else:
            text, given = _plain(conversation), media
        made = processor(text=[text] if media else text, return_tensors="pt", **given)
    return {
        name: tensor for name, tensor in tensors_of(made).items() if name != "token_type_ids" or _takes_types(model)
    }


def write(model: Model, rows: list[Any], options: PredictOptions) -> list[Text]:
    """The answer to each conversation: new text alone.

    Raises:
        RequestError: A wrong option, a row that is no conversation, or one that does not fit into the context.
    """
    chosen = options.take(WriteOptions)
    refuse_windows(options)
    rate = getattr(getattr(model.processor, "feature_extractor", None), "sampling_rate", 16_000)
    # A row at a time: pictures of one row may have any number of patches, and what they are padded with is seen.
    processor = model.processor
    films = takes_videos(processor) or getattr(processor, "image_processor", None) is None
    frames = None if films else chosen.frames
    return [
        _write_one(model, read_conversation(value, row, rate, frames), row, chosen) for row, value in enumerate(rows)
    ]


def _write_one(model: Model, conversation: Conversation, row: int, chosen: WriteOptions) -> Text:
    inner = core(model.model)
    inputs = encode(model, conversation, row)
    ids = inputs["input_ids"]
    limit = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and ids.shape[1] + 1 > limit:
        raise RequestError(
            f"row {row} has {ids.shape[1]} tokens with its parts, and the context is {limit}", field="inputs", row=row
        )
    room = chosen.max_new_tokens if limit is None else min(chosen.max_new_tokens, limit - ids.shape[1])
    more: dict[str, Any] = {"max_new_tokens": room, "num_beams": chosen.num_beams}
    more["do_sample"] = chosen.temperature > 0
    if chosen.temperature > 0:
        more |= {"temperature": chosen.temperature, "top_p": chosen.top_p}
    with seeded(chosen.seed), generating(model):
        made = inner.generate(**to_device(model, inputs), **more)
    if isinstance(made, tuple):
        made = made[0]  # models that speak too give text and sound
    written = made if hasattr(made, "shape") else made.sequences
    new = written[0, ids.shape[1] :] if bool((written[0, : ids.shape[1]].cpu() == ids[0]).all()) else written[0]
    return Text(find_tokenizer(model).decode(new.tolist(), skip_special_tokens=True), tuple(new.tolist()))


def _read_message(
    message: Any, where: str, found: Conversation, row: int, rate: int, *, frames: int | None
) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise RequestError(f"{where} has no role", hint=f"one of {', '.join(ROLES)}", field="inputs", row=row)
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not content:
        raise RequestError(f"{where} has no content", hint="a text, or a list of parts", field="inputs", row=row)
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in KINDS or part.get(kind) is None:
            meant = near_match(str(kind), KINDS)
            hint = f"did you mean `{meant}`?" if meant and meant != kind else '{"type": "image", "image": path}'
            raise RequestError(f"{where} has a part {kind!r} that cannot be read", hint=hint, field="inputs", row=row)
        with named_row(row):
            if kind == "image":
                found.images.append(read_image(part["image"]))
            elif kind == "audio":
                found.sounds.append(read_audio(part["audio"], rate))
            elif kind == "video":
                film = read_video(part["video"])
                if frames is not None:
                    pictures = as_pictures(film, frames)
                    found.images.extend(pictures)
                    parts += [{"type": "image"}] * len(pictures)
                    continue
                found.videos.append(film)
        parts.append({"type": "text", "text": str(part["text"])} if kind == "text" else {"type": kind})
    return {"role": message["role"], "content": parts}


def _plain(conversation: Conversation) -> str:
    """All texts, for models that continue one (captions): whoever writes it knows the model's own marks."""
    return "\n".join(
        part["text"] for message in conversation.messages for part in message["content"] if part["type"] == "text"
    )


def _takes_types(model: Model) -> bool:
    import inspect

    return "token_type_ids" in inspect.signature(core(model.model).forward).parameters
