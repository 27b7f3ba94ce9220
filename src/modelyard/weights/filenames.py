"""The names that a tokenizer's and a preprocessor's files have, for all who look for them.

Transformers has no such list: each of its tokenizer classes names its own. Knows names; opens no file, and cannot tell
whether the files of a folder are enough for the class that its configuration names.
"""

from __future__ import annotations

__all__ = [
    "PREPROCESSOR",
    "PREPROCESSOR_FILES",
    "PROCESSOR",
    "TEMPLATE_FILES",
    "TOKENIZER_FILES",
    "TOKENIZER_PARTS",
    "VIDEO_PREPROCESSOR",
    "VOCABULARY_FILES",
]

VOCABULARY_FILES = frozenset({
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "spm.model", "spm_char.model", "tekken.json", "source.spm", "target.spm", "vocab-src.json",
    "vocab-tgt.json", "bpe.codes", "prophetnet.tokenizer",
})  # fmt: skip
"""Any of these holds a tokenizer's words."""

TOKENIZER_FILES = VOCABULARY_FILES | {"tokenizer_config.json"}
"""Any of these says that there is a tokenizer: one of bytes has no words, only its configuration."""

TEMPLATE_FILES = frozenset({"chat_template.jinja", "chat_template.json"})
"""Chat templates in files of their own; an older one is a key of `tokenizer_config.json`."""

TOKENIZER_PARTS = TOKENIZER_FILES | {
    "added_tokens.json", "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json", "merges.txt", "normalizer.json",
    "special_tokens_map.json", "target_vocab.json", "word_pronunciation.json", "word_shape.json",
}  # fmt: skip
"""A tokenizer is one thing in several of these: they go from model to model together."""

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
PREPROCESSOR_FILES = frozenset({PREPROCESSOR, PROCESSOR, VIDEO_PREPROCESSOR})
"""Any of these says that there is a preprocessor of images, sounds, videos or several of them."""
