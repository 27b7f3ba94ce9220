"""What the crash tests share: models that derive from one another, and a yard whose process can die without dying."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from modelyard import points
from modelyard.catalog import Catalog
from modelyard.registry import Yard
from modelyard.store import LocalStore
from modelyard.store.faults import WatchedFileSystem
from modelyard.weights import FolderFiles, merge_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import _GeneratorContextManager
    from datetime import datetime
    from pathlib import Path

    from modelyard.catalog import Transaction

LAYER = "model.layers.0."
SHAPES = {f"{LAYER}up.weight": (128, 96), f"{LAYER}down.weight": (96, 128), "model.norm.weight": (96,)}
REST = {"model.embed_tokens.weight": (40, 96), "lm_head.weight": (40, 96)}


@dataclass(frozen=True)
class Content:
    """A folder to commit, and how."""

    name: str
    folder: Path
    kind: str
    made_from: tuple[str, ...] = ()

    def bytes_of(self) -> dict[str, bytes]:
        """What a version of this content must hold."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def _floats(*shape: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(0.05)


def _save(folder: Path, tensors: dict[str, Any], note: str = "pt") -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": note})
    values = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def make_family(root: Path) -> dict[str, Content]:
    """A base, two fine-tunes of it, one of them under another header, an adapter, and the merge of base and adapter."""
    tensors = {name: _floats(*shape, seed=at) for at, (name, shape) in enumerate((SHAPES | REST).items())}
    tuned = {name: value + _floats(*value.shape, seed=50) * np.float32(0.01) for name, value in tensors.items()}
    other = {name: value + _floats(*value.shape, seed=60) * np.float32(0.01) for name, value in tensors.items()}
    _save(root / "base", tensors)
    _save(root / "tuned", tuned)
    _save(root / "renamed", tuned, note="pt2")
    _save(root / "other", other)
    adapter = root / "adapter"
    adapter.mkdir()
    factors = {}
    for name in (f"{LAYER}up.weight", f"{LAYER}down.weight"):
        rows, columns = SHAPES[name]
        module = "base_model.model." + name.removesuffix(".weight")
        factors[f"{module}.lora_A.weight"] = _floats(4, columns, seed=70)
        factors[f"{module}.lora_B.weight"] = _floats(rows, 4, seed=71)
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    merge_lora(FolderFiles(root / "base"), FolderFiles(adapter), root / "merged")
    return {
        content.name: content
        for content in (
            Content("base", root / "base", "base"),
            Content("tuned", root / "tuned", "finetuned", ("base",)),
            Content("renamed", root / "renamed", "finetuned", ("base",)),
            Content("other", root / "other", "finetuned", ("base",)),
            Content("adapter", adapter, "adapter", ("base",)),
            Content("merged", root / "merged", "merged", ("base", "adapter")),
        )
    }


class DiedError(BaseException):
    """The process of a yard was killed here: no cleanup that changes anything may work from now on."""


class Life:
    """One process: alive until `die`; afterwards nothing it does reaches the disk or the catalog."""

    def __init__(self) -> None:
        self.alive = True

    def die(self) -> None:
        """Kill it."""
        self.alive = False
        raise DiedError

    def check(self) -> None:
        """Raise when it is dead."""
        if not self.alive:
            raise DiedError


class MortalFileSystem(WatchedFileSystem):
    """A file system that a dead process cannot change."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def before(self, name: str) -> None:
        """Every change is a place where the process may be found dead."""
        self._life.check()


class MortalCatalog(Catalog):
    """A catalog that a dead process cannot write to."""

    def __init__(self, url: str, life: Life) -> None:
        super().__init__(url)
        self._life = life

    def write(self, *, author: str, at: datetime) -> _GeneratorContextManager[Transaction]:
        """As `Catalog.write`."""
        self._life.check()
        return super().write(author=author, at=at)


@dataclass
class Process:
    """A yard as one process has it open."""

    life: Life
    catalog: Catalog
    yard: Yard

    @classmethod
    def start(cls, root: Path, url: str, clock: Callable[[], datetime] | None = None) -> Process:
        """Open the yard in `root`, making it when there is none."""
        life = Life()
        store = LocalStore(root, MortalFileSystem(life)).init()
        catalog = MortalCatalog(url, life)
        options: dict[str, Any] = {"clock": clock} if clock else {}
        return cls(life, catalog, Yard(store, catalog, author="ana", links=root / "links", **options).init())

    def run(self, work: Callable[[Yard], object], die_at: tuple[str, int] | None = None) -> bool:
        """Do some work; with `die_at` (a point and how often it is reached before) the process may die on the way. Whether it lived."""
        left = die_at[1] if die_at else 0

        def reached(point: str) -> None:
            nonlocal left
            self.life.check()
            if die_at and point == die_at[0]:
                left -= 1
                if left < 0:
                    self.life.die()

        with points.at(reached):
            try:
                work(self.yard)
            except DiedError:
                return False
        return True

    def end(self) -> None:
        """Close what it holds."""
        self.catalog.close()


def names_of(seen: set[str]) -> Iterator[str]:
    """The points that were reached, in their own order."""
    return (point for point in points.POINTS if point in seen)
