"""What a merge of two versions would compute, segment by segment: the plan of the merge as derivations.

The plan is `weights.merge`'s own, so whatever is merged exactly is offered: linear layers, convolutions, embeddings, experts, biases, DoRA and
replaced tensors. A segment that more than one change reaches into, or whose factors lie scattered, is offered nothing. Knows plans and
places; what an offer would save is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelyard.registry.places import Slice, TensorPlace
    from modelyard.weights.merge.plan import Plan, Site

    Part = Callable[[TensorPlace, int, int], list[Slice]]
    Offered = tuple[Mapping[str, Any], dict[str, list[Slice]]]

__all__ = ["MergeOffers", "plan_offers"]


@dataclass(frozen=True)
class MergeOffers:
    """The operations of one merge.

    Attributes:
        plan: What the merge does.
        weights, given: The base's and the adapter's tensors.
        part: Bytes of a tensor, counted from its first, as parts of segments.
    """

    plan: Plan
    weights: Mapping[str, TensorPlace]
    given: Mapping[str, TensorPlace]
    part: Part

    def offer(self, name: str, place: TensorPlace, start: int, end: int) -> Offered | None:
        """Params and buffers of the operation that makes bytes `start` to `end` of the merged tensor `name`; None without one."""
        found = self._site(name, place, start, end)
        if found is None:
            return None
        site, here = found
        if site.kind == "replaced":
            return self._replaced(site, place, start, end)
        added = self.plan.added.get(name)
        weight = self.weights.get(name if added is None else str(added.source))
        if weight is None or (weight.dtype, weight.shape) != (place.dtype, place.shape):
            return None
        before = self.part(weight, start, end)
        if site.low_rank:
            return self._low_rank(site, place, here, before)
        return self._bias(site, place, here, before) if site.kind == "bias" else None

    def _site(self, name: str, place: TensorPlace, start: int, end: int) -> tuple[Site, range] | None:
        """The one change that makes all of these bytes, and which rows of the tensor they are."""
        sites = self.plan.sites.get(name, ())
        rows = sites[0].layout.shape[0] if sites else 0
        width = (place.end - place.start) // rows if rows else 0
        # A piece of a row has no operation; no tensor that a merge changes has rows that long.
        if not width or width * rows != place.end - place.start or start % width or end % width:
            return None
        here = range(start // width, end // width)
        reaching = [site for site in sites if site.layout.rows.start < here.stop and here.start < site.layout.rows.stop]
        if len(reaching) != 1 or not _is_within(here, reaching[0].layout.rows):
            return None
        known = all(key in self.given for key in reaching[0].tensors.values())
        return (reaching[0], here) if known else None

    def _low_rank(self, site: Site, place: TensorPlace, here: range, before: list[Slice]) -> Offered | None:
        from modelyard.derivations.replay import dora_params, lora_params

        layout = site.layout
        a, b = self.given[site.tensors["A"]], self.given[site.tensors["B"]]
        if isinstance(layout.b_rows, tuple):
            return None
        params = lora_params(
            place.dtype,
            (len(here), layout.shape[1]),
            rank=len(layout.a_rows),
            scale=float(site.scale),
            a_dtype=a.dtype,
            b_dtype=b.dtype,
            row=here.start - layout.rows.start,
            rows=len(layout.rows),
            transposed=layout.transposed,
            b_columns=layout.b_columns,
        )
        roles = {"w": before, "a": self._rows(a, layout.a_rows), "b": self._rows(b, layout.b_rows)}
        if not site.dora:
            return params, roles
        if layout.transposed and here != layout.rows:
            return None  # the norms run through all rows
        m = self.given[site.tensors["magnitude"]]
        width = (m.end - m.start) // m.elements
        roles["m"] = self.part(m, layout.b_rows.start * width, layout.b_rows.stop * width)
        return dora_params(params, m.dtype), roles

    def _bias(self, site: Site, place: TensorPlace, here: range, before: list[Slice]) -> Offered | None:
        from modelyard.derivations.replay import linear_params

        values = self.given[site.tensors["bias"]]
        rows = site.layout.b_rows
        if isinstance(rows, tuple):
            return None
        params = linear_params([place.dtype, values.dtype], [1.0, float(site.scale)], place.dtype)
        width = (values.end - values.start) // values.elements
        first = rows.start + here.start - site.layout.rows.start
        return params, {"x0": before, "x1": self.part(values, first * width, (first + len(here)) * width)}

    def _replaced(self, site: Site, place: TensorPlace, start: int, end: int) -> Offered | None:
        from modelyard.derivations import STORAGE
        from modelyard.derivations.replay import cast_params

        value = self.given[site.tensors["value"]]
        # Equal dtypes are equal bytes, and those are one segment already.
        if value.dtype == place.dtype or value.shape != place.shape or not {value.dtype, place.dtype} <= STORAGE.keys():
            return None
        ours, theirs = place.end - place.start, value.end - value.start
        return cast_params(value.dtype, place.dtype), {
            "x": self.part(value, start * theirs // ours, end * theirs // ours)
        }

    def _rows(self, place: TensorPlace, rows: range) -> list[Slice]:
        width = (place.end - place.start) // place.rows
        return self.part(place, rows.start * width, rows.stop * width)


def plan_offers(
    plan: Plan, weights: Mapping[str, TensorPlace], given: Mapping[str, TensorPlace], part: Part
) -> MergeOffers:
    """The operations of a planned merge; an adapter whose start rewrote the base has none.

    Args:
        plan: What `plan_adapter` gave.
        weights: The base's tensors.
        given: The adapter's.
        part: See `MergeOffers`.
    """
    return MergeOffers(plan, weights if plan.start is None else {}, given if plan.start is None else {}, part)


def _is_within(inner: range, outer: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop
