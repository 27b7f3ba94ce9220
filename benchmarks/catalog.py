"""How long do the small things take that people wait for: moving an alias, a page of a long list, a command's start?

Everything runs on SQLite in a temporary folder, or below `--folder`, whose disk is the one whose flushes are measured::

    python benchmarks/catalog.py            # half a minute
    python benchmarks/catalog.py --quick    # fewer rounds: that it works, not how fast it is
    python benchmarks/catalog.py --json

An alias moves through `Yard.promote`: audit row, outbox, journal entry, all durable when it returns. Its peer is one durable
row in an SQLite database beside it. Commands are processes of their own, from their start to their end; the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.registry import Yard

REPO = "datasets/bench/long"


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def figure(
    name: str, value: float, unit: str, *, peer: str, peer_value: float, ratio: float, target: str, holds: bool
) -> dict[str, Any]:
    """One figure as every benchmark of this project reports it."""
    rounded = {"value": round(value, 3), "peer_value": round(peer_value, 3), "ratio": round(ratio, 2)}
    return {"name": name, "unit": unit, "peer": peer, "target": target, "holds": holds, **rounded}


def make_yard(folder: Path) -> Yard:
    """A yard with a data set of two versions."""
    import modelyard

    yard = modelyard.open(folder / "yard", create=True)
    for text in ("one", "two"):
        (folder / "data.txt").write_text(text)
        yard.commit(folder / "data.txt", to="datasets/bench/data")
    return yard


def promotions(yard: Yard, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """An alias moves to and fro; beside it, one row is written as durably."""
    from modelyard.catalog.engine import journal_mode

    names = [f"datasets/bench/data@v{number}" for number in (1, 2)]
    versions = [yard.resolve(name) for name in names]
    plain = sqlite3.connect(folder / "plain.db", isolation_level=None)
    mode = journal_mode()
    plain.execute(f"PRAGMA journal_mode = {mode}")
    plain.execute("PRAGMA synchronous = FULL")
    plain.execute("CREATE TABLE t (value INTEGER)")
    plain.execute("INSERT INTO t VALUES (0)")
    ours, peer = [], []
    for number in range(rounds + 5):
        version = versions[number % 2]
        ours.append(timed(lambda version=version: yard.promote(version, to="live")))  # type: ignore[misc]
        peer.append(timed(lambda: plain.execute("UPDATE t SET value = value + 1")))
    plain.close()
    moved, row = statistics.median(ours[5:]), statistics.median(peer[5:])
    tail = statistics.quantiles(ours[5:], n=20)[-1]
    beside = f"one durable row in SQLite ({mode})"
    return [
        figure("alias_move_p50", moved, "ms", peer=beside, peer_value=row, ratio=moved / row, target="< 5 ms", holds=moved < 5),
        figure("alias_move_p95", tail, "ms", peer=beside, peer_value=row, ratio=tail / row, target="reported", holds=True),
    ]  # fmt: skip


def fill(yard_folder: Path, count: int) -> None:
    """Put a repo of `count` versions, with two files, an edge and two keys of metadata each, straight into the catalog."""
    from sqlalchemy import insert

    from modelyard.catalog import Catalog, repos
    from modelyard.catalog.schema import lineage, metadata, version_files, version_metadata, versions

    catalog = Catalog(f"sqlite:///{yard_folder / 'catalog.db'}").open()
    at = "2026-11-22T12:00:00.000000Z"
    with catalog.write(author="bench", at=datetime(2026, 11, 22, tzinfo=UTC)) as tx:
        repo = repos.ensure(tx, "dataset", REPO.partition("/")[2])
        said = {"parent": None, "inputs": None, "kind": None, "created_at": at, "author": "bench", "message": "m"}
        rows: dict[str, list[dict[str, Any]]] = {"versions": [], "files": [], "edges": [], "keys": []}
        for number in range(1, count + 1):
            seq, digest = 1000 + number, f"{number:064x}"
            row = {"seq": seq, "repo_id": repo.id, "number": number, "id": digest, "size": 20, "deleted": 0}
            rows["versions"].append(
                said | row | {"metadata": json.dumps({"stage": str(number % 10), "n": str(number)})}
            )
            kept = {"version_seq": seq, "size": 10, "blake3": digest, "sha256": digest}
            rows["files"] += [kept | {"position": position, "path": f"f{position}"} for position in range(2)]
            rows["edges"].append({"version_seq": seq, "position": 0, "type": "imported", "target": digest})
            rows["keys"] += [
                {"version_seq": seq, "key": "stage", "value": str(number % 10)},
                {"version_seq": seq, "key": "n", "value": str(number)},
            ]
        for table, name in (
            (versions, "versions"),
            (version_files, "files"),
            (lineage, "edges"),
            (version_metadata, "keys"),
        ):
            tx.connection.execute(insert(table), rows[name])
        tx.connection.execute(metadata.tables["repos"].update().values(last_number=count))
    catalog.close()


def pages(yard: Yard, count: int, rounds: int) -> list[dict[str, Any]]:
    """A page from the middle of a long list, and one in which a tenth of the versions are to be found by metadata."""
    size = 100
    whole = timed(lambda: len(yard.versions(REPO, limit=count // 10))) * 10
    taken = [timed(lambda: yard.versions(REPO, limit=size, before=count // 2)) for _ in range(rounds)]
    page = statistics.median(taken)
    peer = "a tenth of all of them, times ten"
    return [
        figure(
            f"page_of_{size}_of_{count}", page, "ms", peer=peer, peer_value=whole, ratio=whole / page, target="< 50 ms", holds=page < 50
        )
    ]  # fmt: skip


def filtered(yard_folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A page of versions that have a key with a value which a tenth of all versions have."""
    from modelyard.catalog import Catalog, repos, versions

    catalog = Catalog(f"sqlite:///{yard_folder / 'catalog.db'}").open()
    with catalog.read() as connection:
        repo = repos.find(connection, "dataset", REPO.partition("/")[2])
        assert repo is not None

        def page(**where: str) -> int:
            return len(versions.in_repo(connection, repo.id, limit=100, where=where))

        assert page(stage="3") == 100
        common = statistics.median(timed(lambda: page(stage="3")) for _ in range(rounds))
        rare = statistics.median(timed(lambda: page(n="77")) for _ in range(rounds))
    catalog.close()
    name, peer = "page_filtered_by_metadata", "a value that one version has"
    return [figure(name, common, "ms", peer=peer, peer_value=rare, ratio=common / rare, target="reported", holds=True)]


def commands(yard_folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Processes from start to end, in turns, so that a busy moment hits all of them."""
    yard = ["-m", "modelyard.cli.main"]
    asked = {
        "python": ["-c", "pass"],
        "sqlalchemy": ["-c", "import sqlalchemy"],
        "help": [*yard, "--help"],
        "ls": [*yard, "ls", "--yard", str(yard_folder)],
    }
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, arguments in asked.items():

            def run(arguments: list[str] = arguments) -> None:
                subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

            taken[name].append(timed(run))
    found = {name: statistics.median(times) for name, times in taken.items()}
    above = found["ls"] - found["sqlalchemy"]
    return [
        figure(
            "yard_help", found["help"], "ms", peer="python -c pass", peer_value=found["python"],
            ratio=found["help"] / found["python"], target="< 150 ms", holds=found["help"] < 150,
        ),
        figure(
            "yard_ls", found["ls"], "ms", peer="import sqlalchemy", peer_value=found["sqlalchemy"],
            ratio=found["ls"] / found["sqlalchemy"], target="reported", holds=True,
        ),
        figure(
            "yard_ls_above_sqlalchemy", above, "ms", peer="import sqlalchemy", peer_value=found["sqlalchemy"],
            ratio=above / found["sqlalchemy"], target="< 150 ms", holds=above < 150,
        ),
    ]  # fmt: skip


def measure(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Every figure."""
    rounds, count = (20, 1_000) if quick else (300, 100_000)
    yard = make_yard(folder)
    figures = promotions(yard, folder, rounds)
    figures += commands(folder / "yard", 3 if quick else 15)
    fill(folder / "yard", count)
    figures += pages(yard, count, 20)
    return figures + filtered(folder / "yard", 20)


def flush(folder: Path) -> float:
    """Milliseconds that this disk takes to make 4 KB durable: the median of many."""
    with (folder / "flush").open("wb", buffering=0) as file:

        def once() -> None:
            file.seek(0)
            file.write(b"x" * 4096)
            os.fsync(file.fileno())

        return statistics.median(timed(once) for _ in range(50))


def machine(folder: Path) -> dict[str, Any]:
    """Where this ran."""
    import sqlalchemy

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": sqlalchemy.__version__,
        "flush_ms": round(flush(folder), 3),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: whether it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where the yard is made; its disk is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        where = machine(Path(scratch))
        figures = measure(Path(scratch), quick=options.quick)
    if options.json:
        print(json.dumps({"machine": where, "quick": options.quick, "figures": figures}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    for row in figures:
        print(
            f"{row['name']:<28} {row['value']:>10} {row['unit']:<3} {row['peer']}: {row['peer_value']}; "
            f"ratio {row['ratio']}; {row['target']}: {'holds' if row['holds'] else 'FAILS'}"
        )


if __name__ == "__main__":
    main()
