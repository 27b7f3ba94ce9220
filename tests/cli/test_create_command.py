"""`yard create`, as typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.weights.files import FolderFiles
from modelyard.weights.untrained import find_untrained

if TYPE_CHECKING:
    from collections.abc import Callable

    Outcome = tuple[int, Any, dict[str, Any]]

SMALL = (
    "--set",
    "hidden_size=16",
    "--set",
    "num_attention_heads=2",
    "--set",
    "intermediate_size=16",
    "--set",
    "vocab_size=40",
)


def test_a_folder_is_made(yard: Callable[..., Outcome]) -> None:
    """The folder holds a model of the configuration that was set, marked `random` with its seed."""
    code, made, _ = yard("create", "bert", *SMALL, "--set", "num_hidden_layers=2", "--seed", "7", "--to", "./bert")
    assert code == 0
    assert (made["to"], made["task"], made["model_class"], made["untrained"]) == (
        "bert",
        "fill-mask",
        "BertForMaskedLM",
        "random",
    )
    found = find_untrained(FolderFiles(Path("bert")))
    assert found is not None
    assert (found.kind, found.seed) == ("random", 7)


def test_a_repo_gets_a_version(yard: Callable[..., Outcome]) -> None:
    """`--to NAMESPACE/NAME` commits it; making the same again gives the same version."""
    arguments = ("create", "bert", *SMALL, "--set", "num_hidden_layers=1", "--task", "token-classification")
    code, first, _ = yard(*arguments, "--to", "team/scratch")
    assert (code, first["name"], first["model_class"]) == (0, "team/scratch@v1", "BertForTokenClassification")
    code, again, _ = yard(*arguments, "--to", "team/scratch")
    assert (code, again["id"]) == (0, first["id"])


def test_a_folder_gives_its_configuration_and_tokenizer(yard: Callable[..., Outcome]) -> None:
    """From a model's folder come architecture and preprocessors."""
    code, made, _ = yard("create", "./model", "--set", "num_hidden_layers=1", "--to", "./fresh")
    assert (code, made["model_class"]) == (0, "LlamaForCausalLM")
    assert Path("fresh/tokenizer.json").read_bytes() == Path("model/tokenizer.json").read_bytes()


def test_values_are_json_and_text_needs_no_quotes(yard: Callable[..., Outcome]) -> None:
    """`gelu` is text, `null`, `2` and `true` are JSON; a nested key is a path."""
    code, _, _ = yard(
        "create", "bert", *SMALL, "--set", "num_hidden_layers=1", "--set", "hidden_act=relu", "--set", "use_cache=false",
        "--to", "./bert",
    )  # fmt: skip
    assert code == 0
    text = Path("bert/config.json").read_text()
    assert '"hidden_act": "relu"' in text
    assert '"use_cache": false' in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("brt",), "did you mean `bert`?"),
        (("bert", "--set", "num_hiden_layers=2"), "did you mean `num_hidden_layers`?"),
        (("bert", "--task", "fil-mask"), "did you mean `fill-mask`?"),
        (("bert", "--class", "BertModle"), "did you mean `BertModel`?"),
    ],
)
def test_what_is_mistyped_has_a_near_match(yard: Callable[..., Outcome], arguments: tuple[str, ...], hint: str) -> None:
    """Exit code 2, the near match as the hint, and no folder."""
    code, _, error = yard("create", *arguments, "--to", "./none")
    assert (code, error["hint"]) == (2, hint)
    assert not Path("none").exists()


@pytest.mark.parametrize(
    ("key", "hint"),
    [("model_type", "yard create"), ("seed", "--seed"), ("task", "--task"), ("dtype", "--dtype"), ("source", "known:")],
)
def test_a_key_that_is_no_configurations_is_refused(yard: Callable[..., Outcome], key: str, hint: str) -> None:
    """What has an option of its own, or says which configuration it is, is no key; nothing collides with our own names."""
    code, _, error = yard("create", "bert", "--set", f"{key}=1", "--to", "./none")
    assert code == 2
    assert hint in error["hint"]


def test_what_cannot_be_built_sends_to_no_doctor(yard: Callable[..., Outcome]) -> None:
    """There is no folder yet that one could look at."""
    _, _, error = yard("create", "bert", "--set", "hidden_size=17", "--to", "./none")
    assert "17" in error["message"]
    assert "doctor" not in error["hint"]


def test_an_existing_folder_is_a_conflict(yard: Callable[..., Outcome]) -> None:
    """Nothing is overwritten."""
    code, _, _ = yard("create", "bert", *SMALL, "--set", "num_hidden_layers=1", "--to", "./model")
    assert code == 6
