"""The promises as invariants of whatever anybody does to a yard, in any order, with crashes and flipped bits between.

Hypothesis makes up sequences of commits, reverts, promotions, rollbacks, deletions, compactions, collections, crashes at failpoints, restarts,
clock jumps and flipped bits, on SQLite and on PostgreSQL. A model of plain dictionaries says what must be true afterwards.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from crash.crash_helpers import Content, Process, make_family
from modelyard import points
from modelyard.errors import ConflictError, IntegrityError, YardError
from modelyard.registry import Yard, leases
from services import fresh_postgres

REPO = "team/model"
NAMES = ["base", "tuned", "renamed", "other", "adapter", "merged"]
POINTS = [point for point in points.POINTS if not point.startswith("move.")]
NOBODY = "nobody:0:0"


class YardStates(RuleBasedStateMachine):
    """A yard and what is known about it."""

    family: ClassVar[dict[str, Content]]
    postgres: ClassVar[bool] = False

    @initialize()
    def begin(self) -> None:
        """Make a yard with a base in it."""
        self.stack = ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="yard-states-"))
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        # First of all: where there is no PostgreSQL it skips the test, and nobody takes a patch back.
        self.url = (
            self.stack.enter_context(fresh_postgres()) if self.postgres else f"sqlite:///{self.folder}/catalog.db"
        )
        patch = pytest.MonkeyPatch()
        self.stack.callback(patch.undo)
        # Every start is a process of its own, although all of them are this one.
        self.living: dict[str, Process] = {}
        self.owner = NOBODY
        patch.setattr(leases, "owner", lambda: self.owner)
        patch.setattr(leases, "is_alive", lambda text: text in self.living)
        self.now = datetime(2026, 11, 22, tzinfo=UTC)
        self.versions: dict[int, tuple[str, str]] = {}  # number: content, id
        self.deleted: set[int] = set()
        self.collected: set[int] = set()
        self.head: int | None = None
        self.aliases: dict[str, list[int]] = {}
        self.starts = 0
        self.start()
        self.commit("base")

    def start(self) -> None:
        """A new process opens the yard."""
        self.starts += 1
        self.owner = f"here:{self.starts}:1"
        self.process = Process.start(self.folder / "yard", self.url, lambda: self.now)
        self.living = {self.owner: self.process}

    @property
    def yard(self) -> Yard:
        """The yard as the living process has it open."""
        return self.process.yard

    def live(self) -> list[int]:
        """The numbers that were not deleted."""
        return sorted(self.versions.keys() - self.deleted)

    def newest(self, name: str) -> int | None:
        """The highest living number with this content."""
        return max((number for number in self.live() if self.versions[number][0] == name), default=None)

    # -- what anybody may do -------------------------------------------------------------------------------------------

    def arguments(self, name: str) -> dict[str, Any] | None:
        """How a content is committed; None while what it is made from is not there."""
        content = self.family[name]
        origins = [self.newest(origin) for origin in content.made_from]
        if None in origins:
            return None
        return {"kind": content.kind, "from_": [f"{REPO}@v{number}" for number in origins]}

    def learn(self) -> None:
        """Take over what the yard says after something that may or may not have happened, if it is one of the two."""
        known = {version.number: version for version in self.yard.versions(REPO, deleted=True)}
        for number, version in known.items():
            if number not in self.versions:
                assert number == max(self.versions, default=0) + 1, "numbers go up one by one"
                self.versions[number] = (self.pending or "", str(version.id))
        living = {version.number for version in self.yard.versions(REPO)}
        assert not (living - self.versions.keys())
        self.deleted = self.versions.keys() - living
        refs = {ref.name: ref for ref in self.yard.refs(REPO)}
        self.head = refs["main"].number if "main" in refs else None
        for alias in list(self.aliases):
            if alias not in refs:
                del self.aliases[alias]
        for name, ref in refs.items():
            if ref.type == "alias" and (not self.aliases.get(name) or self.aliases[name][-1] != ref.number):
                self.aliases.setdefault(name, []).append(ref.number)

    pending: str | None = None

    @rule(name=st.sampled_from(NAMES))
    def commit(self, name: str) -> None:
        """Commit a content on top of main, also one that is there already: then it is a revert or a retry."""
        arguments = self.arguments(name)
        if arguments is None:
            return
        version = self.yard.commit(self.family[name].folder, REPO, **arguments)
        known = self.versions.setdefault(version.number, (name, str(version.id)))
        assert known == (name, str(version.id))
        self.deleted.discard(version.number)
        self.head = version.number

    @precondition(lambda self: self.live())
    @rule(data=st.data(), alias=st.sampled_from(["production", "staging"]))
    def promote(self, data: st.DataObject, alias: str) -> None:
        """Move an alias to any living version."""
        number = data.draw(st.sampled_from(self.live()))
        self.yard.promote(f"{REPO}@v{number}", alias)
        if self.aliases.get(alias, [None])[-1] != number:
            self.aliases.setdefault(alias, []).append(number)
        holder = self.yard.resolve(f"{REPO}@{alias}")
        assert holder.number == number
        for entry in holder.files:
            assert self.process.yard._context.raw.has_file(entry.blake3), "a promoted version is whole"

    @precondition(lambda self: self.aliases)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        """Return an alias to its former holder, where there is one."""
        alias = data.draw(st.sampled_from(sorted(self.aliases)))
        try:
            moved = self.yard.rollback(REPO, alias)
        except ConflictError:
            return
        assert moved.version.number in self.live()
        self.aliases[alias] = [moved.version.number]

    @precondition(lambda self: len(self.live()) > 1)
    @rule(data=st.data(), force=st.booleans())
    def delete(self, data: st.DataObject, force: bool) -> None:
        """Delete a version; without force, only if nothing holds it."""
        number = data.draw(st.sampled_from(self.live()))
        try:
            self.yard.delete(f"{REPO}@v{number}", force=force)
        except ConflictError:
            assert not force
            return
        self.learn()
        assert number in self.deleted

    @precondition(lambda self: self.deleted)
    @rule(data=st.data())
    def undelete(self, data: st.DataObject) -> None:
        """Bring a deleted version back, unless its bytes were collected; those that another version shares were not."""
        number = data.draw(st.sampled_from(sorted(self.deleted)))
        try:
            self.yard.undelete(f"{REPO}@v{number}")
        except YardError:
            assert number in self.collected
            return
        self.collected.discard(number)
        self.deleted.discard(number)
        self.read(number)

    @rule()
    def compact(self) -> None:
        """Encode whatever is cold."""
        self.now += timedelta(days=30)
        self.yard.compact(idle_days=0)

    @rule()
    def collect(self) -> None:
        """Remove what nothing needs, and see that exactly that is gone."""
        self.yard.collect(now=True, force=True)
        self.collected |= self.deleted
        report = self.yard.check()
        assert [finding for finding in report.findings if finding.level != "info"] == []
        assert self.yard.collect(now=True, dry_run=True, force=True).objects == 0

    @rule(years=st.sampled_from([-10, 10]))
    def jump(self, years: int) -> None:
        """The clock jumps."""
        self.now += timedelta(days=365 * years)

    @rule(
        point=st.sampled_from(POINTS),
        after=st.integers(0, 2),
        what=st.sampled_from(["commit", "promote", "compact", "collect"]),
        name=st.sampled_from(NAMES),
    )
    def crash(self, point: str, after: int, what: str, name: str) -> None:
        """The process dies somewhere in an operation, and another one opens the yard."""
        arguments = self.arguments(name)
        if what == "commit" and arguments is None:
            return
        newest = self.live()[-1] if self.live() else None
        if what == "promote" and newest is None:
            return
        self.pending = name

        def work(yard: Yard) -> object:
            if what == "commit":
                return yard.commit(self.family[name].folder, REPO, **(arguments or {}))
            if what == "promote":
                return yard.promote(f"{REPO}@v{newest}", "production")
            if what == "compact":
                return yard.compact(idle_days=0)
            return yard.collect(now=True, force=True)

        self.process.run(work, (point, after))
        if what == "collect":
            # Some of what was deleted may be gone now.
            self.collected |= self.deleted
        self.process.end()
        self.start()
        self.learn()
        self.pending = None

    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        """A bit flips in a stored object: it is reported and not served, and nothing else is; then the disk is repaired."""
        root = self.folder / "yard"
        objects = sorted(
            path for area in ("files", "packs", "manifests") for path in (root / area).rglob("*") if path.is_file()
        )
        path = data.draw(st.sampled_from(objects))
        sound = path.read_bytes()
        if not sound:
            return
        at = data.draw(st.integers(0, len(sound) - 1))
        damaged = bytearray(sound)
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        _overwrite(path, bytes(damaged))
        try:
            report = self.yard.check(read_data=True)
            assert any(path.name in finding.object for finding in report.findings), f"{path.name} is not reported"
            for number in self.live():
                self.read(number, damaged=True)
        finally:
            _overwrite(path, sound)

    # -- what must be true ---------------------------------------------------------------------------------------------

    def read(self, number: int, *, damaged: bool = False) -> None:
        """A version's files are what was committed; where something is damaged, they are that or an error."""
        name, _ = self.versions[number]
        expected = self.family[name].bytes_of()
        try:
            files = self.yard.files(f"{REPO}@v{number}")
            found = {path: files.read(path) for path in files.names()}
        except IntegrityError:
            assert damaged, f"v{number} ({name}) cannot be read"
            return
        assert found == expected

    @invariant()
    def every_living_version_is_what_was_committed(self) -> None:
        """Bytes and ids."""
        if not hasattr(self, "process"):
            return
        for number in self.live():
            assert str(self.yard.resolve(f"{REPO}@v{number}").id) == self.versions[number][1]
            self.read(number)

    @invariant()
    def every_name_means_what_it_should(self) -> None:
        """Branches and aliases point where they were moved, at living versions."""
        if not hasattr(self, "process"):
            return
        refs = {ref.name: ref.number for ref in self.yard.refs(REPO)}
        assert refs.get("main") == self.head
        for alias, holders in self.aliases.items():
            assert refs[alias] == holders[-1]
        assert set(refs.values()) <= set(self.live())

    def teardown(self) -> None:
        """See that the yard is sound, and that a rebuilt catalog says the same."""
        if not hasattr(self, "process"):
            return
        try:
            report = self.yard.check(read_data=True)
            assert [finding for finding in report.findings if finding.level != "info"] == []
        finally:
            self.process.end()
            self.stack.close()


def _overwrite(path: Path, data: bytes) -> None:
    # In place, so that hard links see it too, as they do when a disk rots.
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(0o444)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Content]:
    """The models that are committed."""
    return make_family(tmp_path_factory.mktemp("family"))


def _run(family: dict[str, Content], *, postgres: bool, examples: int, steps: int) -> None:
    class Machine(YardStates):
        pass

    Machine.family, Machine.postgres = family, postgres
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.row(37, 42, 49, 51)
def test_promises_hold_in_any_order_on_sqlite(family: dict[str, Content]) -> None:
    """The promises are invariants of random histories on SQLite."""
    _run(family, postgres=False, examples=8, steps=12)


@pytest.mark.services
@pytest.mark.row(37, 42, 49, 51)
def test_promises_hold_in_any_order_on_postgresql(family: dict[str, Content]) -> None:
    """The promises are invariants of random histories on PostgreSQL."""
    _run(family, postgres=True, examples=4, steps=12)


@pytest.mark.slow
def test_promises_hold_in_many_orders(family: dict[str, Content]) -> None:
    """As above, longer: what `make test-slow` has time for."""
    _run(family, postgres=False, examples=150, steps=30)
