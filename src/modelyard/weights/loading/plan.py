"""What a load would do, from headers and a model on torch's meta device: nothing is read into memory, nothing allocated.

The plan and the load follow from the same choices (`classes.choose`, `dtypes.pick_dtype`, `devices.resolve_map`,
`attention.check`, `quantization.make_config`), so what is shown is what happens. Knows folders and configurations; knows
no references.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.files import FolderFiles
from modelyard.weights.loading import attention, devices, quantization
from modelyard.weights.loading.dtypes import pick_dtype, stored_dtype
from modelyard.weights.loading.labels import check_labels
from modelyard.weights.loading.translate import translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelyard.weights.loading.classes import Choice
    from modelyard.weights.loading.devices import Place
    from modelyard.weights.loading.options import LoadOptions

__all__ = ["Cast", "LoadPlan", "build_meta", "make_plan", "plan_load", "weigh"]

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Cast:
    """Tensors of one dtype that become another: how many, their bytes in the files, and in memory."""

    tensors: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a load does.

    Attributes:
        source: What is loaded: a folder or a .gguf file.
        base: The folder of an adapter's base.
        model_class: The class of transformers that is built.
        task: What it does.
        dtype: What the weights are in, but for the parts that the architecture keeps in float32.
        parameters: How many numbers the model has, tied ones once.
        casts: `"bfloat16 -> float32"` to what is cast so.
        bytes: Device to the bytes of weights that it will hold; `disk` for what stays there.
        places: Module to device, as accelerate takes it; `""` is the whole model.
        mapped: Whether a device map was asked for.
        attention: What attention is computed with.
        quantization: The short name or method; None for none.
        quantized: How many matrices it makes smaller.
        experts: Fused experts that it leaves in full precision.
        skipped: Linear layers that it leaves in full precision, because their width is no multiple of its groups.
        preprocessor: What makes the inputs (`tokenizer`, ...); None where the task needs none or there is none.
        added: Tensors of a head that the task adds: drawn at random.
        dropped: Tensors of the files that the task has no place for.
        adapters: Name to the folder of each adapter.
    """

    source: str
    base: str | None
    model_class: str
    task: str
    dtype: str
    parameters: int
    casts: dict[str, Cast]
    bytes: dict[str, int]
    places: dict[str, Place]
    mapped: bool
    attention: str
    quantization: str | None = None
    quantized: int = 0
    experts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    preprocessor: str | None = None
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    adapters: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of weights on all devices and the disk."""
        return sum(self.bytes.values())

    @property
    def resident(self) -> int:
        """Bytes of weights that will be in memory: all but those on the disk."""
        return sum(size for place, size in self.bytes.items() if place != "disk")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return asdict(self)


def plan_load(source: Path | str, **options: Any) -> LoadPlan:
    """What `load(source, **options)` would do, with the same options; its `Model.plan` is the same plan.

    Raises:
        RequestError, ModelError: As `load` would, where headers and configuration say so already.
    """
    from modelyard.weights.checks import check_loadable
    from modelyard.weights.load import accept_options
    from modelyard.weights.loading import building, sources
    from modelyard.weights.loading.options import LoadOptions

    quantization.quiet_imports()
    known = {item.name for item in fields(LoadOptions)}
    given = {name: value for name, value in options.items() if name in known}
    yesterday = {name: value for name, value in options.items() if name not in known}
    source, accepted = accept_options(source, given, yesterday)
    path, accepted = sources.locate(source, accepted), sources.locate_parts(accepted)
    if path.is_file():
        from modelyard.weights.loading import gguf_model

        return gguf_model.plan_gguf(path, accepted)
    adapter = sources.read_adapter(path)
    if adapter is None and accepted.base is not None:
        raise ModelError(f"`{path}` is no adapter (no adapter_config.json), so it takes no base")
    root = path if adapter is None else sources.find_base(path, adapter, accepted.base)
    folders = {"default": path} if adapter is not None else {}
    folders |= {name: Path(each) for name, each in (accepted.adapters or {}).items()}
    for folder in dict.fromkeys((root, *folders.values())):
        check_loadable(FolderFiles(folder))
    decision = building.decide(root, accepted, building.adapter_hints(folders))
    return make_plan(root, accepted, decision.choice, own_config=decision.stored, source=path, adapters=folders)


def make_plan(
    root: Path,
    options: LoadOptions,
    choice: Choice,
    *,
    own_config: Any = None,
    source: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> LoadPlan:
    """The plan of loading the folder `root` as `choice` says.

    Args:
        root: The folder with config.json and the weights, checked before.
        options: What was asked for.
        choice: The class, task and configuration.
        own_config: The configuration as the folder has it, without overrides.
        source: What the caller named, where it is an adapter's folder.
        adapters: Name to folder of adapters that are attached.

    Raises:
        RequestError: A device, device map, attention or quantization that cannot be had.
        ModelError: The class cannot be built from the configuration.
    """
    device = devices.check_device(options.device)
    kind = device.partition(":")[0]
    stored = str(choice.config.dtype).removeprefix("torch.") if choice.config.dtype is not None else stored_dtype(root)
    dtype = pick_dtype(options.dtype, stored, kind)
    if options.quantization == "int8-dynamic":
        dtype = "float32"  # what torch's own quantizes
    chosen = attention.check(options.attention, choice.config, model_class=choice.cls, device=device)
    import torch

    torch_dtype = getattr(torch, dtype)
    wanted = quantization.make_config(options.quantization, device=device, dtype=torch_dtype)
    model, quantizer = _build(choice, torch_dtype, chosen, wanted, device)
    if options.relabels():
        check_labels(choice, lambda config: build_meta(choice.cls, config, torch_dtype)[0], str(source or root))
    if options.device_map is None and options.max_memory is not None:
        raise RequestError("`max_memory` without `device_map`", hint='device_map="auto"', field="max_memory")
    places: dict[str, Place] = {"": devices.main_device({"": device}) if kind != "cpu" else "cpu"}
    if options.device_map is not None:
        places = devices.resolve_map(
            options.device_map, model, max_memory=options.max_memory, dtype=torch_dtype, quantizer=quantizer
        )
        if adapters and (far := sorted(name or "everything" for name, place in places.items() if place == "disk")):
            raise RequestError(
                f"adapters are put on weights in memory, and `device_map` puts {', '.join(far[:6])} on the disk",
                hint="place them on a device or `cpu`; or merge the adapter (yard merge), and load what comes out",
                field="device_map",
            )
    sizes = _Sizes(model, torch_dtype, quantizer, dynamic=options.quantization == "int8-dynamic")
    read = None if options.random else open_checkpoint(FolderFiles(root))
    casts, added, dropped = _compare(read, sizes, choice, options, own_config) if read else ({}, (), ())
    held = sizes.by_place(places)
    for folder in (adapters or {}).values():
        main = devices.main_device(places)
        held[main] = held.get(main, 0) + _adapter_bytes(folder)
    return LoadPlan(
        source=str(source or root),
        base=str(root) if source is not None and source != root else None,
        model_class=choice.cls.__name__,
        task=choice.task,
        dtype=dtype,
        parameters=sum(parameter.numel() for name, parameter in model.named_parameters() if name not in sizes.tied),
        casts=casts,
        bytes=held,
        places=places,
        mapped=options.device_map is not None,
        attention=str(model.config._attn_implementation),  # noqa: SLF001  # where transformers keeps what it decided
        quantization=None if options.quantization is None else quantization.method_name(options.quantization),
        quantized=len(sizes.quantized),
        experts=tuple(quantization.unquantized_experts(model)) if options.quantization is not None else (),
        skipped=tuple(sizes.skipped),
        preprocessor=_preprocessor(root, choice.task),
        added=added,
        dropped=dropped,
        adapters={name: str(folder) for name, folder in (adapters or {}).items()},
    )


def build_meta(
    cls: Any, config: Any, dtype: Any, *, attention: str | None = None, quantization: Any = None
) -> tuple[Any, Any]:
    """The model of a configuration on torch's meta device, as `from_pretrained` builds it before it reads; its quantizer.

    Raises:
        ModelError: The class cannot be built from the configuration.
    """
    import copy

    from transformers.quantizers.auto import get_hf_quantizer

    from modelyard.weights.loading.lock import loading

    config = copy.deepcopy(config)
    if attention is not None:
        config._attn_implementation = attention  # noqa: SLF001  # as from_pretrained sets it
    with loading(), translated(cls.__name__):
        from transformers.utils.generic import ContextManagers

        choose: Any = get_hf_quantizer
        quantizer, config, _ = choose(config, quantization, None, True, {})
        for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
            if part is not None:
                part.dtype = dtype  # classes that build others from their configuration take the dtype from it
        with ContextManagers(cls.get_init_context(dtype, quantizer is not None, False, False)):
            model = cls(config)
            if quantizer is not None:
                quantizer.preprocess_model(model=model, dtype=dtype, device_map=None, checkpoint_files=None)
    return model, quantizer


def _build(choice: Choice, dtype: Any, attention_name: str | None, wanted: Any, device: str) -> tuple[Any, Any]:
    """`build_meta`, with a part of a composite model that cannot do the attention told from a broken configuration."""
    try:
        return build_meta(choice.cls, choice.config, dtype, attention=attention_name, quantization=wanted)
    except ModelError as error:
        if attention_name is None:
            raise
        build_meta(choice.cls, choice.config, dtype, quantization=wanted)  # raises where the attention is not the cause
        raise attention.refuse_part(
            attention_name, choice.config, error, model_class=choice.cls, device=device
        ) from error


def weigh(model: Any, dtype: Any, places: Mapping[str, Place]) -> tuple[int, dict[str, int]]:
    """Parameters of an unquantized meta model, tied ones once, and bytes by device."""
    sizes = _Sizes(model, dtype, None, dynamic=False)
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in sizes.tied)
    return count, sizes.by_place(places)


class _Sizes:
    """What each tensor of a meta model will take, in which dtype, and which are quantized."""

    def __init__(self, model: Any, dtype: Any, quantizer: Any, *, dynamic: bool) -> None:
        import torch

        self.model = model
        self.tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        self.dtypes: dict[str, Any] = {}
        self.bytes: dict[str, int] = {}
        self.quantized: set[str] = set()
        self.skipped: list[str] = []
        group = quantization.group_size(quantizer)
        kept: Any = model._get_dtype_plan(dtype)  # noqa: SLF001  # the parts that from_pretrained keeps in float32
        linear = {f"{name}.weight" for name, module in model.named_modules() if type(module) is torch.nn.Linear}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            planned = _planned(name, kept) if tensor.is_floating_point() else None
            self.dtypes[name] = planned or tensor.dtype
            width: float = self.dtypes[name].itemsize
            if quantizer is not None and quantizer.param_needs_quantization(model, name):
                if tensor.shape[-1] % group:
                    self.skipped.append(name)
                    self.bytes[name] = int(tensor.numel() * width)
                    continue
                self.quantized.add(name)
                width = quantizer.param_element_size(model, name, tensor)
            elif dynamic and name in linear:
                self.quantized.add(name)
                width = 1.0
            self.bytes[name] = int(tensor.numel() * width)

    def by_place(self, places: Mapping[str, Place]) -> dict[str, int]:
        """Bytes by device."""
        found: dict[str, int] = {}
        for name, size in self.bytes.items():
            if name in self.tied and name not in self.quantized:
                continue
            place = devices.place_of(name, places)
            label = place if isinstance(place, str) else devices.main_device({"": place})
            found[label] = found.get(label, 0) + size
        return found


def _planned(name: str, kept: Mapping[str, Any]) -> Any | None:
    import re

    return next((dtype for pattern, dtype in kept.items() if re.search(pattern, name)), None)


def _compare(
    checkpoint: Checkpoint, sizes: _Sizes, choice: Choice, options: LoadOptions, own_config: Any
) -> tuple[dict[str, Cast], tuple[str, ...], tuple[str, ...]]:
    """Casts, and the tensors of heads that the task adds and drops."""
    from modelyard.weights.loading import heads

    model = sizes.model
    names = heads.module_names(model, checkpoint.home)
    casts = _casts(checkpoint, names, sizes)
    state = model.state_dict()
    given = set(names.values())
    partners: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    missing = [
        name for name in state if name not in given and partners.get(name) not in given and not _ignored(name, model)
    ]
    extra = [name for name in checkpoint.home if name not in names]
    counts: dict[str, int] = {}
    for target in names.values():
        counts[target] = counts.get(target, 0) + 1
    wrong = [
        (target, checkpoint.info(name).shape, tuple(state[target].shape))
        for name, target in names.items()
        if counts[target] == 1
        and checkpoint.info(name).elements != state[target].numel()
        and target not in sizes.quantized
    ]
    info = {"missing_keys": missing, "unexpected_keys": extra, "mismatched_keys": wrong}
    shapes = {name: checkpoint.info(name).shape for name in checkpoint.home}
    found = heads.split(info, model, choice, own_config or choice.config, relabelled=options.relabels(), disk=shapes)
    return casts, found.added, found.dropped


def _casts(checkpoint: Checkpoint, names: Mapping[str, str], sizes: _Sizes) -> dict[str, Cast]:
    found: dict[str, Cast] = {}
    for name, target in names.items():
        info = checkpoint.info(name)
        before = _NAMES.get(info.dtype)
        after = sizes.dtypes.get(target)
        if before is None or after is None or target in sizes.quantized:
            continue
        label = str(after).removeprefix("torch.")
        if label == before:
            continue
        last = found.get(f"{before} -> {label}", Cast(0, 0, 0))
        found[f"{before} -> {label}"] = Cast(
            last.tensors + 1,
            last.bytes_before + info.end - info.start,
            last.bytes_after + info.elements * after.itemsize,
        )
    return found


def _ignored(name: str, model: Any) -> bool:
    import re

    patterns: Iterable[str] = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _adapter_bytes(folder: Path) -> int:
    """What PEFT makes of an adapter's tensors: factors are widened to float32."""
    files = FolderFiles(folder)
    if "adapter_model.safetensors" not in files.names():
        raise ModelError(f"`{folder}` has no adapter_model.safetensors", hint=f"yard doctor {folder}")
    found = open_checkpoint(files, "adapter_model")
    return sum(found.info(name).elements * 4 for name in found.home)


def _preprocessor(root: Path, task: str) -> str | None:
    from modelyard.weights.loading.preprocessors import has_preprocessor
    from modelyard.weights.tasks import find_task

    kind = find_task(task).preprocessor
    return kind if kind != "none" and has_preprocessor(root) else None
