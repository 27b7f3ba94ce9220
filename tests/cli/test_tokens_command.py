"""`yard tokenize` and `yard detokenize`: a reference, a folder, text from standard input, and ids that do not exist."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from modelyard.cli.main import run
from tiny_models import make_tokenizer, save_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.conftest import Outcome


def test_tokens_of_a_text(yard: Callable[..., Outcome]) -> None:
    """A version and a folder give the tokenizer's own ids, pieces and places."""
    text = "where is my card"
    expected = make_tokenizer().encode(text)
    for source in ("team/base", "./model"):
        code, found, _ = yard("tokenize", source, text)
        assert code == 0
        assert [token["id"] for token in found["tokens"]] == expected
        assert "".join(text[token["start"] : token["end"]] for token in found["tokens"]) == text
        assert (found["count"], found["vocabulary"]) == (len(expected), len(make_tokenizer()))


def test_a_chat_is_rendered_first(yard: Callable[..., Outcome]) -> None:
    """`--chat` shows what the model sees of one user message, control tokens marked."""
    _, found, _ = yard("tokenize", "./model", "hi", "--chat")
    assert [token["piece"] for token in found["tokens"] if token["special"]] == ["<|user|>", "<|end|>", "<|assistant|>"]
    tokenizer = make_tokenizer()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert [token["id"] for token in found["tokens"]] == ids


def test_ids_become_text_again(yard: Callable[..., Outcome]) -> None:
    """The text of ids, with control tokens or without; an unknown id is named with the vocabulary's size."""
    ids = [str(token) for token in make_tokenizer().encode("my card<|end|>")]
    assert yard("detokenize", "team/base", *ids)[1]["text"] == "my card<|end|>"
    assert yard("detokenize", "./model", *ids, "--no-special")[1]["text"] == "my card"
    size = len(make_tokenizer())
    for wrong in (str(size), "-3"):
        code, _, error = yard("detokenize", "./model", "5", wrong)
        assert code != 0
        assert f"no token {wrong}" in error["message"]
        assert f"size is {size}" in error["message"]


def test_a_table_for_people(desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `--json` there is a line a token on stdout and the count on stderr; text may come from standard input, and
    what a terminal would obey is escaped.
    """
    assert (desk / "model").is_dir()
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("my card\x1b[31m"))
    assert run(["tokenize", "./model"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 + len(make_tokenizer().encode("my card\x1b[31m"))
    assert "\x1b" not in shown.out
    assert "tokens of a vocabulary" in shown.err
    assert run(["detokenize", "./model", *map(str, make_tokenizer().encode("my card"))]) == 0
    assert capsys.readouterr().out == "my card\n"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_read_by_its_bases_tokenizer(desk: Path, yard: Callable[..., Outcome]) -> None:
    """An adapter without a tokenizer has its base's, as a folder and as a version."""
    save_adapter(desk / "adapter", desk / "model")
    expected = make_tokenizer().encode("my card")
    code, made, _ = yard(
        "commit", "./adapter", "--to", "team/tuned", "--kind", "adapter", "--from", "finetuned=team/base"
    )
    assert code == 0, made
    for source in ("./adapter", "team/tuned"):
        code, found, error = yard("tokenize", source, "my card")
        assert code == 0, error
        assert [token["id"] for token in found["tokens"]] == expected


def test_no_weight_is_read(desk: Path, yard: Callable[..., Outcome]) -> None:
    """A folder whose weights are gone has its tokenizer still; one without a tokenizer is a named error."""
    for path in (desk / "model").glob("*.safetensors"):
        path.unlink()
    assert yard("tokenize", "./model", "hi")[0] == 0
    for path in (desk / "model").glob("tokenizer*"):
        path.unlink()
    code, _, error = yard("tokenize", "./model", "hi")
    assert (code != 0, error["code"]) == (True, "no_preprocessor")
    assert yard("tokenize", "./nowhere", "hi")[0] != 0


@pytest.mark.parametrize("command", ["tokenize", "generate"])
def test_a_closed_standard_input_is_named(
    yard: Callable[..., Outcome], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an argument and with standard input closed (`<&-`), the error says what is missing."""
    monkeypatch.setattr("sys.stdin", None)
    code, _, error = yard(command, "./model")
    assert code == 2
    assert "standard input is closed" in error["message"]
