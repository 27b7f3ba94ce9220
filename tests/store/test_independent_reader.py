"""What the package writes is read by a program that was written from the specification alone."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, cast

from crash.crash_helpers import make_family
from modelyard.catalog import Catalog
from modelyard.registry import Version, Yard
from modelyard.store import LocalStore
from store import independent_reader

REPO = "team/model"


def test_the_specification_is_enough_to_read_cold_versions(tmp_path: Path) -> None:
    """A promise: a reader made from the documents alone restores a base, an adapter, and their cold and encoded fine-tune and merge, byte for byte."""
    family, root = make_family(tmp_path / "family"), tmp_path / "yard"
    yard = Yard(
        LocalStore(root).init(), Catalog(f"sqlite:///{tmp_path}/catalog.db"), author="ana", links=root / "links"
    ).init()
    made: dict[str, Version] = {}
    wanted: dict[str, dict[str, bytes]] = {}
    for name in ("base", "tuned", "adapter", "merged"):
        content = family[name]
        sources = [("merged" if name == "merged" else "finetuned", made[source]) for source in content.made_from]
        made[name] = yard.commit(
            content.folder,
            f"team/{name}" if name in {"base", "adapter"} else REPO,
            kind=cast("Any", content.kind),
            from_=cast("Any", sources),
        )
        wanted[made[name].id] = content.bytes_of()
    head = yard.commit({"note.txt": b"x"}, REPO, kind="merged")
    wanted[head.id] = {"note.txt": b"x"}
    done = yard.compact(idle_days=0, least_rate=0)  # tiny tensors compute slowly
    yard.collect(now=True, force=True)

    reader = independent_reader.Reader(root)
    for version, files in wanted.items():
        assert reader.restore(version) == files
    assert reader.used["delta"]
    assert reader.used["derived"], done
    assert independent_reader.restore(root, made["merged"].id) == wanted[made["merged"].id]


def test_the_reader_is_independent() -> None:
    """The independent reader imports nothing of the package."""
    tree = ast.parse(Path(independent_reader.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.partition(".")[0] == "modelyard"]
