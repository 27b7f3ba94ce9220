"""Connectionist temporal classification: a letter or none for each frame, windows put together at their frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.predict.audio_inputs import find_rate, prepare_sound
from modelyard.weights.predict.encoding import core, find_tokenizer
from modelyard.weights.predict.media_results import Chunk, Transcript
from modelyard.weights.predict.vision_inputs import Prepared, find_part, run_batches

if TYPE_CHECKING:
    from modelyard.weights.media import Audio
    from modelyard.weights.model import Model

__all__ = ["lay_windows", "transcribe_ctc"]


@dataclass(frozen=True, slots=True)
class _Window:
    """Samples of a sound: `before` and `behind` are read for context, and their frames are dropped."""

    row: int
    start: int
    end: int
    before: int
    behind: int


def transcribe_ctc(
    model: Model,
    sounds: list[Audio],
    batch_size: int,
    *,
    timestamps: str | None,
    window: float | None,
    overlap: float | None,
) -> list[Transcript]:
    """What is said in each sound, with times of words or letters where `timestamps` is `word` or `char`.

    Raises:
        RequestError: The tokenizer knows no times.
    """
    windows: list[_Window] = []
    for row, sound in enumerate(sounds):
        windows += _cut(model, row, len(sound.samples), window, overlap)
    items = [
        prepare_sound(model, sounds[part.row].samples[part.start : part.end], at, part)
        for at, part in enumerate(windows)
    ]

    frame = _frame(model)

    def decode(outputs: Any, batch: list[Prepared]) -> list[tuple[int, list[int]]]:
        return [_keep(outputs.logits[at].argmax(-1).tolist(), item.note, frame) for at, item in enumerate(batch)]

    kept = run_batches(model, items, batch_size, decode)
    found = []
    for row, sound in enumerate(sounds):
        parts = [ids for part, (_, ids) in zip(windows, kept, strict=True) if part.row == row]
        frames = sum(count for part, (count, _) in zip(windows, kept, strict=True) if part.row == row)
        read = sum(part.end - part.start for part in windows if part.row == row)
        ids = [token for part in parts for token in part]
        found.append(_spell(model, ids, _step(model, read, frames) / sound.rate, timestamps))
    return found


def lay_windows(total: int, window: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """(start, end, before, behind) of windows over `total` samples, neighbours sharing twice `overlap`.

    >>> lay_windows(10, 6, 1)
    [(0, 6, 0, 1), (4, 10, 1, 0)]
    """
    found = []
    for start in range(0, total, window - 2 * overlap):
        end = min(start + window, total)
        last = start + window >= total
        before = overlap if start else 0
        if end - start > before:  # else the window before has read to the end
            found.append((start, end, before, 0 if last else overlap))
        if last:
            break
    return found


def _cut(model: Model, row: int, total: int, window: float | None, overlap: float | None) -> list[_Window]:
    rate = find_rate(model)
    if window is None or total <= window * rate:
        return [_Window(row, 0, total, 0, 0)]
    # Whole frames, so that the frames of a window are those of the whole sound.
    align = _frame(model)
    size = round(window * rate / align) * align
    shared = round((window / 6 if overlap is None else overlap) * rate / align) * align
    if size <= 2 * shared:
        raise RequestError(
            f"`window` of {window} seconds leaves nothing between its overlaps", hint="a longer one", field="window"
        )
    return [_Window(row, *place) for place in lay_windows(total, size, shared)]


def _frame(model: Model) -> int:
    """Samples of one frame of logits, where the configuration says it; else 1."""
    config = core(model.model).config
    ratio = getattr(config, "inputs_to_logits_ratio", None)
    if isinstance(ratio, int):
        return ratio
    factor = getattr(getattr(config, "encoder_config", config), "subsampling_factor", None)
    hop = getattr(find_part(model, "feature_extractor"), "hop_length", None)
    return factor * hop if isinstance(factor, int) and isinstance(hop, int) else 1


def _keep(ids: list[int], window: _Window, frame: int) -> tuple[int, list[int]]:
    """How many frames a window has, and those that are its own: frame `n` starts at sample `n * frame`."""
    length = frame if frame > 1 else (window.end - window.start) / len(ids)
    last = round((window.end - window.start - window.behind) / length) if window.behind else len(ids)
    return len(ids), ids[round(window.before / length) : last]


def _step(model: Model, samples: int, frames: int) -> float:
    frame = _frame(model)
    return frame if frame > 1 else samples / max(frames, 1)


def _spell(model: Model, ids: list[int], step: float, timestamps: str | None) -> Transcript:
    tokenizer = find_tokenizer(model)
    if timestamps is None:
        # Special tokens are not skipped: the padding token stands between two equal letters until they are put together.
        return Transcript(tokenizer.decode(ids, skip_special_tokens=False), token_ids=tuple(ids))
    asked = {"word": "output_word_offsets", "char": "output_char_offsets"}[timestamps]
    try:
        made = tokenizer.decode(ids, skip_special_tokens=False, **{asked: True})
        offsets = made[f"{timestamps}_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise RequestError(
            f"the tokenizer of `{model.folder}` ({type(tokenizer).__name__}) knows no times",
            hint="leave out `timestamps`",
            field="timestamps",
        ) from error
    chunks = [Chunk(one[timestamps], one["start_offset"] * step, one["end_offset"] * step) for one in offsets]
    return Transcript(made["text"], tuple(chunks), tuple(ids))
