"""Which segments are held: the catalog says where each is, and the store whether that is there.

A segment is held in a whole file, or in a pack with everything that it is made from. Only names are looked at, no byte is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.catalog import segments
from modelyard.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from modelyard.store.base import ByteArea, Store

__all__ = ["held"]


def held(connection: Connection, raw: Store, names: Iterable[str]) -> set[str]:
    """Which of these segments are held: in a whole file or pack that is there, with everything that they are made from."""
    wanted = set(names)
    rows = segments.closure(connection, wanted)
    homes = segments.all_homes(connection, rows)
    there: dict[tuple[ByteArea, str], bool] = {}
    known: dict[str, bool] = {}

    def is_there(area: ByteArea, digest: str) -> bool:
        if (area, digest) not in there:
            there[area, digest] = raw.has_file(Digest(digest), area=area)
        return there[area, digest]

    def is_held(name: str) -> bool:
        if name not in known:
            known[name] = False  # while its inputs are looked at: a cycle holds nothing
            row = rows.get(name)
            packed = row is not None and row.encoding is not None and row.pack is not None
            known[name] = any(is_there("files", file) for file, _ in homes.get(name, ())) or (
                packed
                and row is not None
                and is_there("packs", str(row.pack))
                and all(is_held(each) for each in row.inputs)
            )
        return known[name]

    return {name for name in wanted if is_held(name)}
