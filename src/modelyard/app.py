"""The one composition root: settings become a `Yard`.

It alone knows which store, which catalog and which judge are used together, and where in a yard's folder they live::

    <home>/          the local store: files/ manifests/ reports/ journal/ tmp/ format
    <home>/catalog.db    the catalog, unless `catalog_url` says PostgreSQL
    <home>/links/        loaded versions as hard links to files/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelyard.registry import Verdict, Yard
    from modelyard.settings import Settings

__all__ = ["open_yard"]


def open_yard(settings: Settings, create: bool = False) -> Yard:
    """The yard in `settings.home`.

    Args:
        settings: Where it is and who asks.
        create: Make it when there is none, and upgrade an older catalog.

    Raises:
        NotFoundError: There is none, and `create` is off.
        YardError: The catalog or the store is of a newer program; both revisions are named.
    """
    from modelyard.catalog import Catalog
    from modelyard.registry import Yard
    from modelyard.store import LocalStore

    home = settings.home
    store = LocalStore(home)
    store = store.init() if create else store.open()
    catalog = Catalog(settings.catalog_url or f"sqlite:///{home.absolute() / 'catalog.db'}")
    yard = Yard(store, catalog, author=settings.author, judge=_judge, check_gate=_check_gate, links=home / "links")
    return yard.init() if create else yard.open()


def _judge(
    gate: Mapping[str, Any],
    *,
    candidate: str,
    reports: Sequence[Mapping[str, Any]],
    baseline: str | None,
    baseline_reports: Sequence[Mapping[str, Any]],
) -> Verdict:
    # Imported when a gate is judged: listing a yard needs no statistics.
    from modelyard.evaluation.gates import judge

    return judge(gate, candidate=candidate, reports=reports, baseline=baseline, baseline_reports=baseline_reports)


def _check_gate(gate: Mapping[str, Any]) -> Mapping[str, Any]:
    from modelyard.evaluation.gates import parse_gate

    return parse_gate(gate).model_dump(exclude_none=True)
