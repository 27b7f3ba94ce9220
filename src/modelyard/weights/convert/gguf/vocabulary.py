"""A tokenizer as GGUF's metadata: tokens, their types and scores, merges, special tokens, chat templates.

Four kinds, as llama.cpp names them: `gpt2` (byte-level BPE), `llama` (SentencePiece's BPE with bytes), `t5` (Unigram) and `bert` (WordPiece).
Beside them the whole tokenizer.json under the specification's own key, from which `from_gguf` gives back the very tokenizer. Knows tokenizers
of transformers and keys; knows no weights.
"""

from __future__ import annotations

import base64
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.convert.gguf.splits import name_split
from modelyard.weights.filenames import TEMPLATE_FILES, TOKENIZER_FILES, TOKENIZER_PARTS
from modelyard.weights.output import copy_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.files import Files

__all__ = ["JSON_KEY", "SETTINGS_KEY", "SPACE", "Vocabulary", "describe_tokenizer"]

JSON_KEY = "tokenizer.huggingface.json"
SETTINGS_KEY = "modelyard.tokenizer_config"
SPACE = "\u2581"  # SentencePiece's blank

_TEMPLATES = "additional_chat_templates/"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPECIAL = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "seperator": "sep_token_id",
    "padding": "pad_token_id", "mask": "mask_token_id",
}  # fmt: skip


@dataclass
class Vocabulary:
    """What a file says of a tokenizer.

    Attributes:
        kind: `gpt2`, `llama`, `t5` or `bert`.
        tokens: One a row of the embedding.
        types: llama.cpp's number of each one's kind: normal, unknown, control, ...
        keys: Key to type (`str`, `strs`, `i32s`, `f32s`, `u32`, `bool`, `bytes`) and value.
        warnings: What llama.cpp will do otherwise than this tokenizer.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    keys: dict[str, tuple[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def describe_tokenizer(source: Files, rows: int) -> Vocabulary | None:
    """The metadata of the tokenizer among a model's files; None where there is none.

    Args:
        source: The model.
        rows: Rows of its embedding: tokens that the tokenizer lacks are filled up, since the file has one name a row.

    Raises:
        ModelError: `no_preprocessor`: it cannot be loaded; `unsupported_tokenizer`: of no kind that llama.cpp has, or with more tokens than `rows`.
    """
    tokenizer = _load(source)
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"`{source.label}`'s tokenizer is `{type(tokenizer).__name__}`, which is written in Python and has no GGUF form",
            code="unsupported_tokenizer",
        )
    plain = json.loads(backend.to_str())
    ids = tokenizer.get_vocab()
    if max(ids.values(), default=-1) >= rows:
        raise ModelError(
            f"`{source.label}`'s tokenizer has the token {max(ids.values())}, and the embedding has {rows} rows",
            code="unsupported_tokenizer",
        )
    kind = _kind(plain, source.label)
    tokens = _list_tokens(ids, rows)
    made = Vocabulary(kind, tokens, _list_types(plain, tokens, ids))
    unknown = plain["model"].get("unk_id") if kind == "t5" else tokenizer.unk_token_id
    if kind in {"llama", "t5"} and unknown is not None:
        made.types[unknown] = _UNKNOWN
    _BUILDERS[kind](made, plain)
    made.keys = {
        "tokenizer.ggml.model": ("str", kind),
        "tokenizer.ggml.tokens": ("strs", made.tokens),
        "tokenizer.ggml.token_type": ("i32s", made.types),
        **made.keys,
    }
    _add_special(made, tokenizer)
    if kind == "t5" and plain["model"].get("unk_id") is not None:
        # What the model gives for what it does not know, whatever the tokenizer calls its unknown token.
        made.keys["tokenizer.ggml.unknown_token_id"] = ("u32", int(plain["model"]["unk_id"]))
    _add_templates(made, tokenizer)
    _add_files(made, tokenizer)
    return made


def _load(source: Files) -> Any:
    """The tokenizer, from a folder of copies: `Files` need not be one folder."""
    from modelyard.weights.loading.preprocessors import load_preprocessor

    names = set(source.names())
    if not names & TOKENIZER_FILES:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(names):
            if name in TOKENIZER_PARTS | TEMPLATE_FILES | {"config.json"} or name.startswith(_TEMPLATES):
                copy_file(source, name, Path(folder))
        return load_preprocessor(Path(folder), "text-generation")


def _kind(plain: Mapping[str, Any], label: str) -> str:
    model = plain["model"]
    if model["type"] == "Unigram":
        return "t5"
    if model["type"] == "WordPiece":
        return "bert"
    if model["type"] == "BPE":
        # Each has one of these: bytes as letters, or SentencePiece's blank.
        if "ByteLevel" in json.dumps(plain["pre_tokenizer"]):
            return "gpt2"
        if SPACE in json.dumps([plain["normalizer"], plain["pre_tokenizer"]], ensure_ascii=False):
            return "llama"
    raise ModelError(
        f"`{label}`'s tokenizer ({model['type']}) is of no kind that llama.cpp has",
        code="unsupported_tokenizer",
        hint="byte-level BPE, SentencePiece's BPE, Unigram and WordPiece have a GGUF form",
    )


def _list_tokens(ids: Mapping[str, int], rows: int) -> list[str]:
    tokens = [f"[PAD{index}]" for index in range(rows)]
    for token, index in ids.items():
        tokens[index] = token
    return tokens


def _list_types(plain: Mapping[str, Any], tokens: list[str], ids: Mapping[str, int]) -> list[int]:
    types = [_NORMAL if token in ids else _UNUSED for token in tokens]
    model = plain["model"]
    if model.get("byte_fallback"):
        for byte in range(256):
            if (index := ids.get(f"<0x{byte:02X}>")) is not None:
                types[index] = _BYTE
    for added in plain["added_tokens"]:
        types[added["id"]] = _CONTROL if added["special"] else _USER
    return types


def _build_gpt2(made: Vocabulary, plain: Mapping[str, Any]) -> None:
    model = plain["model"]
    pre = name_split(plain["pre_tokenizer"], whole_first=bool(model.get("ignore_merges")))
    if pre is None:
        made.warnings.append(
            "llama.cpp has no name for how this tokenizer splits text before its merges: it will split as `default`, and may give other ids"
        )
    if plain["normalizer"] is not None and plain["normalizer"].get("type") != "NFC":
        made.warnings.append("llama.cpp does not normalize text for this kind of tokenizer as this one does")
    made.keys["tokenizer.ggml.pre"] = ("str", pre or "default")
    made.keys["tokenizer.ggml.merges"] = ("strs", [" ".join(_pair(merge)) for merge in model["merges"]])


def _build_llama(made: Vocabulary, plain: Mapping[str, Any]) -> None:
    """SentencePiece's BPE has no merges: a pair becomes the entry that both make, the best score first. The order of merges is that score."""
    merges = [_pair(merge) for merge in plain["model"]["merges"]]
    scores = dict.fromkeys(made.tokens, 0.0)
    order: list[str] = []
    for left, right in merges:
        if not order or order[-1] != left + right:
            order.append(left + right)
    for rank, token in enumerate(reversed(order)):
        scores[token] = float(rank - len(order))  # of an entry that comes twice, the first counts, as in BPE
    known = {token for token, kind in zip(made.tokens, made.types, strict=True) if kind in {_NORMAL, _USER}}
    if len(order) != len(set(order)) or _implied(known) != set(merges):
        made.warnings.append(
            "the tokenizer's merges are not those that its entries and their order imply: llama.cpp may cut some texts otherwise"
        )
    if _find(plain["pre_tokenizer"], "prepend_scheme") not in {None, "never"}:
        made.warnings.append(
            "a text that begins with a blank gets one more from llama.cpp, as from SentencePiece, and none from this tokenizer"
        )
    made.keys["tokenizer.ggml.pre"] = ("str", "default")
    made.keys["tokenizer.ggml.scores"] = ("f32s", [scores[token] for token in made.tokens])
    made.keys["tokenizer.ggml.add_space_prefix"] = ("bool", _adds_space(plain))


def _implied(known: set[str]) -> set[tuple[str, str]]:
    """Every pair of entries that make an entry."""
    return {
        (token[:cut], token[cut:])
        for token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    }


def _build_t5(made: Vocabulary, plain: Mapping[str, Any]) -> None:
    scores = [0.0] * len(made.tokens)
    for index, (_, score) in enumerate(plain["model"]["vocab"]):
        scores[index] = float(score)
    made.keys["tokenizer.ggml.pre"] = ("str", "default")
    made.keys["tokenizer.ggml.scores"] = ("f32s", scores)
    made.keys["tokenizer.ggml.add_space_prefix"] = ("bool", _adds_space(plain))
    parts = json.dumps([plain["normalizer"], plain["pre_tokenizer"]])
    made.keys["tokenizer.ggml.remove_extra_whitespaces"] = ("bool", "{2,}" in parts or "WhitespaceSplit" in parts)
    charsmap = _find(plain["normalizer"], "precompiled_charsmap")
    if charsmap:
        made.keys["tokenizer.ggml.precompiled_charsmap"] = ("bytes", base64.b64decode(charsmap))
    elif "WhitespaceSplit" in parts:
        made.warnings.append(
            "llama.cpp takes line breaks and tabs for characters of a text, where this tokenizer takes them for blanks"
        )
    if plain["model"].get("byte_fallback"):
        made.warnings.append(
            "llama.cpp's Unigram has no bytes to fall back on: characters outside the vocabulary become the unknown token"
        )


def _build_bert(made: Vocabulary, plain: Mapping[str, Any]) -> None:
    """llama.cpp marks the beginning of a word, WordPiece its continuation."""
    prefix = plain["model"]["continuing_subword_prefix"]
    for index, kind in enumerate(made.types):
        if kind == _NORMAL:
            token = made.tokens[index]
            made.tokens[index] = token.removeprefix(prefix) if token.startswith(prefix) else SPACE + token
    normalizer = plain["normalizer"] or {}
    lower = bool(normalizer.get("lowercase"))
    strips = normalizer.get("strip_accents")
    made.keys["tokenizer.ggml.pre"] = ("str", "default")
    made.keys["tokenizer.ggml.normalizer.lowercase"] = ("bool", lower)
    made.keys["tokenizer.ggml.normalizer.strip_accents"] = ("bool", lower if strips is None else bool(strips))
    if not lower:
        made.warnings.append(
            "versions of llama.cpp that do not know `normalizer.lowercase` make this cased tokenizer's text lower-case"
        )


def _adds_space(plain: Mapping[str, Any]) -> bool:
    if _find(plain["normalizer"], "prepend") == SPACE:
        return True
    scheme = _find(plain["pre_tokenizer"], "prepend_scheme")
    return scheme not in {None, "never"}


def _find(value: Any, key: str) -> Any:
    """The first value of `key` anywhere in JSON."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for each in value if (found := _find(each, key)) is not None), None)
    return None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _add_special(made: Vocabulary, tokenizer: Any) -> None:
    for role, name in _SPECIAL.items():
        index = getattr(tokenizer, name, None)
        if role == "bos" and index is None:
            index = getattr(tokenizer, "cls_token_id", None)
        if index is not None:
            made.keys[f"tokenizer.ggml.{role}_token_id"] = ("u32", int(index))
    # Asked of the tokenizer itself: `add_bos_token` is only one of the ways in which it may be told.
    bare, whole = (tokenizer("a", add_special_tokens=each)["input_ids"] for each in (False, True))
    width = len(bare)
    before = next((at for at in range(len(whole) - width + 1) if whole[at : at + width] == bare), 0)
    made.keys["tokenizer.ggml.add_bos_token"] = ("bool", before > 0)
    made.keys["tokenizer.ggml.add_eos_token"] = ("bool", before + width < len(whole))


def _add_templates(made: Vocabulary, tokenizer: Any) -> None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        named = {name: text for name, text in template.items() if name != "default"}
        for name, text in named.items():
            made.keys[f"tokenizer.chat_template.{name}"] = ("str", text)
        if named:
            made.keys["tokenizer.chat_templates"] = ("strs", sorted(named))
        template = template.get("default")
    if template:
        made.keys["tokenizer.chat_template"] = ("str", template)


def _add_files(made: Vocabulary, tokenizer: Any) -> None:
    """The tokenizer as transformers saves it, so that nothing of it has to be guessed again."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        plain, settings = (json.loads((Path(folder) / name).read_text("utf-8")) for name in _SAVED)
    for name in ("name_or_path", "chat_template"):  # a path of this machine; and what has a key of its own
        settings.pop(name, None)
    for key, value in ((JSON_KEY, plain), (SETTINGS_KEY, settings)):
        made.keys[key] = ("str", json.dumps(value, ensure_ascii=False, separators=(",", ":")))


_SAVED = ("tokenizer.json", "tokenizer_config.json")
_BUILDERS = {"gpt2": _build_gpt2, "llama": _build_llama, "t5": _build_t5, "bert": _build_bert}
