"""`yard du` and `yard compact` at a terminal: the figures, the reasons, the exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from cli.conftest import Outcome


def commit_two(desk: Path, yard: Callable[..., Outcome]) -> None:
    """A second version of the model, so that nothing names the first one any more."""
    (desk / "model" / "note.txt").write_text("second", "utf-8")
    assert yard("commit", "./model", "--to", "team/base")[0] == 0


def test_du_says_what_takes_how_much(desk: Path, yard: Callable[..., Outcome]) -> None:
    """By repo, by version, and one version; the figures add up."""
    commit_two(desk, yard)
    code, found, _ = yard("du")
    assert code == 0
    assert [repo["name"] for repo in found["repos"]] == ["team/base"]
    assert found["stored"] < found["logical"]
    code, found, _ = yard("du", "team/base")
    assert [version["name"] for version in found["repos"][0]["versions"]] == ["team/base@v2", "team/base@v1"]
    code, found, _ = yard("du", "team/base@v2")
    (version,) = found["repos"][0]["versions"]
    assert version["unique"] == version["freed"] == len("second")
    assert version["held_by"] == ["branch `main`"]
    assert yard("du", "team/none")[0] == 5


def test_compact_saves_and_du_shows_it(desk: Path, yard: Callable[..., Outcome]) -> None:
    """A dry run changes nothing; the real one does; a version in use is refused with exit code 6 and the reason."""
    (desk / "model" / "model.safetensors").rename(desk / "kept")
    commit_two(desk, yard)
    code, dry, _ = yard("compact", "--dry-run", "--idle-days", "0")
    assert (code, dry["dry_run"], dry["packs"]) == (0, True, [])
    assert dry["saved"] > 0
    code, done, _ = yard("compact", "--idle-days", "0")
    assert (code, len(done["packs"]), done["segments"]) == (0, 1, dry["segments"])
    _, found, _ = yard("du", "team/base@v1")
    assert "packed" in found["repos"][0]["versions"][0]["encodings"]
    code, _, error = yard("compact", "team/base@v2")
    assert (code, error["details"]["reasons"]) == (6, ["branch `main`"])


def test_people_read_tables(desk: Path, yard: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--json`: data on stdout, the rest on stderr."""
    (desk / "model" / "model.safetensors").rename(desk / "kept")
    commit_two(desk, yard)
    assert run(["compact", "--idle-days", "0"]) == 0
    shown = capsys.readouterr()
    assert "packed" in shown.out
    assert "saves" in shown.out
    assert "`yard gc` frees" in shown.err
    assert run(["compact", "--idle-days", "0"]) == 0
    assert "compact already" in capsys.readouterr().err
    assert run(["du"]) == 0
    assert capsys.readouterr().out.startswith("REPO")
    assert run(["du", "team/base"]) == 0
    shown = capsys.readouterr()
    assert "packed" in shown.out
    assert "garbage" in shown.err
