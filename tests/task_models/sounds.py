"""What the tiny models of sounds are made with: sounds, tokenizers of letters and pieces, feature extractors."""

from __future__ import annotations

import io
import json
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000


LABELS = {0: "speech", 1: "music", 2: "noise"}


HEADS = {"id2label": LABELS, "label2id": {name: at for at, name in LABELS.items()}}


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]


SENTENCES = [
    "my card has not arrived",
    "where is my card",
    "the quick brown fox jumps over the lazy dog",
    "one two three",
]


WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 4, 4],
    "conv_kernel": [10, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "vocab_size": len(LETTERS),
    "pad_token_id": 0,
}


ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 16,
    "max_position_embeddings": 512,
}


def sound(seconds: float = 0.5, frequency: float = 440.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A float32 tone with a little noise, (samples,), within [-1, 1]."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, size=time.shape)
    return (0.4 * np.sin(2 * np.pi * frequency * time) + noise).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """The samples as a mono 16-bit WAV file."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return held.getvalue()


def letters(**options: Any) -> Any:
    """A tokenizer of letters, for CTC; `options` are those of its class."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({letter: at for at, letter in enumerate(LETTERS)}), "utf-8")
        made: Any = transformers.Wav2Vec2CTCTokenizer
        return made(str(path), **options)


def sentencepiece_model(folder: Path) -> Path:
    """A sentencepiece model of 60 pieces; ids 0 to 3 are <s>, <pad>, </s>, <unk>."""
    import sentencepiece

    library: Any = sentencepiece
    path = folder / "spm"
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(path),
        vocab_size=60,
        character_coverage=1.0,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return path.with_suffix(".model")


def waves(**options: Any) -> Any:
    """A feature extractor that normalizes samples and pads."""
    import transformers

    made: Any = transformers.Wav2Vec2FeatureExtractor
    return made(**{"sampling_rate": RATE, "do_normalize": True, "return_attention_mask": True, **options})


def speech_processor() -> Any:
    """What CTC models of the Wav2Vec2 family have."""
    import transformers

    made: Any = transformers.Wav2Vec2Processor
    return made(feature_extractor=waves(), tokenizer=letters())
