"""A certificate is written, read and shown as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import ModelError
from modelyard.weights import certificate
from modelyard.weights.carry import is_carried
from modelyard.weights.certificate import FILE, FORMAT, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.files import FolderFiles

if TYPE_CHECKING:
    from pathlib import Path


def example() -> Certificate:
    """Every field with something in it."""
    return Certificate(
        "merge",
        "peft",
        {"threads": 2, "quantized": None},
        THIS_MACHINE,
        {"base": {"model.safetensors": "a" * 64}, "adapter": {"adapter_model.safetensors": "b" * 64}},
        {"model.safetensors": "c" * 64},
        {"merged": 2, "replaced": 0},
        [{"tensor": f"layer.{number}", "changed": number} for number in range(11)],
        [{"name": "logits", "max_difference": 1.25e-6, "holds": True}],
        ["tied embeddings were separated"],
        describe_machine("torch", threads=2),
    )


def test_a_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    """`write`, then `read`: an equal value; a folder without one gives None."""
    assert certificate.read(FolderFiles(tmp_path)) is None
    example().write(tmp_path)
    assert certificate.read(FolderFiles(tmp_path)) == example()
    assert json.loads((tmp_path / FILE).read_text())["format"] == FORMAT


def test_unknown_keys_are_left_out(tmp_path: Path) -> None:
    """A later version may say more."""
    plain = example().to_dict() | {"mood": "good"}
    assert Certificate.from_dict(plain) == example()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "modelyard/certificate/9"}, "format"),
        ({"outputs": []}, "outputs"),
        ({"operation": ""}, "operation"),
        ({"inputs": {"base": 3}}, "inputs"),
        ({"checks": ["fine"]}, "checks"),
        ({"machine": "mine"}, "machine"),
    ],
)
def test_a_broken_one_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """`bad_certificate`, with the key."""
    (tmp_path / FILE).write_text(json.dumps(example().to_dict() | change))
    with pytest.raises(ModelError, match=said) as caught:
        certificate.read(FolderFiles(tmp_path))
    assert caught.value.code == "bad_certificate"


@pytest.mark.parametrize("text", ["no", "[1]", "[" * 100_000])
def test_what_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    """Also nesting that would break the parser."""
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError) as caught:
        certificate.read(FolderFiles(tmp_path))
    assert caught.value.code == "bad_certificate"


def test_no_model_takes_it_along() -> None:
    """It holds measurements of one operation: what is made from that folder has its own."""
    assert not is_carried(FILE)
    assert is_carried("generation_config.json")


def test_machine_names_only_what_is_installed() -> None:
    """Libraries that are not there have no version."""
    assert "no-such-library" not in describe_machine("no-such-library")["libraries"]
    assert describe_machine()["threads"] >= 1
