"""What a version's lineage offers for keeping its segments small: operations that give them, and segments like them.

A merge is its base plus its adapter, planned as the merge itself is planned; a converted, quantized or replaced tensor is a cast of
the one it came from; sums of models are what the committer's `derivation` says. A delta base is the tensor of the same
name, dtype and shape in the base, else in the parent, else in another version of the repo.

Everything here is an offer and nothing is believed: whoever takes one compares bytes. Only headers and configurations are
read. This module does not know how segments are kept, or what an offer would save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError, YardError
from modelyard.registry.hints import Hint
from modelyard.registry.merge_offers import plan_offers
from modelyard.registry.places import HeaderFiles, Places, Slice, TensorPlace
from modelyard.registry.relatives import Relatives, is_adapter, named_version, relatives_of

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.catalog.files import Piece
    from modelyard.catalog.versions import VersionRecord
    from modelyard.registry.context import Context
    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["Derivation", "Offer", "Sources"]

_INPUT_BYTES = 192 << 20  # what is in memory at once to compute one segment


@dataclass(frozen=True)
class Derivation:
    """An operation that may give a segment: `params` as a pack's index has them, `roles` included, and the inputs they count."""

    params: Mapping[str, Any]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Offer:
    """How one segment may be kept.

    Attributes:
        segment: Its digest.
        size: Its bytes.
        file: The file that it is a piece of.
        dtype: Of its elements, `BYTES` where it has none; what `planes/1` and `delta/1` are told.
        derivations: Operations that may give it, the likeliest first.
        bases: Segments of the same size and kind, the likeliest first.
    """

    segment: str
    size: int
    file: str
    dtype: str = "BYTES"
    derivations: tuple[Derivation, ...] = ()
    bases: tuple[str, ...] = ()

    def only(self, is_known: Callable[[str], bool]) -> Offer:
        """The offer without what needs an input that `is_known` does not know."""
        derivations = tuple(made for made in self.derivations if all(map(is_known, made.inputs)))
        return replace(self, derivations=derivations, bases=tuple(filter(is_known, self.bases)))


@dataclass(frozen=True)
class _Range:
    """What one piece of a file is of a tensor: bytes `start` to `end`, counted from the tensor's first."""

    name: str
    place: TensorPlace
    start: int
    end: int


_Deriver = Callable[["_Range"], Derivation | None]


class Sources:
    """Finds offers for the files of versions.

    Args:
        context: The yard.
        places: Where tensors are.
        folder: A scratch folder for headers.
    """

    def __init__(self, context: Context, places: Places, folder: Path) -> None:
        self._context, self._places, self._folder = context, places, folder
        self._tensors: dict[str, dict[str, TensorPlace]] = {}
        self.notes: list[str] = []
        """Why an edge of the lineage offered nothing, for people."""

    def offers(self, record: VersionRecord, files: Sequence[str], *, alone: bool = False) -> Iterator[Offer]:
        """An offer for each piece of these files of a version, in order; `alone` looks at no other version."""
        lineage = Relatives() if alone else relatives_of(self._context, record)
        derivers = [*self._merges(record, lineage), *self._casts(lineage), *(() if alone else self._hinted(record))]
        alike = [(other, self._tensors_of(other)) for other in lineage.alike]
        own = self._tensors_of(record)
        wanted = set(files)
        for entry in record.files:
            if entry.blake3 not in wanted:
                continue
            wanted.discard(entry.blake3)
            pieces = self._places.pieces(entry.blake3, entry.path)
            ranges = _ranges({name: place for name, place in own.items() if place.path == entry.path}, pieces)
            twins = [self._twin(other, entry.path, entry.blake3, pieces) for other, _ in alike]
            for at, piece in enumerate(pieces):
                range_ = ranges.get(at)
                if range_ is None:
                    bases = [twin[at] for twin in twins if twin]
                    yield Offer(piece.segment, piece.size, entry.blake3, bases=_others(bases, piece.segment))
                    continue
                found = tuple(made for derive in derivers if (made := derive(range_)) is not None)
                likes = [self._like(tensors.get(range_.name), range_) for _, tensors in alike]
                bases = [base for base in likes if base is not None]
                others = _others(bases, piece.segment)
                yield Offer(piece.segment, piece.size, entry.blake3, range_.place.dtype, found, others)

    def _tensors_of(self, record: VersionRecord) -> dict[str, TensorPlace]:
        """A version's tensors; none when its headers cannot be read, which is noted."""
        if record.id not in self._tensors:
            if len(self._tensors) >= 8:
                self._tensors.pop(next(iter(self._tensors)))
            try:
                self._tensors[record.id] = self._places.tensors(record)
            except YardError as error:
                self._note(record, error)
                self._tensors[record.id] = {}
        return self._tensors[record.id]

    def _note(self, record: VersionRecord, error: YardError) -> None:
        note = f"{record.repo.name}@v{record.number}: {error.message}"
        if note not in self.notes:
            self.notes.append(note)

    # Operations.

    def _merges(self, record: VersionRecord, lineage: Relatives) -> Iterator[_Deriver]:
        if is_adapter(record):
            return
        for model in lineage.models:
            for adapter in lineage.adapters:
                try:
                    yield self._merge(model, adapter)
                except YardError as error:
                    self._note(record, error)

    def _merge(self, model: VersionRecord, adapter: VersionRecord) -> _Deriver:
        """What a merge of these two would do to each tensor."""
        from modelyard.weights.checkpoint import open_checkpoint
        from modelyard.weights.merge.plan import plan_adapter

        base: Checkpoint = open_checkpoint(HeaderFiles(self._places, model, self._folder))
        factors = open_checkpoint(HeaderFiles(self._places, adapter, self._folder), "adapter_model")
        offers = plan_offers(
            plan_adapter(base, factors), self._tensors_of(model), self._tensors_of(adapter), self._part
        )

        def derive(range_: _Range) -> Derivation | None:
            found = offers.offer(range_.name, range_.place, range_.start, range_.end)
            return _derivation(*found) if found is not None else None

        return derive

    def _casts(self, lineage: Relatives) -> Iterator[_Deriver]:
        for model in lineage.models:
            tensors = self._tensors_of(model)

            def derive(range_: _Range, tensors: Mapping[str, TensorPlace] = tensors) -> Derivation | None:
                source = tensors.get(range_.name)
                return self._cast(range_, source) if source is not None else None

            yield derive

    def _cast(self, range_: _Range, source: TensorPlace) -> Derivation | None:
        from modelyard.derivations import STORAGE
        from modelyard.derivations.replay import cast_params

        to = range_.place.dtype
        # Equal dtypes are equal bytes, and those are one segment already.
        if source.dtype == to or source.shape != range_.place.shape or not {source.dtype, to} <= STORAGE.keys():
            return None
        return _derivation(cast_params(source.dtype, to), {"x": self._elements(source, range_)})

    def _hinted(self, record: VersionRecord) -> Iterator[_Deriver]:
        """What the committer says the files were computed by; see `catalog.md`, "Compaction"."""
        if not record.derivation:
            return
        try:
            hint = Hint.read(record.derivation)
            inputs = [named_version(self._context, each) for each in hint.inputs]
            base = named_version(self._context, hint.base) if hint.base else None
        except YardError as error:
            self._note(record, error)
            return
        models = [self._tensors_of(each) for each in inputs]
        under = self._tensors_of(base) if base is not None else None
        yield lambda range_: self._sum(range_, hint, models, under)

    def _sum(
        self,
        range_: _Range,
        hint: Hint,
        models: Sequence[Mapping[str, TensorPlace]],
        under: Mapping[str, TensorPlace] | None,
    ) -> Derivation | None:
        from modelyard.derivations import STORAGE

        place = range_.place
        tensors = [model[range_.name] for model in models if range_.name in model]
        base = under.get(range_.name) if under is not None else None
        if len(tensors) != len(models) or (under is not None) != (base is not None):
            return None
        every = [*tensors, *([base] if base is not None else [])]
        if any(each.shape != place.shape or each.dtype not in STORAGE for each in every):
            return None
        if place.dtype not in STORAGE or (hint.operation == "ties/1" and range_.end - range_.start != _length(place)):
            return None
        try:
            params = hint.params(
                place.dtype,
                [tensor.dtype for tensor in tensors],
                base.dtype if base is not None else "",
                name=place.name,
                element=range_.start * place.elements // _length(place),
            )
        except InputError:
            return None  # a number that the operation does not take: then the bytes came from somewhere else
        roles = {f"x{at}": self._elements(tensor, range_) for at, tensor in enumerate(tensors)}
        if base is not None:
            roles["base"] = self._elements(base, range_)
        return _derivation(params, roles)

    def _part(self, place: TensorPlace, start: int = 0, end: int | None = None) -> list[Slice]:
        """Bytes of a tensor, counted from its first, in segments."""
        last = place.end if end is None else place.start + end
        return self._places.slices(place.file, place.path, place.start + start, last)

    def _elements(self, source: TensorPlace, range_: _Range) -> list[Slice]:
        """The elements of another tensor that this range has, whatever their width."""
        own, theirs = _length(range_.place), _length(source)
        return self._part(source, range_.start * theirs // own, range_.end * theirs // own)

    # Segments alike.

    def _like(self, place: TensorPlace | None, range_: _Range) -> str | None:
        """The segment that is this very part of another version's tensor."""
        if place is None or not _same(place, range_.place):
            return None
        parts = self._part(place, range_.start, range_.end)
        return _whole_segment(parts, range_.end - range_.start)

    def _twin(self, other: VersionRecord, path: str, file: str, pieces: Sequence[Piece]) -> list[str] | None:
        """The segments of another version's file of this path, when it is cut into the same sizes."""
        entry = next((entry for entry in other.files if entry.path == path), None)
        if entry is None or entry.blake3 == file:
            return None
        try:
            theirs = self._places.pieces(entry.blake3, path)
        except YardError as error:
            self._note(other, error)
            return None
        same = [piece.size for piece in theirs] == [piece.size for piece in pieces]
        return [piece.segment for piece in theirs] if same else None


def _ranges(tensors: Mapping[str, TensorPlace], pieces: Sequence[Piece]) -> dict[int, _Range]:
    """Which tensor each piece lies in; pieces that lie in none, such as the header, are left out."""
    found: dict[int, _Range] = {}
    in_order = sorted((place for place in tensors.items() if _length(place[1])), key=lambda item: item[1].start)
    at = 0
    for index, piece in enumerate(pieces):
        while at < len(in_order) and in_order[at][1].end <= piece.start:
            at += 1
        if at < len(in_order):
            name, place = in_order[at]
            if place.start <= piece.start and piece.start + piece.size <= place.end:
                first = piece.start - place.start
                found[index] = _Range(name, place, first, first + piece.size)
    return found


def _derivation(params: Mapping[str, Any], roles: Mapping[str, list[Slice]]) -> Derivation | None:
    """The operation with its buffers named by input; None when they would not fit in memory."""
    inputs: dict[str, int] = {}
    named: dict[str, list[list[int]]] = {}
    for role, parts in roles.items():
        named[role] = [[inputs.setdefault(part.segment, len(inputs)), part.start, part.end] for part in parts]
    if sum(part.end - part.start for parts in roles.values() for part in parts) > _INPUT_BYTES:
        return None
    return Derivation({**params, "roles": named}, tuple(inputs))


def _whole_segment(parts: Sequence[Slice], size: int) -> str | None:
    """The one segment that these bytes are, whole."""
    if len(parts) != 1 or parts[0].start != 0 or parts[0].end != size:
        return None
    return parts[0].segment


def _others(bases: Sequence[str], segment: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(base for base in bases if base != segment))


def _same(a: TensorPlace, b: TensorPlace) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape)


def _length(place: TensorPlace) -> int:
    return place.end - place.start
