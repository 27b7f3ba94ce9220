"""Text to tokens and back, by fast tokenizers and by SentencePiece's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation.vocabulary import Piece, detokenize, pieces_of, tokenize, vocabulary_size
from task_models.text import bert_tokenizer, gpt2_tokenizer, t5_tokenizer
from tiny_models import TEXT, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["where is my card", "é and 日本 😀", "a  b\n", ""]


def sentencepiece(folder: Path) -> Any:
    """A slow tokenizer over a SentencePiece model that is trained here."""
    import sentencepiece as spm
    from transformers import PreTrainedTokenizer

    folder.mkdir(exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(TEXT * 20), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
    )
    model = spm.SentencePieceProcessor(model_file=str(folder / "spiece.model"))

    class Slow(PreTrainedTokenizer):
        """The least that transformers asks of a slow tokenizer."""

        @property
        def vocab_size(self) -> int:
            return int(model.get_piece_size())

        def get_vocab(self) -> dict[str, int]:
            return {model.id_to_piece(at): at for at in range(self.vocab_size)} | self.added_tokens_encoder

        def _tokenize(self, text: str, **_options: Any) -> list[str]:
            return list(model.encode(text, out_type=str))

        def _convert_token_to_id(self, token: str) -> int:
            return int(model.piece_to_id(token))

        def _convert_id_to_token(self, index: int) -> str:
            return str(model.id_to_piece(index))

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return str(model.decode(tokens))

    make: Any = Slow
    made = make(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.add_tokens(["<|call|>"])
    return made


def test_pieces_are_the_tokenizers_own() -> None:
    """Ids, pieces and places in the text are what the tokenizer says, for byte-level, word-piece and unigram ones."""
    for tokenizer in (make_tokenizer(), bert_tokenizer(), gpt2_tokenizer(), t5_tokenizer()):
        for text in TEXTS:
            for special in (True, False):
                found = tokenize(tokenizer, text, special=special)
                encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
                assert [piece.id for piece in found] == encoded["input_ids"]
                assert [piece.piece for piece in found] == tokenizer.convert_ids_to_tokens(encoded["input_ids"])
                for piece, (start, end) in zip(found, encoded["offset_mapping"], strict=True):
                    assert (piece.start, piece.end) == ((start, end) if end > start else (None, None))


def test_control_tokens_are_marked() -> None:
    """What frames a text, and what is spelled out in it, is special; the rest is not."""
    found = tokenize(bert_tokenizer(), "my card")
    assert [piece.special for piece in found] == [True, False, False, True]
    assert [piece.piece for piece in found] == ["[CLS]", "my", "card", "[SEP]"]
    spelled = tokenize(make_tokenizer(), "hi<|end|>")[-1]
    assert spelled == Piece(spelled.id, "<|end|>", "<|end|>", special=True, added=True, start=2, end=9)


def test_a_part_of_a_character_is_shown_as_one() -> None:
    """A character of several byte tokens decodes to U+FFFD piece by piece, and to itself together."""
    found = tokenize(make_tokenizer(), "😀")
    assert len(found) > 1
    assert {piece.text for piece in found} == {"\ufffd"}
    assert {(piece.start, piece.end) for piece in found} == {(0, 1)}
    assert detokenize(make_tokenizer(), [piece.id for piece in found]) == "😀"


def test_detokenize_undoes_tokenize() -> None:
    """Byte-level text comes back exactly, control tokens only where they are wanted."""
    tokenizer = make_tokenizer()
    for text in TEXTS:
        assert detokenize(tokenizer, [piece.id for piece in tokenize(tokenizer, text)]) == text
    ids = [1, *tokenizer.encode("hi"), 1]
    assert detokenize(tokenizer, ids) == "<|end|>hi<|end|>"
    assert detokenize(tokenizer, ids, skip_special=True) == "hi"


def test_a_sentencepiece_tokenizer_is_read_too(tmp_path: Path) -> None:
    """A slow tokenizer gives ids, pieces and specials, without places; added tokens are known as added."""
    tokenizer = sentencepiece(tmp_path)
    found = tokenize(tokenizer, "my card<|call|>")
    assert [piece.id for piece in found] == tokenizer.encode("my card<|call|>")
    assert "".join(piece.piece for piece in found).replace("▁", " ").strip() == "my card<|call|>"
    assert [piece.added for piece in found] == [False] * (len(found) - 1) + [True]
    assert {piece.start for piece in found} == {None}
    assert detokenize(tokenizer, [piece.id for piece in found]).replace(" ", "") == "mycard<|call|>"
    with pytest.raises(RequestError, match=f"no token {len(tokenizer)}"):
        detokenize(tokenizer, [len(tokenizer)])


def test_an_id_outside_the_vocabulary_is_named() -> None:
    """The message has the id, its place and the vocabulary's size; negative ids and what is no number are refused, too."""
    tokenizer = make_tokenizer()
    size = vocabulary_size(tokenizer)
    assert size == len(tokenizer)
    for wrong in (size, -1, True, "a"):
        with pytest.raises(RequestError, match=rf"no token {wrong!r} \(number 2 of 3\); its size is {size}"):
            detokenize(tokenizer, [5, wrong, 6])  # type: ignore[list-item]
    with pytest.raises(RequestError):
        pieces_of(tokenizer, [size])


def test_a_hole_in_the_vocabulary_is_no_token() -> None:
    """A token that was added behind a gap is known, and the ids of the gap are not."""
    import transformers
    from tokenizers import Tokenizer, models

    vocabulary = {"a": 0, "b": 1, "z": 9}
    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")))
    assert detokenize(tokenizer, [0, 9]) == "a z"
    with pytest.raises(RequestError, match="no token 5"):
        detokenize(tokenizer, [5])


def test_what_is_no_text_is_refused() -> None:
    """A lone surrogate and a list are no text; an image processor is no tokenizer."""
    with pytest.raises(RequestError, match="surrogate"):
        tokenize(make_tokenizer(), "\ud800")
    with pytest.raises(RequestError, match="no text"):
        tokenize(make_tokenizer(), ["a"])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no tokenizer"):
        detokenize(object(), [1])
