"""The tokenizer's words and the numbers that configurations give them, against the rows of the embeddings.

Reads tokenizer files as the JSON, text or sentencepiece that they are; builds no tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError
from modelyard.weights.doctor.findings import make, some
from modelyard.weights.filenames import VOCABULARY_FILES
from modelyard.weights.files import show_name
from modelyard.weights.merge.names import is_input_embedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding

__all__ = ["Vocabulary", "end_ids", "examine_vocabulary", "has_tokenizer", "read_vocabulary"]

_WITHOUT_FILES = ("ByT5", "Canine", "Perceiver", "Myt5", "Mgpstr", "CharacterBERT")
_SINGLE = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
            "forced_eos_token_id", "sep_token_id", "unk_token_id", "mask_token_id")  # fmt: skip
_UNLIMITED = 10**9  # transformers writes 10^30 for a tokenizer without a length
_ABSOLUTE = ("position_embeddings.weight", "embed_positions.weight", "wpe.weight", "position_embedding.weight")


@dataclass(frozen=True)
class Vocabulary:
    """What the tokenizer's files say.

    Attributes:
        ids: Word to number, for all of them; empty where only `size` is known (sentencepiece).
        added: The added tokens alone.
        special: Those of the added tokens that are control tokens.
        size: The highest number plus one.
        named: `eos_token` and the like to the word.
        extra: Words that the configuration lists as special without a name.
        file: Where the words were read from.
        complete: Whether `ids` holds every word that a tokenizer made of these files knows.
    """

    ids: Mapping[str, int]
    added: Mapping[str, int]
    special: frozenset[str]
    size: int
    named: dict[str, str]
    extra: tuple[str, ...]
    file: str
    complete: bool

    @cached_property
    def words(self) -> dict[int, str]:
        """Number to word."""
        return {number: word for word, number in self.ids.items()}

    def ending(self, case: Case) -> dict[int, str]:
        """The tokens that end an answer, by every file that may say so."""
        numbers = end_ids(case.config) | end_ids(case.text_config) | end_ids(case.generation)
        eos = self.named.get("eos_token")
        if eos is not None and eos in self.ids:
            numbers.add(self.ids[eos])
        return {number: self.words[number] for number in numbers if number in self.words}

    def first_special(self, text: str) -> str | None:
        """The added token that `text` begins with, white space aside; the longest."""
        text = text.lstrip()
        return max((word for word in self.added if word and text.startswith(word)), key=len, default=None)


@dataclass
class _Words:
    ids: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    special: set[str] = field(default_factory=set)
    size: int = 0
    file: str = ""
    complete: bool = False


def has_tokenizer(case: Case) -> bool:
    """Whether the files of a tokenizer are there; some kinds need nothing but their configuration."""
    named = str(case.tokenizer_config.get("tokenizer_class", ""))
    ranked = any(name.endswith(".tiktoken") for name in case.names)
    return bool(case.names & VOCABULARY_FILES) or ranked or named.startswith(_WITHOUT_FILES)


def read_vocabulary(case: Case) -> Vocabulary | None:
    """The vocabulary, from the first of its files that is sound; None without one that can be read."""
    words = _Words()
    try:
        _read_words(case, words)
    except (YardError, ValueError, TypeError, KeyError, AttributeError):
        return None  # of a form that no tokenizer of transformers writes: loading it says what is wrong
    if not words.file:
        return None
    named, extra = _special_names(case)
    numbers = [*words.ids.values(), *words.added.values()]
    size = max([words.size, *(number + 1 for number in numbers)])
    everything = {**words.ids, **words.added}
    return Vocabulary(everything, words.added, frozenset(words.special), size, named, extra, words.file, words.complete)


def end_ids(config: Mapping[str, Any]) -> set[int]:
    """The EOS ids of a configuration, which has one, several or none."""
    found = config.get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    return {number for number in listed if type(number) is int}


def examine_vocabulary(case: Case, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Words, ids and lengths; without weights only what the configurations say among themselves."""
    rows, where = _rows(case)
    if vocabulary is not None:
        yield from _special_tokens(vocabulary)
        yield from _pad(case, vocabulary)
        if rows is not None and vocabulary.size > rows:
            beyond = sorted(word for word, number in vocabulary.ids.items() if number >= rows)
            what = (
                f"the tokenizer (`{vocabulary.file}`) has ids up to {vocabulary.size - 1}, and {where} has {rows} rows"
                f"{f': {some(beyond)} cannot be read' if beyond else ''}"
            )
            hint = "take the tokenizer that these weights were trained with, or train with the embeddings resized"
            yield make("tokenizer_larger", what, hint)
        yield from _eos(case, vocabulary)
    if rows is not None:
        yield from _ids(case, rows, where)
    yield from _length(case)


def _read_words(case: Case, words: _Words) -> None:
    usable = case.names - case.broken
    if "tokenizer.json" in usable:
        loaded = case.json("tokenizer.json")
        model = loaded.get("model") or {}
        held = model.get("vocab")
        pairs = held.items() if isinstance(held, dict) else ((item[0], at) for at, item in enumerate(held or ()))
        words.ids = {str(word): int(number) for word, number in pairs}
        for token in loaded.get("added_tokens") or ():
            words.added[str(token["content"])] = int(token["id"])
            if token.get("special"):
                words.special.add(str(token["content"]))
        words.file, words.complete = "tokenizer.json", True
        return
    if "vocab.txt" in usable:
        text = case.files.read("vocab.txt").decode("utf-8")
        words.ids = {word.rstrip("\r"): at for at, word in enumerate(text.split("\n")) if word}
        words.file = "vocab.txt"
    elif "vocab.json" in usable:
        held = json.loads(case.files.read("vocab.json").decode("utf-8"))
        # CTC tokenizers of several languages nest them: one dictionary for each.
        flat = held if isinstance(held, dict) and all(type(number) is int for number in held.values()) else {}
        words.ids, words.file = dict(flat), "vocab.json" if flat else ""
    elif model := next(
        (name for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model") if name in usable), None
    ):
        words.size, words.file = _count_pieces(case, model), model
    for number, token in (case.tokenizer_config.get("added_tokens_decoder") or {}).items():
        words.added[str(token["content"])] = int(number)
        if token.get("special"):
            words.special.add(str(token["content"]))
    if "added_tokens.json" in usable:
        words.added.update({str(word): int(number) for word, number in case.json("added_tokens.json").items()})


def _count_pieces(case: Case, name: str) -> int:
    import sentencepiece

    made: Any = sentencepiece.SentencePieceProcessor()
    try:
        made.LoadFromSerializedProto(case.files.read(name))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return int(made.GetPieceSize())


def _special_names(case: Case) -> tuple[dict[str, str], tuple[str, ...]]:
    named: dict[str, str] = {}
    extra: list[str] = []
    for source in (case.json("special_tokens_map.json"), case.tokenizer_config):
        for key in _SINGLE:
            if (word := _word(source.get(key))) is not None:
                named[key] = word
            elif key in source:
                named.pop(key, None)
        for key in _LISTS:
            held = source.get(key)
            items = held if isinstance(held, list) else list(held.values()) if isinstance(held, dict) else []
            extra += [word for item in items if (word := _word(item)) is not None]
    return named, tuple(dict.fromkeys(extra))


def _word(value: Any) -> str | None:
    held = value.get("content") if isinstance(value, dict) else value
    return held if isinstance(held, str) and held else None


def _rows(case: Case) -> tuple[int | None, str]:
    """Rows of the input embedding, and what to call it: the tensor's where it is known by its name, else the configuration's."""
    if case.weights is not None:
        shapes = {name: case.weights.info(name).shape for name in case.weights.home}
        found = [name for name, shape in shapes.items() if is_input_embedding(name) and len(shape) == 2]
        own = [
            name
            for name in found
            if not any(part in name for part in ("vision", "visual", "audio", "position", "type"))
        ]
        shared = [name for name in shapes if name in {"shared.weight", "model.shared.weight"}]
        if named := shared or own:
            return shapes[named[0]][0], f"`{show_name(named[0])}`"
    said = case.text_config.get("vocab_size")
    return (said, "`vocab_size` of config.json") if type(said) is int and said > 0 else (None, "")


def _special_tokens(vocabulary: Vocabulary) -> Iterator[Finding]:
    if not vocabulary.complete:
        return
    lacking = [f"{key} {word}" for key, word in vocabulary.named.items() if word not in vocabulary.ids]
    lacking += [word for word in vocabulary.extra if word not in vocabulary.ids]
    if lacking:
        what = f"tokenizer_config.json names special tokens that `{vocabulary.file}` has not: {some(lacking)}"
        hint = "take tokenizer.json and tokenizer_config.json of one tokenizer: copy both from the base"
        yield make("special_token_missing", what, hint)


def _pad(case: Case, vocabulary: Vocabulary) -> Iterator[Finding]:
    pad, eos = vocabulary.named.get("pad_token"), vocabulary.named.get("eos_token")
    if not case.generates or pad is None or eos is None or pad != eos:
        return
    what = f"the tokenizer pads with its EOS token `{show_name(eos)}`: training that masks padding never learns to stop"
    unused = next((word for word in sorted(vocabulary.special) if "pad" in word.lower() and word != eos), None)
    hint = (
        f"set `pad_token` in tokenizer_config.json to `{unused}`" if unused else "give `pad_token` a token of its own"
    )
    yield make("pad_is_eos", what, hint)


def _eos(case: Case, vocabulary: Vocabulary) -> Iterator[Finding]:
    eos = vocabulary.named.get("eos_token")
    said = end_ids(case.config) | end_ids(case.text_config) | end_ids(case.generation)
    if not case.generates or eos is None or eos not in vocabulary.ids or not said or vocabulary.ids[eos] in said:
        return
    what = (
        f"the tokenizer ends with `{show_name(eos)}` ({vocabulary.ids[eos]}), and the configurations stop at"
        f" {sorted(said)} only: answers do not end there"
    )
    yield make("eos_mismatch", what, case.mend)


def _ids(case: Case, rows: int, where: str) -> Iterator[Finding]:
    sources: dict[str, Mapping[str, Any]] = {"config.json": case.config, "generation_config.json": case.generation}
    if case.text_config is not case.config:
        sources["text_config of config.json"] = case.text_config
    for file, config in sources.items():
        for key in _ID_KEYS:
            held = config.get(key)
            listed = held if isinstance(held, list) else [held]
            wrong = [number for number in listed if type(number) is int and not 0 <= number < rows]
            if not wrong:
                continue
            what = f"`{key}` in {file} is {wrong[0]}, and {where} has {rows} rows"
            matters = case.generates and wrong[0] >= 0
            hint = f"correct `{key}` in {file}: yard tokenize {case.path} shows the special tokens' ids"
            yield make("token_id_out_of_range", what, hint, level=None if matters else "warning")


def _length(case: Case) -> Iterator[Finding]:
    most, positions = case.tokenizer_config.get("model_max_length"), case.text_config.get("max_position_embeddings")
    if type(most) is not int or type(positions) is not int or not positions < most < _UNLIMITED:
        return
    absolute = case.weights is not None and any(name.endswith(_ABSOLUTE) for name in case.weights.home)
    what = f"the tokenizer lets {most} tokens pass (`model_max_length`), and the model has {positions} positions"
    hint = f"set `model_max_length` in tokenizer_config.json to {positions}"
    yield make("max_length", what, hint, level=None if absolute else "info")
