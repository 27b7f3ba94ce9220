"""Text to tokens and back, token by token: ids, pieces, where each stands in the text, which are control tokens.

Works on a tokenizer of transformers, a fast one or one of sentencepiece; ids are checked against the vocabulary. Knows
no model: an id that a tokenizer has and the model's embeddings lack is `yard doctor`'s to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation import chat
from modelyard.weights.generation.token_ids import read_ids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Piece", "detokenize", "load_tokenizer", "pieces_of", "tokenize", "vocabulary_size"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One token.

    Attributes:
        id: Its id.
        piece: As the vocabulary has it (`Ġcard`, `▁card`, `##ing`).
        text: What it decodes to by itself; a part of a character is U+FFFD.
        special: Whether it is a control token, which text of a user never makes.
        added: Whether it was added to the tokenizer's own vocabulary.
        start: Where it begins in the text, in characters; None where the tokenizer does not know, or it has no text.
        end: Where it ends.
    """

    id: int
    piece: str
    text: str
    special: bool
    added: bool
    start: int | None = None
    end: int | None = None


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model folder or a .gguf file, alone: no weight is read.

    Where an adapter's folder has none, it is its base's, if that is here.

    Raises:
        ModelError: There is none (`no_preprocessor`), or it is broken.
    """
    from modelyard.weights.filenames import TOKENIZER_FILES
    from modelyard.weights.loading import sources
    from modelyard.weights.loading.lock import loading
    from modelyard.weights.loading.preprocessors import load_preprocessor
    from modelyard.weights.loading.translate import translated

    if path.suffix == ".gguf" and path.is_file():
        from transformers import AutoTokenizer

        make: Any = AutoTokenizer.from_pretrained
        with loading(), translated(path):
            return make(str(path.parent), gguf_file=path.name, local_files_only=True)
    if not path.is_dir():
        raise ModelError(f"no folder `{path}`", hint="give the path of a model's folder")
    adapter = sources.read_adapter(path)
    if adapter is not None and not any((path / name).exists() for name in TOKENIZER_FILES):
        path = sources.find_base(path, adapter, None)
    with loading():
        found = load_preprocessor(path, "text-generation")
    return getattr(found, "tokenizer", found)


def tokenize(tokenizer: Any, text: str, *, special: bool = True) -> list[Piece]:
    """The tokens of `text`.

    Args:
        tokenizer: A tokenizer of transformers.
        text: Raw text; control tokens that are spelled out in it are control tokens.
        special: Add the control tokens that the tokenizer frames a text with, such as BOS.

    Raises:
        RequestError: No text, too long (`chat.MOST_BYTES`), or not valid Unicode.
    """
    ids = chat.encode_text(tokenizer, text, special=special)
    if not getattr(tokenizer, "is_fast", False):
        return pieces_of(tokenizer, ids)
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    found = pieces_of(tokenizer, encoded["input_ids"])
    spans = [(start, end) if end > start else None for start, end in encoded["offset_mapping"]]
    return [_placed(piece, span) for piece, span in zip(found, spans, strict=True)]


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[Piece]:
    """What each of `ids` is; `RequestError` for one that the vocabulary does not have."""
    _check(tokenizer, ids)
    special, added = set(tokenizer.all_special_ids), set(tokenizer.added_tokens_decoder)
    names = tokenizer.convert_ids_to_tokens(list(ids))
    texts = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    return [
        Piece(token, str(name), str(text), token in special, token in added)
        for token, name, text in zip(ids, names, texts, strict=True)
    ]


def detokenize(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = False) -> str:
    """The text of `ids`.

    Args:
        tokenizer: A tokenizer of transformers.
        ids: Token ids.
        skip_special: Leave control tokens out.

    Raises:
        RequestError: An id that the vocabulary does not have; the message names it and the vocabulary's size.
    """
    plain = read_ids(ids)
    if plain is None:
        plain = list(ids) if isinstance(ids, list | tuple) else _refuse(ids)
    _check(tokenizer, plain)
    text = tokenizer.decode(plain, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    return str(text)


def _refuse(ids: object) -> list[int]:
    raise RequestError(f"the ids are a {type(ids).__name__}", hint="a list of whole numbers, of one text", field="ids")


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the highest id: a vocabulary may have holes."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


def _placed(piece: Piece, span: tuple[int, int] | None) -> Piece:
    if span is None:
        return piece
    return Piece(piece.id, piece.piece, piece.text, piece.special, piece.added, *span)


def _check(tokenizer: Any, ids: Sequence[int]) -> None:
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ModelError(f"a {type(tokenizer).__name__} is no tokenizer")
    for at, token in enumerate(ids):
        if not _has(tokenizer, token):
            size = vocabulary_size(tokenizer)
            raise RequestError(
                f"the vocabulary has no token {token!r} (number {at + 1} of {len(ids)}); its size is {size}",
                hint=f"ids are 0 to {size - 1}",
                field="ids",
                vocabulary=size,
            )


def _has(tokenizer: Any, token: object) -> bool:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 1 << 31:
        return False
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except (IndexError, KeyError):  # how tokenizers in Python say that they have none
        return False
