"""`yard predict`: inputs of every form, and what is printed of results."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli.main import run
from modelyard.weights.load import load
from modelyard.weights.predict.results import to_plain
from task_models import text, timeseries

Outcome = tuple[int, Any, dict[str, Any]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of a few tasks."""
    folder = tmp_path_factory.mktemp("predict")
    made = {
        name: text.MODELS[name](folder / name)
        for name in ("text-classification", "token-classification", "question-answering")
    }
    return made | {"series": timeseries.MODELS["time-series-forecasting"](folder / "series")}


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `yard predict`; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["predict", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


def test_results_are_those_of_the_library(folders: dict[str, Path], call: Callable[..., tuple[int, str, str]]) -> None:
    """`--json` is one object with each input and the result that `Model.predict` gives for it."""
    code, out, _ = call(folders["text-classification"], *text.TEXTS[:2], "--json", "--set", "top_k=2")
    said = json.loads(out)
    model = load(folders["text-classification"])
    wanted = [to_plain(result) for result in model.predict(text.TEXTS[:2], top_k=2)]
    assert code == 0
    assert said["task"] == "text-classification"
    assert said["results"] == [
        {"input": row, "result": result} for row, result in zip(text.TEXTS, wanted, strict=False)
    ]


def test_the_table_has_a_line_for_each_entity(
    folders: dict[str, Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    """Results that are lists have a line each, under the names of their fields, with the text they stand for."""
    source = folders["token-classification"]
    code, out, _ = call(source, text.TEXTS[3], "--set", "aggregation=simple")
    entities = load(source).predict(text.TEXTS[3], aggregation="simple")
    head, *lines = out.splitlines()
    assert code == 0
    assert head.split() == ["input", "label", "score", "word", "start", "end"]
    assert len(lines) == len(entities)
    assert all(entity.word in line for entity, line in zip(entities, lines, strict=True))


def test_json_inputs_and_lines(folders: dict[str, Path], call: Callable[..., tuple[int, str, str]]) -> None:
    """An input of several things is JSON; `--jsonl` prints one object a line, in the order of the inputs."""
    row = text.SAMPLES["question-answering"]
    code, out, _ = call(folders["question-answering"], json.dumps(row), json.dumps(row), "--jsonl", "--batch-size", 1)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0]["result"]["text"] in row["context"]


def test_a_series_is_json(folders: dict[str, Path], call: Callable[..., tuple[int, str, str]]) -> None:
    """A list of numbers is one series."""
    values = timeseries.series().tolist()
    code, out, _ = call(folders["series"], json.dumps(values), "--json", "--set", "steps=3")
    assert code == 0
    assert len(json.loads(out)["results"][0]["result"]["mean"]) == 3


def test_files_of_inputs(
    folders: dict[str, Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of a text file, values of a .jsonl file and lines of standard input are inputs, beside the arguments."""
    source = folders["text-classification"]
    (tmp_path / "rows.txt").write_text("\n".join(text.TEXTS[:2]) + "\n\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, text.TEXTS[:2])), "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(text.TEXTS[:2])))
    found = [call(source, "--file", name, "--jsonl")[1] for name in ("rows.txt", "rows.jsonl", "-")]
    assert found[0] == found[1] == found[2] == call(source, *text.TEXTS[:2], "--jsonl")[1]
    assert len(found[0].splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "no input"),
        (("--file", "none.txt"), 5, "no file `none.txt`"),
        (("--file", "bad.jsonl"), 1, "bad.jsonl, line 2"),
        (("card " * 80,), 2, "row 0 has"),
        (("a", "--set", "top=2"), 2, "takes no option `top`"),
    ],
)
def test_faults_are_named(
    folders: dict[str, Path],
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    arguments: Any,
    code: int,
    said: str,
) -> None:
    """No input, no file, a broken line, an input that is too long, an unknown option: each by name, with its exit code."""
    (tmp_path / "bad.jsonl").write_text('"fine"\n{"not', "utf-8")
    found, out, err = call(folders["text-classification"], *arguments)
    assert (found, out) == (code, "")
    assert said in err


def test_a_fault_in_a_later_batch_says_where(
    folders: dict[str, Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    """With `--jsonl` what came before a fault is printed, and the error says from which input its rows are counted."""
    code, out, err = call(folders["text-classification"], "a", "b", "card " * 80, "--jsonl", "--batch-size", 2)
    assert code == 2
    assert len(out.splitlines()) == 2
    assert "in the inputs from number 2 on: row 0 has" in err


def test_truncation_and_untrained_weights(
    folders: dict[str, Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """`--truncation end` cuts; what nobody trained is noted on stderr and answers all the same."""
    assert call(folders["text-classification"], "card " * 80, "--truncation", "end")[0] == 0
    encoder = text.MODELS["feature-extraction"](tmp_path / "encoder")
    code, out, err = call(encoder, "my card", "--task", "text-classification", "--jsonl")
    assert code == 0
    assert "warning:" in err
    assert json.loads(out)["result"]["label"]


def test_the_table_says_how_long_lists_of_numbers_are(
    folders: dict[str, Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Token ids and arrays do not fill the table: their number or shape stands there."""
    writer = text.MODELS["text2text-generation"](tmp_path / "writer")
    code, out, _ = call(writer, "my card", "--set", "max_new_tokens=12")
    assert code == 0
    assert "12 numbers" in out
    assert "float32 (8,)" in call(folders["series"], json.dumps(timeseries.series().tolist()))[1]
