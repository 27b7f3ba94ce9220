"""What a recipe may name as `package:NAME`: the shipped base, the generated dataset, and the base's own corpus.

>>> resources = PackageResources(Path("/tmp/quickstart-doc"))
>>> resources.data("support/test?rows=2").name
'support-test-2-0.jsonl'
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

from modelyard.errors import NotFoundError, RecipeError, near_match
from modelyard.quickstart import corpus, support

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PackageResources"]

_DEFAULT_ROWS = {"train": 9600, "test": 600}
_MOST_ROWS = 100_000


class PackageResources:
    """Hands out what the package ships or generates; generated files are written below `folder` and reused.

    Args:
        folder: Where generated data files go; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, name: str) -> Path:
        """The model folder called `name`; only `base` exists."""
        if name != "base":
            raise NotFoundError(
                f"no model `package:{name}` ships with modelyard", hint="the one that does is `package:base`"
            )
        return Path(str(resources.files("modelyard.quickstart") / "base"))

    def data(self, name: str) -> Path:
        """The data file called `name`: `support/train` or `support/test`, with `?rows=N&seed=N`."""
        parts = urlsplit(name)
        topic, _, split = parts.path.partition("/")
        if topic != "support" or split not in _DEFAULT_ROWS:
            known = ["support/train", "support/test"]
            meant = near_match(parts.path, known)
            raise NotFoundError(
                f"no data `package:{name}` ships with modelyard",
                hint=f"did you mean `package:{meant}`?" if meant else f"known: {', '.join(known)}",
            )
        query = {key: found[-1] for key, found in parse_qs(parts.query).items()}
        if unknown := sorted(query.keys() - {"rows", "seed"}):
            raise RecipeError(f"`package:{name}`: unknown option `{unknown[0]}`", hint="known: rows, seed")
        rows = _whole(name, "rows", query.get("rows", str(_DEFAULT_ROWS[split])), _MOST_ROWS)
        seed = _whole(name, "seed", query.get("seed", "0"), 2**31)
        return self._write(cast("support.SupportSplit", split), rows, seed)

    def corpora(self, name: str) -> Iterable[str]:
        """The documents that the model `name` was pretrained on, for the contamination check."""
        self.folder(name)
        return (corpus.text_of(document) for document in corpus.documents())

    def _write(self, split: support.SupportSplit, rows: int, seed: int) -> Path:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in support.generate(split, rows, seed=seed))
        path = self._folder / f"support-{split}-{rows}-{seed}.jsonl"
        data = text.encode()
        if not path.is_file() or hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(data).digest():
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".tmp")
            draft.write_bytes(data)
            draft.replace(path)
        return path


def _whole(name: str, key: str, text: str, most: int) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= most or (key == "rows" and int(text) == 0):
        raise RecipeError(f"`package:{name}`: {key} is {text!r}", hint=f"give a whole number up to {most}")
    return int(text)
