"""One call of one side, in a process of its own: what `benchmarks/store.py` times.

    python store_calls.py CALL ARGUMENT...

Imports and the opening of a yard are not part of the time. The last line printed is `{"seconds", "processor", "memory", "size"}`; memory
is the process's highest, as the kernel tells it. The MLflow calls import nothing of this project: they run in a virtual environment of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 20


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _timed(work: Callable[[], object], size: int) -> None:
    start, before = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - start, time.process_time() - before
    print(json.dumps({"seconds": seconds, "processor": processor, "memory": _peak(), "size": size}))


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def copy(source: str, target: str) -> None:
    """A plain durable copy of a folder's files: read, write, fsync, and fsync of the folder."""

    def work() -> None:
        Path(target).mkdir(parents=True)
        for path in Path(source).iterdir():
            with path.open("rb", buffering=0) as read, Path(target, path.name).open("wb", buffering=0) as write:
                while chunk := read.read(_CHUNK):
                    write.write(chunk)
                os.fsync(write.fileno())
        folder = os.open(target, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    _timed(work, _size(source))


def write(source: str, target: str) -> None:
    """What the disk takes: as many bytes as the source has, from memory, and fsync."""
    size, chunk = _size(source), os.urandom(_CHUNK)

    def work() -> None:
        with Path(target).open("wb", buffering=0) as file:
            file.writelines(chunk for _ in range(size // _CHUNK))
            os.fsync(file.fileno())

    _timed(work, size)


def sha256(source: str) -> None:
    """SHA-256 of a folder's files, read once."""

    def work() -> None:
        for path in Path(source).iterdir():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    _timed(work, _size(source))


def _yard(home: str):  # type: ignore[no-untyped-def]  # imported late: the MLflow calls have no modelyard
    from modelyard.app import open_yard
    from modelyard.settings import Settings

    return open_yard(Settings(home=Path(home)), create=not Path(home).exists())


def commit(home: str, source: str, repo: str) -> None:
    """Commit a folder."""
    yard = _yard(home)
    _timed(lambda: yard.commit(Path(source), repo), _size(source))


def checkout(home: str, reference: str, target: str, link: str) -> None:
    """Check a version out; `link` is `link` or `copy`."""
    yard = _yard(home)
    _timed(lambda: yard.checkout(reference, Path(target), link=link == "link"), 0)


def mlflow_log(runs: str, source: str, how: str) -> None:
    """Log a folder as a run's artifacts; the run's id goes to a file beside the runs. `durable`: and fsync what was written."""
    import mlflow

    def work() -> None:
        mlflow.log_artifacts(source)
        if how == "durable":
            for path in Path(runs).rglob("*"):
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

    mlflow.set_tracking_uri(Path(runs).as_uri())
    with mlflow.start_run() as run:
        Path(f"{runs}.id").write_text(run.info.run_id, "utf-8")
        _timed(work, _size(source))


def mlflow_download(runs: str, target: str) -> None:
    """Download the artifacts of the last run into a new folder, as copies."""
    import mlflow

    mlflow.set_tracking_uri(Path(runs).as_uri())
    run = Path(f"{runs}.id").read_text("utf-8")
    Path(target).mkdir(parents=True)
    _timed(lambda: mlflow.artifacts.download_artifacts(run_id=run, artifact_path="", dst_path=target), 0)


if __name__ == "__main__":
    {each.__name__: each for each in (copy, write, sha256, commit, checkout, mlflow_log, mlflow_download)}[sys.argv[1]](
        *sys.argv[2:]
    )  # type: ignore[operator]
