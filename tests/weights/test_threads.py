"""Two threads that load mixed dtypes and tied models a hundred times get no wrong model, and neither does the next load."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from modelyard.weights.create import create
from modelyard.weights.load import load
from tiny_models import VOCABULARY, make_llama, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMES = 50  # each of two threads
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _many_switches() -> Iterator[None]:
    """Threads change places every millisecond, so that overlaps are many."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-3)
    yield
    sys.setswitchinterval(before)


def faults(model: Any, held: dict[str, torch.Tensor], dtype: str, *, tied: bool) -> list[str]:
    """What is wrong with a loaded model."""
    found = []
    for name, parameter in model.named_parameters():
        if str(parameter.dtype) != f"torch.{dtype}":
            found.append(f"{name} is {parameter.dtype}, not {dtype}")
        elif parameter.is_meta or not torch.equal(parameter, held[name].to(parameter.dtype)):
            found.append(f"{name} has other values than its file")
    one = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    if one != tied:
        found.append(f"tied is {one}")
    if model.training:
        found.append("is in training mode")
    return found


def test_a_hundred_loads_in_two_threads_give_no_wrong_model(tmp_path: Path) -> None:
    """dtypes, ties and values of every model are right, and the process is as it was: default dtype, tying, linspace."""
    folders = {
        tied: save_model(tmp_path / str(tied), make_llama(tie_word_embeddings=tied, **TINY)) for tied in (True, False)
    }
    held = {tied: load_file(folder / "model.safetensors") for tied, folder in folders.items()}
    before = (torch.get_default_dtype(), PreTrainedModel.tie_weights, torch.linspace, torch.nn.init.normal_)
    wrong: list[str] = []
    done: list[int] = []

    def work(dtypes: tuple[str, ...]) -> None:
        for number in range(TIMES):
            tied, dtype = number % 2 == 0, dtypes[number % len(dtypes)]
            wrong.extend(faults(load(folders[tied], dtype=dtype).model, held[tied], dtype, tied=tied))
            done.append(number)

    run(lambda: work(("bfloat16", "float16", "float32")), lambda: work(("float32", "bfloat16")))
    assert (wrong, len(done)) == ([], 2 * TIMES)
    assert (torch.get_default_dtype(), PreTrainedModel.tie_weights, torch.linspace, torch.nn.init.normal_) == before
    assert faults(load(folders[True]).model, held[True], "float32", tied=True) == []


def test_making_and_loading_at_once_disturb_one_another_in_nothing(tmp_path: Path) -> None:
    """Random models of one seed are equal though another thread loads meanwhile, and the loads are right."""
    folder = save_model(tmp_path / "tied", make_llama(tie_word_embeddings=True, **TINY))
    held = load_file(folder / "model.safetensors")
    values: dict[str, Any] = {**TINY, "vocab_size": VOCABULARY, "num_key_value_heads": 2}
    first = create("llama", seed=1, **values).model.state_dict()
    wrong: list[str] = []

    def make() -> None:
        for _ in range(10):
            made = create("llama", seed=1, **values).model.state_dict()
            wrong.extend(name for name, value in made.items() if not torch.equal(value, first[name]))

    def read() -> None:
        for _ in range(10):
            wrong.extend(faults(load(folder, dtype="bfloat16").model, held, "bfloat16", tied=True))

    run(make, read)
    assert wrong == []


def run(*works: Any) -> None:
    """Run each in a thread of its own, and raise what one raised."""
    errors: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
