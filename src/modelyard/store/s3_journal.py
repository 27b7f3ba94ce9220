"""The journal of a yard on S3: entries that are never replaced by others, as far as the endpoint can promise that.

Knows numbers and bytes; does not know what an entry says.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import ConflictError, IntegrityError
from modelyard.store.layout import Layout, frame_entry, unframe_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.store.s3_bucket import Bucket

__all__ = ["S3Journal"]

_SEQ = re.compile(r"0|[1-9]\d{0,18}")
_SEQ_END = 1 << 63
_ENTRY_LIMIT = 64 << 20
_PROBE = "tmp/conditional"
_AT_ONCE = 8


class S3Journal:
    """The entries under `journal/` of a prefix; safe to share between threads."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._layout = Layout(Path())
        self._lock = threading.Lock()
        self._conditional: bool | None = None

    def publish(self, seq: int, entry: bytes) -> None:
        """Store entry number `seq`; see `Store.publish_journal`."""
        name = self._name(seq)
        framed = frame_entry(entry)
        if self.is_conditional():
            if self._bucket.put_new(name, framed) or self._agrees(seq, entry):
                return
        elif self._agrees(seq, entry):
            return
        # There is none, or a damaged one, and this endpoint would not notice another writer: look again afterwards.
        self._bucket.put(name, framed)
        if not self._agrees(seq, entry):
            raise IntegrityError(
                f"journal entry {seq} of the yard `{self._bucket.location}` is not what was written",
                hint="try again; if that does not help, the endpoint loses writes",
            )

    def entries(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """The entries in ascending order, each verified, several fetched at a time; see `Store.journal`."""
        names = (name.removeprefix("journal/") for name in self._bucket.names("journal/"))
        numbers = sorted({int(name) for name in names if _SEQ.fullmatch(name) and after < int(name) < _SEQ_END})
        with ThreadPoolExecutor(_AT_ONCE, "journal") as pool:
            for first in range(0, len(numbers), _AT_ONCE * 8):
                some = numbers[first : first + _AT_ONCE * 8]
                for seq, entry in zip(some, pool.map(self._entry, some), strict=True):
                    if entry is not None:
                        yield seq, entry
                    elif damaged is not None:
                        damaged(seq)
                    else:
                        raise IntegrityError(
                            f"journal entry {seq} of the yard `{self._bucket.location}` is damaged",
                            hint="copy it from a backup of the yard; only rebuilding a lost catalog needs it",
                        )

    def is_conditional(self) -> bool:
        """Whether the endpoint honours `If-None-Match: *`: tried once, on an empty object that says nothing."""
        with self._lock:
            if self._conditional is None:
                stored = self._bucket.put_new(_PROBE, b"")
                # Stored: it was not there, or the endpoint ignores the condition. The second answer tells.
                self._conditional = (self._bucket.put_new(_PROBE, b"") if stored else stored) is False
            return self._conditional

    def _name(self, seq: int) -> str:
        return self._layout.journal_entry(seq).as_posix()

    def _entry(self, seq: int) -> bytes | None:
        """Entry number `seq`, or None when it is missing or damaged."""
        found = self._bucket.get(self._name(seq), _ENTRY_LIMIT)
        return None if found is None else unframe_entry(found)

    def _agrees(self, seq: int, entry: bytes) -> bool:
        """Whether entry `seq` is there, sound, and says this; `ConflictError` when it says something else."""
        found = self._entry(seq)
        if found is not None and found != entry:
            raise ConflictError(
                f"journal entry {seq} of the yard `{self._bucket.location}` is already published and says something else",
                hint="two catalogs may share this store: look at `yard doctor`",
                seq=seq,
            )
        return found is not None
