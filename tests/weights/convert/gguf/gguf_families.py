"""A tiny model folder of every family that has a GGUF form, with a tokenizer of its kind that is trained on the spot."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "TEXTS", "make_wordpiece", "save_family", "spm_tokenizer", "unigram_tokenizer"]

TEXTS = [
    "my card has not arrived",
    "where is my card, and why?",
    "the quick brown fox jumps over the lazy dog",
    "one two three 123 4567",
    "  two  spaces\nand a line",
    "h\u00e9llo w\u00f6rld \u4f60\u597d \U0001f600",
]
TEMPLATE = "{%- for message in messages -%}{{- message.content -}}{%- endfor -%}"
ROWS = 384


@cache
def _sentencepiece(kind: str, rule: str = "identity") -> bytes:
    import sentencepiece

    made = io.BytesIO()
    given: dict[str, Any] = {"pad_id": 3} if kind == "bpe" else {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:4] * 20), model_writer=made, vocab_size=330 if kind == "bpe" else 70, model_type=kind,
        byte_fallback=kind == "bpe", character_coverage=1.0, normalization_rule_name=rule,
        remove_extra_whitespaces=kind != "bpe", minloglevel=2, hard_vocab_limit=False, num_threads=1,
        **given,
    )  # fmt: skip
    return made.getvalue()


def spm_tokenizer(model_type: str = "llama", **settings: Any) -> Any:
    """SentencePiece's BPE with bytes to fall back on, as transformers converts it for Llama or Gemma."""
    from transformers import AutoTokenizer

    classes = {"llama": "LlamaTokenizer", "gemma": "GemmaTokenizer"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(_sentencepiece("bpe"))
        given = {
            "tokenizer_class": classes[model_type],
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        }
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({**given, **settings}))
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def unigram_tokenizer(rule: str = "identity") -> Any:
    """SentencePiece's Unigram, as transformers converts it for T5; with `nmt_nfkc` it has a table of characters (240 KB)."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(_sentencepiece("unigram", rule))
        given = {
            "tokenizer_class": "T5Tokenizer",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "extra_ids": 0,
        }
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(given))
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "t5"}))
        return AutoTokenizer.from_pretrained(folder)


@cache
def _byte_level(split: str | None) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split is not None:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        backend.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[split]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    return backend.to_str()


def byte_tokenizer(split: str | None = None) -> Any:
    """Byte-level BPE that splits as `split` (a name of llama.cpp; None is GPT-2) does."""
    import transformers
    from tokenizers import Tokenizer

    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=Tokenizer.from_str(_byte_level(split)), eos_token="<|endoftext|>", bos_token="<|endoftext|>",
        pad_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_wordpiece(*, lower: bool = True) -> Any:
    """BERT's tokenizer, its words made of what the texts hold."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    trained = BertWordPieceTokenizer(lowercase=lower)
    trained.train_from_iterator(TEXTS * 4, vocab_size=ROWS - 100, min_frequency=1, show_progress=False)
    make: Any = BertTokenizer
    return make(vocab=trained.get_vocab(), do_lower_case=lower)


def _decoder(name: str, cls: str | None = None, **more: Any) -> Any:
    import transformers

    values: dict[str, Any] = {
        "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**values | more)
    return getattr(transformers, cls or f"{name}ForCausalLM")(config)


_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0, 1.0, 1.25, 1.5],
    "original_max_position_embeddings": 256, "factor": 4.0,
}  # fmt: skip
_WIDE: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16}
_BERT: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip


def _bert(name: str, **more: Any) -> Any:
    import transformers

    return getattr(transformers, name)(transformers.BertConfig(**_BERT, **more))


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=ROWS, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )


Family = tuple[Callable[[], Any], Callable[[], Any]]

FAMILIES: dict[str, Family] = {
    "llama": (lambda: _decoder("Llama", head_dim=16), spm_tokenizer),
    "llama tied, with biases": (
        lambda: _decoder("Llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        lambda: byte_tokenizer("llama-bpe"),
    ),
    "llama 3 rotation": (
        lambda: _decoder("Llama", rope_parameters=_LLAMA3, head_dim=16),
        lambda: byte_tokenizer("llama-bpe"),
    ),
    "llama unigram": (lambda: _decoder("Llama"), unigram_tokenizer),
    "mistral": (lambda: _decoder("Mistral", sliding_window=None), spm_tokenizer),
    "qwen2": (lambda: _decoder("Qwen2"), lambda: byte_tokenizer("qwen2")),
    "qwen3": (lambda: _decoder("Qwen3", head_dim=16, tie_word_embeddings=True), lambda: byte_tokenizer("qwen2")),
    "gemma": (lambda: _decoder("Gemma", head_dim=16), lambda: spm_tokenizer("gemma")),
    "gemma2": (lambda: _decoder("Gemma2", sliding_window=8, **_WIDE), lambda: spm_tokenizer("gemma")),
    "gemma3": (
        lambda: _decoder("Gemma3Text", "Gemma3ForCausalLM", sliding_window=8, num_hidden_layers=6, **_WIDE),
        lambda: spm_tokenizer("gemma"),
    ),
    "phi2": (lambda: _decoder("Phi", num_key_value_heads=4), byte_tokenizer),
    "phi3": (lambda: _decoder("Phi3"), spm_tokenizer),
    "phi3 long rotation": (
        lambda: _decoder(
            "Phi3", rope_parameters=_LONG, original_max_position_embeddings=256, max_position_embeddings=1024
        ),
        spm_tokenizer,
    ),
    "gpt2": (_gpt2, byte_tokenizer),
    "bert": (lambda: _bert("BertModel"), make_wordpiece),
    "bert classifier": (lambda: _bert("BertForSequenceClassification", num_labels=3), make_wordpiece),
}
"""Name to what makes its model and its tokenizer."""


def save_family(name: str, folder: Path, dtype: str = "float32") -> Path:
    """Write the family's tiny model and tokenizer, with values that no initialisation gives: every norm and bias is its own."""
    import torch

    model_of, tokenizer_of = FAMILIES[name]
    torch.manual_seed(0)
    model = model_of().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
            elif "norm" in key.lower() or "ln_" in key:
                parameter.normal_(mean=0.0 if "gemma" in name else 1.0, std=0.2)
            else:
                parameter.normal_(std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder
