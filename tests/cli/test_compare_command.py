"""`yard compare`: two models, the same prompts, one seed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.cli.compare import _width, _wrap
from modelyard.cli.main import run
from modelyard.weights.load import load
from modelyard.weights.model import Model
from task_models.text import ARCHITECTURES
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.conftest import Outcome

PROMPTS = ["where is my card", "one two three", "hi"]


@pytest.fixture
def files(desk: Path) -> Path:
    """Prompts as lines and as JSON lines, and another model beside the first."""
    (desk / "prompts.txt").write_text("\n".join(PROMPTS[:2]) + "\n\n" + PROMPTS[2] + "\n", "utf-8")
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPTS[0]},
        {"messages": [{"role": "user", "content": PROMPTS[1]}]},
        {"prompt": PROMPTS[2], "id": 3},
    ]
    (desk / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    save_model(desk / "other", make_llama(seed=9))
    return desk


@pytest.mark.parametrize("file", ["prompts.txt", "prompts.jsonl"])
def test_answers_are_those_of_each_model(files: Path, yard: Callable[..., Outcome], file: str) -> None:
    """Each side's answers are what that model generates with the seed; equal and different ones are counted."""
    asked = ["--max-new-tokens", "6", "--temperature", "1.2", "--seed", "3"]
    code, found, error = yard("compare", "team/base", "./other", "--prompts", file, *asked)
    assert code == 0, error
    for side, folder in (("a", "model"), ("b", "other")):
        model = load(files / folder)
        assert [row[side] for row in found["rows"]] == [
            model.generate(prompt, max_new_tokens=6, temperature=1.2, seed=3) for prompt in PROMPTS
        ]
    assert found["equal"] + found["different"] == 3
    assert found["different"] == sum(row["a"] != row["b"] for row in found["rows"]) > 0
    assert found["a"]["version"] is not None
    assert found["b"]["version"] is None


def test_a_model_is_itself(files: Path, yard: Callable[..., Outcome]) -> None:
    """The same model twice differs nowhere, also where tokens are drawn; `--different` shows nothing then."""
    assert files.is_dir()
    code, found, _ = yard(
        "compare",
        "team/base",
        "./model",
        "--prompts",
        "prompts.txt",
        "--temperature",
        "1.5",
        "--max-new-tokens",
        "8",
        "--different",
    )
    assert code == 0
    assert (found["equal"], found["different"], found["rows"]) == (3, 0, [])


def test_memory_holds_one_model(files: Path, yard: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first model is released before the second is loaded, and the second at the end, also when a prompt is refused."""
    assert files.is_dir()
    events: list[str] = []
    made, gone = Model.__init__, Model.release

    def note_made(self: Model, *given: Any, **more: Any) -> None:
        events.append("load")
        made(self, *given, **more)

    def note_gone(self: Model) -> None:
        events.append("release")
        gone(self)

    monkeypatch.setattr(Model, "__init__", note_made)
    monkeypatch.setattr(Model, "release", note_gone)
    assert yard("compare", "./model", "./other", "--prompts", "prompts.txt", "--max-new-tokens", "2")[0] == 0
    assert events == ["load", "release", "load", "release"]
    events.clear()
    assert yard("compare", "./model", "./other", "--prompts", "prompts.txt", "--max-new-tokens", "500")[0] != 0
    assert events == ["load", "release"]


def test_classifiers_are_compared_by_their_labels(files: Path, yard: Callable[..., Outcome]) -> None:
    """A model that generates nothing is asked for its predictions; options of generation are refused by name."""
    for name, kind in (("bert", "bert"), ("gpt2", "gpt2")):
        ARCHITECTURES["text-classification"][kind](files / name)
    code, found, error = yard("compare", "./bert", "./gpt2", "--prompts", "prompts.txt")
    assert code == 0, error
    model = load(files / "bert")
    for row, result in zip(found["rows"], model.predict(PROMPTS), strict=True):
        assert row["a"]["label"] == result.label
        assert row["a"]["score"] == pytest.approx(result.score, abs=1e-5)
    assert [row["equal"] for row in found["rows"]] == [row["a"] == row["b"] for row in found["rows"]]
    code, _, error = yard("compare", "./bert", "./bert", "--prompts", "prompts.txt", "--max-new-tokens", "4")
    assert code != 0
    assert "--max-new-tokens" in error["message"]


WRONG = [
    ("empty.txt", b"\n \n", "holds no prompt"),
    ("broken.jsonl", b'{"prompt": "a"}\n{', "broken.jsonl:2` is no JSON"),
    ("neither.jsonl", b'{"text": "a"}', "neither `prompt` nor `messages`"),
    ("latin.txt", b"caf\xe9", "no text in UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG, ids=[row[0] for row in WRONG])
def test_a_file_without_prompts_is_refused(
    desk: Path, yard: Callable[..., Outcome], name: str, content: bytes, words: str
) -> None:
    """What is no file of prompts is an error with the file and line, before anything is loaded."""
    (desk / name).write_bytes(content)
    code, _, error = yard("compare", "./nowhere", "./nowhere", "--prompts", name)
    assert code != 0
    assert words in error["message"]


def test_two_columns_for_people(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal shows each prompt with a mark, both answers beside each other within its width, and the count."""
    assert files.is_dir()
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    assert run(["compare", "./model", "./other", "--prompts", "prompts.txt", "--max-new-tokens", "30"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line for line in lines if line.startswith("#1 ")] == [f"#1 ≠ {PROMPTS[0]}"]
    assert all(_width(line) <= 80 for line in lines)
    assert "./model" in lines[1]
    assert "| ./other" in lines[1]
    assert "answers are equal" in shown.err


def test_wide_characters_are_two_columns() -> None:
    """Lines are cut by what they take on a terminal, and control characters are escaped."""
    assert all(_width(line) <= 10 for line in _wrap("日本語の長い文章です" * 3, 10))
    assert _wrap("a\x1bb", 20) == ["a\\x1bb"]
    assert _wrap("", 20) == [""]
