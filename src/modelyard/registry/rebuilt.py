"""A file that is not whole as a stream, and the decoder that looks elsewhere.

`RebuiltFile` reads in any order and holds one segment at a time, however large the file is. Knows the pieces that it is given;
not why the file is not whole.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from typing import TYPE_CHECKING

from modelyard.catalog import segments
from modelyard.registry.decoding import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelyard.catalog import Catalog
    from modelyard.catalog.files import Piece
    from modelyard.store.base import Store

__all__ = ["RebuiltFile", "decoder_without"]


class RebuiltFile(io.RawIOBase):
    """A file that is not whole as a stream: holds one segment at a time, asks for the next when it is read."""

    def __init__(self, pieces: Sequence[Piece], decoder: Decoder) -> None:
        self._pieces, self._decoder = pieces, decoder
        self._starts = [piece.start for piece in pieces]
        self._size = pieces[-1].start + pieces[-1].size if pieces else 0
        self._position = 0
        self._held: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is read."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"{origin + offset} is no place in a file")
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # as RawIOBase calls it
        """Read up to the end of the segment at hand; `IntegrityError` when it is damaged."""
        if self._position >= self._size:
            return 0
        at = bisect_right(self._starts, self._position) - 1
        if self._held[0] != at:
            self._held = (-1, b"")  # first, so that two segments are never held
            self._held = (at, self._decoder.segment(self._pieces[at].segment))
        skipped = self._position - self._starts[at]
        part = memoryview(self._held[1])[skipped : skipped + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        """Let the segment go."""
        self._held = (-1, b"")
        super().close()


def decoder_without(store: Store, catalog: Catalog, file: str) -> Decoder:
    """A decoder that takes nothing from one whole file, which is damaged: only from packs, and from other whole files."""

    def lookup(wanted: Iterable[str]) -> Mapping[str, segments.SegmentRow]:
        with catalog.read() as connection:
            return segments.find(connection, wanted)

    def all_homes(wanted: Iterable[str]) -> dict[str, list[tuple[str, int]]]:
        with catalog.read() as connection:
            found = segments.all_homes(connection, wanted)
        return {
            segment: left for segment, places in found.items() if (left := [each for each in places if each[0] != file])
        }

    def homes(wanted: Iterable[str]) -> Mapping[str, tuple[str, int]]:
        return {segment: places[0] for segment, places in all_homes(wanted).items()}

    def others(wanted: str) -> Iterable[tuple[str, int]]:
        return all_homes([wanted]).get(wanted, ())

    return Decoder(store, lookup, homes, others=others)
