"""Tiny model folders for every audio and speech task: random weights, hidden size 16 to 32, sounds of half a second.

As `task_models.vision`: `ARCHITECTURES`, `MODELS`, `SAMPLES`, `REASONS`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from task_models.pictures import config, save
from task_models.sounds import (
    HEADS,
    RATE,
    WAV2VEC2,
    sentencepiece_model,
    sound,
    speech_processor,
    wav,
    waves,
)
from task_models.speech import save_moonshine, save_parakeet, save_speech_to_text, save_whisper, save_whisper_classifier

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARCHITECTURES", "FEATURES", "MODELS", "RATE", "REASONS", "SAMPLES", "sound", "wav"]


def _family(
    kind: str, head: str, *, labels: bool = False, group: bool = False, **values: Any
) -> Callable[[Path], Path]:
    """A model of the Wav2Vec2 family; with `group`, normed over the whole sound, so that padding would change it."""

    def write(folder: Path) -> Path:
        made = {**WAV2VEC2, **(HEADS if labels else {}), **values}
        if group:
            made |= {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
        preprocessor: Any
        if head.endswith("ForCTC"):
            preprocessor = speech_processor()
            if group:
                preprocessor.feature_extractor = waves(return_attention_mask=False)
        else:
            preprocessor = waves(return_attention_mask=not group)
        return save(folder, head, config(f"{kind}Config", **made), preprocessor)

    return write


def _xvector(kind: str) -> Callable[[Path], Path]:
    values: dict[str, Any] = {
        "tdnn_dim": [16, 16, 24],
        "tdnn_kernel": [3, 3, 1],
        "tdnn_dilation": [1, 2, 1],
        "xvector_output_dim": 12,
    }
    return _family(kind, f"{kind}ForXVector", labels=True, **values)


def save_ast(folder: Path) -> Path:
    """Audio Spectrogram Transformer for audio classification."""
    import transformers

    values = config(
        "ASTConfig",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=48,
        num_mel_bins=16,
        **HEADS,
    )
    make: Any = transformers.ASTFeatureExtractor
    return save(folder, "ASTForAudioClassification", values, make(num_mel_bins=16, max_length=48, sampling_rate=RATE))


def save_vits(folder: Path) -> Path:
    """VITS: text to a waveform."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocab.json"
        path.write_text(
            json.dumps({letter: at for at, letter in enumerate(["<pad>", *"abcdefghijklmnopqrstuvwxyz '"])}), "utf-8"
        )
        make: Any = transformers.VitsTokenizer
        tokenizer = make(str(path), pad_token="<pad>", unk_token="<pad>", phonemize=False, language="eng")
        values = config(
            "VitsConfig",
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=32,
            flow_size=16,
            spectrogram_bins=9,
            upsample_initial_channel=16,
            upsample_rates=[8, 2],
            upsample_kernel_sizes=[16, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            prior_encoder_num_flows=1,
            prior_encoder_num_wavenet_layers=1,
            posterior_encoder_num_wavenet_layers=1,
            duration_predictor_num_flows=1,
            depth_separable_num_layers=1,
            duration_predictor_filter_channels=16,
            sampling_rate=RATE,
        )
        return save(folder, "VitsModel", values, tokenizer)


def save_speecht5(folder: Path) -> Path:
    """SpeechT5: text to a log-mel spectrogram."""
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        make_tokens: Any = transformers.SpeechT5Tokenizer
        tokenizer = make_tokens(str(sentencepiece_model(Path(scratch))))
        make_features: Any = transformers.SpeechT5FeatureExtractor
        make: Any = transformers.SpeechT5Processor
        processor = make(make_features(num_mel_bins=16, sampling_rate=RATE), tokenizer)
        values = config(
            "SpeechT5Config",
            vocab_size=len(tokenizer),
            hidden_size=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=16,
            speech_decoder_prenet_units=16,
            speech_decoder_postnet_units=16,
            speech_decoder_postnet_layers=2,
            speech_decoder_prenet_dropout=0.0,
            speaker_embedding_dim=8,
            max_text_positions=64,
            max_speech_positions=64,
            reduction_factor=2,
        )
        return save(folder, "SpeechT5ForTextToSpeech", values, processor)


def save_dac(folder: Path) -> Path:
    """Descript Audio Codec: a sound to code books, and back."""
    import transformers

    values = config(
        "DacConfig",
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        upsampling_ratios=[4, 2],
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=32,
        codebook_dim=4,
        sampling_rate=RATE,
    )
    make: Any = transformers.DacFeatureExtractor
    return save(folder, "DacModel", values, make(sampling_rate=RATE, hop_length=8))


ARCHITECTURES: dict[str, dict[str, Callable[[Path], Path]]] = {
    "automatic-speech-recognition": {
        "whisper": save_whisper,
        "speech_to_text": save_speech_to_text,
        "moonshine": save_moonshine,
    },
    "ctc": {
        "wav2vec2": _family("Wav2Vec2", "Wav2Vec2ForCTC"),
        "wav2vec2-group": _family("Wav2Vec2", "Wav2Vec2ForCTC", group=True),
        "hubert": _family("Hubert", "HubertForCTC"),
        "parakeet_ctc": save_parakeet("ctc"),
    },
    "rnnt": {"parakeet_rnnt": save_parakeet("rnnt")},
    "tdt": {"parakeet_tdt": save_parakeet("tdt")},
    "audio-classification": {
        "wav2vec2": _family("Wav2Vec2", "Wav2Vec2ForSequenceClassification", labels=True, classifier_proj_size=16),
        "hubert-group": _family(
            "Hubert", "HubertForSequenceClassification", labels=True, group=True, classifier_proj_size=16
        ),
        "audio-spectrogram-transformer": save_ast,
        "whisper": save_whisper_classifier,
    },
    "audio-frame-classification": {
        "wav2vec2": _family("Wav2Vec2", "Wav2Vec2ForAudioFrameClassification", labels=True),
        "unispeech-sat": _family("UniSpeechSat", "UniSpeechSatForAudioFrameClassification", labels=True),
    },
    "audio-xvector": {"wav2vec2": _xvector("Wav2Vec2"), "unispeech-sat": _xvector("UniSpeechSat")},
    "text-to-audio": {"vits": save_vits},
    "text-to-spectrogram": {"speecht5": save_speecht5},
    "audio-tokenization": {"dac": save_dac},
}
"""Task, model type (with a mark where two of one type differ), and what writes its folder."""


FEATURES: dict[str, Callable[[Path], Path]] = {
    "wav2vec2": _family("Wav2Vec2", "Wav2Vec2Model"),
    "hubert-group": _family("Hubert", "HubertModel", group=True),
}
"""Models for `feature-extraction` on sounds."""


MODELS: dict[str, Callable[[Path], Path]] = {task: next(iter(row.values())) for task, row in ARCHITECTURES.items()}


SAMPLES: dict[str, Any] = {task: wav(sound()) for task in ARCHITECTURES} | {
    "text-to-audio": "where is my card",
    "text-to-spectrogram": {"text": "where is my card", "speaker": [0.1] * 8},
}


REASONS: dict[str, str] = {}
