"""Every family's file is made once for all tests of GGUF."""

from __future__ import annotations

import pytest

from weights.convert.gguf.gguf_forms import Exports


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Makes a family's file when it is first asked for."""
    return Exports(tmp_path_factory.mktemp("gguf-families"))
