"""Text while it arrives: whole characters, stop strings across pieces."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelyard.weights.generation.text import StopStrings, TextPieces
from tiny_models import make_tokenizer


def pieces_of(ids: list[int]) -> list[str]:
    """What comes out token by token, and the end."""
    pieces = TextPieces(make_tokenizer())
    return [*(pieces.push(token) for token in ids), pieces.flush()]


def byte_ids(data: bytes) -> list[int]:
    """One token for each byte, as a byte-level tokenizer has it in its alphabet."""
    from tokenizers import pre_tokenizers

    table = sorted(pre_tokenizers.ByteLevel.alphabet())
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    symbol = {byte: chr(byte) for byte in kept} | {byte: chr(256 + at) for at, byte in enumerate(moved)}
    assert sorted(symbol.values()) == table
    return [make_tokenizer().convert_tokens_to_ids(symbol[byte]) for byte in data]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_pieces_joined_are_the_text(text: str) -> None:
    """Whatever the text, the pieces of its bytes joined are that text, and none ends inside a character."""
    out = pieces_of(byte_ids(text.encode()))
    assert "".join(out) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in out)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_broken_bytes_come_out_as_the_tokenizer_decodes_them(data: bytes) -> None:
    """Bytes that are no text give what decoding all of them at once gives."""
    assert "".join(pieces_of(byte_ids(data))) == data.decode(errors="replace")


@cache
def make_word_tokenizer() -> Any:
    """As Llama 2 has it: words begin with a mark, unknown characters are bytes, the first space is stripped."""
    import transformers
    from tokenizers import Tokenizer, decoders, models

    words = ["\u2581", "\u2581my", "\u2581card", "c", "a", "r", "d", "m", "y", "\u2581c", "\u2581m"]
    symbols = ["<pad>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("\u2581", "m"), ("\u2581", "c"), ("\u2581m", "y")]
    vocabulary = {symbol: at for at, symbol in enumerate(dict.fromkeys(symbols))}
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@settings(max_examples=60, deadline=None)
@example(["aaaa", "aaaa", "\U000100000", "\U000100000"])
@given(st.lists(st.one_of(st.text("my card", min_size=1, max_size=4), st.text(min_size=1, max_size=2)), max_size=20))
def test_words_and_bytes_keep_their_spaces(parts: list[str]) -> None:
    """A tokenizer that strips the first space and falls back to bytes gives the same text in pieces as at once."""
    tokenizer = make_word_tokenizer()
    ids: list[int] = []
    for part in parts:
        for character in part:
            symbol = "\u2581" if character == " " else character
            known = tokenizer.convert_tokens_to_ids(symbol)
            ids += [known] if known is not None else [3 + byte for byte in character.encode()]
    pieces = TextPieces(tokenizer)
    joined = "".join([*(pieces.push(token) for token in ids), pieces.flush()])
    assert joined == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_an_unfinished_character_is_held_then_marked() -> None:
    """The first bytes of a character give nothing until the end, which marks them as broken."""
    assert pieces_of(byte_ids("é".encode()[:1])) == ["", "\ufffd"]


def test_special_tokens_give_no_text() -> None:
    """A control token in the middle of an answer adds nothing to the text."""
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("my<|user|> card", add_special_tokens=False)
    assert "".join(pieces_of(ids)) == "my card"


def test_work_is_linear_in_the_number_of_tokens() -> None:
    """However long the answer, and even if it is all broken bytes, each token decodes a bounded number of ids."""
    seen: list[int] = []

    class Counting:
        all_special_ids = make_tokenizer().all_special_ids

        def decode(self, ids: list[int], **options: bool) -> str:
            seen.append(len(ids))
            return str(make_tokenizer().decode(ids, **options))

    pieces = TextPieces(Counting())
    for token in byte_ids(b"\xff" * 200 + b"plain" * 40):
        pieces.push(token)
    assert max(seen) <= 32
    assert len(seen) <= 2 * 400


@pytest.mark.parametrize(
    ("stops", "text", "kept"),
    [
        (("END",), "one END two", "one "),
        (("aab",), "aaab", "a"),
        (("\n\n", "###"), "line\nline###", "line\nline"),
        (("b", "abc"), "xabc", "xa"),
        (("END",), "the EN", "the EN"),
        ((), "anything", "anything"),
    ],
)
def test_stop_strings_end_the_text_however_it_is_cut(stops: tuple[str, ...], text: str, kept: str) -> None:
    """The text up to the stop string that is complete first comes out, whatever pieces the text came in."""
    generator = random.Random(0)
    for _ in range(20):
        matcher = StopStrings(stops)
        cuts = sorted(generator.sample(range(len(text) + 1), k=min(3, len(text))))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert "".join(matcher.push(part) for part in parts) + matcher.close("") == kept
        assert matcher.stopped == (kept != text)
