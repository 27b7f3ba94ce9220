"""Compaction: what is cold is kept in fewer bytes.

Each cold file is taken up segment by segment; the best encoding of each (`registry.encoding`) goes into a pack. A full pack is
published, read back, decoded and compared, and then counts, in one transaction that asks everything again
(`registry.settlement`). Nothing is unlinked here: the files that need not be whole any more are the collection's.

Killed anywhere, it leaves a pack that nothing refers to; run again, it goes on after the last pack that counted. Several
may run at once, on several hosts: whoever comes second leaves a segment as the first one set it. A dry run does
everything except to publish and record: it encodes all of it and forgets the bytes, so its figures are exact and it takes as long.

Knows files, segments and packs; what is like what is `registry.sources`' to know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.catalog import files as files_table
from modelyard.catalog import liveness, segments
from modelyard.catalog.transaction import moment
from modelyard.catalog.usage import whole_files_with
from modelyard.errors import InputError, IntegrityError
from modelyard.points import reach
from modelyard.registry.ahead import ThreadPoolExecutor, ahead
from modelyard.registry.decoding import catalog_decoder
from modelyard.registry.encoding import Encoded, Encoder
from modelyard.registry.inputs import InputGraph
from modelyard.registry.leases import lease
from modelyard.registry.packages import Draft, Indexes, verify
from modelyard.registry.places import Places
from modelyard.registry.repacking import half_dead, live_content
from modelyard.registry.savings import Compaction, Tally
from modelyard.registry.selection import Group, Selection, is_settled, select
from modelyard.registry.settlement import Batch, release, settle
from modelyard.registry.sources import Offer, Sources

if TYPE_CHECKING:
    from modelyard.catalog.files import Piece
    from modelyard.catalog.segments import SegmentRow
    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version

__all__ = ["LEAST_RATE", "PACK_BYTES", "Compaction", "Progress", "compact"]

PACK_BYTES = 512 << 20
"""The most bytes of one pack."""

LEAST_RATE = 200e6
"""What an operation must compute, in bytes a second on one thread, for segments to be kept as its result."""

Progress = Callable[[int, int], None]

_WINDOW = 128  # offers that are looked at together
_IN_FLIGHT = 64 << 20  # bytes of segments that are encoded at once


def compact(
    context: Context,
    references: Sequence[str | Version] = (),
    *,
    idle_days: float = 7,
    dry_run: bool = False,
    progress: Progress | None = None,
    least_rate: float = LEAST_RATE,
    pack_bytes: int = PACK_BYTES,
    threads: int = 2,
) -> Compaction:
    """Keep what is cold in fewer bytes; see `Yard.compact`."""
    if idle_days < 0:
        raise InputError(f"files cannot have been idle for {idle_days} days", hint="give 0 or more")
    used_since = moment(context.clock() - timedelta(days=idle_days))
    with lease(context, "compact") as beat, tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        with context.catalog.read() as connection:
            selection = select(connection, references, used_since=used_since)
        beat()  # after `collections` was read: a sweep that finds a younger sign of life than its last count counts again
        with ThreadPoolExecutor(threads) as pool:
            report = progress or _silent
            task = _Task(
                context, selection, used_since, beat, pool, threads, pack_bytes, least_rate, dry_run, progress=report
            )
            work = _Work(task, Path(folder))
            try:
                for group in selection.groups:
                    work.take_up(group)
                work.finish_pack()
                if not references:
                    work.repack()
                    work.finish_pack()
            finally:
                work.close()
        return work.result()


@dataclass(frozen=True)
class _Task:
    """What one compaction is to do, and with what."""

    context: Context
    selection: Selection
    used_since: str
    beat: Callable[[], None]
    pool: ThreadPoolExecutor
    threads: int
    pack_bytes: int
    least_rate: float
    dry_run: bool
    progress: Progress


class _Work:
    """One compaction under way: what was seen, what was chosen, and the pack that is being filled."""

    def __init__(self, task: _Task, folder: Path) -> None:
        context = task.context
        self._task, self._context, self._selection = task, context, task.selection
        decoder = self._decoder = catalog_decoder(context.raw, context.catalog)
        self._places = Places(context, decoder)
        self._sources = Sources(context, self._places, folder)
        self._encoder = Encoder(decoder, least_rate=task.least_rate)
        self._indexes = Indexes(context.raw)
        self._graph = InputGraph({})
        self._seen: set[str] = set()
        self._rows: dict[str, SegmentRow] = {}
        self._live: set[str] | None = None
        self._draft, self._batch = self._fresh()
        self._done = 0
        self._packs: list[Digest] = []
        self._tally = Tally()

    def _fresh(self) -> tuple[Draft, Batch]:
        task = self._task
        return Draft(task.context.raw, dry_run=task.dry_run), Batch(task.used_since, task.selection.collections)

    def close(self) -> None:
        """Forget a pack that was not published."""
        self._draft.discard()

    def result(self) -> Compaction:
        """What was done so far."""
        notes = [*self._sources.notes, *self._indexes.notes]
        return self._tally.result(self._packs, notes, dry_run=self._task.dry_run)

    # Files.

    def take_up(self, group: Group) -> None:
        """Encode the files of one version."""
        self._encoder.start_version()
        rows = {row.digest: row for row in group.files}
        paths = {entry.blake3: entry.path for entry in group.record.files}
        current: str | None = None
        # The lineage is read once for all files; a file is finished when the offers of the next one begin.
        for offer, encoded in self._encoded(self._sources.offers(group.record, list(rows), alone=group.orphan), group):
            if current is not None and offer.file != current:
                self._finish_file(current, paths[current])
            current = offer.file
            if encoded is not None:
                self._put(encoded, current, paths[current])
            self._done += offer.size
            self._task.progress(self._done, self._selection.size)
        if current is not None:
            self._finish_file(current, paths[current])

    def _encoded(self, offers: Iterator[Offer], group: Group) -> Iterator[tuple[Offer, Encoded | None]]:
        """Each offer with its encoding, None where the segment stays as it is; a few are encoded ahead."""

        def jobs() -> Iterator[tuple[int, Callable[[int], tuple[Offer, Encoded | None]]]]:
            while window := list(islice(offers, _WINDOW)):
                wanted = self._wanted(window, group)
                for offer in window:
                    chosen = wanted.get(offer.segment)
                    if chosen is None or offer.segment in self._seen:
                        yield 0, partial(_nothing, offer)
                        continue
                    self._seen.add(offer.segment)
                    yield offer.size, partial(self._encode, offer, self._allowed(chosen))

        return ahead(self._task.pool, jobs(), threads=self._task.threads, most=_IN_FLIGHT)

    def _encode(self, offer: Offer, allowed: Offer, threads: int) -> tuple[Offer, Encoded | None]:
        try:
            return offer, self._encoder.encode(allowed, threads=threads)
        except IntegrityError as error:
            # One damaged segment must not keep everything else from being compacted; its file stays whole.
            self._tally.refused[offer.segment] = error.message
            return offer, None

    def _wanted(self, window: Sequence[Offer], group: Group) -> dict[str, Offer]:
        """The offers for segments that are to be encoded, without inputs that the catalog does not know."""
        names = {offer.segment for offer in window}
        sources = {base for offer in window for base in offer.bases}
        sources |= {source for offer in window for made in offer.derivations for source in made.inputs}
        with self._context.catalog.read() as connection:
            rows = segments.find(connection, names)
            known = segments.find(connection, sources).keys()
            self._graph.extend(connection, names | sources)
            homes = whole_files_with(connection, names)
            if group.orphan and self._live is None:
                self._live = liveness.live_segments(connection)
        wanted: dict[str, Offer] = {}
        for offer in window:
            row = rows.get(offer.segment)
            if row is not None and not self._is_fine(row, homes.get(row.digest, set()), group):
                self._rows.setdefault(row.digest, row)
                wanted[row.digest] = offer.only(lambda source: source in known)
        return wanted

    def _is_fine(self, row: SegmentRow, homes: set[str], group: Group) -> bool:
        """Whether a segment stays as it is."""
        if row.encoding is not None:
            return is_settled(row.encoding, row.params)
        if group.orphan:
            return self._live is not None and row.digest not in self._live
        return bool(homes - self._selection.cold)  # it lies in a file that stays whole

    def _allowed(self, offer: Offer) -> Offer:
        """The offer without what would lead back to the segment or too deep; until it is encoded, all of it counts as chosen."""
        allowed = Offer(
            offer.segment,
            offer.size,
            offer.file,
            offer.dtype,
            tuple(made for made in offer.derivations if self._graph.problem(offer.segment, made.inputs) is None),
            tuple(base for base in offer.bases if self._graph.problem(offer.segment, [base]) is None),
        )
        every = {*allowed.bases, *(source for made in allowed.derivations for source in made.inputs)}
        self._graph.put(offer.segment, sorted(every))
        return allowed

    def _put(self, encoded: Encoded, file: str, path: str) -> None:
        """Put an encoded segment of a file into the pack."""
        self._graph.put(encoded.segment, encoded.inputs)
        before = self._rows.pop(encoded.segment)
        if encoded.encoding == "raw" == before.encoding:
            self._batch.left.append(encoded.segment)
            self._batch.before[encoded.segment] = before
            return
        self._add(encoded, before)
        self._draft.describe(self._places.row(file, path), self._places.pieces(file, path))

    def _add(self, encoded: Encoded, before: SegmentRow) -> None:
        if self._draft.size + encoded.length > self._task.pack_bytes and self._draft.contents:
            self.finish_pack()
        self._draft.add(encoded)
        self._batch.before[encoded.segment] = before
        if before.pack is not None:
            self._draft.carry(self._indexes.files_with(before.pack, encoded.segment))

    def _finish_file(self, file: str, path: str) -> None:
        """Every segment of a file is taken care of: it need not be whole once this pack counts."""
        row, pieces = self._places.row(file, path), self._places.pieces(file, path)
        if not row.whole:
            return
        if not self._draft.describes(file) and any(piece.segment in self._draft.contents for piece in pieces):
            self._draft.describe(row, pieces)
        if not self._draft.describes(file) and not self._is_described(file, pieces):
            # A lost catalog puts files together by the packs' indexes, so some pack must say how this one is cut, and
            # hold a segment of it, or nothing would keep that pack.
            least = min(pieces, key=lambda piece: piece.size)
            with self._context.catalog.read() as connection:
                self._rows |= segments.find(connection, [least.segment])
            _, encoded = self._encode(Offer(least.segment, least.size, file), Offer(least.segment, least.size, file), 1)
            if encoded is not None:
                # Also if it lies raw in a pack already: that one says nothing of this file.
                self._graph.put(encoded.segment, encoded.inputs)
                self._add(encoded, self._rows.pop(encoded.segment))
                self._draft.describe(row, pieces)
        self._note_homes(file, pieces)
        self._batch.files.append(file)

    def _note_homes(self, file: str, pieces: Sequence[Piece]) -> None:
        """Read the segments that are to be left in other whole files there: a copy that is damaged is none."""
        names = {piece.segment for piece in pieces} - self._draft.contents.keys()
        with self._context.catalog.read() as connection:
            rows = segments.find(connection, names)
            homes = segments.all_homes(connection, [name for name, row in rows.items() if row.encoding is None])
        for name, places in homes.items():
            for other, start in places:
                if other != file and self._places.is_sound(name, other, start, rows[name].size):
                    self._batch.homes.setdefault(name, set()).add(other)
                    break

    def _is_described(self, file: str, pieces: Sequence[Piece]) -> bool:
        """Whether an earlier pack that holds one of the file's segments says how it is cut."""
        with self._context.catalog.read() as connection:
            found = segments.find(connection, [piece.segment for piece in pieces])
        packs = {each.pack for each in found.values() if each.pack is not None}
        return any(self._indexes.describes(pack, file) for pack in sorted(packs))

    # Packs.

    def repack(self) -> None:
        """Write packs anew of whose payload more than half is dead."""
        with self._context.catalog.read() as connection:
            found = half_dead(connection, self._indexes)
        for rows in found.values():
            for row, encoded in live_content(self._indexes, rows):
                try:
                    self._decoder.payload(row)
                except IntegrityError as error:
                    # One damaged pack must not keep everything else from being compacted; it stays as it is.
                    self._tally.refused[row.digest] = error.message
                    continue
                self._add(encoded, row)

    def finish_pack(self) -> None:
        """Publish the pack, verify it, and let it count; where there is none, let finished files go."""
        draft, batch = self._draft, self._batch
        self._draft, self._batch = self._fresh()
        if self._task.dry_run or not draft.contents:
            draft.discard()
            if self._task.dry_run:
                rows = [(each.encoding, each.length, batch.before[name]) for name, each in draft.contents.items()]
                self._tally.count(rows, self._sizes(batch.files), draft.size)
            elif batch.files or batch.left:
                with self._context.change() as tx:
                    released = release(tx, self._context.raw, batch)
                self._tally.count([], self._sizes(released), 0)
            return
        self._task.beat()
        reach("compact.encoded")
        package = draft.publish()
        reach("compact.published")
        verify(self._context, package, threads=self._task.threads)
        reach("compact.verified")
        with self._context.change() as tx:
            records = package.index.segments
            settled = settle(tx, self._context.raw, batch, pack=package.digest, size=package.size, records=records)
            reach("compact.rows")
        reach("compact.committed")
        self._packs.append(package.digest)
        rows = [(str(row.encoding), row.length, batch.before[row.digest]) for row in settled.placed]
        self._tally.count(rows, self._sizes(settled.released), package.size)
        if settled.refused:
            self._tally.refused |= settled.refused
            self._graph = InputGraph({})  # it holds edges that did not come to be

    def _sizes(self, files: Sequence[str]) -> list[int]:
        with self._context.catalog.read() as connection:
            return [row.size for row in files_table.find(connection, files).values()]


def _nothing(offer: Offer, _threads: int) -> tuple[Offer, None]:
    return offer, None


def _silent(_done: int, _total: int) -> None:
    """Progress that nobody asked for."""
