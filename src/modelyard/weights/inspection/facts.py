"""What a folder's small files say: tokenizer, chat template, licence, adapter. Reads JSON and text, at most a few megabytes each.

Knows no tokenizer library: a vocabulary is counted, not used.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.weights.checks import read_json
from modelyard.weights.filenames import TOKENIZER_FILES
from modelyard.weights.files import show_name
from modelyard.weights.hub.ranges import Ranged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.files import Files

__all__ = ["AdapterFacts", "TokenizerFacts", "find_licence", "read_adapter", "read_tokenizer", "template_text"]

_PARSED = 24 << 20
"""Bytes of a tokenizer.json that is counted; a larger one would take longer than the whole inspection."""
_TEXT = 1 << 20
_LICENCES = (
    ("apache-2.0", "apache license", "version 2.0"),
    ("mit", "permission is hereby granted, free of charge", "without restriction"),
    ("gpl-3.0", "gnu general public license", "version 3"),
    ("agpl-3.0", "gnu affero general public license", "version 3"),
    ("bsd-3-clause", "redistribution and use in source and binary forms", "neither the name"),
    ("bsd-2-clause", "redistribution and use in source and binary forms", "this list of conditions"),
    ("llama", "llama", "community license"),
    ("gemma", "gemma", "terms of use"),
)


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer by its files.

    Attributes:
        kind: Its class, as tokenizer_config.json names it; None if it does not.
        vocabulary: Entries, added ones included; None where no file that was read lists them.
        added: Added tokens, special ones included.
        special: Role (`eos_token`, ...) to text.
        max_length: `model_max_length`, where it is a length and not "no limit"; None otherwise.
        pad_is_eos: Whether padding uses the token that ends a text.
        template: SHA-256 of the chat template's UTF-8, in hex; None without one.
        template_names: Where there are several, their names.
    """

    kind: str | None
    vocabulary: int | None
    added: int
    special: dict[str, str]
    max_length: int | None
    pad_is_eos: bool
    template: str | None
    template_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter's configuration: its method, rank and alpha, the modules it is on, the ones trained whole, its base."""

    method: str | None
    rank: int | None
    alpha: float | None
    targets: tuple[str, ...]
    saved: tuple[str, ...]
    base: str | None
    revision: str | None
    options: tuple[str, ...]


def read_tokenizer(files: Files, names: set[str]) -> TokenizerFacts | None:
    """The tokenizer of a folder; None where there is none.

    Raises:
        ModelError: One of its files is broken JSON.
    """
    if not names & TOKENIZER_FILES:
        return None
    config = read_json(files, "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    special = _special(config)
    if not special and "special_tokens_map.json" in names:
        special = _special(read_json(files, "special_tokens_map.json"))
    vocabulary, added = _vocabulary(files, names)
    listed = config.get("added_tokens_decoder")
    if added == 0 and isinstance(listed, dict):
        added = len(listed)
    longest = config.get("model_max_length")
    template = template_text(files, names)
    kind = config.get("tokenizer_class")
    return TokenizerFacts(
        kind=kind if isinstance(kind, str) else None,
        vocabulary=vocabulary,
        added=added,
        special=special,
        # transformers writes 10**30 for "no limit"
        max_length=int(longest) if isinstance(longest, int | float) and 0 < longest < 1 << 40 else None,
        pad_is_eos="pad_token" in special and special["pad_token"] == special.get("eos_token"),
        template=hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
        if template is not None
        else None,
        template_names=_template_names(config),
    )


def template_text(files: Files, names: set[str]) -> str | None:
    """The chat template as transformers finds it: its own file first, then tokenizer_config.json."""
    if "chat_template.jinja" in names:
        return files.read("chat_template.jinja", _TEXT).decode("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(files, name).get("chat_template") if name in names else None
        if isinstance(found, list):
            named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
            found = named.get("default") or next(iter(named.values()), None)
        if isinstance(found, str) and found:
            return found
    return None


def find_licence(files: Files, names: set[str]) -> str | None:
    """The licence: what README.md's front matter says, else what a LICENSE file is by its words, else that file's name."""
    if "README.md" in names and files.size("README.md") <= _TEXT:
        said = _front_matter(files.read("README.md", _TEXT).decode("utf-8", "replace"))
        if said:
            return said
    for name in sorted(names):
        base = name.upper()
        if base.startswith(("LICENSE", "LICENCE", "COPYING")) and files.size(name) <= _TEXT:
            text = " ".join(files.read(name, _TEXT).decode("utf-8", "replace").lower().split())
            return next((known for known, *words in _LICENCES if all(word in text for word in words)), show_name(name))
    return None


def read_adapter(config: Mapping[str, Any]) -> AdapterFacts:
    """The facts of an adapter_config.json."""
    switches = ("use_dora", "use_rslora", "fan_in_fan_out", "layer_replication", "rank_pattern", "alpha_pattern")
    return AdapterFacts(
        method=_text(config.get("peft_type")),
        rank=config["r"] if type(config.get("r")) is int else None,
        alpha=float(config["lora_alpha"]) if isinstance(config.get("lora_alpha"), int | float) else None,
        targets=_words(config.get("target_modules")),
        saved=_words(config.get("modules_to_save")),
        base=_text(config.get("base_model_name_or_path")),
        revision=_text(config.get("revision")),
        options=tuple(name for name in switches if config.get(name)),
    )


def _vocabulary(files: Files, names: set[str]) -> tuple[int | None, int]:
    """(entries, added ones); None where no file is read that lists them."""
    # A remote tokenizer.json is megabytes for one number.
    if "tokenizer.json" in names and not isinstance(files, Ranged) and files.size("tokenizer.json") <= _PARSED:
        parsed = read_json(files, "tokenizer.json")
        model, added = parsed.get("model"), parsed.get("added_tokens")
        listed = model.get("vocab") if isinstance(model, dict) else None
        extra = added if isinstance(added, list) else []
        if isinstance(listed, dict | list):
            words = (
                set(listed)
                if isinstance(listed, dict)
                else {item[0] for item in listed if isinstance(item, list) and item}
            )
            return len(words | {item.get("content") for item in extra if isinstance(item, dict)}), len(extra)
    if isinstance(files, Ranged):
        return None, 0
    if "vocab.json" in names and files.size("vocab.json") <= _PARSED:
        return len(read_json(files, "vocab.json")), 0
    if "vocab.txt" in names and files.size("vocab.txt") <= _PARSED:
        return len(files.read("vocab.txt", _PARSED).splitlines()), 0
    return None, 0


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return dict(sorted(found.items()))


def _template_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("chat_template")
    if not isinstance(found, list):
        return ()
    return tuple(sorted(str(item["name"]) for item in found if isinstance(item, dict) and "name" in item))


def _front_matter(text: str) -> str | None:
    """The licence of a model card's front matter, read as lines: it is text from anywhere, and one value is wanted."""
    lines = text.split("\n", 200)
    if not lines or lines[0].strip() != "---":
        return None
    found: dict[str, str] = {}
    for line in lines[1:200]:
        if line.strip() == "---":
            break
        match = re.fullmatch(r"(license|license_name):\s*[\"']?([\w .+-]{1,60}?)[\"']?\s*", line)
        if match:
            found[match[1]] = match[2]
    said = found.get("license")
    return found.get("license_name") or said if said == "other" else said


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(sorted(str(item) for item in value)) if isinstance(value, list) else ()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
