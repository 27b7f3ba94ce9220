"""Every task of sounds: rows of a batch are what they are alone on every architecture; results are transformers' own."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading.preprocessors import load_preprocessor
from modelyard.weights.media import Audio
from modelyard.weights.model import Model
from modelyard.weights.predict.media_results import Codes
from task_models import audio
from task_models.audio import RATE, sound, wav
from task_models.opened_media import SAMPLES, assert_close, assert_rows_alone, open_media, pipeline_of

CASES = [(task, kind) for task, row in audio.ARCHITECTURES.items() for kind in row]


def rows_of(task: str) -> list[Any]:
    """Four rows of three lengths, all different: files, arrays at another rate, two channels."""
    if task.startswith("text-to-"):
        return ["where is my card", "one two three", "the quick brown fox", "one"]
    return [
        wav(sound(0.5, 440)),
        Audio(sound(0.31, 900, seed=1), RATE),
        {"array": np.stack([sound(0.5, 300, 22_050), sound(0.5, 330, 22_050)], axis=1), "sampling_rate": 22_050},
        wav(sound(0.7, 250, seed=2)),
    ]


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_each_row_of_a_batch_is_what_it_is_alone(task: str, kind: str) -> None:
    """Sounds of different lengths in one call: the silence that others would be padded with is heard by none."""
    found = assert_rows_alone(open_media(task, kind), rows_of(task))
    assert repr(found[0]) != repr(found[3])


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_the_callers_modes_stay_as_they_were(task: str, kind: str) -> None:
    """Gradients stay on and the random state is untouched, also by models that draw."""
    model = open_media(task, kind)
    before = torch.random.get_rng_state()
    model.predict(SAMPLES[task])
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", list(audio.ARCHITECTURES["audio-classification"]))
def test_labels_are_the_pipelines(kind: str) -> None:
    """Labels and scores of every classifier of sounds."""
    model = open_media("audio-classification", kind)
    theirs = pipeline_of("audio-classification", model)(sound(), top_k=3)
    ours = model.predict(Audio(sound(), RATE))
    assert [one.label for one in ours.labels] == [one["label"] for one in theirs]
    assert [one.score for one in ours.labels] == pytest.approx([one["score"] for one in theirs], rel=1e-4, abs=1e-5)
    assert len(model.predict(Audio(sound(), RATE), top_k=1).labels) == 1


@pytest.mark.parametrize("kind", list(audio.ARCHITECTURES["audio-frame-classification"]))
def test_frames_are_labelled_by_the_model_and_joined_to_spans(kind: str) -> None:
    """Scores are the sigmoid of its logits; a span is a run of frames at or above the threshold."""
    model = open_media("audio-frame-classification", kind)
    given = model.processor(sound(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**given).logits[0].sigmoid().numpy()
    ours = model.predict(Audio(sound(), RATE), threshold=0.55)
    np.testing.assert_allclose(ours.scores, wanted, atol=1e-5)
    assert ours.labels == ("speech", "music", "noise")
    step = 0.5 / len(wanted)
    covered = np.zeros_like(wanted, dtype=bool)
    for span in ours.spans:
        first, last = round(span.start / step), round(span.end / step)
        column = ours.labels.index(span.label)
        assert not covered[first:last, column].any()
        covered[first:last, column] = True
        assert span.score == pytest.approx(wanted[first:last, column].mean(), rel=1e-4, abs=1e-5)
    np.testing.assert_array_equal(covered, wanted >= 0.55)
    assert len(ours.spans) > 1


@pytest.mark.parametrize("kind", list(audio.ARCHITECTURES["audio-xvector"]))
def test_a_speakers_vector_is_the_models(kind: str) -> None:
    """The embedding of the model for the same samples."""
    model = open_media("audio-xvector", kind)
    given = model.processor(sound(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**given).embeddings[0].numpy()
    np.testing.assert_allclose(model.predict(Audio(sound(), RATE)).values, wanted, atol=1e-5)


@cache
def features_model(kind: str) -> Model:
    """A bare encoder of sounds, loaded for `feature-extraction`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = audio.FEATURES[kind](Path(scratch) / "model")
        name = "preprocessor_config.json"  # `load` takes a tokenizer for this task, or nothing where there is nothing
        apart = Path(scratch) / "apart"
        apart.mkdir()
        (folder / name).rename(apart / name)
        model = load(folder, task="feature-extraction", allow=("preprocessor",))
        model.processor = load_preprocessor(apart)
        return model


@pytest.mark.parametrize("kind", list(audio.FEATURES))
def test_features_of_sounds_are_the_raw_hidden_states(kind: str) -> None:
    """`feature-extraction` gives (frames, hidden) as the model gives them, each row alone."""
    model = features_model(kind)
    given = model.processor(sound(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**given).last_hidden_state[0].numpy()
    np.testing.assert_allclose(model.predict(Audio(sound(), RATE)).values, wanted, atol=1e-5)
    assert_rows_alone(model, rows_of("ctc"))


def test_features_of_an_encoder_decoder_are_its_encoders() -> None:
    """Whisper: what its encoder hears, without a text to begin with."""
    held = open_media("automatic-speech-recognition")
    model = Model(held.model, held.processor, "feature-extraction", held.folder)
    given = held.processor(sound(), sampling_rate=RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        wanted = held.model.get_encoder()(given).last_hidden_state[0].numpy()
    np.testing.assert_allclose(model.predict(Audio(sound(), RATE)).values, wanted, atol=1e-5)


def test_a_sounds_codes_become_a_sound_again() -> None:
    """The codes are the codec's own, and `Codes` given back are decoded as it decodes them."""
    model = open_media("audio-tokenization")
    codes = model.predict(Audio(sound(), RATE))
    given = model.processor(raw_audio=sound(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        made = model.model.encode(given["input_values"])
        wave = model.model.decode(audio_codes=made.audio_codes).audio_values
    np.testing.assert_array_equal(codes.values, made.audio_codes[0].numpy())
    assert codes.rate == RATE
    spoken = model.predict(codes)
    np.testing.assert_allclose(spoken.samples, wave.flatten().numpy(), atol=1e-5)
    both = model.predict([Audio(sound(), RATE), Codes(codes.values, RATE)])
    assert_close(both, [codes, spoken])


def test_speech_is_the_pipelines_for_the_same_seed() -> None:
    """The waveform and its rate; another seed is another sound, and the text decides its length."""
    model = open_media("text-to-audio")
    torch.manual_seed(5)
    theirs = pipeline_of("text-to-audio", model, tokenizer=model.processor)("where is my card")
    ours = model.predict("where is my card", seed=5)
    np.testing.assert_allclose(ours.samples, np.asarray(theirs["audio"]).flatten(), atol=1e-5)
    assert ours.rate == theirs["sampling_rate"] == RATE
    assert not np.array_equal(ours.samples, model.predict("where is my card", seed=6).samples[: len(ours.samples)])
    with pytest.raises(RequestError, match="row 0"):
        model.predict([3])


def test_a_spectrogram_is_the_models_for_the_same_seed_and_speaker() -> None:
    """SpeechT5 keeps its dropout on while it speaks: the seed fixes it; the speaker's vector is heard."""
    model = open_media("text-to-spectrogram")
    given = model.tokenizer("where is my card", return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = model.model.generate_speech(given["input_ids"], torch.full((1, 8), 0.1)).numpy()
    ours = model.predict({"text": "where is my card", "speaker": [0.1] * 8})
    np.testing.assert_allclose(ours.values, wanted, atol=1e-5)
    other = model.predict({"text": "where is my card", "speaker": [-0.5] * 8})
    assert other.values.shape != ours.values.shape or np.abs(other.values - ours.values).max() > 1e-3
    with pytest.raises(RequestError, match="8"):
        model.predict({"text": "one", "speaker": [0.1] * 3})


def test_a_sound_that_cannot_be_read_is_named_with_its_row() -> None:
    """The row's number, the file and the cause."""
    model = open_media("audio-classification")
    with pytest.raises(RequestError, match=r"row 1: `absent.wav` cannot be read"):
        model.predict([wav(sound()), "absent.wav"])
    with pytest.raises(RequestError, match="row 0: an array does not say its rate"):
        model.predict(sound())


def test_a_model_without_feature_extractor_is_named() -> None:
    """What is missing, and in which file it would be."""
    held = open_media("audio-classification")
    bare = Model(held.model, None, held.task, held.folder)
    with pytest.raises(ModelError, match="no feature extractor") as caught:
        bare.predict(wav(sound()))
    assert caught.value.code == "no_preprocessor"


def test_a_text_that_is_too_long_to_be_spoken_is_refused() -> None:
    """More tokens than the model has positions is an error with both numbers, and half a character is no text."""
    model = open_media("text-to-spectrogram")
    with pytest.raises(RequestError, match="row 0 has 40001 tokens and the model reads at most"):
        model.predict("a " * 20000)
    with pytest.raises(RequestError, match="lone surrogate"):
        model.predict("\ud800")
