"""`yard gc`, `yard check` and `yard rebuild` at a terminal: what they print and how they exit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Outcome
from modelyard.cli.main import run

Call = Callable[..., Outcome]


def test_gc_says_what_it_would_do_and_does_it(yard: Call, desk: Path) -> None:
    """A dry run changes nothing; the grace period holds; `--now` removes what a deletion left."""
    (desk / "new").mkdir()
    (desk / "new" / "data.txt").write_text("rows", "utf-8")
    yard("commit", "./new", "--to", "datasets/team/extra")
    yard("delete", "datasets/team/extra@v1", "--force")
    planned = yard("gc", "--now", "--dry-run")[1]
    assert planned["removed"] == {"files": 1}
    assert yard("gc")[1]["left"] == 1
    done = yard("gc", "--now")[1]
    assert (done["removed"]["files"], done["removed"]["manifests"], len(done["collected"])) == (1, 1, 1)
    code, _, error = yard("undelete", "datasets/team/extra@v1")
    assert code == 5
    assert "collected" in error["message"]


def test_check_exits_with_what_it_found(yard: Call, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for a sound yard; 8 for damage, which names the object, who needs it, and the next step."""
    assert yard("check", "--read-data")[0] == 0
    assert yard("check", "--read-data-subset", "10%")[1]["damaged"] is False
    code, _, error = yard("check", "--read-data-subset", "ten")
    assert (code, error["code"]) == (1, "bad_input")
    stored = max((desk.parent / "yard" / "files").glob("*/*"), key=lambda path: path.stat().st_size)
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1])
    code, report, _ = yard("check")
    assert code == 8
    assert [finding["code"] for finding in report["findings"]] == ["wrong_size"]
    assert report["findings"][0]["holders"] == ["team/base@v1"]
    capsys.readouterr()
    assert run(["check"]) == 8
    shown = capsys.readouterr().out
    assert "needed by team/base@v1" in shown
    assert stored.name in shown


def test_a_lost_catalog_is_rebuilt_at_a_terminal(yard: Call, desk: Path) -> None:
    """`yard rebuild` refuses a catalog that is there, and brings one back that is gone."""
    code, _, error = yard("rebuild")
    assert (code, error["code"]) == (6, "not_fresh")
    before = yard("show", "team/base")[1]
    (desk.parent / "yard" / "catalog.db").unlink()
    done = yard("rebuild")[1]
    assert (done["counts"]["versions"], done["problems"]) == (1, [])
    assert yard("show", "team/base")[1] == before
    assert yard("check")[0] == 0
