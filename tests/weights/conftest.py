"""Sound tiny checkpoints that the tests of the doctor break."""

from __future__ import annotations

from pathlib import Path

import pytest

from task_models import text, vision
from tiny_models import make_llama, make_tokenizer, save_adapter, save_model
from weights.doctor_cases import copy


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound models of this module: `llama`, its `shards`, `adapter`, `vit`, `bert`."""
    folder = tmp_path_factory.mktemp("doctor")
    llama = make_llama()
    save_model(folder / "llama", llama)
    llama.save_pretrained(folder / "shards", max_shard_size="40KB")
    make_tokenizer().save_pretrained(folder / "shards")
    save_adapter(folder / "adapter", folder / "llama")
    vision.MODELS["image-classification"](folder / "vit")
    text.MODELS["text-classification"](folder / "bert")
    return folder


@pytest.fixture
def llama(originals: Path, tmp_path: Path) -> Path:
    """A copy of the language model, to be broken."""
    return copy(originals / "llama", tmp_path)


@pytest.fixture
def shards(originals: Path, tmp_path: Path) -> Path:
    """A copy of the language model in shards."""
    return copy(originals / "shards", tmp_path)


@pytest.fixture
def adapter(originals: Path, tmp_path: Path) -> Path:
    """A copy of the adapter."""
    return copy(originals / "adapter", tmp_path)
