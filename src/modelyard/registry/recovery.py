"""How files are held, found again from what is on disk: whole files by looking, the others from the packs' indexes.

Whole files keep no cut until somebody cuts them, but for those that hold a segment which some file or encoding needs and no
pack has. Of several forms of a segment one is chosen that leads to bytes in the fewest steps, so no circle can come of two
packs that each count on the other. Knows packs and cuts; not versions' meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from modelyard.catalog import files, restoration, segments, usage, versions
from modelyard.catalog.files import FileRow, Piece
from modelyard.catalog.segments import SegmentRow
from modelyard.catalog.transaction import dump
from modelyard.catalog.versions import COLLECTED, DELETED
from modelyard.digest import GIT_BLOB_LIMIT, Digest, read_chunks
from modelyard.errors import IntegrityError
from modelyard.registry.cuts import find_cut
from modelyard.registry.decoding import MAX_DEPTH
from modelyard.registry.model import version_of
from modelyard.store.hashing import Segmenting, hash_chunks
from modelyard.store.packs import read_index

if TYPE_CHECKING:
    from modelyard.catalog import Transaction
    from modelyard.store.base import Store
    from modelyard.store.packs import FileRecord, SegmentRecord

__all__ = ["Recovery"]


@dataclass
class Recovery:
    """Finds how files are held, and writes it."""

    store: Store
    tx: Transaction
    problems: list[str] = field(default_factory=list)
    _forms: dict[str, list[tuple[str, SegmentRecord]]] = field(default_factory=dict)
    _cuts: dict[str, FileRecord] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    _homes: set[str] = field(default_factory=set)
    _chosen: dict[str, SegmentRow] = field(default_factory=dict)

    def recover(self) -> None:
        """Write files, segments and packs; versions that have lost a file are collected where they were deleted."""
        self._whole = set(map(str, self.store.digests("files")))
        self._read_packs()
        wanted = self._wanted()
        whole = {digest: size_sha for digest, size_sha in wanted.items() if digest in self._whole}
        scattered = [digest for digest in wanted.keys() - self._whole if digest in self._cuts]
        self._choose()
        self._cut_homes(whole, scattered)
        files.record(self.tx, [self._whole_row(digest, *whole[digest]) for digest in sorted(whole)])
        held = [digest for digest in scattered if self._is_held(digest)]
        # Segments first: the rows of pieces would make them without a form.
        segments.place_all(self.tx, [SegmentRow(row.digest, row.size) for row in self._chosen.values()])
        segments.place_all(self.tx, self._chosen.values())
        for pack in {row.pack for row in self._chosen.values() if row.pack is not None}:
            segments.record_pack(self.tx, pack, self.store.file_size(Digest(pack), area="packs"))
        for digest in sorted(held):
            self._record_scattered(self._cuts[digest])
        self._settle(wanted.keys() - whole.keys() - set(held))
        restoration.copy_git_blobs(self.tx)

    def _read_packs(self) -> None:
        for pack in self.store.digests("packs"):
            try:
                index = read_index(self.store, pack)
            except IntegrityError as error:
                self.problems.append(f"pack {pack.short}: {error.message}")
                continue
            for record in index.segments:
                self._forms.setdefault(str(record.digest), []).append((str(pack), record))
            for cut in index.files:
                self._cuts.setdefault(str(cut.digest), cut)

    def _wanted(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of every file that a version has."""
        found: dict[str, tuple[int, str]] = {}
        seqs = sorted({seq for seq, _ in usage.owners(self.tx.connection)})
        for record in versions.load(self.tx.connection, seqs):
            found |= {each.blake3: (each.size, each.sha256) for each in record.files}
        return found

    def _whole_row(self, digest: str, size: int, sha256: str) -> FileRow:
        known = self._cuts.get(digest)
        git_blob = known.git_blob if known else None
        if git_blob is None and size <= GIT_BLOB_LIMIT:
            with self.store.open_file(Digest(digest)) as stream:
                found = hash_chunks(read_chunks(stream))
            # One that is damaged is the check's to report; its id would be of other bytes.
            git_blob = found.git_blob if found.blake3 == digest else None
        return FileRow(digest, size, sha256, git_blob)

    def _choose(self) -> None:
        """Give every segment the form that leads to bytes in the fewest steps."""
        level = 0
        left = {digest: forms for digest, forms in self._forms.items() if digest not in self._chosen}
        while left and level <= MAX_DEPTH:
            ready = self._chosen.keys() | self._homes
            chosen = {
                digest: _row(pack, record, self._depth(record))
                for digest, forms in left.items()
                for pack, record in sorted(forms, key=lambda form: (form[1].encoding == "raw", form[0]), reverse=True)
                if all(str(each) in ready for each in record.inputs) and self._depth(record) <= MAX_DEPTH
            }
            if not chosen and level > 0:
                break
            for digest in chosen:
                del left[digest]
            self._chosen |= chosen
            level += 1

    def _depth(self, record: SegmentRecord) -> int:
        """How many steps a segment is away from bytes: none if they are its payload, and a whole file's are no step, either."""
        known = [self._chosen.get(str(each)) for each in record.inputs]
        return 1 + max(row.depth if row is not None else 0 for row in known) if known else 0

    def _cut_homes(self, whole: dict[str, tuple[int, str]], scattered: list[str]) -> None:
        """Cut whole files until every segment that is needed and in no pack was found in one."""
        needed = {str(each) for digest in scattered for each in self._cuts[digest].segments}
        needed |= {str(each) for forms in self._forms.values() for _, record in forms for each in record.inputs}
        missing = needed - self._chosen.keys()
        for digest in sorted(whole):
            if not missing:
                return
            size, sha256 = whole[digest]
            path = self.store.file_path(Digest(digest))
            cut = find_cut(path)
            segmenting = Segmenting(cut.sizes)
            with self.store.open_file(Digest(digest)) as stream:
                for chunk in read_chunks(stream):
                    segmenting.update(chunk)
            names = [str(each) for each in segmenting.digests()]
            if not missing & set(names):
                continue
            starts = accumulate(cut.sizes, initial=0)
            pieces = [
                Piece(at, name, start, size)
                for at, (name, start, size) in enumerate(zip(names, starts, cut.sizes, strict=False))
            ]
            files.record(self.tx, [FileRow(digest, size, sha256, None, cut.name)])
            files.record_pieces(self.tx, digest, pieces)
            self._homes |= set(names)
            missing -= set(names)
            self._choose()

    def _is_held(self, digest: str) -> bool:
        known = self._chosen.keys() | self._homes
        return all(str(each) in known for each in self._cuts[digest].segments)

    def _record_scattered(self, record: FileRecord) -> None:
        row = FileRow(str(record.digest), record.size, record.sha256, record.git_blob, record.cut, whole=False)
        files.record(self.tx, [row])
        sizes = {name: each.size for name, each in segments.find(self.tx.connection, map(str, record.segments)).items()}
        pieces, start = [], 0
        for at, each in enumerate(map(str, record.segments)):
            pieces.append(Piece(at, each, start, sizes[each]))
            start += sizes[each]
        files.record_pieces(self.tx, str(record.digest), pieces)

    def _settle(self, gone: set[str]) -> None:
        """Versions with a file that is nowhere: collected where they were deleted, else a problem."""
        seqs = sorted({seq for each in usage.versions_with(self.tx.connection, gone).values() for seq in each})
        for record in versions.load(self.tx.connection, seqs):
            state = versions.state(self.tx.connection, record.seq)
            if state == DELETED:
                restoration.set_state(self.tx, record.seq, COLLECTED)
            elif state != COLLECTED:
                name = version_of(record).name
                lost = next(each.path for each in record.files if each.blake3 in gone)
                self.problems.append(f"`{name}` has lost bytes: `{lost}` is nowhere in the store")
        # A row for each, so that whatever a check says of them has something to say it of.
        wanted = self._wanted()
        living = {
            each.blake3
            for record in versions.load(self.tx.connection, seqs)
            if not record.deleted
            for each in record.files
        }
        files.record(self.tx, [FileRow(digest, *wanted[digest]) for digest in sorted(gone & living)])


def _row(pack: str, record: SegmentRecord, depth: int) -> SegmentRow:
    return SegmentRow(
        str(record.digest),
        record.size,
        record.encoding,
        pack,
        record.offset,
        record.length,
        dump(dict(record.params)),
        depth,
        tuple(map(str, record.inputs)),
    )
