"""Tokenizers in a file: kinds, special tokens, templates, and the names of splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from modelyard.weights.convert.gguf.splits import build_split, name_split
from modelyard.weights.convert.gguf.tokenizer_files import rebuild_tokenizer
from modelyard.weights.convert.gguf.vocabulary import JSON_KEY, describe_tokenizer
from modelyard.weights.files import FolderFiles
from modelyard.weights.gguf import read_gguf
from weights.convert.gguf.gguf_families import ROWS, TEXTS, byte_tokenizer, make_wordpiece, unigram_tokenizer
from weights.convert.gguf.gguf_forms import Exports


def described(tokenizer: Any, folder: Path) -> Any:
    """What a file would say of a tokenizer."""
    tokenizer.save_pretrained(folder)
    return describe_tokenizer(FolderFiles(folder), ROWS)


def rebuilt(vocabulary: Any, folder: Path) -> Any:
    """The tokenizer that is built of llama.cpp's keys alone."""
    said = {key: value for key, (_, value) in vocabulary.keys.items() if key != JSON_KEY}
    files, _ = rebuild_tokenizer(said, 128, "test")
    (folder / "additional_chat_templates").mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return AutoTokenizer.from_pretrained(folder)


def test_kinds_special_tokens_and_types_are_said(exports: Exports) -> None:
    """Bytes, control tokens, the unknown token and rows without a token have their own types."""
    said = read_gguf(exports.make("llama").file, full=True).metadata
    types = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"], strict=True))
    assert said["tokenizer.ggml.model"] == "llama"
    assert (types["<0x41>"], types["<unk>"], types["<s>"], types["\u2581the"], types[f"[PAD{ROWS - 1}]"]) == (
        6,
        2,
        3,
        1,
        5,
    )
    assert said["tokenizer.ggml.bos_token_id"] == said["tokenizer.ggml.tokens"].index("<s>")
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert "message.content" in said["tokenizer.chat_template"]


def test_a_first_token_is_told_by_what_the_tokenizer_does(tmp_path: Path) -> None:
    """`add_bos_token` is true where a text's ids begin with the first token, however the tokenizer was told."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    plain = described(tokenizer, tmp_path / "plain")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    framed = described(tokenizer, tmp_path / "framed")
    key = "tokenizer.ggml.add_bos_token"
    assert (plain.keys[key], framed.keys[key]) == (("bool", False), ("bool", True))
    assert rebuilt(framed, tmp_path / "back")("fox")["input_ids"] == tokenizer("fox")["input_ids"]


def test_several_templates_come_back(tmp_path: Path) -> None:
    """Named chat templates have keys of their own in the file, and files of their own in the folder."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    back = rebuilt(described(tokenizer, tmp_path / "model"), tmp_path / "back")
    assert back.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "gpt-4o", "tekken", "smollm"])
def test_a_split_has_its_name_and_a_name_its_split(name: str) -> None:
    """Every split that is recognised is the one that its name stands for."""
    split, whole_first, known = build_split(name)
    assert known
    assert name_split(split, whole_first=whole_first) == name


def test_a_split_without_a_name_is_a_warning(tmp_path: Path) -> None:
    """llama.cpp knows splits by name: one that it has no name for is `default`, and the certificate says so."""
    from tokenizers import pre_tokenizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made = described(tokenizer, tmp_path / "model")
    assert made.keys["tokenizer.ggml.pre"] == ("str", "default")
    assert "no name for how this tokenizer splits text" in made.warnings[0]
    files, warnings = rebuild_tokenizer(
        {key: value for key, (_, value) in made.keys.items() if key != JSON_KEY} | {"tokenizer.ggml.pre": "unheard"},
        8,
        "x",
    )
    assert "tokenizer.json" in files
    assert "called `unheard`" in warnings[0]


def test_a_table_of_characters_is_kept(tmp_path: Path) -> None:
    """Unigram's normalization (NFKC) goes through the file: the rebuilt tokenizer gives the same ids for ligatures and circled digits."""
    tokenizer = unigram_tokenizer("nmt_nfkc")
    back = rebuilt(described(tokenizer, tmp_path / "model"), tmp_path / "back")
    texts = [*TEXTS, "\ufb01ne \u2460 \uff46\uff4f\uff58"]
    assert [back(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]


def test_a_cased_wordpiece_keeps_its_case(tmp_path: Path) -> None:
    """The file says whether text is made lower-case, and a person is told which readers do it anyway."""
    tokenizer = make_wordpiece(lower=False)
    made = described(tokenizer, tmp_path / "model")
    assert made.keys["tokenizer.ggml.normalizer.lowercase"] == ("bool", False)
    assert "lower-case" in made.warnings[0]
    back = rebuilt(made, tmp_path / "back")
    assert back("The fox")["input_ids"] == tokenizer("The fox")["input_ids"]


def test_a_tokenizer_json_with_other_tokens_is_not_believed(exports: Exports) -> None:
    """Where another tool changed the tokens, they count, not the tokenizer.json that the file still carries."""
    said = dict(read_gguf(exports.make("llama").file, full=True).metadata)
    tokens = list(said["tokenizer.ggml.tokens"])
    tokens[-60] = "changed"
    said["tokenizer.ggml.tokens"] = tokens
    said["tokenizer.ggml.token_type"] = [
        1 if token == "changed" else kind for token, kind in zip(tokens, said["tokenizer.ggml.token_type"], strict=True)
    ]
    files, _ = rebuild_tokenizer(said, 128, "test")
    assert json.loads(files["tokenizer.json"])["model"]["vocab"]["changed"] == ROWS - 60


@pytest.mark.parametrize(("pre", "first"), [("llama-bpe", True), ("qwen2", False)])
def test_a_file_without_flags_begins_as_llama_cpp_does(pre: str, first: bool, tmp_path: Path) -> None:
    """Llama 3's files may have no `add_bos_token`: llama.cpp begins every text with the first token then, and so does the folder."""
    made = described(byte_tokenizer(pre), tmp_path / "model")
    for role in ("bos", "eos"):
        del made.keys[f"tokenizer.ggml.add_{role}_token"]
    back = rebuilt(made, tmp_path / "back")
    assert (back("fox")["input_ids"][0] == back.bos_token_id) == first
