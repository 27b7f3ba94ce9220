"""Tiny model folders for every audio and speech task: random weights, hidden size 16 to 32, sounds of half a second.

As `task_models.vision`: `ARCHITECTURES`, `MODELS`, `SAMPLES`, `REASONS`.
"""

from __future__ import annotations

import io
import json
import tempfile
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from task_models.vision import config, save
from tiny_models import make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

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
    values = {"tdnn_dim": [16, 16, 24], "tdnn_kernel": [3, 3, 1], "tdnn_dilation": [1, 2, 1], "xvector_output_dim": 12}
    return _family(kind, f"{kind}ForXVector", labels=True, **values)


WHISPER_SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|fr|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    *(f"<|{at * 0.02:.2f}|>" for at in range(51)),
]


def whisper_processor(bins: int = 16) -> Any:
    """A Whisper processor for windows of one second: bytes, then control tokens, then 51 timestamps."""
    import transformers
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate([*alphabet, *WHISPER_SPECIAL])}
    make_tokens: Any = transformers.WhisperTokenizer
    tokenizer = make_tokens(
        vocab=vocabulary, merges=[], pad_token="<|endoftext|>", additional_special_tokens=WHISPER_SPECIAL[1:10]
    )
    make_features: Any = transformers.WhisperFeatureExtractor
    features = make_features(feature_size=bins, chunk_length=1, sampling_rate=RATE)
    make: Any = transformers.WhisperProcessor
    return make(feature_extractor=features, tokenizer=tokenizer)


def save_whisper(folder: Path) -> Path:
    """Whisper for speech recognition, with windows of one second."""
    import transformers

    processor = whisper_processor()
    ids = processor.tokenizer.convert_tokens_to_ids
    end = ids("<|endoftext|>")
    values = config(
        "WhisperConfig",
        vocab_size=len(processor.tokenizer),
        num_mel_bins=16,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=32,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids("<|startoftranscript|>"),
    )
    save(folder, "WhisperForConditionalGeneration", values, processor)
    generation: Any = transformers.GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids("<|startoftranscript|>"),
        max_length=24,
        suppress_tokens=ids(WHISPER_SPECIAL[1:10]),
        begin_suppress_tokens=[end],
        is_multilingual=True,
        lang_to_id={"<|en|>": ids("<|en|>"), "<|fr|>": ids("<|fr|>")},
        task_to_id={"translate": ids("<|translate|>"), "transcribe": ids("<|transcribe|>")},
        no_timestamps_token_id=ids("<|notimestamps|>"),
        prev_sot_token_id=ids("<|startofprev|>"),
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
    generation.save_pretrained(folder)
    return folder


def save_whisper_classifier(folder: Path) -> Path:
    """Whisper's encoder for audio classification."""
    values = config(
        "WhisperConfig",
        num_mel_bins=16,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        max_source_positions=50,
        classifier_proj_size=16,
        **HEADS,
    )
    return save(folder, "WhisperForAudioClassification", values, whisper_processor().feature_extractor)


def save_speech_to_text(folder: Path) -> Path:
    """Speech2Text for speech recognition."""
    import sentencepiece
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
        pieces = sentencepiece_model(Path(scratch))
        library: Any = sentencepiece
        loaded = library.SentencePieceProcessor(model_file=str(pieces))
        names = {loaded.IdToPiece(at): at for at in range(loaded.GetPieceSize())}
        vocabulary = Path(scratch) / "vocab.json"
        vocabulary.write_text(json.dumps(names), "utf-8")
        make_tokens: Any = transformers.Speech2TextTokenizer
        tokenizer = make_tokens(vocab_file=str(vocabulary), spm_file=str(pieces))
        make_features: Any = transformers.Speech2TextFeatureExtractor
        make: Any = transformers.Speech2TextProcessor
        processor = make(make_features(feature_size=16, num_mel_bins=16, sampling_rate=RATE), tokenizer)
        values = config(
            "Speech2TextConfig",
            vocab_size=len(names),
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            input_feat_per_channel=16,
            conv_channels=16,
            max_source_positions=200,
            max_target_positions=20,
            max_length=12,
        )
        save(folder, "Speech2TextForConditionalGeneration", values, processor)
        generation: Any = transformers.GenerationConfig(
            bos_token_id=0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=2, max_length=12
        )
        generation.save_pretrained(folder)
        return folder


def save_moonshine(folder: Path) -> Path:
    """Moonshine for speech recognition: raw samples in."""
    import transformers

    tokenizer = make_tokenizer(None)
    values = config(
        "MoonshineConfig",
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        pad_token_id=1,
        max_position_embeddings=64,
    )
    make: Any = transformers.Wav2Vec2Processor
    save(folder, "MoonshineForConditionalGeneration", values, make(waves(do_normalize=False), tokenizer))
    generation: Any = transformers.GenerationConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=1, decoder_start_token_id=0, max_length=12, suppress_tokens=[0]
    )
    generation.save_pretrained(folder)
    return folder


def _parakeet_processor(kind: str) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<unk>", "<pad>", *alphabet, "<blank>"]
    backend = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    make_tokens: Any = transformers.ParakeetTokenizer
    tokenizer = make_tokens(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<blank>" if kind == "ctc" else "<pad>",
        additional_special_tokens=["<blank>"],
    )
    make_features: Any = transformers.ParakeetFeatureExtractor
    features = make_features(feature_size=16, sampling_rate=RATE)
    make: Any = transformers.ParakeetProcessor
    return make(features, tokenizer, decoder_type=kind)


def _parakeet(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import transformers

        processor = _parakeet_processor(kind)
        size = len(processor.tokenizer)
        values: dict[str, Any] = {"vocab_size": size, "encoder_config": ENCODER}
        if kind == "ctc":
            values["pad_token_id"] = size - 1
        else:
            values |= {"decoder_hidden_size": 16, "num_decoder_layers": 1, "max_symbols_per_step": 3}
            values |= {"pad_token_id": 1, "blank_token_id": size - 1}
        name = kind.upper()
        save(folder, f"ParakeetFor{name}", config(f"Parakeet{name}Config", **values), processor)
        if kind != "ctc":
            generation: Any = transformers.GenerationConfig(decoder_start_token_id=size - 1, pad_token_id=1)
            generation.save_pretrained(folder)
        return folder

    return write


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
        "parakeet_ctc": _parakeet("ctc"),
    },
    "rnnt": {"parakeet_rnnt": _parakeet("rnnt")},
    "tdt": {"parakeet_tdt": _parakeet("tdt")},
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
