"""Several models in a fixed amount of memory: loaded on first use, dropped when idle, never while in use.

`LazyModel` loads one when it is first asked for. `ModelPool` holds many under a budget: what a load would take is known from
its plan before it begins, the least recently used idle models make room for it, and what cannot fit is refused with the
numbers. Memory really goes back to the system: every unload collects garbage and trims the heap.

Knows `load` and plans; knows no references or servers.

>>> pool = ModelPool(budget=8 << 30, idle=600)
>>> with pool.use("./base") as model:  # doctest: +SKIP
...     model.generate("Hello")
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import BusyError, ModelError, RequestError
from modelyard.weights.loading import memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelyard.weights.loading.plan import LoadPlan
    from modelyard.weights.model import Model

__all__ = ["Held", "LazyModel", "ModelPool"]


class LazyModel:
    """A model that is loaded when it is first used, once, whichever thread asks.

    Args:
        source: As `load` takes it.
        **options: Of `load`.
    """

    def __init__(self, source: Path | str, **options: Any) -> None:
        self.source = source
        self.options = options
        self._lock = threading.Lock()
        self._model: Model | None = None

    @property
    def loaded(self) -> bool:
        """Whether it is in memory now."""
        return self._model is not None

    def get(self) -> Model:
        """The model, loaded now if it was not; `ModelError` and `RequestError` as `load`."""
        with self._lock:
            if self._model is None:
                self._model = _load(self.source, self.options)
            return self._model

    def plan(self) -> LoadPlan:
        """What loading it would do; nothing is loaded."""
        return _plan(self.source, self.options)

    def unload(self) -> None:
        """Let it go and give its memory back; the next `get` loads it again. Nothing happens if it is not loaded."""
        with self._lock:
            model, self._model = self._model, None
        if model is not None:
            model.release()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's: `lazy.generate(...)` loads it first."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.get(), name)


@dataclass
class Held:
    """One model of a pool: its key, its bytes, how many users it has, and when the last one left (monotonic seconds)."""

    source: str
    bytes: int
    users: int = 0
    used: float = 0.0
    model: Model | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None


class ModelPool:
    """Models under a memory budget; every method may be called from any thread.

    Args:
        budget: Bytes that the weights of all models may take together; None for no limit.
        idle: Seconds without use after which a model is unloaded; None for never. It is done by `sweep`, which every
            `get` and `use` calls, and which a server may call from its own timer: the pool starts no thread.
        clock: Where the time comes from, in seconds; for tests.
    """

    def __init__(
        self, *, budget: int | None = None, idle: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if budget is not None and budget < 1:
            raise RequestError(f"`budget` is {budget}", hint="bytes, 1 or more", field="budget")
        if idle is not None and idle < 0:
            raise RequestError(f"`idle` is {idle}", hint="seconds, 0 or more", field="idle")
        self.budget = budget
        self.idle = idle
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    @contextmanager
    def use(self, source: Path | str, **options: Any) -> Iterator[Model]:
        """The model while the block runs; it is not evicted meanwhile.

        Raises:
            ModelError: `out_of_budget`: it takes more than the whole budget; or as `load`.
            BusyError: It would fit, but for models that are in use now.
        """
        entry = self._enter(source, options)
        try:
            if entry.model is None:
                raise ModelError(f"the model of `{source}` was unloaded", hint="use it again")
            yield entry.model
        finally:
            self._leave(entry)

    def get(self, source: Path | str, **options: Any) -> Model:
        """The model, loaded if it was not. It may be evicted as soon as another one needs the room: hold it by `use`
        where that matters.

        Raises:
            ModelError, BusyError: As `use`.
        """
        with self.use(source, **options) as model:
            return model

    def sweep(self) -> list[str]:
        """Unload what was idle for longer than `idle`; the sources that were."""
        if self.idle is None:
            return []
        now = self._clock()
        with self._lock:
            old = [
                key
                for key, entry in self._held.items()
                if entry.users == 0 and entry.ready.is_set() and now - entry.used >= self.idle
            ]
            gone = [self._held.pop(key) for key in old]
        return _unload(gone)

    def unload(self, source: Path | str, **options: Any) -> bool:
        """Unload one model now; False if it is not loaded.

        Raises:
            BusyError: It is in use.
        """
        key = _key(source, options)
        with self._lock:
            entry = self._held.get(key)
            if entry is None:
                return False
            if entry.users:
                raise BusyError(f"`{source}` is in use by {entry.users}", hint="unload it when they are done")
            del self._held[key]
        _unload([entry])
        return True

    def clear(self) -> list[str]:
        """Unload every model that is not in use; their sources."""
        with self._lock:
            idle = [key for key, entry in self._held.items() if entry.users == 0]
            gone = [self._held.pop(key) for key in idle]
        return _unload(gone)

    @property
    def held(self) -> dict[str, int]:
        """What is loaded, or being loaded: source to bytes, the least recently used first."""
        with self._lock:
            return {entry.source: entry.bytes for entry in sorted(self._held.values(), key=lambda item: item.used)}

    @property
    def used(self) -> int:
        """Bytes of all weights that are held."""
        return sum(self.held.values())

    def _enter(self, source: Path | str, options: dict[str, Any]) -> Held:
        """The entry of a model with one more user, loaded by the first thread that asks; the others wait for it."""
        self.sweep()
        key = _key(source, options)
        with self._lock:
            entry = self._held.get(key)
            if entry is not None:
                entry.users += 1
        if entry is not None:
            return self._wait(entry)
        size = _plan(source, options).resident if self.budget is not None else 0
        with self._lock:
            entry = self._held.get(key)
            mine = entry is None
            if entry is None:
                gone = self._make_room(source, size)
                entry = self._held[key] = Held(str(source), size, used=self._clock())
            entry.users += 1
        if not mine:
            return self._wait(entry)
        _unload(gone)
        self._fill(key, entry, source, options)
        return entry

    def _wait(self, entry: Held) -> Held:
        entry.ready.wait()
        if entry.failure is not None:
            self._leave(entry)
            raise entry.failure
        return entry

    def _fill(self, key: str, entry: Held, source: Path | str, options: dict[str, Any]) -> None:
        try:
            entry.model = _load(source, options)
            entry.bytes = entry.model.footprint
        except BaseException as error:
            entry.failure = error
            with self._lock:
                self._held.pop(key, None)
            raise
        finally:
            entry.ready.set()

    def _leave(self, entry: Held) -> None:
        with self._lock:
            entry.users -= 1
            entry.used = self._clock()

    def _make_room(self, source: Path | str, size: int) -> list[Held]:
        """Take idle models out, the least recently used first, until `size` fits; called with the lock held."""
        if self.budget is None:
            return []
        if size > self.budget:
            raise ModelError(
                f"`{source}` takes {size} bytes and the pool's budget is {self.budget}",
                code="out_of_budget",
                hint="raise the budget, or load it smaller: " + _smaller(size, self.budget),
                needed=size,
                budget=self.budget,
            )
        taken = sum(entry.bytes for entry in self._held.values())
        idle = sorted((item for item in self._held.items() if item[1].users == 0), key=lambda item: item[1].used)
        gone: list[str] = []
        for key, entry in idle:
            if taken + size <= self.budget:
                break
            gone.append(key)
            taken -= entry.bytes
        if taken + size > self.budget:
            busy = {entry.source: entry.bytes for entry in self._held.values() if entry.users}
            raise BusyError(
                f"`{source}` takes {size} bytes, and models in use hold {taken} of the budget of {self.budget}",
                hint="wait until one is done, or raise the budget",
                needed=size,
                budget=self.budget,
                in_use=busy,
            )
        return [self._held.pop(key) for key in gone]


def _load(source: Path | str, options: dict[str, Any]) -> Model:
    from modelyard.weights.load import load

    return load(source, **options)


def _plan(source: Path | str, options: dict[str, Any]) -> LoadPlan:
    from modelyard.weights.loading.plan import plan_load

    return plan_load(source, **options)


def _key(source: Path | str, options: dict[str, Any]) -> str:
    """One text for one source and set of options."""
    return json.dumps([str(source), options], sort_keys=True, default=repr)


def _unload(entries: list[Held]) -> list[str]:
    for entry in entries:
        if entry.model is not None:
            entry.model.release()
            entry.model = None
    return [entry.source for entry in entries]


def _smaller(size: int, budget: int) -> str:
    able = [fit.change for fit in memory.what_fits(size, 32, int(budget / 0.9)) if fit.fits]
    return " or ".join(able) or "nothing that is offered makes it small enough"
