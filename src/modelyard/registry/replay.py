"""The journal told again: each entry does to a fresh catalog what the change it reports did to the lost one.

Manifests and reports add what entries do not repeat. An entry that does not fit what came before it is a problem and is told,
never guessed around. Knows actions; where bytes are is `registry.recovery`'s business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from modelyard.catalog import Transaction, refs, reports, repos, restoration, runs, versions
from modelyard.catalog.runs import RunRow
from modelyard.catalog.transaction import dump
from modelyard.catalog.versions import COLLECTED, DELETED, LIVE, FileRecord
from modelyard.digest import Digest
from modelyard.errors import IntegrityError, YardError
from modelyard.registry.parcel import parse_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.catalog.repos import RepoRecord
    from modelyard.store.base import Store

__all__ = ["Replay"]


class _OddError(Exception):
    """An entry does not fit."""


@dataclass
class Replay:
    """Tells entries to a catalog; `problems` says what could not be told."""

    store: Store
    tx: Transaction
    problems: list[str] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    """Versions whose manifest could not be read, by `seq`, and why."""
    told: int = 0

    def tell(self, seq: int, data: bytes) -> None:
        """Do what entry number `seq` reports."""
        try:
            entry = json.loads(data)
            if not isinstance(entry, dict) or not all(
                isinstance(entry.get(key), str) for key in ("at", "author", "action")
            ):
                raise _OddError("is no entry of a journal")
            tx = Transaction(self.tx.connection, entry["author"], entry["at"])
            repo = repos.ensure(tx, entry["repo_type"], entry["repo"]) if "repo" in entry else None
            with self.tx.connection.begin_nested():
                self._act(tx, repo, entry)
            restoration.note_change(tx, seq, entry, repo.id if repo else None)
            self.told += 1
        except (_OddError, YardError, ValueError, KeyError, TypeError, RecursionError) as error:
            text = error.message if isinstance(error, YardError) else str(error)
            self.problems.append(
                f"journal entry {seq} {text}" if isinstance(error, _OddError) else f"journal entry {seq}: {text}"
            )

    def _act(self, tx: Transaction, repo: RepoRecord | None, entry: dict[str, Any]) -> None:
        action = entry["action"]
        detail = entry.get("detail") or {}
        if action in {"run-finished", "run-failed"}:
            _run(tx, entry, detail)
        elif action in {"deploy", "undeploy"}:
            return  # servers say again what they serve
        elif repo is None:
            raise _OddError(f"({action}) names no repo")
        else:
            acts: dict[str, Callable[[Transaction, RepoRecord, dict[str, Any], dict[str, Any]], None]] = {
                "commit": self._commit,
                "tag": self._name,
                "branch": self._name,
                "promote": self._promote,
                "rollback": self._rollback,
                "gate": self._gate,
                "delete": self._delete,
                "delete-ref": self._delete_ref,
                "undelete": self._undelete,
                "report": self._report,
            }
            if action not in acts:
                raise _OddError(f"reports `{action}`, which this program does not know")
            acts[action](tx, repo, entry, detail)

    def _seq(self, repo: RepoRecord, digest: object) -> int:
        found = versions.by_digest(self.tx.connection, [str(digest)])
        mine = [record.seq for record in versions.load(self.tx.connection, found) if record.repo == repo]
        if not mine:
            raise _OddError(f"names the version {str(digest)[:40]}, which `{repo.name}` does not have")
        return mine[0]

    def _commit(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        digest, name = Digest(entry["version"]), entry["ref"]
        found = versions.load(tx.connection, versions.by_digest(tx.connection, [digest]))
        known = next((record for record in found if record.repo == repo), None)
        head = refs.find(tx.connection, repo.id, name)
        if known is None:
            seq = self._save(tx, repo, digest, entry, detail)
        else:
            seq = known.seq
            restoration.set_state(tx, seq, LIVE)
        if head is None or not self._follows(repo, head.version_id, digest):
            refs.point(tx, repo.id, name, "branch", seq)

    def _save(
        self, tx: Transaction, repo: RepoRecord, digest: Digest, entry: dict[str, Any], detail: dict[str, Any]
    ) -> int:
        derivation = detail.get("derivation")
        told: dict[str, Any] = {
            "number": int(detail["number"]),
            "digest": digest,
            "message": str(detail.get("message", "")),
            "metadata": json.dumps(detail.get("metadata") or {}, sort_keys=True, ensure_ascii=False),
            "derivation": dump(derivation) if derivation is not None else None,
        }
        try:
            read = parse_manifest(self.store.get("manifests", digest))
        except IntegrityError as error:
            # Collected with the version's bytes, if a deletion follows; else lost.
            seq = versions.save(
                tx, repo, **told, kind=None, parent=entry.get("previous"), inputs=None, files=[], edges=[]
            )
            self.missing[seq] = error.message
        else:
            seq = versions.save(
                tx,
                repo,
                **told,
                kind=read.kind,
                parent=read.parent,
                inputs=read.inputs,
                files=[FileRecord(each.path, each.size, each.blake3, each.sha256) for each in read.files],
                edges=[(edge.type, edge.version) for edge in read.lineage],
            )
        restoration.set_last_number(tx, repo.id, int(detail["number"]))
        return seq

    def _follows(self, repo: RepoRecord, head: str, digest: str) -> bool:
        """Whether a version lies on the way from a branch's head to its first parent: then its commit moved no branch."""
        line: set[str] = set()
        at: str | None = head
        while at is not None and at != digest and at not in line:
            line.add(at)
            found = versions.load(self.tx.connection, versions.by_digest(self.tx.connection, [at]))
            at = next((record.parent for record in found if record.repo == repo), None)
        return at == digest

    def _name(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        del detail
        refs.point(tx, repo.id, entry["ref"], entry["action"], self._seq(repo, entry["version"]))

    def _promote(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        del detail
        seq = self._seq(repo, entry["version"])
        if entry.get("previous") is not None:
            refs.push(tx, repo.id, entry["ref"], self._seq(repo, entry["previous"]))
        refs.point(tx, repo.id, entry["ref"], "alias", seq)

    def _rollback(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        del detail
        refs.pop(tx, repo.id, entry["ref"])
        refs.point(tx, repo.id, entry["ref"], "alias", self._seq(repo, entry["version"]))

    def _gate(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        gate = detail.get("gate")
        refs.set_gate(tx, repo.id, entry["ref"], json.dumps(gate, sort_keys=True) if gate is not None else None)

    def _delete(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        seq = self._seq(repo, entry["version"])
        for name, heir in (detail.get("refs") or {}).items():
            found = refs.find(tx.connection, repo.id, name)
            if heir and found is not None:
                refs.point(tx, repo.id, name, found.type, self._seq(repo, heir))
            else:
                refs.remove(tx, repo.id, name)
        refs.forget_version(tx, seq)
        restoration.set_state(tx, seq, DELETED)

    def _delete_ref(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        del detail
        refs.remove(tx, repo.id, entry["ref"])

    def _undelete(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        del detail
        restoration.set_state(tx, self._seq(repo, entry["version"]), LIVE)

    def _report(self, tx: Transaction, repo: RepoRecord, entry: dict[str, Any], detail: dict[str, Any]) -> None:
        seq, digest = self._seq(repo, entry["version"]), Digest(detail["report"])
        try:
            metrics = json.loads(self.store.get("reports", digest))["metrics"]
        except IntegrityError as error:
            self.lost_reports.append((seq, f"report {digest.short}: {error.message}"))
            return
        task, n = str(detail["task"]), int(detail["n"])
        reports.save(tx, seq, digest, dataset=detail.get("dataset"), task=task, n=n, metrics=dump(metrics))

    lost_reports: list[tuple[int, str]] = field(default_factory=list)
    """Reports that could not be read: of which version, and why."""

    def settle(self) -> None:
        """Once everything is told: what is missing is missing for good where its version was deleted, and else a problem."""
        for seq, why in self.missing.items():
            if versions.state(self.tx.connection, seq) == LIVE:
                record = versions.load(self.tx.connection, [seq])[0]
                self.problems.append(f"`{record.repo.name}@v{record.number}` cannot be rebuilt: {why}")
                for ref in refs.names_of(self.tx.connection, seq):
                    refs.remove(self.tx, record.repo.id, ref.name)
                refs.forget_version(self.tx, seq)
            restoration.set_state(self.tx, seq, COLLECTED)
        for seq, why in self.lost_reports:
            if versions.state(self.tx.connection, seq) == LIVE:
                self.problems.append(why)


def _run(tx: Transaction, entry: dict[str, Any], detail: dict[str, Any]) -> None:
    row = RunRow(
        key=str(detail["key"]),
        step=str(detail["step"]),
        state=entry["action"].removeprefix("run-"),
        attempt=int(detail["attempt"]),
        owner=str(detail.get("owner", "")),
        inputs=dump(detail.get("inputs") or {}),
        outputs=dump(detail.get("outputs") or {}),
        error=detail.get("error"),
        started_at=str(detail.get("started_at", entry["at"])),
        finished_at=entry["at"],
    )
    runs.save(tx, replace(row))
