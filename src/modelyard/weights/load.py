"""A folder becomes a `Model` in memory, or an error that says why not.

Our own reader checks every weight file before a library sees it; nothing is unpickled or run from the checkpoint; and what
came into memory is audited against what is on disk (`audit`). Any task of `weights.tasks` is loaded, by its name, by the class
that config.json names, or as an exact class of transformers.

Loading in transformers swaps process globals while it runs, so `LOADING` is held around it: see `loading.lock`.

Knows folders, GGUF files and `hf://`; knows no references, stores or servers.

>>> from pathlib import Path
>>> from modelyard.errors import ModelError
>>> try:
...     load(Path("/nonexistent"))
... except ModelError as error:
...     print(error.message)
no folder `/nonexistent`
"""

from __future__ import annotations

import inspect
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.audit import audit_tensors
from modelyard.weights.checks import check_loadable
from modelyard.weights.files import FolderFiles
from modelyard.weights.loading import compiled, legacy, sources
from modelyard.weights.loading.dtypes import DTYPES, cpu_runs_bfloat16, pick_dtype
from modelyard.weights.loading.given import read_allow, read_given, read_source
from modelyard.weights.loading.lock import LOADING, loading
from modelyard.weights.loading.options import LoadOptions
from modelyard.weights.loading.plan import plan_load
from modelyard.weights.loading.report import LoadReport
from modelyard.weights.model import Model

__all__ = ["DTYPES", "LOADING", "cpu_runs_bfloat16", "load", "loading", "pick_dtype", "plan_load"]

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelyard.weights.loading.building import Built
    from modelyard.weights.loading.plan import LoadPlan
    from modelyard.weights.times import Observe


def load(
    source: Path | str | None = None,
    *,
    task: str | None = None,
    model_class: str | None = None,
    base: Path | str | None = None,
    adapters: Mapping[str, Path | str] | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    device_map: Any = None,
    max_memory: Mapping[Any, Any] | None = None,
    offload_folder: Path | str | None = None,
    attention: str | None = None,
    quantization: Any = None,
    config: Mapping[str, Any] | None = None,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    random: bool = False,
    seed: int = 0,
    training: bool = False,
    allow: Sequence[str] = (),
    threads: int | None = None,
    compile: bool = False,  # noqa: A002  the name that every user of torch knows
    cache_dir: Path | str | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    observe: Observe | None = None,
    finite: bool = False,
    **yesterday: Any,
) -> Model:
    """Load a model with what makes its inputs, ready to answer.

    Args:
        source: A folder of transformers (config.json, safetensors, preprocessors) or of PEFT (adapter_config.json), a .gguf
            file, or `hf://org/name[@revision]`.
        task: A name of `weights.tasks.TASKS`, or another name for it; by default that of the class in config.json.
        model_class: An exact class of transformers, e.g. `BertModel`; or an Auto class.
        base: For an adapter: the folder of its base; by default the one that adapter_config.json names, if it is a
            folder here.
        adapters: Adapters to load onto a base, name to folder; `model.generate(..., adapter=name)` chooses.
        dtype: One of `DTYPES`. `auto` is the checkpoint's own; on a CPU, float16 and (without AVX512-BF16 or AMX)
            bfloat16 are loaded as float32, which holds the same values and is several times faster there.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`.
        device_map: `auto`, `balanced`, `balanced_low_0`, `sequential`, or module -> device, `cpu` or `disk`.
        max_memory: For a device map that is worked out: device -> bytes, or text such as `2GiB`.
        offload_folder: Where what a device map puts on `disk` is written; by default a temporary folder.
        attention: `eager`, `sdpa`, `flex_attention`, `flash_attention_2`, ...; by default the best that is here.
        quantization: A short name (`bnb-8bit`, `bnb-4bit`, `torchao-int8`, `torchao-int4`, `int8-dynamic`) or a
            configuration object of transformers.
        config: Keys of the configuration to change, `text_config.hidden_size` for one inside another.
        num_labels: Labels of the head; a head of another size on disk is drawn anew.
        id2label: The labels' names, number to name; says `num_labels` too.
        random: Draw every weight from `seed` instead of reading any.
        seed: What added heads and random weights are drawn from; the caller's generators stay as they are.
        training: Leave the model in training mode; otherwise it is in eval mode.
        allow: Faults to let pass, by name: `missing`, `unexpected`, `mismatched`, `nonfinite`; `preprocessor` for a folder
            without one.
        threads: Compute threads of torch in this process; None leaves them as they are.
        compile: Compile the forward pass with torch; saved names stay as they are.
        cache_dir: For `hf://`: the hub cache to use instead of the shared one.
        revision: For `hf://`: a branch, tag or commit.
        token: For `hf://`: the token to send.
        offline: For `hf://`: use only what the cache has.
        observe: Told each stage as it ends (`weights.times`).
        finite: The files are known to hold finite numbers only (a yard that looked keeps that): they are not looked at again,
            unless they are cast.
        **yesterday: Names that transformers dropped (`loading.legacy`).

    Raises:
        ModelError: Not a usable model, unsafe weights (`PickleError`), or tensors missing, left over, of another shape
            or not finite; the message lists them.
        RequestError: An option has a value that it cannot have, or nobody knows it.
        NotFoundError, AuthError: Of an `hf://` source.
    """
    given = {name: value for name, value in locals().items() if name not in _NO_OPTIONS}
    source, options = accept_options(source, given, yesterday)
    return load_with(source, options, observe, finite=finite)


_NO_OPTIONS = frozenset({"source", "observe", "finite", "yesterday"})


@cache
def _parameters() -> dict[str, Any]:
    """The options of `load` and what they are when they are not given."""
    return {name: each.default for name, each in inspect.signature(load).parameters.items() if name not in _NO_OPTIONS}


def accept_options(
    source: Path | str | None, given: Mapping[str, Any], yesterday: Mapping[str, Any]
) -> tuple[Path | str, LoadOptions]:
    """The source and the checked options of a call of `load`; `yesterday` are keywords that it does not have.

    Raises:
        RequestError: As `load`.
    """
    defaults = _parameters()
    values = dict(given)
    for name, value in legacy.accept(yesterday, known={*defaults, "source"}).items():
        if name == "source":
            if source is not None:
                raise RequestError("the model is given twice", hint="pass it once, first", field="source")
            source = value
        elif name == "allow":
            values[name] = (*read_allow(values.get(name, ())), *value)
        elif values.get(name, defaults[name]) not in (defaults[name], value):
            raise RequestError(f"`{name}` is given twice", hint="leave the old name out", field=name)
        else:
            values[name] = value
    return read_source(source), LoadOptions(**read_given(values))


def load_with(
    source: Path | str, options: LoadOptions, observe: Observe | None = None, *, finite: bool = False
) -> Model:
    """As `load`, with options that were checked already."""
    from modelyard.weights.collector import collector_paused

    with collector_paused():
        return _load(source, options, observe, finite=finite)


def _load(source: Path | str, options: LoadOptions, observe: Observe | None, *, finite: bool) -> Model:
    from modelyard.weights.loading import quantization

    started = time.perf_counter()
    quantization.quiet_imports()
    _check_device(options.device)
    if options.compile:
        compiled.check_compiler(options.device)
    path, options = sources.locate(source, options), sources.locate_parts(options)
    root, folders = _parts(path, options)
    unread: list[str] = []
    for folder in dict.fromkeys((root, path, *folders.values())):
        if folder.is_dir():
            unread += check_loadable(FolderFiles(folder))
    with loading():
        built, plan, model, processor = (
            _assemble_gguf(root, folders, options)
            if root.is_file()
            else _assemble(path, root, folders, options, observe)
        )
    known = finite and not built.casts and options.quantization is None and root.is_dir()
    allowed = {**built.allowed, **_audit(path, model, built, options, observe, finite=known)}
    if options.compile:
        model = compiled.compile_model(model, device=options.device)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    parts, seconds = built.split, time.perf_counter() - started
    report = LoadReport(
        parts.added, parts.dropped, allowed, built.casts, options.seed, seconds, parts.kept, tuple(unread)
    )
    return Model(
        model,
        processor,
        built.choice.task,
        path,
        base=root if "default" in folders else None,
        threads=options.threads,
        plan=plan,
        load_report=report,
        untrained=built.untrained,
        adapters=tuple(folders),
    )


def _parts(path: Path, options: LoadOptions) -> tuple[Path, dict[str, Path]]:
    """The folder of the base (or the only one), and every adapter's."""
    adapter = sources.read_adapter(path) if path.is_dir() else None
    if adapter is None and options.base is not None:
        raise ModelError(f"`{path}` is no adapter (no adapter_config.json), so it takes no base")
    root = path if adapter is None else sources.find_base(path, adapter, options.base)
    return root, _adapter_folders(path, adapter, options)


def _assemble(
    path: Path, root: Path, folders: Mapping[str, Path], options: LoadOptions, observe: Observe | None
) -> tuple[Built, LoadPlan, Any, Any]:
    """What was built, the plan of it, the model with its adapters in its place, and the preprocessor."""
    from modelyard.weights.loading import building, quantization
    from modelyard.weights.loading.plan import make_plan

    hints = building.adapter_hints(folders)
    decision = building.decide(root, options, hints)
    plan = make_plan(root, options, decision.choice, own_config=decision.stored, source=path, adapters=folders)
    if observe is not None and not options.random:
        with _timed(observe, "read", size := _size(root)):
            _read_through(root)
    else:
        size = 0
    with _timed(observe, "cast" if plan.casts else "place", size):
        built = building.build(root, options, decision, plan, hints)
        model = built.model
        if folders:
            model = _attach(model, built.choice.task, folders, options)
        model = quantization.apply_after(model, options.quantization)
        if options.random and not plan.mapped:
            model = model.to(options.device)
        model.train(options.training)
    with _timed(observe, "preprocessor", 0):
        processor = _load_processor(path, root, built, options)
    return built, plan, model, processor


def _audit(
    path: Path, model: Any, built: Built, options: LoadOptions, observe: Observe | None, *, finite: bool
) -> dict[str, tuple[str, ...]]:
    packed = options.quantization is not None or getattr(model.config, "quantization_config", None) is not None
    with _timed(observe, "audit", 0):
        return audit_tensors(str(path), model, built.dtype, allow=options.allow, strict=not packed, finite=finite)


@contextmanager
def _timed(observe: Observe | None, stage: str, size: int) -> Iterator[None]:
    """Report the block as a stage to whoever asked to be told."""
    began = time.perf_counter()
    yield
    if observe is not None:
        observe(stage, time.perf_counter() - began, size)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _weight_files(folder))


def _read_through(folder: Path) -> None:
    """Read the weight files once, so that what follows is not waiting for the disk; only when somebody times the stages."""
    buffer = bytearray(_BLOCK)
    for path in _weight_files(folder):
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


_BLOCK = 4 << 20


def _check_device(device: str) -> str:
    from modelyard.weights.loading.devices import check_device

    return check_device(device)


def _assemble_gguf(path: Path, folders: Mapping[str, Path], options: LoadOptions) -> tuple[Built, LoadPlan, Any, Any]:
    """As `_assemble`, of a .gguf file."""
    from modelyard.weights.loading import gguf_model

    plan = gguf_model.plan_gguf(path, options)
    built, processor = gguf_model.load_gguf(path, options)
    built.casts = {name: cast.tensors for name, cast in plan.casts.items()}
    model = _attach(built.model, built.choice.task, folders, options) if folders else built.model
    model.train(options.training)
    return built, plan, model, processor


def _adapter_folders(path: Path, adapter: Mapping[str, Any] | None, options: LoadOptions) -> dict[str, Path]:
    """Every adapter to load, name to folder; the source itself, where it is one, is `default`."""
    folders = {"default": path} if adapter is not None else {}
    for name, each in (options.adapters or {}).items():
        folder = Path(each)
        if name in folders:
            raise RequestError(f"two adapters are called `{name}`", hint="rename one", field="adapters")
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"`{folder}` is no adapter: it has no adapter_config.json", hint="give an adapter's folder"
            )
        folders[name] = folder
    return folders


def _attach(model: Any, task: str, folders: Mapping[str, Path], options: LoadOptions) -> Any:
    from modelyard.weights.loading import adapters

    return adapters.attach(model, task, folders, training=options.training)


def _load_processor(path: Path, root: Path, built: Built, options: LoadOptions) -> Any:
    """The preprocessor that stands with an adapter if one does, else the base's; None for a model that was made without."""
    from modelyard.weights.loading.preprocessors import has_preprocessor, load_preprocessor

    where = path if path != root and has_preprocessor(path) else root
    optional = "preprocessor" in options.allow or (built.untrained is not None and built.untrained.tensors is None)
    if optional and not has_preprocessor(where):
        return None
    return load_preprocessor(where, built.choice.task)
