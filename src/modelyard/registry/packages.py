"""A pack while it is filled, and once it is published: read back, decoded, compared.

A pack also says how the files that its segments belong to are cut, which is what a lost catalog is rebuilt from; when a
segment moves, what its old pack said of files moves with it. A draft of a dry run counts and keeps nothing. Knows packs and their
indexes; does not know why a segment is encoded as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelyard.catalog import segments
from modelyard.catalog.segments import SegmentRow
from modelyard.digest import Digest
from modelyard.errors import IntegrityError, InternalError
from modelyard.registry.decoding import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelyard.catalog.files import FileRow, Piece
    from modelyard.registry.context import Context
    from modelyard.registry.encoding import Encoded
    from modelyard.store.base import Store
    from modelyard.store.packs import FileRecord, PackIndex

__all__ = ["Draft", "Indexes", "Package", "verify"]


@dataclass(frozen=True)
class Package:
    """A published pack."""

    digest: Digest
    size: int
    index: PackIndex


@dataclass
class Indexes:
    """The indexes of stored packs, each read once."""

    raw: Store
    notes: list[str] = field(default_factory=list)
    _read: dict[str, PackIndex | None] = field(default_factory=dict)
    _files: dict[str, dict[str, list[FileRecord]]] = field(default_factory=dict)

    def of(self, pack: str) -> PackIndex | None:
        """A pack's index; None when it is damaged, which is noted."""
        if pack not in self._read:
            from modelyard.store.packs import read_index

            try:
                self._read[pack] = read_index(self.raw, Digest(pack))
            except IntegrityError as error:
                self.notes.append(error.message)
                self._read[pack] = None
        return self._read[pack]

    def files_with(self, pack: str, segment: str) -> Sequence[FileRecord]:
        """The files that this pack describes and that have this segment."""
        if pack not in self._files:
            index, found = self.of(pack), dict[str, list["FileRecord"]]()
            for file in index.files if index is not None else ():
                for each in set(file.segments):
                    found.setdefault(each, []).append(file)
            self._files[pack] = found
        return self._files[pack].get(segment, [])

    def describes(self, pack: str, file: str) -> bool:
        """Whether this pack says how a file is cut."""
        index = self.of(pack)
        return index is not None and any(record.digest == file for record in index.files)


class Draft:
    """A pack that is being filled; it is published by `publish`, or forgotten by `discard`."""

    def __init__(self, raw: Store, *, dry_run: bool) -> None:
        from modelyard.store.packs import PackWriter

        self._raw = raw
        self._writer = None if dry_run else PackWriter(raw).__enter__()
        self._files: set[str] = set()
        self.contents: dict[str, Encoded] = {}
        """What was added, without payloads."""
        self.size = 0
        """Bytes of payload so far."""

    def add(self, encoded: Encoded) -> None:
        """Add a segment; one that is in it already stays."""
        if encoded.segment in self.contents:
            return
        if self._writer is not None:
            inputs = tuple(Digest(source) for source in encoded.inputs)
            self._writer.add(
                Digest(encoded.segment),
                encoded.size,
                encoded.encoding,
                encoded.payload,
                params=encoded.params,
                inputs=inputs,
            )
        self.size += len(encoded.payload)
        self.contents[encoded.segment] = encoded.without_payload()

    def describe(self, row: FileRow, pieces: Iterable[Piece]) -> None:
        """Say how a file is cut."""
        from modelyard.store.packs import FileRecord

        if row.digest in self._files or row.cut is None:
            return
        self._files.add(row.digest)
        if self._writer is not None:
            named = tuple(Digest(piece.segment) for piece in pieces)
            self._writer.add_file(
                FileRecord(Digest(row.digest), row.size, row.sha256, row.cut, named, git_blob=row.git_blob)
            )

    def carry(self, files: Iterable[FileRecord]) -> None:
        """Say of files what another pack said."""
        for file in files:
            if file.digest not in self._files:
                self._files.add(file.digest)
                if self._writer is not None:
                    self._writer.add_file(file)

    def describes(self, file: str) -> bool:
        """Whether this pack says how a file is cut."""
        return file in self._files

    def publish(self) -> Package:
        """Publish the pack."""
        if self._writer is None:
            raise InternalError("a dry run publishes nothing")
        digest, index = self._writer.close()
        self.discard()
        return Package(digest, self._raw.file_size(digest, area="packs"), index)

    def discard(self) -> None:
        """Forget what was not published."""
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._writer = None


def verify(context: Context, package: Package, *, threads: int) -> None:
    """Read every segment of a published pack back from it, decode it, and compare it with its digest.

    Raises:
        IntegrityError: The pack does not give back what was put into it; it was not made to count.
    """
    from modelyard.store.packs import read_index

    if read_index(context.raw, package.digest) != package.index:
        raise IntegrityError(
            f"pack `{package.digest[:12]}` did not come back as it was written", hint="yard check --read-data"
        )
    rows = {
        str(record.digest): SegmentRow(
            str(record.digest),
            record.size,
            record.encoding,
            str(package.digest),
            record.offset,
            record.length,
            json.dumps(dict(record.params)),
            0,
            tuple(str(source) for source in record.inputs),
        )
        for record in package.index.segments
    }

    def lookup(digests: Iterable[str]) -> Mapping[str, SegmentRow]:
        wanted = set(digests)
        with context.catalog.read() as connection:
            return segments.find(connection, wanted - rows.keys()) | {name: rows[name] for name in wanted & rows.keys()}

    def homes(digests: Iterable[str]) -> Mapping[str, tuple[str, int]]:
        with context.catalog.read() as connection:
            return segments.homes(connection, set(digests) - rows.keys())

    def others(wanted: str) -> Iterable[tuple[str, int]]:
        with context.catalog.read() as connection:
            return segments.all_homes(connection, [wanted]).get(wanted, ())

    for _ in Decoder(context.raw, lookup, homes, others=others).segments(rows, threads=threads):
        pass  # the decoder compares
