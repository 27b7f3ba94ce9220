"""`kill -9` at every numbered failpoint: a real process dies there, and the next one finds the old state or the new one."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crash.crash_helpers import Content, make_family
from modelyard import points
from modelyard.catalog import Catalog
from modelyard.catalog.move import move
from modelyard.registry import Version, Yard
from modelyard.store import LocalStore
from registry.registry_helpers import processes

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # pytest-xdist's threads

REPO = "team/model"
SIGKILLED = -9
OPERATIONS = {
    "commit": "commit",
    "whole": "promote",
    "promote": "promote",
    "compact": "compact",
    "gc": "collect",
    "move": "move",
}
"""Which operation reaches the points of a name."""


def open_yard(root: Path, url: str) -> Yard:
    """The yard as any process opens it."""
    return Yard(LocalStore(root).init(), Catalog(url), author="ana", links=root / "links").init()


def prepare(root: Path, url: str, family: dict[str, Content]) -> list[Version]:
    """Four versions: v1 to v3 in all forms there are, cold and encoded; v3 deleted; v4 whole, cold and raw; v5 the head."""
    yard = open_yard(root, url)
    made = [yard.commit(family["base"].folder, REPO, kind="base")]
    for name in ("tuned", "other"):
        made.append(yard.commit(family[name].folder, REPO, kind="finetuned", from_=[made[0].name]))
    made.append(yard.commit(family["adapter"].folder, REPO, kind="adapter", from_=[made[0].name]))
    yard.compact(idle_days=0)
    made.append(yard.commit(family["merged"].folder, REPO, kind="merged", from_=[made[0].name, made[3].name]))
    made.append(yard.commit(_note(root), REPO, kind="merged"))
    yard.delete(f"{REPO}@v3")
    return made


def _note(root: Path) -> dict[str, bytes]:
    return {"note.txt": b"the head"}


def work(root: Path, url: str, operation: str, renamed: Path, target: str) -> object:
    """Do the operation."""
    if operation == "move":
        return move(Catalog(url), Catalog(target), author="ana", at=datetime.now(UTC))
    yard = open_yard(root, url)
    if operation == "commit":
        return yard.commit(renamed, REPO, kind="finetuned", from_=[f"{REPO}@v1"])
    if operation == "promote":
        return yard.promote(f"{REPO}@v2", "production")
    if operation == "compact":
        return yard.compact(idle_days=0)
    return yard.collect(now=True, force=True)


def work_and_die(root: Path, url: str, operation: str, renamed: Path, target: str, point: str) -> None:
    """Do the operation in a process that is killed when it comes to the point."""

    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    with points.at(reached):
        work(root, url, operation, renamed, target)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Content]:
    """The models that are committed."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.mark.row(37, 50, 52, 53)
@pytest.mark.parametrize("point", points.POINTS)
def test_a_killed_operation_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, family: dict[str, Content], point: str
) -> None:
    """A promise: after `kill -9` at the point, every version reads, every name is the old or the new one, `check` is clean, and the operation succeeds when it is done again."""
    root, url, target = tmp_path / "yard", f"sqlite:///{tmp_path}/catalog.db", f"sqlite:///{tmp_path}/moved.db"
    made = prepare(root, url, family)
    operation = OPERATIONS[point.partition(".")[0]]
    arguments = (root, url, operation, family["renamed"].folder, target)
    process = processes().Process(target=work_and_die, args=(*arguments, point))
    process.start()
    process.join(60)
    assert process.exitcode == SIGKILLED, f"{operation} never came to {point}"
    if point != "move.switched":  # then neither is in charge until the move is done again
        look(root, url, made)
    work(*arguments)
    look(root, target if operation == "move" else url, made, gone=operation == "collect")


def look(root: Path, url: str, made: list[Version], *, gone: bool = False) -> None:
    """See that the yard is sound and its versions are what was committed."""
    yard = open_yard(root, url)
    numbers = [version.number for version in yard.versions(REPO)]
    assert numbers in ([6, 5, 4, 2, 1], [7, 6, 5, 4, 2, 1])
    for version in (made[0], made[1], made[3], made[4]):
        found = yard.resolve(f"{REPO}@v{version.number}")
        assert found.id == version.id
        files = yard.files(found)
        assert all(len(files.read(name)) == files.size(name) for name in files.names())
    refs = {ref.name: ref.number for ref in yard.refs(REPO)}
    assert refs["main"] == max(numbers)
    assert refs.get("production", 2) == 2
    report = yard.check(read_data=True)
    assert [finding for finding in report.findings if finding.level != "info"] == []
    if gone:
        assert yard.collect(now=True, dry_run=True).objects == 0
