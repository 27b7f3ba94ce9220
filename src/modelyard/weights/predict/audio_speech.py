"""Speech as text: models of connectionist temporal classification (CTC), encoder-decoders, and transducers.

Long sounds are read in windows that overlap where the architecture allows it (CTC), by the model's own long-form decoding
where it has one (Whisper), and whole otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.audio_ctc import transcribe_ctc
from modelyard.weights.predict.audio_inputs import prepare_sound, read_sound
from modelyard.weights.predict.batching import to_device
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import core, find_tokenizer
from modelyard.weights.predict.media_results import Chunk, Transcript
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    find_part,
    generating,
    grouped,
    preparing,
    stack,
    tensors_of,
)

if TYPE_CHECKING:
    from modelyard.weights.media import Audio
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["HearOptions", "transcribe"]

_TIMESTAMPS = {"ctc": ("word", "char"), "rnnt": ("token",), "tdt": ("token",), "whisper": ("segment",)}


@dataclass(frozen=True, slots=True)
class HearOptions:
    """What speech recognition takes.

    Attributes:
        timestamps: `word` or `char` (CTC), `segment` (Whisper), `token` (transducers); None for none.
        window: Seconds that a CTC model reads at once; longer sounds are read in overlapping windows. None: whole.
        overlap: Seconds of a window on either side that only give context; by default a sixth of it.
        language: What is spoken, for a model of several languages (Whisper: `en` or `english`); None lets it find out.
        translate: Write English whatever is spoken (Whisper).
        max_new_tokens: Most tokens of an answer; None leaves it to the checkpoint.
        num_beams: 1 is greedy.
    """

    timestamps: str | None = None
    window: float | None = 30.0
    overlap: float | None = None
    language: str | None = None
    translate: bool = False
    max_new_tokens: int | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and not self.window > 0:
            raise RequestError(f"`window` is {self.window!r}", hint="seconds, or None for all at once", field="window")
        if self.overlap is not None and not (self.window is not None and 0 <= self.overlap < self.window / 2):
            raise RequestError(
                f"`overlap` is {self.overlap!r}", hint="0 to less than half of `window`", field="overlap"
            )
        check_counts(self, "num_beams", "max_new_tokens")


def transcribe(model: Model, rows: list[Any], options: PredictOptions) -> list[Transcript]:
    """What is said in each sound.

    Raises:
        RequestError: A wrong option, one that this architecture does not have, or a row that is no sound.
    """
    chosen = options.take(HearOptions)
    whisper = core(model.model).config.model_type == "whisper"
    _check_able(options.task, whisper, chosen)
    sounds = [read_sound(model, value, row) for row, value in enumerate(rows)]
    if options.task == "ctc":
        return transcribe_ctc(
            model,
            sounds,
            options.batch_size,
            timestamps=chosen.timestamps,
            window=chosen.window,
            overlap=chosen.overlap,
        )
    if options.task in ("rnnt", "tdt"):
        return _transcribe_transducer(model, sounds, chosen)
    if whisper:
        return _transcribe_whisper(model, sounds, options, chosen)
    return _transcribe_seq2seq(model, sounds, options, chosen)


def _check_able(task: str, whisper: bool, chosen: HearOptions) -> None:
    kind = "whisper" if whisper else task
    known = _TIMESTAMPS.get(kind, ())
    if chosen.timestamps is not None and chosen.timestamps not in known:
        hint = f"it gives {', '.join(known)}" if known else "it gives none"
        raise RequestError(f"`timestamps` is {chosen.timestamps!r}", hint=hint, field="timestamps")
    if (chosen.language is not None or chosen.translate) and not whisper:
        raise RequestError(
            "this model takes no language", hint="leave out `language` and `translate`", field="language"
        )
    if chosen.num_beams > 1 and task != "automatic-speech-recognition":
        raise RequestError(f"{task} decodes greedily", hint="leave out `num_beams`", field="num_beams")


def _transcribe_seq2seq(
    model: Model, sounds: list[Audio], options: PredictOptions, chosen: HearOptions
) -> list[Transcript]:
    items = [_prepare_seq2seq(model, sound, row) for row, sound in enumerate(sounds)]
    found: dict[int, Transcript] = {}
    for batch in grouped(items, options.batch_size):
        inputs = stack(batch)
        with generating(model):
            made = core(model.model).generate(**to_device(model, inputs), **_limits(chosen))
        written = made if hasattr(made, "shape") else made.sequences
        if not core(model.model).config.is_encoder_decoder and "input_ids" in inputs:
            written = written[:, inputs["input_ids"].shape[1] :]  # a decoder's answer stands behind its prompt
        for item, ids in zip(batch, written.tolist(), strict=True):
            found[item.row] = Transcript(_decode(model, ids), token_ids=_trim(model, ids))
    return [found[row] for row in range(len(sounds))]


def _prepare_seq2seq(model: Model, sound: Audio, row: int) -> Prepared:
    ask = getattr(model.processor, "apply_transcription_request", None)
    if ask is None:
        return prepare_sound(model, sound.samples, row)
    with preparing(model, row):  # language models that are asked for a transcript in words
        made = ask(audio=[sound.samples])
    return Prepared(row, tensors_of(made), (1, len(sound.samples)))


def _transcribe_whisper(
    model: Model, sounds: list[Audio], options: PredictOptions, chosen: HearOptions
) -> list[Transcript]:
    extractor = find_part(model, "feature_extractor")
    items = []
    for row, sound in enumerate(sounds):
        if len(sound.samples) <= extractor.n_samples:
            items.append(prepare_sound(model, sound.samples, row, False, return_attention_mask=True))
        else:
            more = {"truncation": False, "padding": "longest", "return_attention_mask": True}
            items.append(prepare_sound(model, sound.samples, row, True, **more))
    found: dict[int, Transcript] = {}
    for batch in grouped(items, options.batch_size):
        # Long-form decoding stops a batch's windows where its neighbours' end, so long sounds are decoded alone.
        for part in [[item] for item in batch] if batch[0].note else [batch]:
            found.update(_run_whisper(model, part, chosen))
    return [found[row] for row in range(len(sounds))]


def _run_whisper(model: Model, batch: list[Prepared], chosen: HearOptions) -> dict[int, Transcript]:
    inner = core(model.model)
    more = _limits(chosen)
    if getattr(inner.generation_config, "is_multilingual", False):
        more |= {"language": chosen.language, "task": "translate" if chosen.translate else "transcribe"}
    elif chosen.language is not None or chosen.translate:
        raise RequestError(
            "this model knows one language", hint="leave out `language` and `translate`", field="language"
        )
    timed = chosen.timestamps is not None or bool(batch[0].note)
    with generating(model):
        made = inner.generate(**to_device(model, stack(batch)), return_timestamps=timed, return_segments=timed, **more)
    written = made["sequences"] if isinstance(made, dict) else made
    found = {}
    for at, (item, ids) in enumerate(zip(batch, written.tolist(), strict=True)):
        chunks: tuple[Chunk, ...] = ()
        if chosen.timestamps is not None:
            chunks = tuple(
                Chunk(_decode(model, part["tokens"].tolist()), float(part["start"]), _end(part["end"]))
                for part in made["segments"][at]
            )
        found[item.row] = Transcript(_decode(model, ids), chunks, _trim(model, ids))
    return found


def _end(value: Any) -> float | None:
    return None if value is None else float(value)


def _transcribe_transducer(model: Model, sounds: list[Audio], chosen: HearOptions) -> list[Transcript]:
    items = [prepare_sound(model, sound.samples, row) for row, sound in enumerate(sounds)]
    found: dict[int, Transcript] = {}
    # Alone: in a batch, transformers 5.23 lets a row whose sound has ended write on while another's goes on.
    for batch in grouped(items, 1):
        inputs = stack(batch)
        # It ends where the sound does; the bound is above all that can be written of so many frames.
        frames = inputs[core(model.model).main_input_name].shape[1]
        symbols = getattr(core(model.model).config, "max_symbols_per_step", 10)
        with generating(model):
            made = core(model.model).generate(
                **to_device(model, inputs), max_new_tokens=chosen.max_new_tokens or symbols * frames
            )
        times: list[Any] = [()] * len(batch)
        if chosen.timestamps is not None:
            with preparing(model, batch[0].row):
                _, times = model.processor.decode(
                    made.sequences.cpu(), durations=made.durations.cpu(), skip_special_tokens=True
                )
        for item, ids, pieces in zip(batch, made.sequences.tolist(), times, strict=True):
            chunks = tuple(Chunk(piece["token"], float(piece["start"]), float(piece["end"])) for piece in pieces)
            found[item.row] = Transcript(_decode(model, ids, group_tokens=False), chunks, _trim(model, ids))
    return [found[row] for row in range(len(sounds))]


def _trim(model: Model, ids: list[int]) -> tuple[int, ...]:
    """`ids` without what stands behind an answer that ended before others of its batch."""
    config = core(model.model).generation_config
    ends = {config.pad_token_id}
    ends.update(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    last = len(ids)
    while last > 1 and ids[last - 1] in ends:
        last -= 1
    return tuple(ids[:last])


def _limits(chosen: HearOptions) -> dict[str, Any]:
    limits: dict[str, Any] = {"num_beams": chosen.num_beams, "do_sample": False}
    if chosen.max_new_tokens is not None:
        limits["max_new_tokens"] = chosen.max_new_tokens
    return limits


def _decode(model: Model, ids: list[int], **more: Any) -> str:
    text = find_tokenizer(model).decode(ids, skip_special_tokens=True, **more)
    if not isinstance(text, str):
        raise ModelError(f"the tokenizer of `{model.folder}` decodes to {type(text).__name__}, no text")
    return text
