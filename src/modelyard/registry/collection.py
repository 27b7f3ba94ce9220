"""Collection: what nothing needs is marked, and removed in a later pass, when nobody who began before the mark is at work.

`docs/design/catalog.md`, "What is live" and "Collection", is the specification. What is needed is asked of the catalog, in the
very transaction in which it is unlinked; the store is only listed. Interrupted anywhere, the next collection goes on. Knows
areas and names; not what a version is good for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from modelyard.catalog import candidates, counters, leases, liveness, removal
from modelyard.catalog.transaction import moment
from modelyard.digest import Digest
from modelyard.errors import ConflictError, IntegrityError, NotFoundError
from modelyard.points import reach
from modelyard.registry import scratch
from modelyard.registry.collection_outcome import AREAS, Collection, Waiting
from modelyard.registry.leases import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection

    from modelyard.catalog import Transaction
    from modelyard.catalog.candidates import Candidate, Name
    from modelyard.catalog.leases import LeaseRecord
    from modelyard.registry.context import Context

__all__ = ["AREAS", "Collection", "Waiting", "collect", "needed"]

_ORDER = ("scratch", "links", "reports", "manifests", "files", "packs")
_BATCH = 50  # objects that one transaction unlinks: other writers wait for it
_ROUNDS = 8  # what one sweep releases, manifests of collected versions say, the next one takes
_MANY = 2000  # names from which asking for everything is cheaper than asking for each
_SMALL_YARD = 20
_POLL_SECONDS = 0.25
_FUTURE = timedelta(minutes=5)  # by how much the clocks of two hosts may differ


@runtime_checkable
class _Sweeping(Protocol):
    """A store that keeps what dead writers left until somebody sweeps."""

    def remove_leftovers(self) -> int:
        """Remove it; how much that was."""
        ...


@dataclass
class _Work:
    """One collection under way."""

    context: Context
    now: bool
    dry_run: bool
    grace: timedelta
    force: bool
    wait_seconds: float | None
    note: Callable[[str], object]
    watch: Watch = field(default_factory=Watch)
    marked: int = 0
    future: int = 0
    freed: int = 0
    listed: int = 0
    begun: int = 0  # the lease counter when `collections` was last counted up
    removed: dict[str, int] = field(default_factory=dict)
    collected: set[str] = field(default_factory=set)
    waiting: dict[str, Waiting] = field(default_factory=dict)

    def clock(self) -> datetime:
        return self.context.clock()


def collect(
    context: Context,
    *,
    now: bool = False,
    dry_run: bool = False,
    grace_days: float = 14,
    force: bool = False,
    wait_seconds: float | None = None,
    progress: Callable[[str], object] | None = None,
) -> Collection:
    """Remove what nothing needs; see `Yard.collect`."""
    work = _Work(
        context, now, dry_run, timedelta(days=grace_days), force, wait_seconds, progress or (lambda _text: None)
    )
    _check_journal(context)
    if dry_run:
        return _foresee(work)
    if isinstance(context.raw, _Sweeping):
        work.removed["tmp"] = context.raw.remove_leftovers()
    for _ in range(_ROUNDS):
        _mark(work)
        _wait(work)
        reach("gc.waited")
        if not _sweep(work) or not (now or work.collected):
            break
    else:
        _mark(work)
    _observe(work)
    with context.catalog.read() as connection:
        left = len(candidates.listing(connection))
    return _outcome(work, left)


def needed(connection: Connection, area: str, names: set[str]) -> set[str]:
    """Which of these objects of an area must stay."""
    some = names if len(names) <= _MANY else None
    if area == "files":
        found = liveness.needed_files(connection, some)
    elif area == "packs":
        found = liveness.needed_packs(connection, some)
    elif area == "manifests":
        found = liveness.needed_manifests(connection, some)
    elif area == "reports":
        found = liveness.needed_reports(connection, some)
    elif area == "links":
        found = liveness.needed_links(connection, names)
    else:
        found = set()
    return found & names


def _check_journal(context: Context) -> None:
    """Refuse while the store tells of changes that the catalog does not know: then what is unknown may be what was lost."""
    with context.catalog.read() as connection:
        known = counters.current(connection, "seq")
    ahead = [seq for seq, _ in islice(context.raw.journal(after=known, damaged=lambda _seq: None), 1)]
    if not ahead:
        return
    with context.catalog.read() as connection:
        # Somebody may have written since the first look.
        known = counters.current(connection, "seq")
    if ahead[0] > known:
        raise ConflictError(
            f"the journal tells of changes (from {ahead[0]} on) that the catalog does not know, whose last one is {known}:"
            " it may have been restored from an older backup",
            hint="yard check lists what is unknown; nothing was removed",
            code="catalog_behind",
            known=known,
            journal=ahead[0],
        )


def _list(work: _Work) -> dict[str, set[str]]:
    """Everything that could be garbage, by area; an error aborts the collection."""
    found: dict[str, set[str]] = {area: set(map(str, work.context.raw.digests(area))) for area in AREAS}
    work.listed = sum(map(len, found.values()))
    found["links"] = scratch.link_folders(work.context.links)
    found["scratch"] = scratch.stale_folders(work.context.links)
    return found


def _garbage(work: _Work) -> set[Name]:
    found: set[Name] = set()
    for area, names in _list(work).items():
        with work.context.catalog.read() as connection:
            found |= {(area, name) for name in names - needed(connection, area, names)}
    return found


def _mark(work: _Work) -> None:
    """One transaction: garbage becomes candidates; candidates that are needed again, or are gone, are none any more."""
    garbage = _garbage(work)
    at = work.clock()
    with work.context.change() as tx:
        by_area: dict[str, set[str]] = {}
        for area, name in garbage:
            by_area.setdefault(area, set()).add(name)
        known = {(each.area, each.name): each for each in candidates.listing(tx.connection)}
        for area, name in known:
            # Also those that are not listed: an interrupted sweep unlinked them, and their rows are left.
            by_area.setdefault(area, set()).add(name)
        # Asked again: somebody may have come to need something since the listing.
        still = {(a, n) for a, names in by_area.items() for n in names - needed(tx.connection, a, names)}
        future = {key for key, each in known.items() if datetime.fromisoformat(each.marked_at) > at + _FUTURE}
        candidates.unmark(tx, known.keys() - still)
        new = still - known.keys()
        work.marked += len(new)
        work.future += len(future & still)
        if new or future & still:
            candidates.mark(tx, new | (future & still), moment(at))
        reach("gc.marked")


def _ripe(work: _Work, found: Iterable[Candidate]) -> list[Candidate]:
    """The candidates whose time has come, the areas in the order in which things let go of one another."""
    at = work.clock()

    def has_aged(each: Candidate) -> bool:
        # Other folders than links to stored files are somebody's work, and `now` is about leases, which not all of it has.
        waived = work.now and (each.area != "scratch" or scratch.is_abandoned(work.context.links, each.name))
        return waived or at - datetime.fromisoformat(each.marked_at) >= work.grace

    chosen = [each for each in found if each.area in _ORDER and has_aged(each)]
    return sorted(chosen, key=lambda each: (_ORDER.index(each.area), each.marked_seq, each.name))


def _ripe_candidates(work: _Work) -> list[Candidate]:
    with work.context.catalog.read() as connection:
        found = candidates.listing(connection)
    return _ripe(work, found)


def _blocking(work: _Work, records: Iterable[LeaseRecord], mark: int) -> list[LeaseRecord]:
    """The living leases that are older than a mark."""
    at = work.clock()
    return [each for each in records if each.seq < mark and not work.watch.is_dead(each, at)]


def _wait(work: _Work) -> None:
    """With `now`: until no living lease is older than the newest mark. Else only as long as it takes to tell a dead one."""
    started, told = time.monotonic(), ""
    while True:
        marks = [each.marked_seq for each in _ripe_candidates(work)]
        with work.context.catalog.read() as connection:
            records = leases.listing(connection)
        holding = _blocking(work, records, max(marks, default=0))
        at = work.clock()
        work.waiting = {each.id: _waiting(each) for each in holding}
        unclear = [each for each in holding if work.now or work.watch.is_suspect(each, at)]
        spent = time.monotonic() - started
        if not unclear or (work.wait_seconds is not None and spent >= work.wait_seconds):
            return
        text = "waiting for " + ", ".join(f"{w.purpose} ({w.owner})" for w in work.waiting.values())
        if text != told:
            work.note(text)
            told = text
        time.sleep(_POLL_SECONDS)


def _waiting(record: LeaseRecord) -> Waiting:
    host, pid, *_ = [*record.owner.split(":"), ""]
    return Waiting(record.purpose.split(" ")[0], f"process {pid} on {host}", record.acquired_at)


def _sweep(work: _Work) -> int:
    """Remove what is ripe, batch by batch; how many things went."""
    ripe = _ripe_candidates(work)
    if not ripe:
        return 0
    _check_share(work, ripe)
    with work.context.change() as tx:
        _count_up(work, tx)
    gone = 0
    for batch in _batches(ripe):
        gone += len(_remove(work, batch))
    return gone


def _count_up(work: _Work, tx: Transaction) -> None:
    tx.next("collections")
    work.begun = counters.current(tx.connection, "lease")


def _check_share(work: _Work, ripe: list[Candidate]) -> None:
    going = sum(each.area in AREAS for each in ripe)
    if not work.force and work.listed > _SMALL_YARD and going * 2 > work.listed:
        raise ConflictError(
            f"{going} of the yard's {work.listed} objects would be removed",
            hint="look at them with `yard gc --dry-run`; `yard gc --force` if that is right",
            code="too_much",
            going=going,
            listed=work.listed,
        )


def _batches(ripe: list[Candidate]) -> Iterator[list[Candidate]]:
    rest = iter(ripe)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _remove(work: _Work, batch: list[Candidate]) -> list[Candidate]:
    """One transaction: what nobody needs and no older lease protects goes, rows first, then the objects."""
    sizes = {(each.area, each.name): _size(work.context, each.area, each.name) for each in batch}
    while True:
        with work.context.change() as tx:
            records = leases.listing(tx.connection)
            # Somebody who began since `collections` was last counted up would not learn of what is unlinked here if this
            # process were to die before the transaction ends: count again, and let them see it.
            fresh = all(each.heartbeat_seq <= work.begun for each in records)
            if fresh:
                gone = _still_garbage(work, tx, batch, records)
                names = [(each.area, each.name) for each in gone]
                collected = removal.forget(tx, names)
                candidates.unmark(tx, names)
                _count_up(work, tx)
                reach("gc.rows")
                for area, name in names:
                    _unlink(work.context, area, name)
                reach("gc.unlinked")
            else:
                _count_up(work, tx)
        if fresh:
            break
    reach("gc.committed")
    work.collected |= collected
    for area, name in names:
        work.removed[area] = work.removed.get(area, 0) + 1
        work.freed += sizes[area, name]
    return gone


def _still_garbage(work: _Work, tx: Transaction, batch: list[Candidate], records: list[LeaseRecord]) -> list[Candidate]:
    """What of a batch may go, asked in the transaction that removes it; what is needed again is unmarked."""
    current = candidates.find(tx.connection, [(each.area, each.name) for each in batch])
    known = [each for each in batch if current.get((each.area, each.name)) == each]
    by_area: dict[str, set[str]] = {}
    for each in known:
        by_area.setdefault(each.area, set()).add(each.name)
    wanted = {(area, name) for area, names in by_area.items() for name in needed(tx.connection, area, names)}
    candidates.unmark(tx, wanted)
    oldest = min(
        (each.seq for each in _blocking(work, records, max((c.marked_seq for c in known), default=0))), default=None
    )
    return [
        each for each in known if (each.area, each.name) not in wanted and (oldest is None or each.marked_seq < oldest)
    ]


def _size(context: Context, area: str, name: str) -> int:
    if area not in {"files", "packs"}:
        return 0
    try:
        return context.raw.file_size(Digest(name), area="files" if area == "files" else "packs")
    except (IntegrityError, NotFoundError):
        return 0  # something else than a file lies there, or somebody else removed it


def _unlink(context: Context, area: str, name: str) -> None:
    for known in AREAS:
        if area == known:
            context.raw.remove(known, Digest(name))
            return
    scratch.remove(context.links, area, name)


def _observe(work: _Work) -> None:
    """Leave a note of every heartbeat for the next collection, and take away the leases that nobody is behind."""
    at = work.clock()
    with work.context.change() as tx:
        for each in leases.listing(tx.connection):
            if work.watch.is_dead(each, at):
                leases.release(tx, each.id)
            else:
                leases.observe(tx, each.id, moment(at))


def _foresee(work: _Work) -> Collection:
    """What a collection would do, without doing it."""
    garbage = _garbage(work)
    at = work.clock()
    with work.context.catalog.read() as connection:
        known = {(each.area, each.name): each for each in candidates.listing(connection)}
        records = leases.listing(connection)
    new = garbage - known.keys()
    marks = [each for key, each in known.items() if key in garbage]
    fresh = [candidates.Candidate(area, name, 1 << 62, moment(at)) for area, name in new]
    ripe = _ripe(work, [*marks, *fresh] if work.now else marks)
    holding = _blocking(work, records, max((each.marked_seq for each in ripe), default=0))
    work.waiting = {each.id: _waiting(each) for each in holding}
    work.marked = len(new)
    work.future = sum(datetime.fromisoformat(each.marked_at) > at + _FUTURE for each in marks)
    for each in ripe:
        work.removed[each.area] = work.removed.get(each.area, 0) + 1
        work.freed += _size(work.context, each.area, each.name)
    return _outcome(work, len(garbage) - len(ripe))


def _outcome(work: _Work, left: int) -> Collection:
    return Collection(
        marked=work.marked,
        removed={area: count for area, count in work.removed.items() if count},
        freed=work.freed,
        left=left,
        collected=tuple(sorted(work.collected)),
        waiting=tuple(work.waiting.values()),
        future=work.future,
        dry_run=work.dry_run,
    )
