"""Contamination: how much of an evaluation set occurs in a training corpus.

Every row of the evaluation set is compared with every document, word by word: its longest run of words that occurs in
one document, exactly and not by sampling. A row is flagged when that run is `n` words long, or is the whole row where the
row is shorter. The longest run is what Singh et al. found most telling ("Evaluation data contamination in LLMs",
arXiv:2411.03923, ConTAM); n-grams of words go back to Brown et al., arXiv:2005.14165, appendix C.

Words are runs of letters, digits and `_`, lower-cased in Unicode's compatible form; punctuation does not count and
digits do; Chinese, Japanese and Thai characters are words by themselves. Given `phrases` (a template's fixed parts, slot
values, names) are searched exactly instead, case aside, as whole tokens: `4821` is not found in `KX-4821`.

The corpus is read once, as a stream. This module knows no files and no models.

>>> found = check(["the cat sat on the mat today"], ["We know: The CAT sat on the mat, today!", "nothing"])
>>> found.contaminated, found.longest_match, found.documents
(1, 7, 2)
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

__all__ = ["Contamination", "Match", "check", "words_of"]

_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_ASCII_WORD = re.compile(r"[a-z0-9_]+")
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
# What may stand inside one token: a number, a code, an address, a date.
_JOIN = r"[\-/@.,:'+]"
_CHUNK_WORDS = 1 << 20

_UNKNOWN = 0  # a word that no row has, and the gap between two documents
_GAP = 1  # the gap between two rows; no document has it
_FIRST = 2


@dataclass(frozen=True)
class Match:
    """A flagged row.

    Attributes:
        row: Its index in the evaluation set.
        words: How many words it has.
        longest: Its longest run of words that occurs in one document.
        document: Index of a document with that run.
    """

    row: int
    words: int
    longest: int
    document: int

    @property
    def share(self) -> float:
        """Which part of the row the run is."""
        return self.longest / self.words


@dataclass(frozen=True)
class Contamination:
    """What was found.

    Attributes:
        documents: Documents read.
        rows: Rows of the evaluation set.
        n: Length of the run, in words, that flags a row.
        longest_match: The longest run of any row, flagged or not.
        matches: The flagged rows, in order.
        phrases: How many phrases were searched.
        phrases_found: Those that occur in the corpus.
    """

    documents: int
    rows: int
    n: int
    longest_match: int
    matches: tuple[Match, ...]
    phrases: int = 0
    phrases_found: tuple[str, ...] = ()

    @property
    def contaminated(self) -> int:
        """How many rows are flagged."""
        return len(self.matches)

    @property
    def share(self) -> float:
        """Which part of the rows is flagged."""
        return len(self.matches) / self.rows

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON; flagged rows are listed by index."""
        return {
            "documents": self.documents,
            "rows": self.rows,
            "n": self.n,
            "contaminated": self.contaminated,
            "share": self.share,
            "longest_match": self.longest_match,
            "contaminated_rows": [match.row for match in self.matches],
            "phrases": self.phrases,
            "phrases_found": list(self.phrases_found),
        }


def words_of(text: str) -> list[str]:
    """The words of `text` as they are compared.

    >>> words_of("Parcel KX-4821, please!")
    ['parcel', 'kx', '4821', 'please']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(_fold(text))


def check(
    eval_texts: Sequence[str], corpus: Iterable[str], *, n: int = 8, phrases: Sequence[str] = ()
) -> Contamination:
    """Compare an evaluation set with a corpus.

    Args:
        eval_texts: One text for each row: question and answer.
        corpus: Documents, read once.
        n: How many words in a row flag a row.
        phrases: Texts that must not occur at all. One without a letter or digit says nothing and is left out.

    Raises:
        InputError: If there are no rows, or `n` is not positive.
    """
    if not eval_texts:
        raise InputError("there are no rows to look for in the corpus")
    if n < 1:
        raise InputError(f"a run of {n} words flags nothing", hint="8 is usual")
    rows = _Rows([words_of(text) for text in eval_texts])
    wanted = sorted({phrase.strip() for phrase in phrases if words_of(phrase)})
    finder = _Phrases(wanted)
    documents = 0
    for chunk in _chunks(corpus):
        rows.search(chunk, documents)
        finder.search(chunk)
        documents += len(chunk)
    longest, where = rows.longest()
    lengths = rows.lengths
    flagged = [
        Match(row, lengths[row], int(longest[row]), int(where[row]))
        for row in range(len(lengths))
        if lengths[row] and longest[row] >= min(n, lengths[row])
    ]
    return Contamination(
        documents=documents,
        rows=len(eval_texts),
        n=n,
        longest_match=int(longest.max()),
        matches=tuple(flagged),
        phrases=len(wanted),
        phrases_found=finder.found(),
    )


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


@dataclass
class _Document:
    text: str
    words: list[str]


def _chunks(corpus: Iterable[str]) -> Iterator[list[_Document]]:
    """Documents in lists of about a million words: large enough for numpy, small enough for any memory."""
    chunk: list[_Document] = []
    size = 0
    for text in corpus:
        document = _Document(text, words_of(text))
        chunk.append(document)
        size += len(document.words) + 1
        if size >= _CHUNK_WORDS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Rows:
    """The evaluation set as numbers, and the longest run found so far from each of its positions."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        import numpy as np

        self.lengths = [len(row) for row in rows]
        self._ids: dict[str, int] = {}
        flat: list[int] = []
        self._starts: list[int] = []
        for row in rows:
            self._starts.append(len(flat))
            flat.extend(self._ids.setdefault(word, len(self._ids) + _FIRST) for word in row)
            flat.append(_GAP)
        self._flat = np.array(flat, dtype=np.int64)
        self._best = np.zeros(len(flat), dtype=np.int64)
        self._where = np.full(len(flat), -1, dtype=np.int64)

    def search(self, documents: Sequence[_Document], first: int) -> None:
        """Follow every run of words that a row and a document share, one word further at a time.

        Positions of rows and of documents that share their first L words have the same `node`. Each step looks one word
        further, numbers the continuations that the rows have, and drops every position whose continuation the other side
        lacks; few are left after two or three words.
        """
        import numpy as np

        flat: list[int] = []
        ends: list[int] = []
        get = self._ids.get
        for document in documents:
            flat.extend([get(word, _UNKNOWN) for word in document.words])
            flat.append(_UNKNOWN)
            ends.append(len(flat))
        text = np.array(flat, dtype=np.int64)
        texts = np.flatnonzero(text)
        rows = np.flatnonzero(self._flat != _GAP)
        text_nodes, row_nodes = text[texts], self._flat[rows]
        nodes = len(self._ids) + _FIRST
        length = 1
        while True:
            reached = np.full(nodes, -1, dtype=np.int64)
            reached[text_nodes[::-1]] = texts[::-1]  # the first position wins
            kept = reached[row_nodes] >= 0
            rows, row_nodes = rows[kept], row_nodes[kept]
            if not rows.size:
                return
            self._note(rows, length, first + np.searchsorted(ends, reached[row_nodes], side="right"))
            texts, text_nodes, rows, row_nodes, nodes = _step(
                (text, texts, text_nodes), (self._flat, rows, row_nodes), length, len(self._ids) + _FIRST
            )
            length += 1

    def _note(self, rows: Integers, length: int, documents: Integers) -> None:
        longer = self._best[rows] < length
        self._best[rows[longer]] = length
        self._where[rows[longer]] = documents[longer]

    def longest(self) -> tuple[Integers, Integers]:
        """For each row: its longest run so far, and the document it was first seen in (-1: none)."""
        import numpy as np

        longest = np.maximum.reduceat(self._best, self._starts)
        ends = [*self._starts[1:], len(self._best)]
        spots = [start + int(self._best[start:end].argmax()) for start, end in zip(self._starts, ends, strict=True)]
        return longest, self._where[spots]


def _step(
    text: tuple[Integers, Integers, Integers], row: tuple[Integers, Integers, Integers], length: int, words: int
) -> tuple[Integers, Integers, Integers, Integers, int]:
    """Positions and nodes one word further, on both sides, and how many nodes there are.

    `text` and `row` are each (word ids, positions, nodes of the positions).
    """
    import numpy as np

    sides = []
    for ids, positions, nodes in (text, row):
        # Both sides end with a gap, so a run that is still alive never leaves its array.
        following = ids[positions + length]
        real = following >= _FIRST
        sides.append((positions[real], nodes[real] * words + following[real]))
    (texts, text_keys), (rows, row_keys) = sides
    keys, row_nodes = np.unique(row_keys, return_inverse=True)
    if not keys.size:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty, empty, empty, 0
    spots = np.minimum(np.searchsorted(keys, text_keys), len(keys) - 1)
    known = keys[spots] == text_keys
    return texts[known], spots[known], rows, row_nodes, len(keys)


class _Phrases:
    """Phrases that are still to be found, by their first word."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._found: set[str] = set()
        self._waiting: dict[str, list[tuple[str, list[str], re.Pattern[str]]]] = {}
        for phrase in phrases:
            words = words_of(phrase)
            whole = re.compile(rf"(?<!\w)(?<!\w{_JOIN}){re.escape(_fold(phrase))}(?!\w)(?!{_JOIN}\w)")
            self._waiting.setdefault(words[0], []).append((phrase, words, whole))

    def search(self, documents: Sequence[_Document]) -> None:
        """Look for the phrases that were not found yet: first by words, then in the text itself."""
        for document in documents:
            if self._waiting and not self._waiting.keys().isdisjoint(document.words):
                self._look(document)

    def _look(self, document: _Document) -> None:
        words = document.words
        for position, word in enumerate(words):
            for entry in tuple(self._waiting.get(word, ())):
                phrase, wanted, whole = entry
                if words[position : position + len(wanted)] == wanted and whole.search(_fold(document.text)):
                    self._found.add(phrase)
                    self._waiting[word].remove(entry)
                    if not self._waiting[word]:
                        del self._waiting[word]

    def found(self) -> tuple[str, ...]:
        """The phrases found, sorted."""
        return tuple(sorted(self._found))
