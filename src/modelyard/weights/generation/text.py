"""From token ids to text while they arrive: whole characters only, and stop strings across token boundaries.

The pieces that come out, joined, are the text; no piece ever ends inside a character, and nothing of a stop string is
let out before it is certain not to be one. Work is linear in the number of tokens. Knows a tokenizer only by its
`decode`; knows no model and no batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["StopStrings", "TextPieces"]

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes of a UTF-8 character, hence the most byte tokens that one can take
_PATIENCE = 2 * _LONGEST_CHARACTER


class TextPieces:
    """Turns one answer's token ids into pieces of text.

    A byte-level tokenizer may spread one character over several tokens: they are held until it is whole. Special
    tokens are left out. What comes out, joined, is `tokenizer.decode(ids, skip_special_tokens=True)` wherever the ids
    are valid text; bytes that are no character come out as U+FFFD.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._window: list[int] = []  # the last ids: some already out, for context, then the pending ones
        self._read = 0  # how many ids of the window are out
        self._out = 0  # how many characters of the window's text are out

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        if token in self._special:
            return ""
        self._window.append(token)
        text, end = self._decode(self._window), None
        waited = len(self._window) - self._read > _PATIENCE
        if text.endswith(_BROKEN):
            # More bytes than any character has: all but the last three belong to no character and never will.
            end = len(text) - (_LONGEST_CHARACTER - 1) if waited else None
        elif len(text) > self._out or waited:
            end = len(text)
        if end is None:
            return ""
        piece = text[self._out : end]
        self._out, self._read = max(end, self._out), len(self._window)
        self._forget(text)
        return piece

    def flush(self) -> str:
        """What is left at the end: an unfinished character comes out as U+FFFD."""
        piece = self._decode(self._window)[self._out :]
        self._window, self._read, self._out = [], 0, 0
        return piece

    def _forget(self, text: str) -> None:
        """Shorten a long window, whose text is `text`.

        A few ids stay, because a tokenizer that marks words by a leading space drops it at the start of what it decodes;
        and they begin with a whole character, because one that falls back to bytes breaks the whole run otherwise.
        """
        if len(self._window) <= 2 * _PATIENCE:
            return
        held = len(text) - self._out
        choices = [self._window[-keep:] for keep in range(_PATIENCE, _PATIENCE + _LONGEST_CHARACTER)]
        self._window = next((ids for ids in choices if text.endswith(self._decode(ids))), choices[0])
        self._read = len(self._window)
        self._out = len(self._decode(self._window)) - held

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


class StopStrings:
    """Lets text through up to the first stop string, which it swallows.

    >>> stops = StopStrings(("END",))
    >>> stops.push("one E"), stops.push("NE"), stops.push("ND two"), stops.stopped
    ('one ', 'EN', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What of the text so far is certain to be wanted; sets `stopped` when a stop string is complete."""
        if not self._stops or self.stopped:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            # The one that ends first: the same whether the text came in one piece or by character.
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self, piece: str) -> str:
        """The end of the text: `piece`, and what was held because it might have become a stop string."""
        text = self.push(piece)
        held, self._held = self._held, ""
        return text + held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The length of the longest end of `text` that begins `stop` (and is not all of it)."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
