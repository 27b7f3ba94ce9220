"""One call of one side, in a process of its own: what `benchmarks/store.py` times.

    python store_calls.py CALL ARGUMENT...

Imports and the opening of a yard are not part of the time. The last line printed is `{"seconds", "processor", "memory", "size"}`; memory
is the process's highest, as the kernel tells it. The MLflow calls import nothing of this project: they run in a virtual environment of their own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 20
_MOST = 2 << 30  # bytes that are touched beforehand
_SMALL = b'\x38\0\0\0\0\0\0\0{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}} \0\0\0\0'
_BUILD = Path(__file__).parents[1] / "build" / "benchmarks"


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _touch(size: int) -> None:
    """Have the machine hand out the memory that the call's files will take in the page cache, and give it back.

    A virtual machine gets memory from its host at the first touch, and lends it back when it lies free for seconds. Where this
    was found that is 2 s for a GB, four times as long as the copy itself, paid by whichever side happens to come first.
    """
    _BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=_BUILD, buffering=0) as file:
        file.writelines(itertools.repeat(bytes(_CHUNK), min(size + size // 4, _MOST) // _CHUNK))


def _timed(work: Callable[[], object], size: int, *, writes: int = 0) -> None:
    _touch(writes)
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

    _timed(work, _size(source), writes=_size(source))


def write(source: str, target: str) -> None:
    """What the disk takes: as many bytes as the source has, from memory, and fsync."""
    size, chunk = _size(source), os.urandom(_CHUNK)

    def work() -> None:
        with Path(target).open("wb", buffering=0) as file:
            file.writelines(chunk for _ in range(size // _CHUNK))
            os.fsync(file.fileno())

    _timed(work, size, writes=size)


def sha256(source: str) -> None:
    """SHA-256 of a folder's files, read once."""

    def work() -> None:
        for path in Path(source).iterdir():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    _timed(work, _size(source))


def _yard(home: str):  # type: ignore[no-untyped-def]  # imported late: the MLflow calls have no modelyard
    """A yard, opened after one of a few bytes was made and read: what is imported on the way is not part of the time."""
    from modelyard.app import open_yard
    from modelyard.settings import Settings

    with tempfile.TemporaryDirectory(dir=_BUILD) as small:
        yard = open_yard(Settings(home=Path(small, "yard")), create=True)
        yard.commit({"model.safetensors": _SMALL}, "warm/up")
        yard.checkout("warm/up", Path(small, "out"))
    return open_yard(Settings(home=Path(home)), create=not Path(home).exists())


def commit(home: str, source: str, repo: str) -> None:
    """Commit a folder."""
    yard = _yard(home)
    _timed(lambda: yard.commit(Path(source), repo), _size(source), writes=_size(source))


def checkout(home: str, reference: str, target: str, link: str, size: str = "0") -> None:
    """Check a version of `size` bytes out; `link` is `link` or `copy`."""
    yard = _yard(home)
    _timed(lambda: yard.checkout(reference, Path(target), link=link == "link"), 0, writes=int(size))


def _warm_mlflow(tracking: str) -> None:
    """Log and fetch a few bytes, for the same reason."""
    import mlflow

    mlflow.set_tracking_uri(tracking)
    with mlflow.start_run() as run, tempfile.TemporaryDirectory(dir=_BUILD) as folder:
        Path(folder, "model.safetensors").write_bytes(_SMALL)
        mlflow.log_artifacts(folder)
        mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="", dst_path=str(Path(folder)))


def mlflow_log(tracking: str, noted: str, source: str, durable: str) -> None:
    """Log a folder as a run's artifacts; the run's id goes to the file `noted`.

    `tracking` is a server's address, or the `file:` address of a local folder. `durable` is such a folder to fsync everything in, or empty.
    """
    import mlflow

    def work() -> None:
        mlflow.log_artifacts(source)
        for path in Path(durable).rglob("*") if durable else ():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    _warm_mlflow(tracking)
    with mlflow.start_run() as run:
        Path(noted).write_text(run.info.run_id, "utf-8")
        _timed(work, _size(source), writes=_size(source))


def mlflow_download(tracking: str, noted: str, target: str, size: str) -> None:
    """Download the artifacts of the noted run, `size` bytes of them, into a new folder, as copies."""
    import mlflow

    _warm_mlflow(tracking)
    run = Path(noted).read_text("utf-8")
    Path(target).mkdir(parents=True)

    def work() -> None:
        mlflow.artifacts.download_artifacts(run_id=run, artifact_path="", dst_path=target)

    _timed(work, 0, writes=int(size))


if __name__ == "__main__":
    {each.__name__: each for each in (copy, write, sha256, commit, checkout, mlflow_log, mlflow_download)}[sys.argv[1]](
        *sys.argv[2:]
    )  # type: ignore[operator]
