"""How a byte-level vocabulary splits text before its merges: the name that llama.cpp has for it (`tokenizer.ggml.pre`), and back.

llama.cpp knows splits by name only, and tells them by hashing what a tokenizer makes of a test text; here a name is told by the split itself,
as tokenizer.json states it. Knows JSON of the `tokenizers` library; opens no file.
"""

from __future__ import annotations

from typing import Any

__all__ = ["build_split", "name_split"]

# Of names with one pattern, that which llama.cpp's own converter writes; the rest of the names follow transformers' table.
_FIRST = ("llama-bpe", "qwen2", "qwen35", "gpt-4o", "tekken")
# llama.cpp has Llama 3's pattern twice: with entries of the vocabulary taken whole before any merge, and without.
_MERGED_ALWAYS = {"llama-bpe": "smaug-bpe"}
_PLAIN = frozenset(
    {"gpt-2", "phi-2", "mpt", "olmo", "jina-de", "jina-en", "jina-es", "roberta-bpe", "gigachat", "default"}
)
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def _patterns() -> dict[str, str]:
    """Name to pattern, as transformers has them for GGUF files; those that a converter writes first."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

    known: dict[str, str] = dict(mapping.GGUF_PRE_TOKENIZER_SPLITS)
    return {name: known[name] for name in _FIRST if name in known} | known


def name_split(pre_tokenizer: Any, *, whole_first: bool) -> str | None:
    """The name of a tokenizer.json's `pre_tokenizer`; None where llama.cpp has none for it.

    Args:
        pre_tokenizer: As tokenizer.json has it.
        whole_first: `ignore_merges`: an entry of the vocabulary is taken whole before any merge.

    >>> name_split({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, whole_first=False)
    'gpt-2'
    """
    parts = _parts(pre_tokenizer)
    kinds = [part.get("type") for part in parts]
    if any(part.get("add_prefix_space") for part in parts):
        return None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    if kinds != ["Split", "ByteLevel"] or parts[1].get("use_regex", True):
        return None
    split = parts[0]
    if split.get("invert") or split.get("behavior") != "Isolated":
        return None
    pattern = split.get("pattern", {}).get("Regex")
    name = next((name for name, known in _patterns().items() if known == pattern), None)
    return name if whole_first or name is None else _MERGED_ALWAYS.get(name, name)


def build_split(name: str | None) -> tuple[dict[str, Any], bool, bool]:
    """The `pre_tokenizer` of a name, whether entries are taken whole first, and whether the name is known.

    A name that is not known splits as GPT-2's.
    """
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if name in _DIGITS:
        return (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, plain]},
            False,
            True,
        )
    pattern = _patterns().get(str(name))
    if pattern is None:
        return plain, False, name in _PLAIN
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    whole_first = name in {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"}
    return {"type": "Sequence", "pretokenizers": [split, plain | {"use_regex": False}]}, whole_first, True


def _parts(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [part for each in pre_tokenizer.get("pretokenizers", []) for part in _parts(each)]
    return [pre_tokenizer]
