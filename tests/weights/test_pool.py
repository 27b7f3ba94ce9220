"""Many models in a fixed amount of memory: loaded once, evicted when idle, never while in use, refused with numbers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import BusyError, ModelError, RequestError
from modelyard.weights import pool as module
from modelyard.weights.load import load
from modelyard.weights.loading.plan import plan_load
from modelyard.weights.loading.quantization import footprint
from modelyard.weights.pool import LazyModel, ModelPool
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one size."""
    where = tmp_path_factory.mktemp("models")
    return [save_model(where / str(seed), make_llama(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def size(folders: list[Path]) -> int:
    """Bytes of one of them in memory."""
    return footprint(load(folders[0]).model)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        self.now += 0.001
        return self.now


def is_loaded(lazy: LazyModel) -> bool:
    """Asked anew each time: a type checker takes a property for a constant."""
    return lazy.loaded


def test_a_lazy_model_loads_when_it_is_used(folders: list[Path]) -> None:
    """Nothing is read before; then it is loaded once, answers like the model, and loads again after an unload."""
    lazy = LazyModel(folders[0])
    assert not is_loaded(lazy)
    assert lazy.plan().total > 0
    assert not is_loaded(lazy)
    expected = load(folders[0]).generate("my card", max_new_tokens=3)
    assert lazy.generate("my card", max_new_tokens=3) == expected
    assert is_loaded(lazy)
    assert lazy.get() is lazy.get()
    lazy.unload()
    lazy.unload()
    assert not is_loaded(lazy)
    assert lazy.get().generate("my card", max_new_tokens=3) == expected


def test_threads_that_ask_at_once_load_once(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy model and a pool: many threads, one load, one model."""
    loads: list[str] = []
    real = module._load

    def count(source: Any, options: dict[str, Any]) -> Any:
        loads.append(str(source))
        return real(source, options)

    monkeypatch.setattr(module, "_load", count)
    lazy, pool = LazyModel(folders[0]), ModelPool()
    for ask in (lazy.get, lambda: pool.get(folders[1])):
        found: list[Any] = []
        threads = [threading.Thread(target=lambda ask=ask, found=found: found.append(ask())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert len({id(model) for model in found}) == 1
    assert loads == [str(folders[0]), str(folders[1])]


def test_the_least_recently_used_makes_room(folders: list[Path], size: int) -> None:
    """With room for two, the third evicts the one that was used longest ago, and its weights are gone."""
    pool = ModelPool(budget=int(2.5 * size), clock=Clock())
    first = pool.get(folders[0])
    pool.get(folders[1])
    pool.get(folders[0])
    pool.get(folders[2])
    assert list(pool.held) == [str(folders[0]), str(folders[2])]
    assert pool.used == 2 * size
    assert pool.get(folders[0]) is first
    assert pool.get(folders[1]) is not None
    assert list(pool.held) == [str(folders[0]), str(folders[1])]


def test_an_evicted_model_says_so(folders: list[Path], size: int) -> None:
    """Who kept a model beyond its lease gets an error, never another model's answer."""
    pool = ModelPool(budget=int(1.5 * size))
    model = pool.get(folders[0])
    pool.get(folders[1])
    with pytest.raises(ModelError, match="was released"):
        model.generate("my card")


def test_a_model_in_use_is_never_evicted(folders: list[Path], size: int) -> None:
    """What would need its room is refused with the numbers until the user is done."""
    pool = ModelPool(budget=int(1.5 * size))
    with pool.use(folders[0]) as model:
        with pytest.raises(BusyError, match="models in use hold") as caught:
            pool.get(folders[1])
        assert caught.value.details["needed"] == size
        assert caught.value.details["in_use"] == {str(folders[0]): size}
        with pytest.raises(BusyError, match="in use by 1"):
            pool.unload(folders[0])
        assert pool.clear() == []
        assert isinstance(model.generate("my card", max_new_tokens=2), str)
    pool.get(folders[1])
    assert list(pool.held) == [str(folders[1])]


def test_what_exceeds_the_whole_budget_is_refused_before_loading(
    folders: list[Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its plan: nothing is loaded, nothing evicted, and the hint says what would fit."""
    pool = ModelPool(budget=int(0.7 * size))
    monkeypatch.setattr(module, "_load", lambda source, options: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match="takes") as caught:
        pool.get(folders[0])
    assert caught.value.code == "out_of_budget"
    assert (caught.value.details["needed"], caught.value.details["budget"]) == (size, int(0.7 * size))
    assert 'dtype="bfloat16"' in str(caught.value.hint)
    assert pool.held == {}


def test_the_smaller_dtype_that_was_offered_fits(folders: list[Path], size: int) -> None:
    """Options are part of what is asked for: the same folder in two dtypes is two models."""
    pool = ModelPool(budget=int(0.7 * size))
    assert pool.get(folders[0], dtype="bfloat16").model.dtype == torch.bfloat16
    assert pool.used == plan_load(folders[0], dtype="bfloat16").resident
    whole = ModelPool()
    assert whole.get(folders[0], dtype="bfloat16") is not whole.get(folders[0])
    assert len(whole._held) == 2


def test_idle_models_are_unloaded(folders: list[Path]) -> None:
    """After `idle` seconds without use, at the next sweep or use; a lease counts as use until it ends."""
    clock = Clock()
    pool = ModelPool(idle=60, clock=clock)
    pool.get(folders[0])
    clock.now = 50
    assert pool.sweep() == []
    with pool.use(folders[1]):
        clock.now = 200
        assert pool.sweep() == [str(folders[0])]
    assert list(pool.held) == [str(folders[1])]
    clock.now = 250
    assert pool.sweep() == []
    clock.now = 300
    pool.get(folders[2])
    assert list(pool.held) == [str(folders[2])]
    assert ModelPool().sweep() == []


def test_a_load_that_fails_leaves_nothing_behind(folders: list[Path], tmp_path: Path, size: int) -> None:
    """The error reaches everyone who waited, the room is free again, and the next call tries again."""
    pool = ModelPool(budget=2 * size)
    with pytest.raises(ModelError, match="no folder"):
        pool.get(tmp_path / "nothing")
    assert pool.held == {}
    unlimited = ModelPool()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            unlimited.get(tmp_path / "later")
        except ModelError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert unlimited.held == {}
    save_model(tmp_path / "later")
    assert unlimited.get(tmp_path / "later").task == "text-generation"


def test_threads_share_a_small_pool(folders: list[Path], size: int) -> None:
    """Four threads take turns over three models with room for two: every answer is the right model's."""
    pool = ModelPool(budget=int(2.5 * size))
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = [load(folder).model(input_ids=ids).logits for folder in folders]
    wrong: list[int] = []

    def work(start: int) -> None:
        for turn in range(4):
            index = (start + turn) % 3
            while True:
                try:
                    with pool.use(folders[index]) as model, torch.inference_mode():
                        if not torch.equal(model.model(input_ids=ids).logits, expected[index]):
                            wrong.append(index)
                    break
                except BusyError:
                    continue

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.used <= 2.5 * size
    assert all(entry.users == 0 for entry in pool._held.values())


def test_what_is_no_budget_is_refused() -> None:
    """Zero bytes and negative times are errors of their field."""
    with pytest.raises(RequestError, match="budget"):
        ModelPool(budget=0)
    with pytest.raises(RequestError, match="idle"):
        ModelPool(idle=-1)
