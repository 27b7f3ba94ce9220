"""A tokenizer's files from GGUF's metadata: tokenizer.json, tokenizer_config.json and the chat template.

A file that carries a whole tokenizer.json gives it back where it has the file's tokens. Any other file has tokens, types, scores or merges only:
what llama.cpp does with them is built from the parts of the `tokenizers` library. Knows metadata and JSON; opens no file.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.convert.gguf.splits import build_split
from modelyard.weights.convert.gguf.vocabulary import JSON_KEY, SETTINGS_KEY, SPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["rebuild_tokenizer"]


@dataclass
class _Words:
    """A file's vocabulary: its metadata, tokens and their types, and of these the ones that texts can hold, by id."""

    said: Mapping[str, Any]
    tokens: list[str]
    types: list[int]
    kept: dict[str, int]
    warnings: list[str]

    def scores(self) -> list[float]:
        """One a token."""
        return self.said.get(_KEY + "scores") or [0.0] * len(self.tokens)

    def unknown(self) -> str | None:
        """The token of what is in no vocabulary."""
        index = self.said.get(_KEY + "unknown_token_id")
        return self.tokens[index] if type(index) is int and 0 <= index < len(self.tokens) else None


_UNKNOWN, _CONTROL, _USER, _UNUSED = 2, 3, 4, 5
_ROLES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator",
    "mask_token": "mask",
}  # fmt: skip
_KEY = "tokenizer.ggml."
# Byte-level vocabularies that llama.cpp begins a text of where no flag says otherwise.
_BEGUN = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken", "chameleon"})


def rebuild_tokenizer(said: Mapping[str, Any], context: int, label: str) -> tuple[dict[str, str], list[str]]:
    """File name to text, and what may differ; no files where the file has no tokenizer.

    Args:
        said: The metadata, read in full.
        context: Longest row in tokens.
        label: The file, for messages.

    Raises:
        ModelError: `unsupported_tokenizer`, `bad_metadata`.
    """
    kind = said.get(_KEY + "model", "none")
    if kind in {"none", "no_vocab"}:
        return {}, ["the file has no tokenizer"]
    tokens = said.get(_KEY + "tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelError(f"`{label}` has no list of tokens", code="bad_metadata")
    files = _templates(said)
    warnings: list[str] = []
    plain = _carried_json(said, tokens)
    if plain is None:
        if kind not in _MODELS:
            raise ModelError(
                f"`{label}` has a tokenizer of the kind `{kind}`",
                code="unsupported_tokenizer",
                hint=f"there are: {', '.join(sorted(_MODELS))}",
            )
        plain = _build(kind, said, tokens, warnings)
        settings = _settings(said, tokens, context, kind)
    else:
        settings = _carried_settings(said) or _settings(said, tokens, context, kind)
    files["tokenizer.json"] = json.dumps(plain, ensure_ascii=False, indent=1)
    files["tokenizer_config.json"] = json.dumps(settings, ensure_ascii=False, indent=1)
    return files, warnings


def _templates(said: Mapping[str, Any]) -> dict[str, str]:
    files = {}
    for name in said.get("tokenizer.chat_templates") or []:
        text = said.get(f"tokenizer.chat_template.{name}")
        if isinstance(text, str) and str(name).replace("_", "").replace("-", "").isalnum():
            files[f"additional_chat_templates/{name}.jinja"] = text
    text = said.get("tokenizer.chat_template")
    if isinstance(text, str):
        files["chat_template.jinja"] = text
    return files


def _carried_json(said: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """The tokenizer.json that the file carries; None where it has other tokens, as after an edit by another tool."""
    plain = _object(said.get(JSON_KEY))
    if plain is None or not isinstance(plain.get("model"), dict):
        return None
    try:
        ids = _ids(plain)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    if not ids or max(ids.values()) >= len(tokens):
        return None
    if said[_KEY + "model"] == "bert":
        return plain if len(ids) <= len(tokens) else None
    return plain if all(tokens[index] == token for token, index in ids.items()) else None


def _ids(plain: Mapping[str, Any]) -> dict[str, int]:
    found = plain["model"]["vocab"]
    ids = (
        {str(item[0]): index for index, item in enumerate(found)}
        if isinstance(found, list)
        else {str(key): int(value) for key, value in found.items()}
    )
    return ids | {str(added["content"]): int(added["id"]) for added in plain.get("added_tokens", [])}


def _carried_settings(said: Mapping[str, Any]) -> dict[str, Any] | None:
    return _object(said.get(SETTINGS_KEY))


def _object(text: Any) -> dict[str, Any] | None:
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _settings(said: Mapping[str, Any], tokens: list[str], context: int, kind: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    for role, key in _ROLES.items():
        index = said.get(f"{_KEY}{key}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            settings[role] = tokens[index]
    if kind == "bert" and "bos_token" in settings:
        settings["cls_token"] = settings.pop("bos_token")
    settings["clean_up_tokenization_spaces"] = False
    return settings


def _build(kind: str, said: Mapping[str, Any], tokens: list[str], warnings: list[str]) -> dict[str, Any]:
    types = said.get(_KEY + "token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError("the file has more or fewer types than tokens", code="bad_metadata")
    # Names that only fill the embedding's rows belong to no text.
    kept = {token: index for index, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ != _UNUSED}
    made: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
    made["added_tokens"] = [
        {
            "id": index, "content": tokens[index], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": type_ != _USER,
        }
        for index, type_ in enumerate(types)
        if type_ in {_CONTROL, _USER} or (type_ == _UNKNOWN and kind != "t5")
    ]  # fmt: skip
    made |= _MODELS[kind](_Words(said, tokens, types, kept, warnings))
    made["post_processor"] = _frame(said, tokens, kind, made.get("post_processor"))
    return made


def _build_gpt2(words: _Words) -> dict[str, Any]:
    said, kept = words.said, words.kept
    name = said.get(_KEY + "pre")
    split, whole_first, known = build_split(name)
    if not known:
        words.warnings.append(
            f"how text is split before its merges is called `{name}` in the file, which has no form here: it is split as GPT-2 does"
        )
    merges = [merge.split(" ", 1) for merge in said.get(_KEY + "merges") or []]
    return {
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(kept, merges, None, byte_fallback=False) | {"ignore_merges": whole_first},
    }


def _build_llama(words: _Words) -> dict[str, Any]:
    said, kept = words.said, words.kept
    scores = words.scores()
    by_token = {token: scores[index] for token, index in kept.items()}
    pairs = sorted(
        (
            (-by_token[token], kept[token[:cut]], kept[token[cut:]], token[:cut], token[cut:])
            for token in kept
            for cut in range(1, len(token))
            if token[:cut] in kept and token[cut:] in kept
        ),
    )
    prefix = bool(said.get(_KEY + "add_space_prefix", True))
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            kept,
            [[left, right] for *_, left, right in pairs],
            words.unknown(),
            byte_fallback="<0x00>" in kept,
        ),
    }


def _bpe(kept: dict[str, int], merges: list[list[str]], unknown: str | None, *, byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": unknown is not None, "byte_fallback": byte_fallback, "ignore_merges": False, "vocab": kept,
        "merges": [merge for merge in merges if len(merge) == 2 and "".join(merge) in kept],
    }  # fmt: skip


def _build_t5(words: _Words) -> dict[str, Any]:
    said, kept = words.said, words.kept
    scores = words.scores()
    normalizers: list[dict[str, Any]] = []
    charsmap = said.get(_KEY + "precompiled_charsmap")
    if isinstance(charsmap, bytes):
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if said.get(_KEY + "remove_extra_whitespaces"):
        normalizers += [
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE},
        ]
    scheme = "always" if said.get(_KEY + "add_space_prefix", True) else "never"
    blank = {"replacement": SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": {"type": "Metaspace", **blank},
        "decoder": {"type": "Metaspace", **blank},
        "model": {
            "type": "Unigram",
            "unk_id": said.get(_KEY + "unknown_token_id"),
            "vocab": [[token, scores[index]] for token, index in kept.items()],
            "byte_fallback": False,
        },
    }


def _build_bert(words: _Words) -> dict[str, Any]:
    said, kept = words.said, words.kept
    vocabulary = {}
    for token, index in kept.items():
        if words.types[index] != 1:
            vocabulary[token] = index
        else:
            vocabulary[token[1:] if token.startswith(SPACE) else "##" + token] = index
    lower = bool(said.get(_KEY + "normalizer.lowercase", True))
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": said.get(_KEY + "normalizer.strip_accents"), "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": words.unknown() or "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }  # fmt: skip


def _frame(said: Mapping[str, Any], tokens: list[str], kind: str, other: Any) -> Any:
    """What is put before and behind a text: a first and a last token, as the file's flags say."""
    ends = {}
    first = kind in {"llama", "bert"} or (kind == "gpt2" and said.get(_KEY + "pre") in _BEGUN)
    for role, default in (("bos", first), ("eos", kind == "t5")):
        index = said.get(f"{_KEY}{role}_token_id")
        adds = kind == "bert" or said.get(f"{_KEY}add_{role}_token", default)
        if kind == "bert" and role == "eos":
            index = said.get(_KEY + "seperator_token_id", index)
        if adds and type(index) is int and 0 <= index < len(tokens):
            ends[role] = (tokens[index], index)
    if not ends:
        return other

    def special(role: str, segment: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": ends[role][0], "type_id": segment}}] if role in ends else []

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    second = [] if kind == "bert" else special("bos", 1)
    frame = {
        "type": "TemplateProcessing",
        "single": [*special("bos", 0), text("A", 0), *special("eos", 0)],
        "pair": [*special("bos", 0), text("A", 0), *special("eos", 0), *second, text("B", 1), *special("eos", 1)],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ends.values()},
    }
    return frame if other is None else {"type": "Sequence", "processors": [other, frame]}


_MODELS = {"gpt2": _build_gpt2, "llama": _build_llama, "t5": _build_t5, "bert": _build_bert}
