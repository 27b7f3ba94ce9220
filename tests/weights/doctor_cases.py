"""What the tests of the doctor's codes share: copies of sound folders, changes to them, and what is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from modelyard.weights.doctor import CODES, Finding, diagnose
from modelyard.weights.files import FolderFiles


def copy(source: Path, target: Path) -> Path:
    """A copy of a model folder below `target`."""
    return Path(shutil.copytree(source, target / source.name))


def find(folder: Path, **options: Any) -> list[Finding]:
    """What the doctor finds in a folder."""
    return diagnose(FolderFiles(folder), **options)


def only(folder: Path, code: str, level: str | None = None, **options: Any) -> Finding:
    """The one thing that is found, which has this code and the level of the table (or another one)."""
    found = find(folder, **options)
    assert [finding.code for finding in found] == [code], [finding.message for finding in found]
    assert found[0].level == (level or CODES[code])
    assert found[0].hint
    return found[0]


def edit(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    path = folder / name
    held = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}), "utf-8")


def rewrite(folder: Path, change: Any, name: str = "model.safetensors") -> None:
    """Replace the tensors of a file by what `change` makes of them."""
    save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})


def index_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The path of the index, and what it holds."""
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text("utf-8"))
