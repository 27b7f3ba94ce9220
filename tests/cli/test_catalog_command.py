"""`yard catalog`: a yard whose catalog moved or was upgraded goes on as if nothing had happened."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

import modelyard
from modelyard.catalog import Catalog, revision
from modelyard.catalog.move import move
from modelyard.cli.main import run
from modelyard.errors import YardError
from services import fresh_postgres

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[..., tuple[int, Any, dict[str, Any]]]


@pytest.fixture
def home(desk: Path, tmp_path: Path) -> Path:
    """The folder of the yard that `desk` made, with a tag in it."""
    assert desk.is_dir()
    assert run(["tag", "team/base@v1", "first", "--json"]) == 0
    return tmp_path / "yard"


@pytest.mark.row(53)
def test_a_yard_uses_its_moved_catalog(home: Path, yard: Call) -> None:
    """After a move every command and `modelyard.open` use the new catalog by themselves; the old one refuses."""
    before = yard("show", "team/base")[1]
    target = f"sqlite:///{home / 'new.db'}"
    assert yard("catalog", "show")[1] == {"catalog": f"sqlite:///{home / 'catalog.db'}", "revision": revision.HEAD}
    code, found, _ = yard("catalog", "move", target)
    assert code == 0
    assert found["rows"] == sum(table["rows"] for table in found["tables"].values()) > 10
    assert found["tables"]["versions"]["rows"] == 1
    assert yard("catalog", "show")[1]["catalog"] == target
    assert yard("show", "team/base")[1] == before
    opened = modelyard.open(home)
    assert opened.resolve("team/base@first").number == 1
    assert opened.log("team/base")[0].action == "tag"
    assert yard("tag", "team/base@v1", "second")[0] == 0
    assert (home / "yard.json").stat().st_mode & 0o777 == 0o600
    code, _, error = yard("catalog", "move", target)
    assert (code, error["code"]) == (1, "bad_input")
    with pytest.raises(YardError, match="was moved to"):
        Catalog(f"sqlite:///{home / 'catalog.db'}").open()


@pytest.mark.services
@pytest.mark.row(53)
def test_to_postgres_and_back(home: Path, yard: Call) -> None:
    """A yard moves to PostgreSQL and back; what is shown, and what the old catalog says, has no password."""
    before = yard("show", "team/base")[1]
    with fresh_postgres() as url:
        assert yard("catalog", "move", url)[0] == 0
        assert yard("show", "team/base")[1] == before
        assert yard("tag", "team/base@v1", "there")[0] == 0
        password = url.partition("@")[0].rpartition(":")[2]
        shown = yard("catalog", "show")[1]["catalog"]
        assert shown.startswith("postgresql://")
        assert password not in shown
        with pytest.raises(YardError, match="was moved to postgresql://") as error:
            Catalog(f"sqlite:///{home / 'catalog.db'}").open()
        assert password not in str(error.value.to_dict())
        assert yard("catalog", "move", f"sqlite:///{home / 'back.db'}")[0] == 0
    assert yard("show", "team/base@there")[1]["number"] == 1


@pytest.mark.row(53)
def test_an_interrupted_switch_is_finished_by_the_command_that_the_error_names(home: Path, yard: Call) -> None:
    """A yard whose move ended before it was noted in the folder is refused with the command that finishes it."""
    source, target = Catalog(f"sqlite:///{home / 'catalog.db'}"), Catalog(f"sqlite:///{home / 'new.db'}")
    move(source, target, author="ana", at=datetime(2026, 11, 22, tzinfo=UTC))
    code, _, error = yard("ls")
    assert (code, error["code"]) == (1, "catalog_moved")
    command = error["hint"].partition("finish it: yard ")[2].split()
    assert command == ["catalog", "move", target.address]
    code, found, _ = yard(*command)
    assert (code, found["resumed"]) == (0, True)
    assert yard("show", "team/base@first")[1]["number"] == 1


@pytest.mark.row(53)
def test_a_variable_that_names_the_old_catalog_is_told(
    home: Path, yard: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With MODELYARD_CATALOG set the move says that it wins, and the next command is refused until it is changed."""
    monkeypatch.setenv("MODELYARD_CATALOG", f"sqlite:///{home / 'catalog.db'}")
    assert run(["catalog", "move", f"sqlite:///{home / 'new.db'}"]) == 0
    assert "MODELYARD_CATALOG names the old catalog" in capsys.readouterr().err
    assert yard("ls")[2]["code"] == "catalog_moved"
    monkeypatch.delenv("MODELYARD_CATALOG")
    assert yard("ls")[0] == 0


@pytest.mark.row(52)
def test_an_older_catalog_is_upgraded_on_request(tmp_path: Path, yard: Call) -> None:
    """Commands refuse an older catalog and name the command that upgrades it, which keeps a copy; twice is fine."""
    home = tmp_path / "older"
    assert run(["init", str(home)]) == 0
    database = home / "catalog.db"
    database.unlink()
    old = Catalog(f"sqlite:///{database}")
    with old.unchecked(write=True) as connection:
        revision._run(connection, "0001")
    old.close()
    code, _, error = yard("ls", "--yard", str(home))
    assert (code, error["code"]) == (1, "catalog_older")
    assert "yard catalog upgrade" in error["hint"]
    for _ in range(2):
        assert yard("catalog", "upgrade", "--yard", str(home))[1] == {"revision": revision.HEAD}
    assert yard("ls", "--yard", str(home))[0] == 0
    assert (home / "catalog.db.0001.bak").is_file()


@pytest.mark.parametrize("command", [("upgrade",), ("show",), ("move", "sqlite:///new.db")])
def test_there_must_be_a_catalog(tmp_path: Path, yard: Call, command: tuple[str, ...]) -> None:
    """Nothing is created where there is no catalog."""
    code, _, error = yard("catalog", *command, "--yard", str(tmp_path / "nowhere"))
    assert (code, error["hint"]) == (1, "yard init")
    assert not (tmp_path / "nowhere").exists()
