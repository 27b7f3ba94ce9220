"""Speech as text: CTC, encoder-decoders and transducers agree with transformers' pipeline, long sounds and times too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import Audio
from modelyard.weights.model import Model
from modelyard.weights.predict import predict
from modelyard.weights.predict.audio_ctc import lay_windows
from task_models.audio import RATE, sound
from task_models.opened_media import open_media, pipeline_of

TASK = "automatic-speech-recognition"


def changing(seconds: float) -> np.ndarray:
    """A sound whose pitch changes five times a second, so that a model writes different letters."""
    return np.concatenate([sound(0.2, 200 + 97 * at, seed=at) for at in range(round(seconds * 5))])


def theirs(model: Model, samples: np.ndarray, **options: Any) -> dict[str, Any]:
    """What transformers' pipeline hears."""
    found: dict[str, Any] = pipeline_of(TASK, model)({"raw": samples, "sampling_rate": RATE}, **options)
    return found


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-group", "hubert", "parakeet_ctc"])
def test_ctc_text_is_the_pipelines(kind: str) -> None:
    """Greedy letters, put together as the tokenizer does."""
    model = open_media("ctc", kind)
    ours = model.predict(Audio(changing(0.8), RATE))
    assert ours.text == theirs(model, changing(0.8))["text"]
    assert len(ours.text) > 3


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-group"])
@pytest.mark.parametrize("timestamps", ["word", "char"])
def test_ctc_times_are_the_pipelines(kind: str, timestamps: str) -> None:
    """Words or letters with the seconds at which they are heard."""
    model = open_media("ctc", kind)
    wanted = theirs(model, changing(0.8), return_timestamps=timestamps)["chunks"]
    ours = model.predict(Audio(changing(0.8), RATE), timestamps=timestamps).chunks
    assert [chunk.text for chunk in ours] == [one["text"] for one in wanted]
    assert [(chunk.start, chunk.end) for chunk in ours] == [pytest.approx(one["timestamp"]) for one in wanted]


@pytest.mark.parametrize(("window", "overlap"), [(0.5, 0.1), (0.64, None), (1.0, 0.2)])
@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-group", "hubert"])
def test_long_sounds_are_read_in_windows_as_the_pipeline_does(kind: str, window: float, overlap: float | None) -> None:
    """Overlapping windows put together at their frames: the pipeline's text for the same lengths."""
    model = open_media("ctc", kind)
    wanted = theirs(model, changing(2.6), chunk_length_s=window, stride_length_s=overlap)["text"]
    ours = model.predict(Audio(changing(2.6), RATE), window=window, overlap=overlap)
    assert ours.text == wanted
    assert ours.text != theirs(model, changing(0.6))["text"]


def test_windows_and_the_whole_have_the_same_frames() -> None:
    """Windows give about as many frames as the whole, and times in them lie in the sound."""
    model = open_media("ctc")
    whole = model.predict(Audio(changing(2.4), RATE), window=None)
    parts = model.predict(Audio(changing(2.4), RATE), window=0.5, timestamps="char")
    assert abs(len(whole.token_ids) - len(parts.token_ids)) <= 6
    assert all(0 <= chunk.start <= (chunk.end or 0) <= 2.5 for chunk in parts.chunks)
    assert parts.chunks[-1].start > 2.0


def test_windows_share_their_overlap_and_miss_no_sample() -> None:
    """Every sample is in the own part of exactly one window, whatever the lengths are."""
    for total in (1, 5, 6, 7, 11, 23, 100):
        for window, overlap in ((6, 1), (7, 2), (5, 0)):
            covered = [0] * total
            for start, end, before, behind in lay_windows(total, window, overlap):
                assert end - start <= window
                for at in range(start + before, end - behind):
                    covered[at] += 1
            assert covered == [1] * total


def test_windows_that_cannot_be_are_refused() -> None:
    """Overlaps that fill the window, and windows of no length."""
    model = open_media("ctc")
    for options, words in (
        ({"window": 0.0}, "window"),
        ({"window": 1.0, "overlap": 0.5}, "overlap"),
        ({"window": 0.001}, "leaves nothing"),
    ):
        with pytest.raises(RequestError, match=words):
            model.predict(Audio(changing(1.0), RATE), **options)


@pytest.mark.parametrize("kind", ["whisper", "speech_to_text", "moonshine"])
def test_encoder_decoder_text_is_the_pipelines(kind: str) -> None:
    """Greedy, and with beams."""
    model = open_media(TASK, kind)
    more = (
        {"task": "transcribe"} if kind == "whisper" else {}
    )  # without, the pipeline leaves Whisper's prompt incomplete
    for beams in (1, 3):
        options = {"num_beams": beams, "max_new_tokens": 8, **more}
        wanted = theirs(model, changing(0.8), generate_kwargs=options)["text"]
        ours = model.predict(Audio(changing(0.8), RATE), num_beams=beams, max_new_tokens=8)
        assert ours.text == wanted
        assert ours.text


def test_whisper_times_are_the_pipelines() -> None:
    """Segments with their seconds, of a sound that fits into one window."""
    model = open_media(TASK)
    options = {"num_beams": 1, "max_new_tokens": 12, "language": "en"}
    wanted = theirs(model, changing(0.8), return_timestamps=True, generate_kwargs=options)
    ours = model.predict(Audio(changing(0.8), RATE), timestamps="segment", max_new_tokens=12, language="en")
    assert ours.text == wanted["text"]
    assert "".join(chunk.text for chunk in ours.chunks) == ours.text


def test_whisper_hears_sounds_longer_than_its_window() -> None:
    """Three windows of one second are decoded by the model's own long-form method, as the pipeline does."""
    model = open_media(TASK)
    options = {"num_beams": 1, "max_new_tokens": 8, "language": "en"}
    wanted = theirs(model, changing(2.4), return_timestamps=True, generate_kwargs=options)["text"]
    ours = model.predict([Audio(changing(2.4), RATE), Audio(changing(0.4), RATE)], max_new_tokens=8, language="en")
    assert ours[0].text == wanted
    assert len(ours[0].token_ids) > len(ours[1].token_ids)


def test_whispers_language_and_task_reach_it() -> None:
    """Another language gives another answer here; translation too; an unknown language is named."""
    model = open_media(TASK)
    given = Audio(changing(0.8), RATE)
    english = model.predict(given, language="en")
    assert english != model.predict(given, language="fr")
    assert english != model.predict(given, language="en", translate=True)
    with pytest.raises(ModelError, match="klingon"):
        model.predict(given, language="klingon")


@pytest.mark.parametrize("task", ["rnnt", "tdt"])
def test_a_transducers_text_and_times_are_the_librarys(task: str) -> None:
    """Text as the pipeline writes it; tokens with times as the model's processor computes them."""
    model = open_media(task)
    given = Audio(changing(0.8), RATE)
    ours = model.predict(given, timestamps="token")
    assert ours.text == theirs(model, changing(0.8), generate_kwargs={"max_new_tokens": 300})["text"]
    inputs = model.processor(changing(0.8), sampling_rate=RATE)
    with torch.no_grad():
        made = model.model.generate(**inputs, max_new_tokens=300)
    _, times = model.processor.decode(made.sequences, durations=made.durations, skip_special_tokens=True)
    assert [chunk.text for chunk in ours.chunks] == [one["token"] for one in times[0]]
    assert [chunk.start for chunk in ours.chunks] == pytest.approx([one["start"] for one in times[0]])
    assert ours.text == model.predict(given).text
    assert ours.text


def test_what_an_architecture_does_not_have_is_refused() -> None:
    """Times, languages and beams of one kind of model asked of another; the hint says what there is."""
    given = Audio(sound(), RATE)
    with pytest.raises(RequestError, match="timestamps") as caught:
        open_media("ctc").predict(given, timestamps="segment")
    assert caught.value.hint == "it gives word, char"
    with pytest.raises(RequestError, match="timestamps"):
        open_media(TASK, "moonshine").predict(given, timestamps="word")
    with pytest.raises(RequestError, match="takes no language"):
        open_media("ctc").predict(given, language="en")
    with pytest.raises(RequestError, match="decodes greedily"):
        open_media("tdt").predict(given, num_beams=2)
    with pytest.raises(RequestError, match="knows no times"):
        open_media("ctc", "parakeet_ctc").predict(given, timestamps="word")
    with pytest.raises(RequestError, match="num_beams"):
        open_media(TASK).predict(given, num_beams=0)


def test_a_configuration_that_cannot_generate_is_named() -> None:
    """A transducer that does not know its first token: the cause, and where to look."""
    import copy

    held = open_media("tdt")
    broken = copy.deepcopy(held.model)
    broken.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        predict(Model(broken, held.processor, "tdt", held.folder), Audio(sound(), RATE))
