"""What the registry's tests share: a bench that makes folders and commits them, and work for other processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from modelyard.catalog import Catalog
from modelyard.digest import digest_bytes
from modelyard.errors import ConflictError, YardError
from modelyard.registry import Yard
from modelyard.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from modelyard.digest import Digest, FileDigests
    from modelyard.registry import Version
    from modelyard.store.base import Area, ByteArea, ObjectArea, Store

DATA = "datasets/team/data"


class Bench:
    """A yard in a folder, and short ways to fill it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.root = folder / "yard"
        self.store = LocalStore(self.root).init()
        self._catalogs: list[Catalog] = []
        self.yard = self.open()
        self._folders = 0

    def open(self, *, store: Store | None = None, **options: Any) -> Yard:
        """Another yard over the same store and catalog, as another process would open it."""
        catalog = Catalog(self.url)
        self._catalogs.append(catalog)
        given: dict[str, Any] = {"author": "ana", "links": self.root / "links"} | options
        return Yard(store or self.store, catalog, **given).init()

    def close(self) -> None:
        """Close every connection."""
        for catalog in self._catalogs:
            catalog.close()

    def write(self, files: Mapping[str, str | bytes]) -> Path:
        """A new folder with these files."""
        self._folders += 1
        folder = self.folder / f"in{self._folders}"
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    def data(self, text: str = "x", to: str = DATA, **options: Any) -> Version:
        """Commit a data set of one file."""
        return self.yard.commit(self.write({"data.txt": text}), to, **options)

    def model_folder(self, value: float = 1.0, config: Mapping[str, Any] | None = None) -> Path:
        """A folder that looks like a model: a configuration and one small tensor."""
        folder = self.write({"config.json": json.dumps(config or {"model_type": "llama", "hidden_size": 4})})
        save_file({"weight": np.full((3, 4), value, np.float32)}, folder / "model.safetensors")
        return folder

    def model(self, value: float = 1.0, to: str = "team/model", **options: Any) -> Version:
        """Commit a model."""
        return self.yard.commit(self.model_folder(value), to, **options)


def report(
    version: Version,
    right: Sequence[bool],
    dataset: Version | None = None,
    *,
    task: str = "exact-match",
    rows: str = "rows",
) -> dict[str, Any]:
    """A complete report with these outcomes, example by example."""
    examples = [
        {"id": str(at), "expected": "a", "output": "a", "score": float(ok), "prompt_digest": digest_bytes(b"%d" % at)}
        for at, ok in enumerate(right)
    ]
    return {
        "format": "modelyard/report/1",
        "model": str(version.id),
        "dataset": str(dataset.id) if dataset else "",
        "file": "data.txt",
        "data_digest": str(digest_bytes(rows.encode())),
        "task": {"name": task},
        "n": len(right),
        "metrics": {"accuracy": sum(right) / len(right)},
        "interval": {"accuracy": [0.0, 1.0]},
        "environment": {"modelyard": "0"},
        "examples": examples,
    }


class Wrapper:
    """A store around a store: every call goes through; what changes it is counted by `before` and `after`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def before(self, what: str) -> None:
        """Called before a change."""

    def after(self, what: str) -> None:
        """Called after a change."""

    def _change(self, what: str, call: Any) -> Any:
        self.before(what)
        result = call()
        self.after(what)
        return result

    def put_file(self, chunks: Iterable[bytes], *, area: ByteArea = "files") -> FileDigests:
        what = "file" if area == "files" else "pack"
        return self._change(what, lambda: self.inner.put_file(chunks, area=area))  # type: ignore[no-any-return]

    def import_file(
        self,
        path: Path,
        *,
        sha256_of: Callable[[Digest], str | None] | None = None,
        observe: Callable[[bytes], object] | None = None,
        link: bool = False,
    ) -> FileDigests:
        return self._change(  # type: ignore[no-any-return]
            "file", lambda: self.inner.import_file(path, sha256_of=sha256_of, observe=observe, link=link)
        )

    def has_file(self, digest: Digest, *, area: ByteArea = "files") -> bool:
        return self.inner.has_file(digest, area=area)

    def open_file(self, digest: Digest, *, area: ByteArea = "files") -> BinaryIO:
        return self.inner.open_file(digest, area=area)

    def read_range(self, area: ByteArea, digest: Digest, start: int, end: int) -> bytes:
        return self.inner.read_range(area, digest, start, end)

    def file_path(self, digest: Digest) -> Path:
        return self.inner.file_path(digest)

    def file_size(self, digest: Digest, *, area: ByteArea = "files") -> int:
        return self.inner.file_size(digest, area=area)

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        self.inner.verify_file(digest, area=area)

    def put(self, area: Area, data: bytes) -> Digest:
        return self._change(area, lambda: self.inner.put(area, data))  # type: ignore[no-any-return]

    def get(self, area: Area, digest: Digest) -> bytes:
        return self.inner.get(area, digest)

    def has(self, area: Area, digest: Digest) -> bool:
        return self.inner.has(area, digest)

    def digests(self, area: ObjectArea) -> Iterator[Digest]:
        return self.inner.digests(area)

    def remove(self, area: ObjectArea, digest: Digest) -> None:
        self._change("remove", lambda: self.inner.remove(area, digest))

    def publish_journal(self, seq: int, entry: bytes) -> None:
        self._change("journal", lambda: self.inner.publish_journal(seq, entry))

    def journal(
        self, *, after: int = -1, damaged: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        return self.inner.journal(after=after, damaged=damaged)

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()


class Killer(Wrapper):
    """Kills its process with SIGKILL right before or after the nth change of a kind."""

    def __init__(self, inner: Store, when: str, what: str, nth: int) -> None:
        super().__init__(inner)
        self._when, self._what, self._left = when, what, nth

    def before(self, what: str) -> None:
        if what == self._what:
            self._left -= 1
            if self._when == "before" and self._left == 0:
                die()

    def after(self, what: str) -> None:
        if what == self._what and self._when == "after" and self._left == 0:
            die()


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def processes() -> Any:
    """Where other processes come from: a server that has imported the registry and forks, so that twelve cost little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["registry.registry_helpers", "psutil", "sqlalchemy.dialects.sqlite", "psycopg"])
    before = os.environ.get("PYTHONPATH")
    # The server of Python 3.11 finds what it preloads only on the interpreter's own path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), before]))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


@dataclass(frozen=True)
class Outcome:
    """How one racer fared."""

    number: int
    won: bool
    holder: str | None


def race(url: str, root: Path, number: int, expect: str, barrier: Any, outcomes: Any) -> None:
    """Promote a version at the same moment as everybody else, once per round."""
    catalog = Catalog(url)
    yard = Yard(LocalStore(root).open(), catalog, author=f"racer{number}").open()
    try:
        barrier.wait(60)
        yard.promote(f"team/model@v{number}", "production", expect=expect)
        outcomes.put(Outcome(number, True, None))
    except ConflictError as error:
        outcomes.put(Outcome(number, False, error.details["holder"]))
    except YardError as error:
        outcomes.put(Outcome(number, False, repr(error)))
    finally:
        catalog.close()


def commit_and_die(url: str, root: Path, folder: Path, when: str, what: str, nth: int) -> None:
    """Commit in a process that is killed on the way."""
    yard = Yard(Killer(LocalStore(root).open(), when, what, nth), Catalog(url)).open()
    if what == "transaction":
        from modelyard.catalog import refs

        refs.point = lambda *_, **__: die()
    yard.commit(folder, DATA)


def commit_and_report(url: str, root: Path, folder: Path, acknowledged: Any) -> None:
    """Commit, say so, and be killed."""
    yard = Yard(LocalStore(root).open(), Catalog(url)).open()
    acknowledged.send(str(yard.commit(folder, DATA).id))
    die()


def commit_many(url: str, root: Path, folders: Sequence[Path], barrier: Any, made: Any) -> None:
    """Commit several folders to one branch at the same time as others do."""
    catalog = Catalog(url)
    yard = Yard(LocalStore(root).open(), catalog).open()
    barrier.wait(60)
    for folder in folders:
        made.put(yard.commit(folder, DATA).number)
    catalog.close()


def hold_run(url: str, root: Path, key: str, ready: Any) -> None:
    """Start a run and never end it."""
    catalog = Catalog(url)
    Yard(LocalStore(root).open(), catalog).open().start_run(key, step="train")
    ready.send("started")
    signal.pause()
