"""Many hosts on one yard: PostgreSQL, S3, and processes that commit, promote, compact and collect at once.

Each host is a process with a home, a cache and links of its own. Run as a program, this module is one of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import s3_case
from modelyard.app import open_yard
from modelyard.digest import digest_bytes
from modelyard.errors import BusyError, ConflictError, NotFoundError
from modelyard.settings import Settings
from services import fresh_postgres

if TYPE_CHECKING:
    from modelyard.registry import Version, Yard

ROUNDS = 4
SHARED = "team/shared"


def settings_of(home: Path, store: str, catalog: str) -> Settings:
    keys = s3_case.endpoint().credentials
    return Settings(
        home, catalog, None, home.name, store_url=store, access_key=keys.access_key, secret_key=keys.secret_key
    )


def write_model(folder: Path, host: int, number: int) -> Path:
    """A small model: the first tensor is every host's, the second a change of it, the third its own."""
    import numpy as np
    from safetensors.numpy import save_file

    shared = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    own = np.random.default_rng(1 + host * 100 + number).standard_normal((64, 64), dtype=np.float32)
    tensors = {"a.shared": shared, "b.changed": shared + np.float32(1e-6 * (host * 100 + number + 1)), "c.own": own}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "host": host, "number": number}))
    return folder


def commit(yard: Yard, home: Path, host: int, number: int) -> list[list[str]]:
    """Commit to a repo of one's own and to the shared one; each version is read back by who committed it."""
    folder = write_model(home / f"in{number}", host, number)
    made: list[list[str]] = []
    for repo in (f"team/host{host}", SHARED):
        version = yard.commit(folder, repo)
        assert yard.files(version).read("config.json") == (folder / "config.json").read_bytes()
        made.append([version.name, str(digest_bytes((folder / "model.safetensors").read_bytes()))])
    return made


def promote(yard: Yard) -> int:
    """Promote the newest shared version and load what the alias names; who is too late hears of it."""
    with suppress(NotFoundError, ConflictError):
        yard.promote(f"{SHARED}@latest", to="production")
    with suppress(NotFoundError):  # nobody has promoted yet
        version = yard.resolve(f"{SHARED}@production")
        folder = yard.folder(version)
        entry = next(each for each in version.files if each.path == "model.safetensors")
        assert digest_bytes((folder / "model.safetensors").read_bytes()) == entry.blake3
        return 1
    return 0


def collect(yard: Yard) -> int:
    """Delete the oldest shared version that nothing holds, and collect at once what that frees."""
    with suppress(NotFoundError, ConflictError):
        yard.delete(oldest(yard))
    with suppress(ConflictError):  # another host collects
        return sum(yard.collect(now=True, force=True, wait_seconds=5).removed.values())
    return 0


def oldest(yard: Yard) -> Version:
    return min(yard.versions(SHARED), key=lambda version: version.number)


def work(role: str, host: int, home: Path, store: str, catalog: str) -> dict[str, Any]:
    """What a host does."""
    yard = open_yard(settings_of(home, store, catalog), create=True)
    made: list[list[str]] = []
    count = 0
    for number in range(ROUNDS):
        if role == "commit":
            made += commit(yard, home, host, number)
        elif role == "promote":
            count += promote(yard)
        elif role == "compact":
            with suppress(ConflictError, BusyError):
                yard.compact(idle_days=0, least_rate=0)
                count += 1
        else:
            count += collect(yard)
    return {"role": role, "made": made, "count": count}


@pytest.mark.services
def test_many_hosts_at_once_leave_a_clean_yard(tmp_path: Path) -> None:
    """Two hosts commit, one promotes, one compacts, one collects: afterwards a check is clean and every version reads back."""
    store = str(s3_case.location())
    endpoint = s3_case.endpoint()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(s3_case.__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "YARD_TEST_S3_ENDPOINT": endpoint.url,
        "YARD_TEST_S3_KEY": endpoint.credentials.access_key,
        "YARD_TEST_S3_SECRET": endpoint.credentials.secret_key,
    }
    with fresh_postgres() as catalog:
        yard = open_yard(settings_of(tmp_path / "observer", store, catalog), create=True)
        first = commit(yard, tmp_path / "observer", 9, 0)
        yard.promote(f"{SHARED}@v1", to="production")
        hosts = []
        for host, role in enumerate(["commit", "commit", "promote", "compact", "collect"]):
            arguments = [role, str(host), str(tmp_path / f"host{host}"), store, catalog]
            hosts.append(
                subprocess.Popen(
                    [sys.executable, __file__, *arguments],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        answers = []
        for process in hosts:
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            answers.append(json.loads(output))
        assert answers[2]["count"] == ROUNDS
        assert answers[3]["count"] > 0
        expected = dict(first + [pair for answer in answers for pair in answer["made"]])
        assert len(expected) == 2 + 2 * 2 * ROUNDS
        left = {version.name: version for repo in yard.repos() for version in yard.versions(repo.name)}
        # Only what the collecting host deleted is missing, and it deletes one shared version a round.
        assert set(left) <= set(expected)
        assert len(left) >= len(expected) - ROUNDS
        assert all(name.startswith(f"{SHARED}@") for name in set(expected) - set(left))
        for name, version in left.items():
            assert digest_bytes(yard.files(version).read("model.safetensors")) == expected[name]
        numbers = [seq for seq, _ in s3_case.make_store(tmp_path, _prefix(store)).journal()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        report = yard.check(read_data=True)
        assert [each for each in report.findings if each.level == "damage"] == []
        yard.collect(now=True, force=True)
        assert [each for each in yard.check(read_data=True).findings if each.level != "info"] == []


def _prefix(store: str) -> str:
    return replace(s3_case.location(), prefix=store.partition("?")[0].rpartition("/")[2]).prefix


if __name__ == "__main__":
    role, host, home, store, catalog = sys.argv[1:]
    sys.stdout.write(json.dumps(work(role, int(host), Path(home), store, catalog)))
