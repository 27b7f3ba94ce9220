"""The composition root and the package's front door."""

from __future__ import annotations

import doctest
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import modelyard
from modelyard.app import open_yard
from modelyard.errors import GateRefusedError, InputError, NotFoundError, RecipeError
from modelyard.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_the_tour_runs() -> None:
    """The example in the package's docstring does what it says."""
    assert doctest.testmod(modelyard) == (0, doctest.testmod(modelyard).attempted)


def test_everything_in_all_exists() -> None:
    """What `__all__` promises is there, and nothing else is missing from it."""
    for name in modelyard.__all__:
        assert getattr(modelyard, name) is not None
    assert set(modelyard.__all__) <= set(dir(modelyard))
    assert sorted(modelyard.__all__) == modelyard.__all__
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        modelyard.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    """`import modelyard` loads no SQLAlchemy, numpy or torch; using a yard loads no torch."""
    code = (
        "import sys, modelyard; print(sorted(n for n in sys.modules if n.startswith('modelyard')),"
        " {'sqlalchemy', 'numpy', 'torch'} & set(sys.modules));"
        "modelyard.Yard; print({'torch', 'transformers', 'alembic', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['modelyard'] set()\nset()\n"


@pytest.mark.parametrize("url", ["http://localhost:8000", "https://yard.example", "s3://bucket"])
def test_opening_a_url_is_a_typed_error(url: str) -> None:
    """A yard on a server cannot be opened yet, and says so."""
    with pytest.raises(InputError) as error:
        modelyard.open(url)
    assert error.value.code == "remote_yard"


def test_a_yard_is_made_only_when_asked(tmp_path: Path) -> None:
    """Opening nothing is NotFoundError with the command that makes a yard; creating twice is fine."""
    with pytest.raises(NotFoundError) as error:
        modelyard.open(tmp_path / "yard")
    assert "yard init" in (error.value.hint or "")
    assert not (tmp_path / "yard").exists()
    for _ in range(2):
        assert modelyard.open(tmp_path / "yard", create=True).repos() == []
    assert modelyard.open(str(tmp_path / "yard")).repos() == []


def test_the_default_yard_is_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder, MODELYARD_HOME decides, and ~/.modelyard otherwise."""
    monkeypatch.setenv("HOME", str(tmp_path))
    modelyard.open(create=True)
    assert (tmp_path / ".modelyard" / "catalog.db").exists()
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "other"))
    modelyard.open(create=True)
    assert (tmp_path / "other" / "format").exists()


def test_the_yard_judges_gates(tmp_path: Path) -> None:
    """The yard that `app` builds validates gates and judges them with modelyard.evaluation."""
    yard = open_yard(Settings(home=tmp_path / "yard", author="ana"), create=True)
    (tmp_path / "data.txt").write_text("x")
    made = yard.commit(tmp_path / "data.txt", "datasets/team/data")
    with pytest.raises(RecipeError):
        yard.set_gate("datasets/team/data", "current", {"minn": 1})
    yard.set_gate("datasets/team/data", "current", {"min": 0.5})
    with pytest.raises(GateRefusedError, match="no report"):
        yard.promote(made, "current")
    assert made.author == "ana"
