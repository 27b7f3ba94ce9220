"""Tiny models that write what is said: Whisper, Speech2Text, Moonshine and the Parakeet family."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from task_models.pictures import config, save
from task_models.sounds import ENCODER, HEADS, RATE, sentencepiece_model, waves
from tiny_models import make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["save_moonshine", "save_parakeet", "save_speech_to_text", "save_whisper", "save_whisper_classifier"]

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
    make_generation: Any = transformers.GenerationConfig
    generation = make_generation(
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
        make_generation: Any = transformers.GenerationConfig
        generation = make_generation(
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
    make_generation: Any = transformers.GenerationConfig
    generation = make_generation(
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


def save_parakeet(kind: str) -> Callable[[Path], Path]:
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
            make_generation: Any = transformers.GenerationConfig
            generation = make_generation(decoder_start_token_id=size - 1, pad_token_id=1)
            generation.save_pretrained(folder)
        return folder

    return write
