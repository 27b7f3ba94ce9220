"""Memory that a model held goes back to the system, and running out of it is answered with numbers."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import ModelError
from modelyard.weights.estimate import Workload
from modelyard.weights.estimate.loaded import step_bytes
from modelyard.weights.estimate.profile import run_profile
from modelyard.weights.load import LOADING, load
from modelyard.weights.loading import devices, memory
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

CYCLES = """
import json, sys, psutil, torch
from modelyard.weights.pool import ModelPool
folders, size = sys.argv[1:3], int(sys.argv[3])
pool = ModelPool(budget=int(1.5 * size))
held = []
for turn in range(20):
    with pool.use(folders[turn % 2]) as model, torch.inference_mode():
        model.model(input_ids=torch.tensor([[5, 6, 7]]))
    pool.clear() if turn % 4 == 3 else None
    held.append(psutil.Process().memory_info().rss)
pool.clear()
print(json.dumps([held, psutil.Process().memory_info().rss]))
"""


def test_twenty_load_and_unload_cycles_keep_the_memory(tmp_path: Path) -> None:
    """Two models of 30 MB take turns in a pool that has room for one: the resident set stays within a tenth of itself, and
    grows by less than a third of one model from the fourth turn to the end, when both are gone.
    """
    wide: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
    for seed, name in enumerate(("a", "b")):
        model = make_llama(seed, num_hidden_layers=3, num_key_value_heads=4, **wide)
        save_model(tmp_path / name, model)
    size = sum(tensor.numel() * 4 for tensor in model.parameters())
    assert 28e6 < size < 36e6
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, str(tmp_path / "a"), str(tmp_path / "b"), str(size)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held, last = json.loads(done.stdout)
    assert len(held) == 20
    assert max(held) < 1.1 * min(held)
    assert last - held[3] < size / 3  # after the fourth turn the pool is empty, as it is at the end


def test_nothing_keeps_a_released_model_alive(tmp_path: Path) -> None:
    """Its tensors are garbage at once, also under an adapter, and the model says that it was released."""
    save_model(tmp_path / "base")
    for model in (load(tmp_path / "base"), load(make_adapter(tmp_path))):
        kept = weakref.ref(next(iter(model.model.parameters())))
        model.release()
        assert kept() is None
        with pytest.raises(ModelError, match="was released"):
            model.generate("my card")


def make_adapter(tmp_path: Path) -> Path:
    """An adapter of the model in `tmp_path/base`."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers renamed
        return save_adapter(tmp_path / "adapter", tmp_path / "base")


def test_only_the_cache_of_a_present_device_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with one kind of accelerator, no other kind's cache is touched, and the CPU has none."""
    emptied: list[str] = []
    for kind in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda kind=kind: emptied.append(kind))
    monkeypatch.setattr(memory, "present_devices", lambda: ["cpu", "xpu:0"])
    for device in ("cpu", "cuda:0", "mps", "xpu:0"):
        memory.empty_cache(device)
    assert emptied == ["xpu"]


def test_freed_pages_go_back() -> None:
    """`trim_heap` asks the allocator; where it has no such call nothing happens. Either way it may be called at any time."""
    memory.trim_heap()
    memory.give_back("cpu")
    assert gc.get_count()[2] >= 0


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
            ),
            4096,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ..."), 3 << 29),
        (MemoryError(), None),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_out_of_memory_is_told_in_numbers(error: BaseException, needed: int | None) -> None:
    """Needed, free and held bytes, and only changes that would fit: smaller batches, other dtypes, fewer bits."""
    assert memory.is_out_of_memory(error)
    model = make_llama()
    told = memory.explain_oom(error, model, what="`./model`", batch=32, length=1024)
    assert told.code == "out_of_memory"
    assert told.details["needed"] == needed
    assert told.details["free"] > 0
    assert told.details["weights"] == sum(tensor.numel() * 4 for tensor in (*model.parameters(), *model.buffers()))
    assert told.details["options"][:2] == ["batch_size=16", "rows of 512 tokens instead of 1024"]
    assert 'dtype="bfloat16"' in str(told.hint)
    assert "`./model`" in told.message


def test_what_fits_counts_activations_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch and the row that are offered are the largest that the estimate gives room; weights alone say nothing of them."""
    model = make_llama(max_position_embeddings=4096)
    row = step_bytes(model, length=1024)
    assert row is not None
    monkeypatch.setattr(memory, "free_bytes", lambda _device: int(5.6 * row / 0.9))
    told = memory.explain_oom(MemoryError(), model, batch=32, length=1024)
    assert told.details["step"] == 32 * row
    assert told.details["options"] == ["batch_size=5", f"rows of {int(5.6 / 32 * 1024)} tokens instead of 1024"]
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    five = run_profile(config, Workload(batch=5, length=1024, new_tokens=0), "float32").peak
    assert five == pytest.approx(5 * row, rel=0.05)  # rows of a batch take the same each
    assert 'dtype="bfloat16"' not in str(told.hint)  # smaller weights leave no room for 32 rows


def _fail(*_given: object) -> None:
    raise MemoryError


def test_a_step_that_cannot_be_told_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails while memory is short, the error is still told, with halves; a load in another thread is not waited for."""
    model = make_llama()
    with monkeypatch.context() as patch:
        patch.setattr("modelyard.weights.estimate.profile.run_profile", _fail)
        told = memory.explain_oom(MemoryError(), model, batch=32, length=1024)
    assert told.details["step"] is None
    assert told.details["options"][:2] == ["batch_size=16", "rows of 512 tokens instead of 1024"]
    started, done = threading.Event(), threading.Event()

    def hold() -> None:
        with LOADING:
            started.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    started.wait(60)
    try:
        assert step_bytes(model, length=16) is None
    finally:
        done.set()
        holder.join()


def test_another_error_is_not_taken_for_it() -> None:
    """A wrong shape is no lack of memory."""
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory.is_out_of_memory(ValueError("can't allocate memory"))


def test_a_real_allocation_that_fails_is_recognised() -> None:
    """What torch really raises for more memory than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.float32)
    assert memory.is_out_of_memory(caught.value)
    assert memory.explain_oom(caught.value).details["needed"] == 1 << 57


def test_a_load_that_runs_out_says_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a load has the bytes that the plan counted, and the options that are smaller."""
    from transformers import LlamaForCausalLM

    save_model(tmp_path)
    size = load(tmp_path).plan.total

    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(fail))
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(0.7 * size))
    with pytest.raises(ModelError, match="not enough memory on cpu") as caught:
        load(tmp_path)
    assert caught.value.details["weights"] == size
    assert 'dtype="bfloat16"' in caught.value.details["options"]
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_does_not_fit_is_not_offered() -> None:
    """With room for a fifth only the four-bit weights are."""
    fits = {fit.change: fit.fits for fit in memory.what_fits(1000, 32, 220)}
    assert fits == {'dtype="bfloat16"': False, 'quantization="torchao-int8"': False, 'quantization="bnb-4bit"': True}
    assert memory.what_fits(1000, 8, 10**9)[0].change == 'quantization="bnb-4bit"'


def test_free_memory_is_what_can_be_had() -> None:
    """Never more than the machine has, and never nothing here."""
    import psutil  # type: ignore[import-untyped]  # publishes no types

    assert 0 < memory.free_bytes("cpu") <= psutil.virtual_memory().total
    assert devices.present_devices()
