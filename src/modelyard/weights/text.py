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
        self._window: list[int] = []  # ids whose decoding is compared: some already out, then the pending ones
        self._read = 0  # how many ids of the window are already out
        self._held = 0  # characters of their text that are not out yet (only after a run of broken bytes)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        if token in self._special:
            return ""
        self._window.append(token)
        before = len(self._decode(self._window[: self._read])) - self._held
        text = self._decode(self._window)
        pending = len(self._window) - self._read
        if text.endswith(_BROKEN):
            if pending <= _PATIENCE:
                return ""
            # More bytes than any character has: all but the last three belong to no character and never will.
            return self._take(text, before, len(text) - (_LONGEST_CHARACTER - 1), keep=_PATIENCE)
        if len(text) <= before and pending <= _PATIENCE:
            return ""
        return self._take(text, before, len(text), keep=pending)

    def flush(self) -> str:
        """What is left at the end: an unfinished character comes out as U+FFFD."""
        before = len(self._decode(self._window[: self._read])) - self._held
        piece = self._decode(self._window)[before:]
        self._window, self._read, self._held = [], 0, 0
        return piece

    def _take(self, text: str, start: int, end: int, *, keep: int) -> str:
        # The last few ids stay, so that the next ones are decoded in their context (a tokenizer that marks words by a
        # leading space drops it at the start of what it decodes).
        piece = text[start:end]
        self._held = max(len(text) - end, 0)
        self._window = self._window[-keep:]
        self._read = len(self._window)
        return piece

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
