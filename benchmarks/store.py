"""What does a stored model cost, in bytes, in time and in memory, next to a plain copy, SHA-256 and MLflow?

Bytes are counted after `compact` and `gc --now`, on models that were really trained (`store_models.py`). Every timed call
runs in a process of its own, ours and the peer's alike, imports left out; the best of several counts::

    python benchmarks/store.py                 # some minutes, 20 GB of disk for a while
    python benchmarks/store.py --quick         # small sizes and few training steps: that it works
    python benchmarks/store.py --json

MLflow is installed into a virtual environment of its own under `build/benchmarks` (`pip install mlflow`), once. The peer is the registry that a
team shares: `mlflow server --serve-artifacts` on the loopback interface, started here and stopped at the end. Beside it stands MLflow without a
server, on a local folder: a copy inside the kernel, which hashes nothing and syncs nothing; that one is timed with an fsync of each file as well.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import Call, Figure, call, machine, report
from store_mlflow import mlflow, mlflow_server
from store_models import QUICK, Training, changes, make_models, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUILD = Path(__file__).parents[1] / "build" / "benchmarks"
CALLS = str(Path(__file__).with_name("store_calls.py"))


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    large: int = 1_000_000_000
    tensors: int = 18_000
    tensor_bytes: int = 16_384
    memory: tuple[int, int] = (300_000_000, 5_000_000_000)
    header: int = 300_000_000
    weight: tuple[int, int] = (4096, 8192)
    repeat: int = 4
    training: Training = field(default_factory=Training)


SMALL = Sizes(40_000_000, 500, 4096, (40_000_000, 80_000_000), 20_000_000, (512, 2048), 1, QUICK)


def ours(*arguments: object) -> Call:
    """One of our calls, or a plain one, with this interpreter."""
    return call([sys.executable, CALLS, *map(str, arguments)], OMP_NUM_THREADS="2")


# Bytes.


@contextmanager
def yard_in(scratch: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A new yard, and what compacts and collects it and counts the bytes of its files and packs."""
    from modelyard.app import open_yard
    from modelyard.settings import Settings

    home = Path(tempfile.mkdtemp(dir=scratch))
    yard = open_yard(Settings(home=home), create=True)

    def stored() -> int:
        # What a ref names stays whole, and a branch names its newest version: each repo gets one after the model's.
        for repo in yard.repos():
            yard.commit({"README.md": b"The model is one version earlier.\n"}, repo.name)
        yard.compact(idle_days=0)
        yard.collect(now=True)
        return sum(
            path.stat().st_size for area in ("files", "packs") for path in (home / area).rglob("*") if path.is_file()
        )

    try:
        yield yard, stored
    finally:
        shutil.rmtree(home)


def _weights(folder: Path) -> dict[str, Path]:
    """A model's weights alone, so that a share is of the weights and not of the tokenizer beside them."""
    return {path.name: path for path in folder.glob("*.safetensors")}


def _model(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.suffix in {".safetensors", ".json"}}


def shares(scratch: Path, models: Path, sizes: Sizes) -> list[Figure]:
    """What each further model costs, as a share of its weights."""
    size = (models / "base" / "model.safetensors").stat().st_size
    found = {}
    with yard_in(scratch) as (yard, stored):
        yard.commit(_weights(models / "base"), "bench/lone")
        found["lone bf16 model"] = stored() / size, 0.70
        before = stored()
        yard.commit(_weights(models / "base"), "bench/copy")
        found["second identical copy"] = (stored() - before) / size, 0.0
    with yard_in(scratch) as (yard, stored):
        first = write_model(scratch / "named", sizes.header // (1 << 20), 1 << 20)
        second = write_model(scratch / "renamed", sizes.header // (1 << 20), 1 << 20, prefix="transformer")
        yard.commit(first, "bench/named")
        before = stored()
        yard.commit(second, "bench/renamed")
        after = stored()
        found["renamed safetensors header"] = (after - before) / (second / "model.safetensors").stat().st_size, 0.001
        shutil.rmtree(first)
        shutil.rmtree(second)
    with yard_in(scratch) as (yard, stored):
        base = yard.commit(_model(models / "base"), "bench/base", kind="base")
        before = stored()
        other = {
            name: path for name, path in _model(models / "finetuned").items() if name not in _same(models, "finetuned")
        }
        yard.commit(other, "bench/tuned", kind="finetuned", from_=base)
        found["full fine-tune beside its base"] = (stored() - before) / size, 0.45
    with yard_in(scratch) as (yard, stored):
        base = yard.commit(_model(models / "base"), "bench/base", kind="base")
        adapter = yard.commit(_model(models / "adapter"), "bench/adapter", kind="adapter", from_=base)
        before = stored()
        yard.commit(
            _model(models / "merged"), "bench/merged", kind="merged", from_=[("merged", adapter), ("merged", base)]
        )
        found["LoRA merge beside base and adapter"] = (stored() - before) / size, 0.01
    return [
        Figure(f"stored share: {name}", share, "of the file", "0" if most == 0 else f"<= {most}", share <= most)
        for name, (share, most) in found.items()
    ]


def _same(models: Path, name: str) -> set[str]:
    """Files that say the same as the base's, so that a share counts weights only."""
    return {path.name for path in (models / name).glob("*.json") if path.name.startswith("tokenizer")}


def training_figures(models: Path) -> list[Figure]:
    """How far the fine-tune went: without these two its share says nothing."""
    median, changed = changes(models / "base", models / "finetuned")
    return [
        Figure("fine-tune: median relative change", 100 * median, "%", ">= 1", median >= 0.01),
        Figure("fine-tune: elements changed", 100 * changed, "%", ">= 80", changed >= 0.80),
    ]


# Time.


_FOLDER = "MLflow on a local folder: a plain copy in the kernel, no hash"


def _beside(name: str, mine: Call, peer: str, theirs: Call, *, size: int = 0) -> Figure:
    """A figure to look at, without a target."""
    return replace(_faster(name, mine, peer, theirs, 0, size=size), target="none: for comparison")


def _faster(name: str, mine: Call, peer: str, theirs: Call, least: float, *, size: int = 0) -> Figure:
    ratio = theirs.seconds / mine.seconds
    rates = [(size or mine.size) / 1e6 / each.seconds for each in (mine, theirs)]
    return Figure(name, rates[0], "MB/s", f">= {least:g}x", ratio >= least, peer, rates[1], ratio)


def commits(scratch: Path, sizes: Sizes, notes: dict[str, Any]) -> list[Figure]:
    """Commits and checkouts of one large model and of one of many small tensors."""
    big = write_model(scratch / "large", max(sizes.large // (32 << 20), 1), 32 << 20)
    many = write_model(scratch / "many", sizes.tensors, sizes.tensor_bytes)
    with mlflow_server(scratch / "server") as server:
        figures = transfers(scratch, big, f"{_mb(big)} MB", sizes.repeat, notes, server=server)
        figures += transfers(
            scratch, many, f"{sizes.tensors} tensors, {_mb(many)} MB", sizes.repeat, notes, server=server
        )
    figures += links(scratch, big, sizes)
    shutil.rmtree(big)
    shutil.rmtree(many)
    return figures


def transfers(
    scratch: Path, source: Path, label: str, repeat: int, notes: dict[str, Any], *, server: str
) -> list[Figure]:
    """One model into a yard and out of it, and the same by others, in turn."""
    home, runs, target, written = (scratch / name for name in ("yard", "runs", "target", "written"))
    kept, noted, size = scratch / "server" / "artifacts", scratch / "run", (source / "model.safetensors").stat().st_size
    steps: dict[str, tuple[Path | None, Callable[[int], Call]]] = {
        "disk": (written, lambda _: ours("write", source, written)),
        "plain": (target, lambda _: ours("copy", source, target)),
        "new": (home, lambda _: ours("commit", home, source, "bench/new")),
        "known": (None, lambda number: ours("commit", home, source, f"bench/again{number}")),
        "hashed": (None, lambda _: ours("sha256", source)),
        "checkout": (target, lambda _: ours("checkout", home, "bench/new", target, "copy", size)),
        "served": (kept, lambda _: mlflow("mlflow_log", server, noted, source, "")),
        "fetched": (target, lambda _: mlflow("mlflow_download", server, noted, target, size)),
        "logged": (runs, lambda _: mlflow("mlflow_log", runs.as_uri(), noted, source, "")),
        "download": (target, lambda _: mlflow("mlflow_download", runs.as_uri(), noted, target, size)),
        "durable": (runs, lambda _: mlflow("mlflow_log", runs.as_uri(), noted, source, runs)),
    }
    calls: dict[str, list[Call]] = {name: [] for name in steps}
    # One of each in turn, so that what else the machine does meets all sides alike.
    for number in range(repeat):
        for name, (path, step) in steps.items():
            if path is not None:
                _remove(path)
            calls[name].append(step(number))
    for path in (home, runs, target, written):
        _remove(path)
    made = {name: min(each, key=lambda one: one.seconds) for name, each in calls.items()}
    new, known, out = made["new"], made["known"], made["checkout"]
    busy = {name: round(min(each.processor for each in made), 2) for name, made in calls.items()}
    notes[f"processor seconds ({label})"] = ", ".join(f"{name} {seconds}" for name, seconds in busy.items())
    return [
        Figure(f"disk: write and fsync ({label})", size / 1e6 / made["disk"].seconds, "MB/s", "physical limit", True),
        _faster(f"commit of new bytes ({label})", new, "plain durable copy", made["plain"], 0.8),
        _faster(f"commit of new bytes ({label})", new, "MLflow server, log_artifacts", made["served"], 3),
        _faster(f"commit of stored bytes ({label})", known, "SHA-256", made["hashed"], 0.8),
        _faster(f"commit of stored bytes ({label})", known, "MLflow server, log_artifacts", made["served"], 3),
        _faster(f"checkout ({label})", out, "MLflow server, download_artifacts", made["fetched"], 3, size=size),
        _beside(f"commit of new bytes ({label})", new, f"{_FOLDER}, not durable", made["logged"]),
        _beside(f"commit of new bytes ({label})", new, f"{_FOLDER}, and fsync", made["durable"]),
        _beside(f"commit of stored bytes ({label})", known, f"{_FOLDER}, not durable", made["logged"]),
        _beside(f"checkout ({label})", out, _FOLDER, made["download"], size=size),
        _beside(f"checkout ({label})", out, "plain durable copy", made["plain"], size=size),
    ]


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _mb(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size // 1_000_000


def links(scratch: Path, big: Path, sizes: Sizes) -> list[Figure]:
    """Checkout by link of a small and a large model."""
    small = write_model(scratch / "small", max(sizes.large // 10 // (1 << 20), 1), 1 << 20)
    home, target = scratch / "yard", scratch / "target"
    models = {"bench/small": small, "bench/big": big}
    for repo, source in models.items():
        ours("commit", home, source, repo)
    made: dict[str, list[float]] = {repo: [] for repo in models}
    # In turn: a transaction's fsync takes longer while the disk writes something else.
    for number in range(3 * sizes.repeat):
        for repo, each in made.items():
            each.append(ours("checkout", home, repo, target / f"{repo[6:]}{number}", "link").seconds)
    shutil.rmtree(home)
    shutil.rmtree(target)
    seconds = [min(each) for each in made.values()]
    name = f"checkout by link ({_mb(big)} MB beside {_mb(small)} MB)"
    ratio = seconds[1] / seconds[0]
    shutil.rmtree(small)
    return [
        Figure(
            name,
            1000 * seconds[1],
            "ms",
            "constant: <= 1.5x",
            ratio <= 1.5,
            "a tenth of the size",
            1000 * seconds[0],
            ratio,
        )
    ]


def rebuilding(models: Path, sizes: Sizes) -> list[Figure]:
    """How fast a segment is made from what is kept of it: the fine-tune's tensors as one delta, a derived one at rank 16."""
    from modelyard.derivations import lora_params, replay
    from modelyard.store import codecs

    bodies = []
    for name in ("base", "finetuned"):
        data = (models / name / "model.safetensors").read_bytes()
        bodies.append(data[8 + struct.unpack("<Q", data[:8])[0] :])
    base, tuned = bodies
    # In as many segments as threads share: a model has hundreds.
    length = len(base) // 8 // 64 * 64
    parts = [slice(start, start + length) for start in range(0, 8 * length, length)]
    payloads = [codecs.encode_delta(tuned[part], base[part], "BF16") for part in parts]

    def rebuild(number: int) -> bytes:
        return codecs.decode_delta(payloads[number], base[parts[number]], "BF16", length)

    if any(rebuild(number) != tuned[part] for number, part in enumerate(parts)):
        raise SystemExit("a delta was not rebuilt")
    figures = []
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            work = partial(_drain, pool, rebuild, len(parts))
            figures.append(_rate(f"rebuilding a delta, {_threads(threads)}", length * len(parts), work))
    rows, columns = sizes.weight
    random = np.random.default_rng(0)
    weight = random.integers(0, 0x3F00, rows * columns, np.uint16).tobytes()
    a, b = (random.standard_normal(16 * side, np.float32).tobytes() for side in (columns, rows))
    params = lora_params("BF16", (rows, columns), rank=16, scale=2.0, a_dtype="F32", b_dtype="F32")
    roles = {"w": weight, "a": a, "b": b}
    for threads in (1, 2):
        name = f"rebuilding lora/1 at rank 16, {_threads(threads)}"
        figures.append(
            _rate(name, len(weight), lambda threads=threads: replay(params, roles, size=len(weight), threads=threads))
        )
    return figures


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _drain(pool: ThreadPoolExecutor, work: Callable[[int], object], count: int) -> None:
    for _ in pool.map(work, range(count)):
        pass


def _rate(name: str, size: int, work: Callable[[], object]) -> Figure:
    """Bytes a second, the best of many; beside it, bytes for each second of one processor, which others cannot take away."""
    seconds, processor = [], []
    end = time.perf_counter() + 4
    while len(seconds) < 3 or (time.perf_counter() < end and len(seconds) < 200):
        start, before = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - before)
    value, quiet = size / min(seconds) / 1e6, size / min(processor) / 1e6
    return Figure(name, value, "MB/s", ">= 300", value >= 300, "a second of one processor", quiet, value / quiet)


# Memory.


def memory(scratch: Path, sizes: Sizes) -> list[Figure]:
    """The peak of a process that commits, and of one that checks out, from a small to a large model."""
    peaks: dict[str, list[float]] = {"commit": [], "checkout": []}
    for size in sizes.memory:
        source = write_model(scratch / "model", max(size // (32 << 20), 1), 32 << 20)
        home, target = scratch / "yard", scratch / "target"
        peaks["commit"].append(ours("commit", home, source, "bench/model").memory)
        shutil.rmtree(source)
        peaks["checkout"].append(ours("checkout", home, "bench/model", target, "copy").memory)
        shutil.rmtree(home)
        shutil.rmtree(target)
    low, high = (f"{size / 1e9:g} GB" for size in sizes.memory)
    return [
        Figure(
            f"peak memory of a {name} ({high} beside {low})", peak[1], "MB", "<= 300 and flat: <= 1.25x",
            peak[1] <= 300 and peak[1] <= 1.25 * peak[0], "the smaller model", peak[0], peak[1] / peak[0],
        )
        for name, peak in peaks.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=("shares", "commits", "rebuilding", "memory"), help="one group of figures")
    options = parser.parse_args()
    sizes = SMALL if options.quick else Sizes()
    where = machine("numpy", "torch", "zstandard", "safetensors")
    BUILD.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    notes: dict[str, Any] = {}
    models = BUILD / ("models-quick" if options.quick else "models")
    if options.only in {None, "shares", "rebuilding"}:
        notes = make_models(models, sizes.training)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        scratch = Path(folder)
        if options.only in {None, "shares"}:
            figures += training_figures(models) + shares(scratch, models, sizes)
        if options.only in {None, "commits"}:
            figures += commits(scratch, sizes, notes)
        if options.only in {None, "rebuilding"}:
            figures += rebuilding(models, sizes)
        if options.only in {None, "memory"}:
            figures += memory(scratch, sizes)
    report(where, figures, quick=options.quick, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
