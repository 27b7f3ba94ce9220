"""What a caller asks `load` for, checked before anything is read. Knows no files and no models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError, near_match
from modelyard.weights.loading.dtypes import DTYPES
from modelyard.weights.tasks import find_task

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ALLOWABLE", "LoadOptions"]

ALLOWABLE = ("missing", "unexpected", "mismatched", "nonfinite", "preprocessor")
"""Faults that `allow` may name; `preprocessor` is a model folder without a tokenizer or what its task's inputs need."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of `load`, as its signature has them; constructing one checks them.

    Raises:
        RequestError: An option has a value that it cannot have; the hint has the near match.
    """

    task: str | None = None
    model_class: str | None = None
    base: Path | str | None = None
    adapters: Mapping[str, Path | str] | None = None
    dtype: str = "auto"
    device: str = "cpu"
    device_map: Any = None
    max_memory: Any = None
    offload_folder: Path | None = None
    attention: str | None = None
    quantization: Any = None
    config: Mapping[str, Any] | None = None
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    random: bool = False
    seed: int = 0
    training: bool = False
    allow: tuple[str, ...] = ()
    threads: int | None = None
    compile: bool = False
    cache_dir: Path | None = None
    revision: str | None = None
    token: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.task is not None:
            find_task(self.task)
        _choice("dtype", self.dtype, DTYPES)
        for kind in self.allow:
            _choice("allow", kind, ALLOWABLE)
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise RequestError(f"`threads` is {self.threads!r}", hint="a positive whole number", field="threads")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise RequestError(f"`seed` is {self.seed!r}", hint="a whole number from 0", field="seed")
        if self.config is not None and not isinstance(self.config, Mapping):
            raise RequestError(
                f"`config` is a {type(self.config).__name__}",
                hint='a dictionary of overrides, e.g. config={"num_hidden_layers": 2}',
                field="config",
            )
        _check_labels(self.num_labels, self.id2label)
        self._check_together()

    def _check_together(self) -> None:
        if self.random and self.device_map is not None:
            raise RequestError(
                "`random` weights are drawn on one device", hint="give `device` instead", field="device_map"
            )
        if self.random and not (self.quantization is None or self.quantization == "int8-dynamic"):
            raise RequestError(
                "`random` weights are not quantized while they are drawn",
                hint="save the model, and load that with `quantization`",
                field="quantization",
            )
        if self.offload_folder is not None and self.device_map is None:
            raise RequestError(
                "`offload_folder` is for what a device map puts on disk",
                hint='device_map="auto"',
                field="offload_folder",
            )

    def relabels(self) -> bool:
        """Whether the caller says how many labels the head has."""
        return self.num_labels is not None or self.id2label is not None


def _choice(field: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        meant = near_match(str(value), known)
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(known)}"
        raise RequestError(f"`{field}` is {value!r}", hint=hint, field=field)


def _check_labels(count: int | None, names: Mapping[int, str] | None) -> None:
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise RequestError(f"`num_labels` is {count!r}", hint="a positive whole number", field="num_labels")
    if names is None:
        return
    if not isinstance(names, Mapping) or sorted(map(str, names)) != sorted(map(str, range(len(names)))) or not names:
        raise RequestError(
            "`id2label` has not the numbers 0 to n-1 as keys", hint='e.g. {0: "no", 1: "yes"}', field="id2label"
        )
    if count is not None and count != len(names):
        raise RequestError(
            f"`num_labels` is {count} and `id2label` has {len(names)} entries",
            hint="leave `num_labels` out",
            field="num_labels",
        )
