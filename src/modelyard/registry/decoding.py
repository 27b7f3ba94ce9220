"""From a segment's digest to its bytes, however the segment is kept.

A segment is a range of a whole file, or lies in a pack: raw, packed, as a delta of another segment, or derived from others
(docs/design/store-format.md, "Packs"). A range of a whole file is preferred, because it costs a read and nothing else; where
one form is damaged or gone, the other is tried. Whatever the way, the bytes are compared with the digest before anybody sees them.

Memory stays flat: a segment has at most 64 MiB, its inputs are decoded one after another, and what is kept for the next
segment (a LoRA's factors, say, which every piece of a tensor needs) is bounded in bytes. This module does not know why a
segment is kept as it is, what is live, or what a tensor is.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from modelyard.digest import Digest, digest_bytes
from modelyard.errors import InputError, IntegrityError
from modelyard.registry.ahead import ThreadPoolExecutor, ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from modelyard.catalog import Catalog
    from modelyard.store.base import Store

__all__ = ["MAX_DEPTH", "Decoder", "SegmentPlace", "catalog_decoder"]

MAX_DEPTH = 4
"""The longest way from a segment through inputs, in edges."""

_CACHE_BYTES = 48 << 20
_CACHED_AT_MOST = 16 << 20  # a larger input is a base's tensor, which its one user has had
_PAYLOAD_BYTES = 128 << 20  # twice the largest segment: what a payload may be before it is read
_ROLE_BYTES = 512 << 20  # what the inputs of one derived segment may come to
_IN_FLIGHT = 64 << 20  # bytes of results that threads work on at once
_WINDOW = 256  # segments whose rows are looked up together


class SegmentPlace(Protocol):
    """How one segment is kept; `catalog.segments.SegmentRow` is one."""

    @property
    def digest(self) -> str:
        """What the segment is called."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    @property
    def encoding(self) -> str | None:
        """`raw`, `packed`, `delta`, `derived`; None where it is in whole files only."""
        ...

    @property
    def pack(self) -> str | None:
        """The pack that holds the payload."""
        ...

    @property
    def offset(self) -> int:
        """Where the payload starts in the pack."""
        ...

    @property
    def length(self) -> int:
        """How long the payload is."""
        ...

    @property
    def params(self) -> str:
        """JSON of the encoding's parameters."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """The segments that this one is made from, in the order that `params` counts them."""
        ...


@dataclass
class _View:
    """What was looked up: how segments are kept, and in which whole file they lie."""

    rows: dict[str, SegmentPlace] = field(default_factory=dict)
    homes: dict[str, tuple[str, int]] = field(default_factory=dict)


class Decoder:
    """Reads segments; safe to use from several threads.

    Args:
        store: Where packs and whole files are.
        lookup: Digests to how they are kept; digests that are not known are left out.
        homes: Digests to a whole file that holds the segment and where it starts there; those in none are left out.
        others: A digest to every such place, asked for when the one that `homes` told is damaged or gone.
        cache_bytes: How much of the small inputs is kept for the segments to come.
    """

    def __init__(
        self,
        store: Store,
        lookup: Callable[[Iterable[str]], Mapping[str, SegmentPlace]],
        homes: Callable[[Iterable[str]], Mapping[str, tuple[str, int]]],
        *,
        others: Callable[[str], Iterable[tuple[str, int]]] = lambda _digest: (),
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self._store = store
        self._lookup, self._homes, self._others = lookup, homes, others
        self._asking = Lock()
        self._cache = _Cache(cache_bytes)

    def segment(self, digest: str, *, threads: int = 1) -> bytes:
        """A segment's bytes, verified; `threads` share the arithmetic of a derived one.

        Raises:
            IntegrityError: It is not known (`missing`), or its bytes, or those of what it is made from, are missing or
                wrong, or the way through its inputs is longer than `MAX_DEPTH`; the message names the segment.
        """
        return self._current(self._look([digest]), digest, threads)

    def segments(self, digests: Iterable[str], *, threads: int = 1) -> Iterator[bytes]:
        """The bytes of several segments in the order asked for, each as `segment` gives it, decoded a few ahead."""
        asked = iter(digests)
        if threads < 2:
            while window := list(islice(asked, _WINDOW)):
                view = self._look(window)
                yield from (self._current(view, digest, 1) for digest in window)
            return
        with ThreadPoolExecutor(threads) as pool:
            while window := list(islice(asked, _WINDOW)):
                view = self._look(window)
                jobs = ((self._row(view, each).size, partial(self._current, view, each)) for each in window)
                yield from ahead(pool, jobs, threads=threads, most=_IN_FLIGHT)

    def payload(self, row: SegmentPlace) -> bytes:
        """A segment as its pack gives it, verified, wherever else it may lie.

        Raises:
            IntegrityError: As `segment` does.
        """
        return self._checked(row, self._from_pack(self._look([row.digest]), row, 0, 1))

    def derive(self, params: Mapping[str, Any], inputs: Sequence[str], size: int, *, threads: int = 1) -> bytes:
        """What an operation gives: `params` as a pack's index has them, `roles` included; not compared with anything.

        Raises:
            IntegrityError: An input is damaged, or the params make no sense.
        """
        made = _Computed("0" * 64, size, tuple(inputs))
        return self._derived(self._look(inputs), made, dict(params), 0, threads)

    def _look(self, digests: Iterable[str]) -> _View:
        """Look up these segments and, level by level, the inputs of those that lie in no whole file."""
        view, level = _View(), set(digests)
        for _ in range(MAX_DEPTH + 1):
            if not level:
                break
            self._ask(view, level)
            open_ = [row for digest in level if (row := view.rows.get(digest)) and digest not in view.homes]
            level = {source for row in open_ for source in row.inputs} - view.rows.keys()
        return view

    def _ask(self, view: _View, digests: set[str]) -> None:
        with self._asking:
            view.rows.update(self._lookup(digests))
            view.homes.update(self._homes(digests))

    def _row(self, view: _View, digest: str) -> SegmentPlace:
        if digest not in view.rows:
            self._ask(view, {digest})
        row = view.rows.get(digest)
        if row is None:
            raise IntegrityError(
                f"segment `{digest[:16]}` is not in the catalog",
                code="missing",
                hint="yard check",
                segment=digest,
            )
        return row

    def _current(self, view: _View, digest: str, threads: int) -> bytes:
        """The segment, looked up once more when it is not where it was: a compaction may have moved it meanwhile."""
        try:
            return self._decode(view, digest, 0, threads)
        except IntegrityError:
            fresh = self._look([digest])
            if all(view.rows.get(each) == row for each, row in fresh.rows.items()) and all(
                view.homes.get(each) == home for each, home in fresh.homes.items()
            ):
                raise
            return self._decode(fresh, digest, 0, threads)

    def _decode(self, view: _View, digest: str, depth: int, threads: int) -> bytes:
        kept = self._cache.get(digest)
        if kept is not None:
            return kept
        if depth > MAX_DEPTH:
            _damaged(digest, f"is more than {MAX_DEPTH} steps away from what it is made from")
        row = self._row(view, digest)
        home, first = view.homes.get(digest), None
        if home is not None:
            try:
                return self._from_file(row, home)
            except IntegrityError as error:
                first = error
            other = self._from_other(row, home)
            if other is not None:
                return other
            if row.encoding is None:
                raise _named(row, first) from first
        try:
            data = self._checked(row, self._from_pack(view, row, depth, threads))
        except IntegrityError as error:
            raise _named(row, first or error) from error
        if depth:
            self._cache.put(digest, data)
        return data

    def _from_file(self, row: SegmentPlace, home: tuple[str, int]) -> bytes:
        file, start = home
        return self._checked(row, self._store.read_range("files", Digest(file), start, start + row.size))

    def _from_other(self, row: SegmentPlace, home: tuple[str, int]) -> bytes | None:
        """The segment from another whole file than `home`, which is damaged or gone; None where no other has it."""
        for place in self._others(row.digest):
            if place[0] != home[0]:
                try:
                    return self._from_file(row, place)
                except IntegrityError:
                    continue  # what is wrong with the first one is what is told
        return None

    def _from_pack(self, view: _View, row: SegmentPlace, depth: int, threads: int) -> bytes:
        if row.encoding is None:
            _damaged(row.digest, "is in no pack and in no whole file", code="missing")
        params = _params(row)
        if row.encoding == "derived":
            return self._derived(view, row, params, depth, threads)
        if row.pack is None or not 0 < row.length <= _PAYLOAD_BYTES:
            _damaged(row.digest, f"is kept as `{row.encoding}`, and its place in a pack makes no sense")
        if row.encoding == "raw":
            return self._payload(row, row.pack)
        from modelyard.store.codecs import decode_delta, decode_planes

        codec, dtype = params.get("codec"), params.get("dtype")
        if row.encoding == "packed" and codec == "planes/1" and isinstance(dtype, str):
            return decode_planes(self._payload(row, row.pack), dtype, row.size)
        if row.encoding == "delta" and codec == "delta/1" and isinstance(dtype, str) and len(row.inputs) == 1:
            # The base first: else the payloads of a whole line of deltas were held at once.
            base = self._decode(view, row.inputs[0], depth + 1, threads)
            return decode_delta(self._payload(row, row.pack), base, dtype, row.size)
        return _damaged(row.digest, f"is kept in a form that is not known here (`{row.encoding}`, codec `{codec}`)")

    def _payload(self, row: SegmentPlace, pack: str) -> bytes:
        return self._store.read_range("packs", Digest(pack), row.offset, row.offset + row.length)

    def _derived(self, view: _View, row: SegmentPlace, params: dict[str, Any], depth: int, threads: int) -> bytes:
        from modelyard.derivations.replay import replay

        places = _places(row, params)
        roles: dict[str, list[bytes]] = {role: [] for role, _, _, _ in places}
        # One input after another, so that an input that several roles share is decoded once and held no longer than needed.
        parts: dict[tuple[str, int], bytes] = {}
        for index in sorted({index for _, index, _, _ in places}):
            data = self._decode(view, row.inputs[index], depth + 1, threads)
            for at, (role, which, start, end) in enumerate(places):
                if which == index:
                    if end > len(data):
                        _damaged(row.digest, f"needs bytes {start} to {end} of an input of {len(data)}")
                    parts[role, at] = data if end - start == len(data) else data[start:end]
        for at, (role, _, _, _) in enumerate(places):
            roles[role].append(parts.pop((role, at)))
        joined = {role: pieces[0] if len(pieces) == 1 else b"".join(pieces) for role, pieces in roles.items()}
        del roles
        try:
            return replay(params, joined, size=row.size, threads=threads)
        except InputError as error:
            return _damaged(row.digest, f"cannot be computed again: {error.message}")

    def _checked(self, row: SegmentPlace, data: bytes) -> bytes:
        if len(data) != row.size or digest_bytes(data) != row.digest:
            _damaged(row.digest, "is damaged: its bytes do not have its digest")
        return data


@dataclass(frozen=True)
class _Computed:
    """A segment that is not kept yet: what an operation would give."""

    digest: str
    size: int
    inputs: tuple[str, ...]
    encoding: str | None = "derived"
    pack: str | None = None
    offset: int = 0
    length: int = 0
    params: str = "{}"


class _Cache:
    """Small inputs, the last used kept longest, at most `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: str) -> bytes | None:
        with self._lock:
            found = self._kept.get(digest)
            if found is not None:
                self._kept.move_to_end(digest)
            return found

    def put(self, digest: str, data: bytes) -> None:
        if len(data) > min(_CACHED_AT_MOST, self._limit):
            return
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = data
                self._held += len(data)
            while self._held > self._limit:
                self._held -= len(self._kept.popitem(last=False)[1])


def catalog_decoder(store: Store, catalog: Catalog) -> Decoder:
    """A decoder that looks segments up in `catalog`, a short transaction each time."""
    from modelyard.catalog import segments

    def lookup(digests: Iterable[str]) -> Mapping[str, SegmentPlace]:
        with catalog.read() as connection:
            return segments.find(connection, digests)

    def homes(digests: Iterable[str]) -> Mapping[str, tuple[str, int]]:
        with catalog.read() as connection:
            return segments.homes(connection, digests)

    def others(wanted: str) -> Iterable[tuple[str, int]]:
        with catalog.read() as connection:
            return segments.all_homes(connection, [wanted]).get(wanted, ())

    return Decoder(store, lookup, homes, others=others)


def _params(row: SegmentPlace) -> dict[str, Any]:
    try:
        found = json.loads(row.params) if row.params else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        _damaged(row.digest, "has parameters that are not a JSON object")
    return found


def _places(row: SegmentPlace, params: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    """The `roles` of a derived segment as (role, input, start, end), checked."""
    roles = params.get("roles")
    found: list[tuple[str, int, int, int]] = []
    for role, slices in roles.items() if isinstance(roles, dict) else ():
        for each in slices if isinstance(slices, list) else [None]:
            if not isinstance(each, list) or not _is_slice(each, row.inputs):
                _damaged(row.digest, f"has a role `{str(role)[:40]}` that is not made of its inputs")
            found.append((str(role), each[0], each[1], each[2]))
    if not found or sum(end - start for _, _, start, end in found) > _ROLE_BYTES:
        _damaged(row.digest, "has no roles, or roles of more bytes than are allowed")
    return found


def _is_slice(value: list[Any], inputs: Sequence[str]) -> bool:
    return (
        len(value) == 3
        and all(type(number) is int for number in value)
        and 0 <= value[0] < len(inputs)
        and 0 <= value[1] < value[2]
    )


def _named(row: SegmentPlace, error: IntegrityError) -> IntegrityError:
    """The error with the segment's name in it, unless it has one already."""
    if "segment" in error.details:
        return error
    message = f"segment `{row.digest[:16]}` cannot be read: {error.message}"
    return IntegrityError(message, code=error.code, hint=error.hint, segment=row.digest)


def _damaged(digest: str, what: str, *, code: str = "damaged") -> NoReturn:
    raise IntegrityError(f"segment `{digest[:16]}` {what}", code=code, hint="yard check --read-data", segment=digest)
