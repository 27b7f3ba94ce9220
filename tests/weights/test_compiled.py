"""Compiled models: refused where nothing could be compiled, and saved under the names that everybody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from modelyard.errors import ModelError
from modelyard.weights.load import load
from modelyard.weights.loading import compiled
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from pathlib import Path


# torch's compiler uses what torch deprecates; one of these tests calls torch.compile itself.
pytestmark = [pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")]


def test_without_a_compiler_it_is_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is needed; nothing is read, not even the folder."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ModelError, match="needs a C\\+\\+ compiler") as caught:
        load(tmp_path / "nothing", compile=True)
    assert caught.value.code == "no_compiler"
    assert compiled.find_compiler() is None
    assert compiled.find_compiler("cuda:0") == "triton"


def test_saved_names_are_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled model has the same names in memory and on the disk, and loads again as the same tensors."""
    monkeypatch.setattr(compiled, "find_compiler", lambda device="cpu": "/usr/bin/g++")
    save_model(tmp_path / "model")
    model = load(tmp_path / "model", compile=True)
    assert set(model.model.state_dict()) == set(make_llama().state_dict())
    model.save(tmp_path / "saved")
    held = load_file(tmp_path / "saved" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        assert torch.equal(held[name], tensor)


def test_wrapped_parts_lose_their_wrapping() -> None:
    """Whoever wrapped whichever part by `torch.compile`: no name has `_orig_mod`, and the tensors are the same."""
    model: Any = make_llama()
    names = list(model.state_dict())
    model.model.layers[1].mlp = torch.compile(model.model.layers[1].mlp)
    state = compiled.plain_state(torch.compile(model))
    assert list(state) == names
    assert state["lm_head.weight"].data_ptr() == model.lm_head.weight.data_ptr()


@pytest.mark.slow
def test_compiled_answers_are_the_same(tmp_path: Path) -> None:
    """The logits of batches of several lengths agree within rounding, and greedy text is the same."""
    save_model(tmp_path)
    plain, fast = load(tmp_path), load(tmp_path, compile=True)
    for length in (3, 5, 8):
        ids = torch.arange(5, 5 + length)[None]
        with torch.inference_mode():
            torch.testing.assert_close(
                fast.model(input_ids=ids).logits, plain.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4
            )
    assert fast.generate("my card", max_new_tokens=4) == plain.generate("my card", max_new_tokens=4)
