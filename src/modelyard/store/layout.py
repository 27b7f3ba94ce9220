"""Where things lie in a yard's folder, and which folder is one.

`docs/design/store-format.md` is the specification. Knows names and the `format` file; does not read or write objects.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.digest import Digest, canonical_json, digest_bytes
from modelyard.errors import InputError, IntegrityError, InternalError, NotFoundError
from modelyard.store.oserrors import explained
from modelyard.store.reading import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelyard.store.base import ObjectArea

__all__ = [
    "FEATURES",
    "FORMAT",
    "PACKS",
    "Layout",
    "extend_format",
    "format_bytes",
    "frame_entry",
    "read_format",
    "unframe_entry",
]

FORMAT = "modelyard/store/1"
PACKS = "packs"
"""The feature of a yard that holds, or may hold, packs."""
FEATURES: frozenset[str] = frozenset({PACKS})
"""What this version understands beyond the format's first form."""

_VERSIONED = re.compile(r"modelyard/store/(\d{1,9})")
_SHARD = re.compile(r"[0-9a-f]{2}")
_SEQ = re.compile(r"0|[1-9]\d{0,18}")
_SEQ_END = 1 << 63
_FORMAT_LIMIT = 1 << 16
_AREAS: tuple[ObjectArea, ...] = ("files", "packs", "manifests", "reports")
_SHARDED = frozenset({"files", "packs"})
"""Areas that are divided into folders by the first two digits."""


@dataclass(frozen=True)
class Layout:
    """The names inside one yard's folder.

    >>> from pathlib import Path
    >>> layout = Layout(Path("/yard"))
    >>> layout.journal_entry(7)
    PosixPath('/yard/journal/7')
    >>> layout.object("files", Digest("ab" + "0" * 62)).parent
    PosixPath('/yard/files/ab')
    """

    root: Path

    @property
    def format_file(self) -> Path:
        """What says that this is a yard."""
        return self.root / "format"

    @property
    def tmp(self) -> Path:
        """Where bytes are on their way in."""
        return self.root / "tmp"

    @property
    def journal(self) -> Path:
        """The folder of journal entries."""
        return self.root / "journal"

    def folders(self) -> list[Path]:
        """Every folder that a yard always has; `files/ab` and `packs/ab` are made as they are needed."""
        return [*(self.root / area for area in _AREAS), self.journal, self.tmp]

    def object(self, area: ObjectArea, digest: Digest) -> Path:
        """Where an object lies."""
        digest = _checked(digest)
        folder = self._area(area)
        return folder / digest[:2] / digest if area in _SHARDED else folder / digest

    def objects(self, area: ObjectArea) -> Iterator[Digest]:
        """The digests that have a name in `area`, ascending; other names are not objects."""
        folder = self._area(area)
        if area not in _SHARDED:
            yield from _digests(folder, "")
            return
        for shard in sorted(_names(folder)):
            if _SHARD.fullmatch(shard):
                yield from _digests(folder / shard, shard)

    def journal_entry(self, seq: int) -> Path:
        """Where journal entry number `seq` lies."""
        if not 0 <= seq < _SEQ_END:
            raise InternalError(f"{seq} is no journal number")
        return self.journal / str(seq)

    def journal_numbers(self) -> list[int]:
        """The numbers that have an entry, ascending."""
        return sorted(int(name) for name in _names(self.journal) if _SEQ.fullmatch(name) and int(name) < _SEQ_END)

    def check(self) -> None:
        """Refuse a folder that is no yard (`NotFoundError`), a newer one (`InputError`) or a damaged one (`IntegrityError`)."""
        read_format(self)
        for folder in self.folders():
            with explained(folder, "look at"):
                try:
                    mode = folder.lstat().st_mode
                except FileNotFoundError:
                    mode = 0
            if not stat.S_ISDIR(mode):
                what = "is not a folder" if mode else "is missing"
                raise IntegrityError(
                    f"the yard `{self.root}` is damaged: `{folder.name}/` {what}",
                    hint="`yard init` puts missing folders back and touches nothing else",
                    path=str(folder),
                )

    def _area(self, area: ObjectArea) -> Path:
        if area not in _AREAS:
            raise InternalError(f"the store has no area `{area}`")
        return self.root / area


def format_bytes() -> bytes:
    r"""The content of a new yard's `format` file: it has no feature yet.

    >>> format_bytes()
    b'{"features":[],"format":"modelyard/store/1"}\n'
    """
    return canonical_json({"features": [], "format": FORMAT}) + b"\n"


def extend_format(found: dict[str, Any], feature: str) -> bytes:
    r"""The content of a `format` file that says what `found` says, and `feature`.

    >>> extend_format({"features": [], "format": FORMAT, "made": "today"}, PACKS)
    b'{"features":["packs"],"format":"modelyard/store/1","made":"today"}\n'
    """
    features = sorted({*found["features"], feature})
    text = json.dumps({**found, "features": features}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def read_format(layout: Layout) -> dict[str, Any]:
    """The `format` file, checked; errors as `Layout.check`."""
    path = layout.format_file
    with explained(path, "look at"):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"there is no yard at `{layout.root}`", hint="`yard init` makes one", path=str(layout.root)
            ) from None
    with os.fdopen(open_regular(path), "rb") as stream, explained(path, "read"):
        text = stream.read(_FORMAT_LIMIT + 1)
    try:
        found = json.loads(text) if len(text) <= _FORMAT_LIMIT else None
    except (ValueError, RecursionError):
        found = None
    name = found.get("format") if isinstance(found, dict) else None
    features = found.get("features") if isinstance(found, dict) else None
    match = _VERSIONED.fullmatch(name) if isinstance(name, str) else None
    if match is None or not (isinstance(features, list) and all(isinstance(item, str) for item in features)):
        raise IntegrityError(
            f"`{path}` does not say what this folder is",
            hint=f"if this is a yard, write {format_bytes().decode().strip()} into it; else choose another folder",
            path=str(path),
        )
    unknown = sorted(set(features) - FEATURES)
    if name != FORMAT or unknown:
        asks = f"has the format {name}" + (f" with {', '.join(unknown)}" if unknown else "")
        raise InputError(
            f"the yard `{layout.root}` {asks}; this modelyard reads {FORMAT}",
            hint="upgrade modelyard: `pip install -U modelyard`",
            code="newer_format",
            path=str(layout.root),
        )
    return {**found, "features": features, "format": name} if isinstance(found, dict) else {}


def frame_entry(entry: bytes) -> bytes:
    """A journal entry as it is stored: its digest, a newline, and the entry."""
    return digest_bytes(entry).encode() + b"\n" + entry


def unframe_entry(framed: bytes) -> bytes | None:
    """The journal entry in a stored one, or None when it is damaged."""
    entry = framed[65:]
    return entry if framed[:65] == digest_bytes(entry).encode() + b"\n" else None


def _checked(digest: str) -> Digest:
    # Whatever calls itself a digest here becomes a path: it is looked at once more.
    try:
        return Digest(digest)
    except ValueError as error:
        raise InternalError(str(error)) from error


def _names(folder: Path) -> list[str]:
    with explained(folder, "list"):
        try:
            return os.listdir(folder)  # noqa: PTH208  names alone, and a hundred thousand of them
        except (FileNotFoundError, NotADirectoryError):
            return []


def _digests(folder: Path, prefix: str) -> Iterator[Digest]:
    for name in sorted(_names(folder)):
        if name.startswith(prefix):
            try:
                yield Digest(name)
            except ValueError:
                continue
