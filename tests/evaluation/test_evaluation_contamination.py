"""Contamination: every shared run of words is found, exactly, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import InputError
from modelyard.evaluation import contamination
from modelyard.evaluation.contamination import check, words_of


def longest_common_run(left: list[str], right: list[str]) -> int:
    """The slow way: the longest run of words that two texts share."""
    best = 0
    for i in range(len(left)):
        for j in range(len(right)):
            length = 0
            while i + length < len(left) and j + length < len(right) and left[i + length] == right[j + length]:
                length += 1
            best = max(best, length)
    return best


few_words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=12).map(" ".join)


@given(st.lists(few_words, min_size=1, max_size=5), st.lists(few_words, max_size=6), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_the_longest_run_is_exact(rows: list[str], corpus: list[str], n: int) -> None:
    """Flags, longest runs and documents agree with a comparison of every position with every position."""
    found = check(rows, corpus, n=n)
    slow = {
        row: max((longest_common_run(text.split(), document.split()) for document in corpus), default=0)
        for row, text in enumerate(rows)
    }
    assert found.longest_match == max(slow.values())
    flagged = [row for row, text in enumerate(rows) if text and slow[row] >= min(n, len(text.split()))]
    assert [match.row for match in found.matches] == flagged
    for match in found.matches:
        assert match.longest == slow[match.row]
        assert longest_common_run(rows[match.row].split(), corpus[match.document].split()) == match.longest


@given(st.lists(few_words, min_size=1, max_size=5), st.lists(few_words, max_size=8))
@settings(max_examples=30, deadline=None)
def test_chunks_change_nothing(rows: list[str], corpus: list[str]) -> None:
    """Read in small pieces or in one, the corpus gives the same result."""
    whole = check(rows, iter(corpus), n=3)
    before = contamination._CHUNK_WORDS
    contamination._CHUNK_WORDS = 5
    try:
        assert check(rows, iter(corpus), n=3) == whole
    finally:
        contamination._CHUNK_WORDS = before


def test_punctuation_and_case_do_not_hide_a_copy() -> None:
    """A row with other case and punctuation is found, with the document it is in and the share that matched."""
    row = "Natalia sold clips to 48 of her friends in April, and then?"
    found = check([row, "something else entirely"], ["nothing", "natalia SOLD clips: to 48 of her friends in april!"])
    assert (found.contaminated, found.share, found.longest_match) == (1, 0.5, 10)
    assert (found.matches[0].row, found.matches[0].document) == (0, 1)
    assert found.matches[0].share == 10 / 12


def test_digits_count() -> None:
    """The same sentence about another number is not the same run of words."""
    assert (
        check(
            ["Order 12 was charged twice today please help"], ["order 13 was charged twice today please help"]
        ).contaminated
        == 0
    )


def test_seven_words_of_a_longer_row_are_no_copy() -> None:
    """A run shorter than `n` does not flag a row that is longer, and is reported as the longest."""
    found = check(["a b c d e f g h"], ["a b c d e f g x"])
    assert (found.contaminated, found.longest_match) == (0, 7)


def test_a_short_row_is_flagged_as_a_whole() -> None:
    """A row with fewer than `n` words is flagged exactly if all of it occurs in one document."""
    assert check(["track my parcel"], ["please track my parcel now"]).contaminated == 1
    assert check(["track my parcel"], ["please track my", "parcel now"]).contaminated == 0


def test_runs_do_not_cross_documents_or_rows() -> None:
    """Neither two documents nor two rows side by side make a run."""
    assert check(["a b c d"], ["a b", "c d"], n=4).longest_match == 2
    assert check(["a b", "c d"], ["a b c d"], n=4).longest_match == 2


def test_rows_without_words_are_never_flagged() -> None:
    """A row of punctuation says nothing and breaks nothing."""
    found = check(["?!", "", "word"], ["?! word"])
    assert [match.row for match in found.matches] == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("KX-4821, track_parcel!", ["kx", "4821", "track_parcel"]),
        ("Füße \uff21\uff22\uff23", ["füße", "abc"]),
        ("我的卡 arrived", ["我", "的", "卡", "arrived"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Words in any script: folded to lower case and compatible form, Chinese character by character."""
    assert words_of(text) == words


def test_scripts_without_spaces_are_compared() -> None:
    """A copied Chinese sentence is found although it has no spaces."""
    assert check(["我的银行卡还没有收到请问在哪里"], ["你好。我的银行卡还没有收到,请问在哪里?"]).contaminated == 1


@pytest.mark.parametrize(
    ("phrase", "document", "there"),
    [
        ("track_parcel", '{"intent": "track_parcel"}', True),
        ("Track my parcel", "please TRACK my parcel!", True),
        ("track my", "track, my", False),
        ("4821", "KX-4821", False),
        ("4821", "order 4821.", True),
        ("34/32", "size 134/32", False),
        ("34/32", "26/34 32/40", False),
        ("34/32", "(34/32)", True),
        ("lena", "Selena", False),
        ("a.b@c.example", "mail a.b@c.example, please", True),
        ("b@c.example", "mail a.b@c.example", False),
        ("Müller", "an MÜLLER", True),
        ("a+b (c)", "so a+b (c) it is", True),
    ],
)
def test_phrases_are_searched_exactly(phrase: str, document: str, there: bool) -> None:
    """A phrase is found where it stands as whole tokens, case aside, punctuation included."""
    found = check(["row"], [document], phrases=[phrase])
    assert found.phrases_found == ((phrase,) if there else ())
    assert found.phrases == 1


def test_a_near_miss_does_not_end_the_search() -> None:
    """A phrase whose words occur otherwise in one document is still found in a later one."""
    assert check(["row"], ["26/34 32/40", "34/32"], phrases=["34/32", "34/32 ", "?"]).phrases_found == ("34/32",)


def test_the_result_is_plain_json() -> None:
    """The result's plain form has the documented keys."""
    plain = check(["a b c"], ["a b c", "x"], phrases=["x"]).to_dict()
    assert json.loads(json.dumps(plain)) == {
        "documents": 2,
        "rows": 1,
        "n": 8,
        "contaminated": 1,
        "share": 1.0,
        "longest_match": 3,
        "contaminated_rows": [0],
        "phrases": 1,
        "phrases_found": ["x"],
    }


def test_nothing_to_look_for_is_refused() -> None:
    """No rows, or a run of no words, is an `InputError`: a check of nothing must not look clean."""
    with pytest.raises(InputError):
        check([], ["a"])
    with pytest.raises(InputError):
        check(["a"], ["a"], n=0)


def test_an_empty_corpus_holds_nothing() -> None:
    """Without documents nothing is contaminated, and the count says that none was read."""
    found = check(["a b"], [])
    assert (found.documents, found.contaminated, found.longest_match) == (0, 0, 0)
