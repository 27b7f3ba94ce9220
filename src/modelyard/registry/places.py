"""Where the tensors of stored files lie, in segments.

A file's bytes are found through the pieces it is cut into, so a file that is not whole is read like any other and nothing is
put together on disk: `HeaderFiles` shows a version to those who read headers and configurations only. A file that nobody
has cut yet is cut here. Knows safetensors headers and segments; does not know how segments are kept or why.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from modelyard.catalog import files as files_table
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import IntegrityError, ModelError, NotFoundError
from modelyard.weights.files import READ_LIMIT
from modelyard.weights.headers import Header, Limits, parse_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.catalog.files import FileRow, Piece
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context
    from modelyard.registry.decoding import Decoder

__all__ = ["HeaderFiles", "Places", "Slice", "TensorPlace"]

_REMEMBERED = 64  # files whose pieces and header are kept at hand
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes `start` to `end` of a segment."""

    segment: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor's dtype, shape, and the bytes of the file it is; `name` is what the file calls it."""

    file: str
    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def rows(self) -> int:
        """How many rows it counts as: its first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return self.rows * self.columns

    @property
    def columns(self) -> int:
        """How many columns it counts as: the product of all dimensions but the first."""
        count = 1
        for length in self.shape[1:]:
            count *= length
        return count


@dataclass(frozen=True, slots=True)
class _File:
    """What is known of one file: its row, its pieces in order, where each starts, its header if it has one."""

    row: FileRow
    pieces: Sequence[Piece]
    starts: list[int]


class Places:
    """Finds tensors and bytes in stored files.

    Args:
        context: The yard.
        decoder: Reads segments.
    """

    def __init__(self, context: Context, decoder: Decoder) -> None:
        self._context, self._decoder = context, decoder
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._headers: OrderedDict[str, Header | None] = OrderedDict()

    def row(self, file: str, path: str) -> FileRow:
        """The file's row; `path` is what a version calls it."""
        return self._file(file, path).row

    def pieces(self, file: str, path: str) -> Sequence[Piece]:
        """The segments of a file in order, cut now if nobody did before."""
        return self._file(file, path).pieces

    def slices(self, file: str, path: str, start: int, end: int) -> list[Slice]:
        """Bytes `start` to `end` of a file as parts of its segments, in order."""
        found = self._file(file, path)
        made: list[Slice] = []
        for piece in found.pieces[max(bisect_right(found.starts, start) - 1, 0) :]:
            if piece.start >= end:
                break
            first, last = max(start - piece.start, 0), min(end - piece.start, piece.size)
            if first < last:
                made.append(Slice(piece.segment, first, last))
        return made

    def read(self, file: str, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of a file, verified segment by segment."""
        parts = self.slices(file, path, start, end)
        return b"".join(
            data[part.start : part.end]
            for part, data in zip(parts, self._decoder.segments([part.segment for part in parts]), strict=True)
        )

    def is_sound(self, segment: str, file: str, start: int, size: int) -> bool:
        """Whether a segment lies in a whole file where it should; the bytes are read there, and nowhere else."""
        try:
            # Opened, not read as a range: what a store has at hand of it may have outlived what is stored.
            with self._context.raw.open_file(Digest(file)) as stream:
                stream.seek(start)
                return digest_bytes(stream.read(size)) == segment
        except IntegrityError:
            return False

    def header(self, file: str, path: str) -> Header | None:
        """The header of a sound safetensors file; None for any other file."""
        if not path.endswith(".safetensors"):
            return None
        if file in self._headers:
            self._headers.move_to_end(file)
            return self._headers[file]
        found = self._headers[file] = self._parse(file, path)
        if len(self._headers) > _REMEMBERED:
            self._headers.popitem(last=False)
        return found

    def header_bytes(self, file: str, path: str) -> bytes:
        """A safetensors file up to its first tensor byte."""
        header = self.header(file, path)
        if header is None:
            raise ModelError(f"`{path}` has no sound safetensors header", code="bad_header")
        return self.read(file, path, 0, header.data_start)

    def tensors(self, record: VersionRecord) -> dict[str, TensorPlace]:
        """Every tensor of a version's safetensors files; one in a folder is called `folder/name`."""
        found: dict[str, TensorPlace] = {}
        for entry in record.files:
            header = self.header(entry.blake3, entry.path)
            if header is None:
                continue
            folder = PurePosixPath(entry.path).parent.as_posix()
            for name, info in header.tensors.items():
                start, end = header.data_start + info.start, header.data_start + info.end
                place = TensorPlace(entry.blake3, entry.path, name, info.dtype, info.shape, start, end)
                found[name if folder == "." else f"{folder}/{name}"] = place
        return found

    def _parse(self, file: str, path: str) -> Header | None:
        size = self._file(file, path).row.size
        length = int.from_bytes(self.read(file, path, 0, min(size, 8)), "little")
        if size < 10 or not 2 <= length <= min(size - 8, Limits().header):
            return None
        try:
            return parse_header(self.read(file, path, 8, 8 + length), size - 8 - length, path)
        except ModelError:
            return None  # it was committed as it is, and to its bytes it does not matter what it was meant to be

    def _file(self, file: str, path: str) -> _File:
        known = self._files.get(file)
        if known is not None:
            self._files.move_to_end(file)
            return known
        with self._context.catalog.read() as connection:
            row = files_table.find(connection, [file]).get(file)
            pieces = files_table.pieces(connection, file)
        if row is None:
            raise IntegrityError(f"file `{file[:16]}` (`{path}`) is not in the catalog", code="missing")
        if row.cut is None:
            row, pieces = self._cut(row, path)
        known = self._files[file] = _File(row, pieces, [piece.start for piece in pieces])
        if len(self._files) > _REMEMBERED:
            self._files.popitem(last=False)
        return known

    def _cut(self, row: FileRow, path: str) -> tuple[FileRow, list[Piece]]:
        """Cut a whole file: its bytes are hashed once, in ranges, and must still be the file's."""
        from modelyard.registry.cuts import find_cut
        from modelyard.store.hashing import Segmenting

        store, digest = self._context.raw, Digest(row.digest)
        store.verify_file(digest)
        cut = find_cut(store.file_path(digest), path)
        segmenting = Segmenting(cut.sizes)
        with store.open_file(digest) as stream:
            while chunk := stream.read(_CHUNK):
                segmenting.update(chunk)
        pieces, start = [], 0
        for position, (segment, size) in enumerate(zip(segmenting.digests(), cut.sizes, strict=True)):
            pieces.append(files_table.Piece(position, str(segment), start, size))
            start += size
        # Recorded in a dry run, too: a cut follows from the bytes, so it is not a change but something found out.
        with self._context.change() as tx:
            # Somebody may have cut it and let it go meanwhile, or collected it: whether it is whole is not ours to say.
            now = files_table.find(tx.connection, [row.digest]).get(row.digest)
            if now is None:
                raise IntegrityError(f"file `{row.digest[:16]}` (`{path}`) was collected meanwhile", code="missing")
            cut_row = files_table.FileRow(row.digest, row.size, row.sha256, row.git_blob, cut.name, now.whole)
            files_table.record(tx, [cut_row])
            files_table.record_pieces(tx, row.digest, pieces)
        return cut_row, pieces


class HeaderFiles:
    """A stored version as `weights.Files`, for readers of headers and configurations.

    A safetensors file's `path` is a sparse file in `folder` with the right header, the right size, and no tensor bytes.
    """

    def __init__(self, places: Places, record: VersionRecord, folder: Path) -> None:
        self.label = f"{record.repo.name}@v{record.number}"
        self._places, self._folder = places, folder
        self._entries = {entry.path: entry for entry in record.files}

    def names(self) -> list[str]:
        """Every file's path, sorted by bytes."""
        return sorted(self._entries, key=str.encode)

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        return self._digest(name)[1]

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """A whole file; `ModelError` when it is larger than `limit` bytes."""
        digest, size = self._digest(name)
        if size > limit:
            raise ModelError(f"`{name}` has {size} bytes, more than the {limit} expected", code="file_too_large")
        return self._places.read(digest, name, 0, size)

    def path(self, name: str) -> Path:
        """A file of this size: with this header if it is safetensors, else with these bytes."""
        digest, size = self._digest(name)
        made = self._folder / digest
        if not made.exists():
            header = self._places.header(digest, name)
            made.write_bytes(self._places.header_bytes(digest, name) if header is not None else self.read(name))
            with made.open("r+b") as stream:
                stream.truncate(size)
        return made

    def _digest(self, name: str) -> tuple[str, int]:
        found = self._entries.get(name)
        if found is None:
            raise NotFoundError(f"`{self.label}` has no file `{name}`")
        return found.blake3, found.size
