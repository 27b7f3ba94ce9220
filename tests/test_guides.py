"""Every `console` and `python` block of the guides about model files is run, in the order of the page, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from modelyard.cli.main import run

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
PAGES = (
    "loading.md",
    "predicting.md",
    "predicting-media.md",
    "estimating.md",
    "diagnosing.md",
    "converting.md",
    "merging.md",
    "quantizing.md",
    "exporting.md",
)
# What a page announces with "<!-- exits 8 -->" above a block: the exit code that each of its commands has.
BLOCK = re.compile(r"(?:<!-- exits (\d+) -->\n)?^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [name for name in PAGES if (GUIDES / name).exists()])
def test_every_block_of_the_guide_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands and the Python of the page, in order, do what the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "yard"))
    monkeypatch.setenv("MODELYARD_THREADS", "1")
    blocks = BLOCK.findall((GUIDES / name).read_text("utf-8"))
    assert blocks
    namespace: dict[str, object] = {"__name__": "guide"}
    for expected, language, text in blocks:
        if language == "python":
            exec(compile(text, name, "exec"), namespace)
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[0] != "yard":
                assert os.system(line) == 0, line
                continue
            code = run(words[1:])
            assert code == int(expected or 0), f"{line}: {capsys.readouterr().err}"
