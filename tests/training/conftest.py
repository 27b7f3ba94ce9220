"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.training_base import make_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, made once; tests only read it."""
    return make_base(tmp_path_factory.mktemp("base"))
