"""Checkpoints: whole or not there, verified before they are believed, one run at a time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from modelyard.errors import BusyError, ConflictError, IntegrityError, NoSpaceError
from modelyard.training.checkpoints import Workdir, verify_manifest, write_manifest


def save(folder: Workdir, step: int, content: bytes = b"weights") -> Path:
    """Publish a checkpoint of one file."""
    (folder.begin() / "adapter_model.safetensors").write_bytes(content)
    return folder.publish(step).folder


def test_newest_two_are_kept(tmp_path: Path) -> None:
    """Of several checkpoints the newest two stay, and the newest is found."""
    with Workdir.locked(tmp_path) as folder:
        for step in (2, 4, 10):
            save(folder, step)
        assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-10", "step-4"]
        newest = folder.newest()
    assert newest is not None
    assert newest.step == 10


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "no manifest"])
def test_damaged_checkpoint_is_quarantined(tmp_path: Path, damage: str) -> None:
    """A checkpoint that does not verify is moved aside and told, and the one before is taken."""
    with Workdir.locked(tmp_path) as folder:
        save(folder, 1)
        bad = save(folder, 2)
        file = bad / "adapter_model.safetensors"
        if damage == "truncate":
            file.write_bytes(b"weig")
        elif damage == "flip":
            file.write_bytes(b"weighTs")
        elif damage == "remove":
            file.unlink()
        elif damage == "manifest":
            (bad / "manifest.json").write_text("{")
        else:
            (bad / "manifest.json").unlink()
        newest = folder.newest()
        assert newest is not None
        assert newest.step == 1
        assert len(folder.quarantined) == 1
        assert [path.name for path in folder.quarantine.iterdir()] == ["step-2.0"]


def test_what_was_not_published_is_not_seen(tmp_path: Path) -> None:
    """A checkpoint that was being written when the process died is not there for the next one, and is cleaned up."""
    with Workdir.locked(tmp_path) as folder:
        folder.claim({"rows": "a"}, {}, restart=False)
        save(folder, 1)
        (folder.begin() / "adapter_model.safetensors").write_bytes(b"half")
    with Workdir.locked(tmp_path) as folder:
        folder.claim({"rows": "a"}, {}, restart=False)
        newest = folder.newest()
        assert newest is not None
        assert newest.step == 1
        assert not folder.staging.exists()


def test_manifest_lists_everything(tmp_path: Path) -> None:
    """A manifest covers every file, those in folders too, and carries its facts."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x")
    write_manifest(tmp_path, step=3)
    manifest = verify_manifest(tmp_path)
    assert (manifest["step"], list(manifest["files"])) == (3, ["sub/a"])
    (tmp_path / "sub" / "a").write_bytes(b"y")
    with pytest.raises(IntegrityError, match="sub/a is not what was written"):
        verify_manifest(tmp_path)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run in the same folder is told that it is busy, until the first is done."""
    with (
        Workdir.locked(tmp_path),
        pytest.raises(BusyError, match="another run is training in"),
        Workdir.locked(tmp_path),
    ):
        pass
    with Workdir.locked(tmp_path):
        pass


def test_folder_belongs_to_its_inputs(tmp_path: Path) -> None:
    """The first attempt's choices stay for the same inputs; other inputs are refused by name, or start anew on request."""
    with Workdir.locked(tmp_path) as folder:
        assert folder.claim({"rows": "a", "base": "b"}, {"threads": 2}, restart=False) == {"threads": 2}
        save(folder, 1)
        assert folder.claim({"rows": "a", "base": "b"}, {"threads": 9}, restart=False) == {"threads": 2}
        with pytest.raises(ConflictError, match=r"other rows\)"):
            folder.claim({"rows": "z", "base": "b"}, {"threads": 9}, restart=False)
        assert folder.newest() is not None
        assert folder.claim({"rows": "z", "base": "b"}, {"threads": 9}, restart=True) == {"threads": 9}
        assert folder.newest() is None


def test_checkpoints_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    """Checkpoints without a readable run.json are never adopted."""
    with Workdir.locked(tmp_path) as folder:
        save(folder, 1)
        for text in (None, "{broken"):
            if text:
                (tmp_path / "run.json").write_text(text)
            with pytest.raises(ConflictError):
                folder.claim({"rows": "a"}, {}, restart=False)


def test_finished_result_is_verified(tmp_path: Path) -> None:
    """A result is believed only for its inputs, and while its adapter is what was written."""
    with Workdir.locked(tmp_path) as folder:
        folder.claim({"rows": "a"}, {}, restart=False)
        (folder.begin() / "adapter_config.json").write_text("{}")
        folder.publish_adapter({"steps": 3})
        finished = folder.finished({"rows": "a"})
        assert finished is not None
        assert finished["steps"] == 3
        assert folder.finished({"rows": "b"}) is None
        (folder.adapter / "adapter_config.json").write_text("[]")
        assert folder.finished({"rows": "a"}) is None


def test_full_disk_is_named(tmp_path: Path) -> None:
    """A full disk is a typed error with the next step, and earlier checkpoints stay."""

    def fill() -> None:
        with Workdir.locked(tmp_path) as folder:
            save(folder, 1)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpaceError, match="checkpoints that were complete are untouched"):
        fill()
    with Workdir.locked(tmp_path) as folder:
        assert folder.newest() is not None
