"""Which preprocessor a folder's model is loaded with, where its task alone does not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard.errors import ModelError
from modelyard.weights.load import load
from modelyard.weights.loading.preprocessors import load_preprocessor
from task_models import audio, vision


def test_hidden_states_of_a_sound_need_no_tokenizer(tmp_path: Path) -> None:
    """A speech encoder loads for feature extraction with its feature extractor, and answers."""
    model = load(audio.MODELS["audio-classification"](tmp_path / "speech"), task="feature-extraction")
    assert type(model.processor).__name__ == "Wav2Vec2FeatureExtractor"
    assert model.predict(audio.SAMPLES["audio-classification"]).values.ndim == 2


def test_hidden_states_of_a_picture_need_no_tokenizer(tmp_path: Path) -> None:
    """An image encoder loads for feature extraction with its image processor."""
    model = load(vision.MODELS["image-classification"](tmp_path / "vit"), task="feature-extraction")
    assert "ImageProcessor" in type(model.processor).__name__


def test_a_feature_extractor_that_needs_torchaudio_says_so(tmp_path: Path) -> None:
    """The package that is missing is named, with the command that installs it."""
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Xcodec2FeatureExtractor"})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xcodec2"}))
    with pytest.raises(ModelError) as caught:
        load_preprocessor(tmp_path, "audio-tokenization")
    assert caught.value.code == "needs_torchaudio"
    assert caught.value.hint == "pip install torchaudio"
