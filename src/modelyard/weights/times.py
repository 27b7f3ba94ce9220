"""How long each stage of loading takes, which one is slow, and its cure.

A load goes through the stages of `STAGES`. Whoever runs one reports it to an `Observe`: `Yard.load` reports `resolve` and
`verify` of a version, `weights.load.load` the rest. `time_load` loads a model once, for real, and says what that took. Knows folders,
loads and clocks; it knows no yard.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.weights.checks import as_path

if TYPE_CHECKING:
    from modelyard.weights.model import Model

__all__ = ["STAGES", "LoadTimes", "Observe", "Stage", "time_load"]

STAGES = ("resolve", "verify", "read", "cast", "place", "preprocessor", "audit")
"""The stages in the order in which a load goes through them."""

_LIBRARIES = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "modelyard.weights.loading.building",
    "modelyard.weights.loading.plan",
)

Observe = Callable[[str, float, int], None]
"""Called once a stage ended: its name (of `STAGES`), its seconds, and the bytes that it went over (0 where bytes say nothing)."""


@dataclass(frozen=True)
class Stage:
    """One stage: `seconds` on the clock, `bytes` that it went over."""

    name: str
    seconds: float
    bytes: int

    @property
    def rate(self) -> float | None:
        """Bytes a second; None where bytes say nothing about it."""
        return self.bytes / self.seconds if self.bytes and self.seconds > 0 else None


@dataclass(frozen=True)
class LoadTimes:
    """What loading took.

    Attributes:
        source: What was loaded.
        stages: In the order of `STAGES`; a stage that did not happen is not listed.
        seconds: From the beginning to the loaded model; `verify` goes on beside the others, so together they may be more.
        slowest: The name of the slowest stage.
        cause: Why it is slow, as far as it was seen.
        cure: What makes it faster.
    """

    source: str
    stages: tuple[Stage, ...]
    seconds: float
    slowest: str
    cause: str
    cure: str | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        plain = asdict(self)
        plain["stages"] = [asdict(stage) | {"bytes_per_second": stage.rate} for stage in self.stages]
        return plain


def time_load(source: str | Path, *, load: Callable[..., Model] | None = None, **options: Any) -> LoadTimes:
    """Load `source` once and say what each stage took; the model is let go again.

    The libraries are imported before the clock starts: that is the process's start, not this model's.

    Args:
        source: What to load.
        load: Called as `load(source, observe=..., **options)`; by default `weights.load.load`. `Yard.load` for a version.
        **options: As the load takes them.

    Raises:
        YardError: As the load.
    """
    from modelyard.weights.load import load as load_here
    from modelyard.weights.loading.quantization import quiet_imports

    quiet_imports()
    for name in _LIBRARIES:
        importlib.import_module(name)

    watch = _Watch(from_disk=_bytes_from_disk())
    began = time.perf_counter()
    watch.mark = began
    model = (load or load_here)(source, observe=watch, **options)
    seconds = time.perf_counter() - began
    try:
        stages = _stages(watch, model)
        slowest = max(stages, key=lambda stage: stage.seconds)
        cause, cure = _explain(slowest, watch, model, str(source))
        return LoadTimes(str(source), tuple(stages), seconds, slowest.name, cause, cure)
    finally:
        model.release()


@dataclass
class _Watch:
    """Collects what is reported; `mark` is when the stage before ended, `cold` the bytes of `read` that came from a disk."""

    from_disk: int | None
    mark: float = 0.0
    before: float = 0.0
    cold: int | None = None
    stages: dict[str, Stage] = field(default_factory=dict)

    def __call__(self, name: str, seconds: float, size: int) -> None:
        known = self.stages.get(name, Stage(name, 0.0, 0))
        self.stages[name] = Stage(name, known.seconds + seconds, known.bytes + size)
        if name == "verify":
            return  # goes on beside the others
        now = time.perf_counter()
        # Between two stages lies what belongs to none of them: headers, the plan, the choice of the class.
        self.before += max(now - seconds - self.mark, 0.0)
        self.mark = now
        if name == "read" and self.from_disk is not None:
            after = _bytes_from_disk()
            self.cold = after - self.from_disk if after is not None else None


def _stages(watch: _Watch, model: Model) -> list[Stage]:
    """In the order of `STAGES`: the gaps are resolving, and building is split into casting and placing."""
    found = dict(watch.stages)
    # A load that reports no reading (a GGUF file, random weights) builds in the gap.
    gap = "resolve" if "read" in found else "place"
    known = found.get(gap, Stage(gap, 0.0, 0))
    found[gap] = Stage(gap, known.seconds + watch.before, known.bytes)
    if "cast" in found:
        built = found["cast"]
        seconds, size = _cast_again(model)
        seconds = min(seconds, built.seconds)
        found["cast"] = Stage("cast", seconds, size)
        place = found.get("place", Stage("place", 0.0, 0))
        found["place"] = Stage("place", place.seconds + built.seconds - seconds, place.bytes + built.bytes)
    return [found[name] for name in STAGES if name in found]


def _cast_again(model: Model) -> tuple[float, int]:
    """Seconds and bytes of the casts that the load made, each made once more by itself: the library mixes them with the rest."""
    import torch
    from safetensors import safe_open

    wanted = {}
    for pair in getattr(model.plan, "casts", None) or {}:
        stored, _, target = pair.partition(" -> ")
        wanted[getattr(torch, stored, None)] = getattr(torch, target, None)
    seconds, size = 0.0, 0
    folder = model.base or model.folder
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(str(path), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                tensor = opened.get_tensor(name)
                target = wanted.get(tensor.dtype)
                if target is not None:
                    began = time.perf_counter()
                    tensor.to(target)
                    seconds += time.perf_counter() - began
                    size += tensor.nbytes
    return seconds, size


def _explain(slowest: Stage, watch: _Watch, model: Model, source: str) -> tuple[str, str | None]:
    """Why the slowest stage takes its time, and what would make it faster."""
    path = as_path(source) if Path(source).expanduser().exists() else source
    casts = ", ".join(getattr(model.plan, "casts", None) or ())
    target = casts.rpartition(" -> ")[2]
    reasons: dict[str, tuple[str, str | None]] = {
        "resolve": (
            "the code of its architecture is imported once in a process, then headers and plan: the same for every size",
            None,
        ),
        "verify": ("every byte is hashed before it is used", f"yard doctor {path} --load --trust-verified"),
        "place": (
            "the library builds the modules and copies the weights into them",
            "a smaller dtype: --dtype bfloat16",
        ),
        "audit": ("every value is looked at once, for NaN and infinity", None),
        "cast": (f"the weights are cast while they are loaded ({casts})", _once(path, target)),
        "preprocessor": _tokenizer(model, path),
        "read": _reading(slowest, watch, _smaller(model, path)),
    }
    return reasons[slowest.name]


def _once(path: str, target: str) -> str:
    return f"yard convert {path} --dtype {target} --to ./MODEL-{target}"


def _tokenizer(model: Model, path: str) -> tuple[str, str | None]:
    if model.tokenizer is None or (model.folder / "tokenizer.json").exists():
        return "the preprocessor's files are parsed", None
    save = f"transformers.AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')"
    return "there is no tokenizer.json, so the tokenizer is converted from its old files at every load", save


def _smaller(model: Model, path: str) -> str | None:
    """Half the bytes, where this device computes in half of them."""
    from modelyard.weights.loading.dtypes import pick_dtype

    device = str(getattr(model.model, "device", "cpu"))
    plain = getattr(model.plan, "dtype", None) == "float32" and not getattr(model.plan, "casts", None)
    return _once(path, "bfloat16") if plain and pick_dtype("auto", "bfloat16", device) == "bfloat16" else None


def _reading(stage: Stage, watch: _Watch, smaller: str | None) -> tuple[str, str | None]:
    rate = f" at {stage.rate / 1e6:,.0f} MB/s" if stage.rate else ""
    if watch.cold is not None and watch.cold > stage.bytes // 10:
        cause = f"the page cache was cold: {watch.cold:,} of {stage.bytes:,} bytes came from the disk{rate}"
        return cause, "load it again while it is cached, or keep it on a faster disk"
    return f"{stage.bytes:,} bytes are read from the page cache{rate}", smaller


def _bytes_from_disk() -> int | None:
    """What this process has had read from storage; None where the system does not say (anything but Linux)."""
    try:
        text = Path("/proc/self/io").read_text("ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes:")), None)
