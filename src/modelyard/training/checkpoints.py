"""Checkpoints: a working folder in which a run can be killed at any moment and go on exactly where it was.

A checkpoint is written into a staging folder, synced, closed by a manifest (sizes and BLAKE3 of every file, written
last) and published by one rename; so a checkpoint that is there is whole, and `newest` believes none whose manifest does
not verify. One process works in a folder at a time. Layout::

    lock                    held (flock) while a run works here
    run.json                what the folder belongs to: digests of base, rows and options, library versions
    staging/                the checkpoint or result being written; never read
    checkpoints/step-<N>/   the last two, with manifest.json
    quarantine/             checkpoints that did not verify, kept for a look
    adapter/, result.json   the finished adapter and its figures

Knows files only: what is in a checkpoint is the trainer's business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.digest import hash_stream
from modelyard.errors import BusyError, ConflictError, IntegrityError, NoSpaceError, YardError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Checkpoint", "Workdir", "full_disk_named", "interrupted", "verify_manifest", "write_manifest"]

KEPT = 2
"""Checkpoints that stay: the newest, and the one before in case the newest turns out damaged."""

MANIFEST = "manifest.json"
FORMAT = "modelyard/training/1"

_NEARLY_FULL = 1 << 20

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint that verified: the state after `step` optimizer steps."""

    step: int
    folder: Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that it is either wholly there or not at all."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and BLAKE3 of every file in the folder but the manifest, by relative name."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as stream:
                digests = hash_stream(stream)
                os.fsync(stream.fileno())
            files[name] = {"size": digests.size, "blake3": str(digests.blake3)}
    return files


def write_manifest(folder: Path, **facts: Any) -> None:
    """Sync every file of a folder and close it with a manifest; `facts` are plain values that go along."""
    manifest = {"format": FORMAT, **facts, "files": _describe(folder)}
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest and return it; `IntegrityError` names what is wrong."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        files = manifest["files"]
        expected = {name: (entry["size"], entry["blake3"]) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise IntegrityError(f"{folder.name}: no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder.name}: {MANIFEST} is damaged") from error
    for name, (size, blake3) in expected.items():
        file = folder / name
        if not file.is_file():
            raise IntegrityError(f"{folder.name}: {name} is missing")
        if file.stat().st_size != size:
            raise IntegrityError(f"{folder.name}: {name} has {file.stat().st_size} bytes, not {size}")
        with file.open("rb") as stream:
            if hash_stream(stream).blake3 != blake3:
                raise IntegrityError(f"{folder.name}: {name} is not what was written")
    if not isinstance(manifest, dict):
        raise IntegrityError(f"{folder.name}: {MANIFEST} is damaged")
    return manifest


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a full disk into the `OSError` that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        text = str(error)
        if "No space left" in text or shutil.disk_usage(folder).free < _NEARLY_FULL:
            raise OSError(errno.ENOSPC, text) from error
        raise


class Workdir:
    """A run's working folder; open it with `Workdir.locked`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / "staging"
        self.checkpoints = root / "checkpoints"
        self.quarantine = root / "quarantine"
        self.adapter = root / "adapter"
        self.quarantined: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def locked(cls, root: Path) -> Iterator[Workdir]:
        """Hold the folder for this process, made if need be.

        Raises:
            BusyError: Another run works there.
            NoSpaceError: The disk filled up inside the block.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            with (root / "lock").open("a+b") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise BusyError(
                        f"another run is training in {root}", hint="wait for it, or train in another folder"
                    ) from error
                yield cls(root)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoSpaceError(
                    f"the disk of {root} is full; the checkpoints that were complete are untouched",
                    hint="free some space and run the same command again: it goes on from the last checkpoint",
                ) from error
            raise

    def claim(self, inputs: Mapping[str, Any], chosen: Mapping[str, Any], *, restart: bool) -> dict[str, Any]:
        """Bind the folder to a run's inputs, or confirm that it is bound to the same.

        Args:
            inputs: What decides the result: digests and versions, plain values.
            chosen: What was decided for the first attempt and must stay (threads); kept from it on a resume.
            restart: Discard what is there, of other inputs too, instead of going on or refusing.

        Returns the `chosen` of the first attempt. Raises `ConflictError` when the folder belongs to other inputs.
        """
        path = self.root / "run.json"
        known = self._read_run(path)
        same = known is not None and known.get("inputs") == dict(inputs) and isinstance(known.get("chosen"), dict)
        if known is not None and same and not restart:
            self._clean_staging()
            kept: dict[str, Any] = known["chosen"]
            return kept
        if known is not None or self.checkpoints.exists() or self.adapter.exists():
            if not restart:
                before = (known or {}).get("inputs") or {}
                differ = [name for name in inputs if before.get(name) != inputs[name]]
                raise ConflictError(
                    f"{self.root} holds another run's checkpoints (other {', '.join(differ)})",
                    hint="train in another folder, or delete this one",
                    differ=differ,
                )
            for folder in (self.checkpoints, self.adapter, self.quarantine):
                shutil.rmtree(folder, ignore_errors=True)
            (self.root / "result.json").unlink(missing_ok=True)
        self._clean_staging()
        run = {"format": FORMAT, "inputs": dict(inputs), "chosen": dict(chosen)}
        write_durably(path, json.dumps(run, indent=1).encode() + b"\n")
        return dict(chosen)

    @staticmethod
    def _read_run(path: Path) -> dict[str, Any] | None:
        try:
            known = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return known if isinstance(known, dict) else {}

    def _clean_staging(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def begin(self) -> Path:
        """An empty staging folder."""
        self._clean_staging()
        self.staging.mkdir(parents=True)
        return self.staging

    def publish(self, step: int) -> Checkpoint:
        """Make the staging folder the checkpoint of `step`, durably, and drop all but the newest `KEPT`."""
        write_manifest(self.staging, step=step)
        self.checkpoints.mkdir(exist_ok=True)
        target = self.checkpoints / f"step-{step}"
        if target.exists():
            self._set_aside(target, "written again")
        self.staging.rename(target)
        sync_folder(self.checkpoints)
        sync_folder(self.root)
        for _, old in self._steps()[KEPT:]:
            shutil.rmtree(old)
        return Checkpoint(step, target)

    def publish_adapter(self, result: Mapping[str, Any]) -> None:
        """Make the staging folder the finished adapter, and write `result.json` last."""
        files = _describe(self.staging)
        shutil.rmtree(self.adapter, ignore_errors=True)
        self.staging.rename(self.adapter)
        sync_folder(self.root)
        data = {"format": FORMAT, "files": files, **result}
        write_durably(self.root / "result.json", json.dumps(data, indent=1).encode() + b"\n")

    def finished(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of a run with these inputs that ended here, if its adapter is still what it was; None otherwise."""
        if (self._read_run(self.root / "run.json") or {}).get("inputs") != dict(inputs):
            return None
        try:
            result = json.loads((self.root / "result.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if isinstance(result, dict) and self.adapter.is_dir() and _describe(self.adapter) == result.get("files"):
            return result
        return None

    def _steps(self) -> list[tuple[int, Path]]:
        """Published checkpoints, newest first, verified or not."""
        if not self.checkpoints.is_dir():
            return []
        found = ((_STEP.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted(((int(match.group(1)), path) for match, path in found if match), reverse=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; those that do not are moved to `quarantine` and told in `quarantined`."""
        for step, folder in self._steps():
            try:
                verify_manifest(folder)
            except IntegrityError as error:
                self._set_aside(folder, error.message)
                continue
            return Checkpoint(step, folder)
        return None

    def _set_aside(self, folder: Path, reason: str) -> None:
        self.quarantine.mkdir(exist_ok=True)
        number = sum(1 for _ in self.quarantine.iterdir())
        folder.rename(self.quarantine / f"{folder.name}.{number}")
        self.quarantined.append(reason)


def interrupted(signal_name: str, step: int) -> YardError:
    """The error of a run that was asked to stop and saved its state."""
    return YardError(
        f"training stopped by {signal_name} after step {step}, which is saved",
        hint="run the same command again: it goes on from there",
        code="interrupted",
        step=step,
    )
