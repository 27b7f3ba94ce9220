"""A .gguf file as a model of transformers: its configuration, tokenizer and weights, dequantized while they are read.

Our strict reader sees the header first. transformers maps the names and dequantizes; tensors of the file that it has no
place for would be left out silently there, and are an error here. Knows GGUF files; knows no folders.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.audit import audit_keys
from modelyard.weights.gguf import GgufHeader, read_gguf
from modelyard.weights.loading import attention, building, classes, configs, devices
from modelyard.weights.loading.dtypes import pick_dtype
from modelyard.weights.loading.labels import check_labels
from modelyard.weights.loading.lock import loading, seeded
from modelyard.weights.loading.translate import translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from modelyard.weights.loading.building import Built
    from modelyard.weights.loading.classes import Choice
    from modelyard.weights.loading.options import LoadOptions
    from modelyard.weights.loading.plan import LoadPlan

__all__ = ["load_gguf", "plan_gguf", "read_architecture", "stored_dtype", "supported_architectures"]

# How llama.cpp writes the names that transformers' table has.
_WRITTEN = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}
_NO_MODELS = frozenset({"general", "tokenizer"})
_OUTPUT = frozenset({"output.weight", "output.bias"})  # the head of a language model, as llama.cpp calls it
# Computed again from the configuration, or of no use to transformers: leaving them out changes nothing.
_COMPUTED = ("rope_factors_long.weight", "rope_factors_short.weight")


def supported_architectures() -> list[str]:
    """Every architecture that a .gguf file may name in `general.architecture`, as llama.cpp writes it."""
    from transformers import modeling_gguf_pytorch_utils as legacy
    from transformers.integrations.gguf import gguf_conversion_mapping as mapping

    names = {*legacy.GGUF_SUPPORTED_ARCHITECTURES, *mapping.GGUF_ARCHS} - _NO_MODELS
    return sorted(_WRITTEN.get(name, name) for name in names)


def read_architecture(path: Path) -> str:
    """The `general.architecture` of a .gguf file whose header was checked before.

    Raises:
        ModelError: It names none, or one that is not supported (`unknown_architecture`).
    """
    from transformers.integrations.gguf.reader import read_gguf_metadata

    with translated(path):
        metadata: Any = read_gguf_metadata(str(path))[0]
    named = metadata.get("general.architecture")
    known = supported_architectures()
    if named not in known:
        meant = near_match(str(named), known)
        raise ModelError(
            f"`{path}` is of the architecture `{named}`, which cannot be loaded from GGUF",
            code="unknown_architecture",
            hint=f"supported: {', '.join(known)}" + (f" (near: `{meant}`)" if meant else ""),
            architecture=named,
            supported=known,
        )
    return str(named)


def load_gguf(path: Path, options: LoadOptions) -> tuple[Built, Any]:
    """Load a .gguf file: its model of transformers, and its tokenizer. A head that the task adds is drawn and marked.

    Args:
        path: The file.
        options: `dtype` (auto: the file's own float type, float32 for a quantized file), `task`, `model_class`,
            `device`, `attention`, `config` and labels, as everywhere; a device map, quantization and random weights
            are refused.

    Raises:
        ModelError: The header is unsound (as `read_gguf`), the architecture is not supported (`unknown_architecture`), or
            tensors are missing or left over.
        RequestError: An option that a GGUF file cannot be loaded with.
    """
    header, choice, dtype = _prepare(path, options)
    device = devices.check_device(options.device)
    chosen = attention.check(options.attention, choice.config, model_class=choice.cls, device=device)
    extra = {} if chosen is None else {"attn_implementation": chosen}
    from transformers.utils.quantization_config import GgufConfig

    unpack: Any = GgufConfig
    with loading(), translated(path), _without_bars(), seeded(options.seed):
        model, info = choice.cls.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            config=choice.config,
            dtype=dtype,
            quantization_config=unpack(
                dequantize=True
            ),  # whether or not a kernel is here: what is planned is what happens
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
        added, dropped = _heads(choice, model, info["missing_keys"], header)
        allowed = audit_keys(
            str(path),
            set(info["missing_keys"]) - set(added),
            {*info["unexpected_keys"], *_left_over(header, model)} - dropped,
            info["mismatched_keys"],
            options.allow,
        )
        _forget_packing(model)
        tokenizer = _load_tokenizer(path)
    built = building.take(model.to(device), choice.task, dtype, {})
    built.allowed, built.split = allowed, replace(built.split, added=added, dropped=tuple(sorted(dropped)))
    drawn = (*added, *allowed.get("missing", ()), *(str(item[0]) for item in info["mismatched_keys"]))
    built.untrained = building.mark_drawn(model, set(drawn), options.seed)
    return built, tokenizer


def _heads(choice: Choice, model: Any, missing: Iterable[str], header: GgufHeader) -> tuple[tuple[str, ...], set[str]]:
    """Tensors of a head that the task adds, and the file's names of the head that it drops.

    `missing` may hold names that the file does give under the class's own: only those that this class has not are added.
    """
    from modelyard.weights.loading.plan import build_meta

    if choice.own is None or choice.own is choice.cls:
        return (), set()
    own = build_meta(choice.own, choice.config, model.dtype)[0]
    known = {*own.state_dict(), *_without_prefix(own)}
    prefix = f"{model.base_model_prefix}."
    added = tuple(sorted(name for name in missing if not {name, name.removeprefix(prefix)} & known))
    headless = model.get_output_embeddings() is None
    return added, {tensor.name for tensor in header.tensors if headless and tensor.name in _OUTPUT}


def _without_prefix(model: Any) -> list[str]:
    """A model's tensors by the names that they have in the model without a head."""
    prefix = f"{model.base_model_prefix}."
    return [name.removeprefix(prefix) for name in model.state_dict()]


def plan_gguf(path: Path, options: LoadOptions) -> LoadPlan:
    """What loading a .gguf file would do, from its header; see `plan.LoadPlan`."""
    from modelyard.weights.loading.plan import Cast, LoadPlan, build_meta, weigh

    header, choice, dtype = _prepare(path, options)
    device = devices.check_device(options.device)
    chosen = attention.check(options.attention, choice.config, model_class=choice.cls, device=device)
    model, _ = build_meta(choice.cls, choice.config, dtype, attention=chosen)
    label = str(dtype).removeprefix("torch.")
    casts: dict[str, Cast] = {}
    for tensor in header.tensors:
        kind = _FLOATS.get(tensor.type, tensor.type)
        if kind != label:
            last = casts.get(f"{kind} -> {label}", Cast(0, 0, 0))
            count = 1
            for length in tensor.shape:
                count *= length
            casts[f"{kind} -> {label}"] = Cast(
                last.tensors + 1,
                last.bytes_before + tensor.end - tensor.start,
                last.bytes_after + count * dtype.itemsize,
            )
    places: dict[str, devices.Place] = {"": device}
    parameters, sizes = weigh(model, dtype, places)
    added, dropped = _heads(choice, model, model.state_dict(), header)
    return LoadPlan(
        source=str(path),
        base=None,
        model_class=choice.cls.__name__,
        task=choice.task,
        dtype=label,
        parameters=parameters,
        casts=casts,
        bytes=sizes,
        places=places,
        mapped=False,
        attention=str(model.config._attn_implementation),  # noqa: SLF001  # where transformers keeps what it decided
        preprocessor="tokenizer",
        added=added,
        dropped=tuple(sorted(dropped)),
    )


def _prepare(path: Path, options: LoadOptions) -> tuple[GgufHeader, Choice, Any]:
    """The checked header, the class that is built, and the torch dtype."""
    import torch
    from transformers import AutoConfig

    for name in ("device_map", "max_memory", "quantization", "base"):
        if getattr(options, name) is not None:
            raise RequestError(
                f"a .gguf file is loaded without `{name}`",
                hint=f'make a folder of it first: load("{path.name}").save("./{path.stem}")',
                field=name,
            )
    if options.random:
        raise RequestError("a .gguf file is loaded, not drawn at random", hint="leave `random` out", field="random")
    header = read_gguf(path)
    read_architecture(path)
    with translated(path):
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    if config.architectures is None:
        config.architectures = _own_class(config)
    config = configs.override(config, options.config) if options.config else config
    config = configs.label_config(config, options.num_labels, options.id2label)
    choice = classes.choose(config, str(path), task=options.task, model_class=options.model_class)
    dtype = getattr(torch, pick_dtype(options.dtype, stored_dtype(header), options.device.partition(":")[0]))
    if options.relabels():
        from modelyard.weights.loading.plan import build_meta

        check_labels(choice, lambda config: build_meta(choice.cls, config, dtype)[0], str(path))
    return header, choice, dtype


def _own_class(config: Any) -> list[str] | None:
    """The class that a file without one was written from: llama.cpp's tables hold language models."""
    from modelyard.weights.tasks import find_task

    for task in ("text-generation", "text2text-generation", "feature-extraction"):
        name = find_task(task).model_types().get(config.model_type)
        if name is not None:
            return [name]
    return None


def stored_dtype(header: GgufHeader) -> str:
    """The float type that most bytes of a file are in; float32 for blocks, whose scales lose nothing in it."""
    found: dict[str, int] = {}
    for tensor in header.tensors:
        found[tensor.type] = found.get(tensor.type, 0) + tensor.end - tensor.start
    most = max(found, key=lambda kind: found[kind], default="F32")
    return _FLOATS.get(most, "float32")


def _left_over(header: GgufHeader, model: Any) -> list[str]:
    """Tensors of the file that transformers' older loader has no place for; it passes over them in silence."""
    from transformers import modeling_gguf_pytorch_utils as legacy
    from transformers.integrations.gguf import gguf_conversion_mapping as mapping

    kind = model.config.model_type
    if kind in mapping.GGUF_ARCHS:
        return []  # the newer loader reports them itself
    processor: Any = legacy.TENSOR_PROCESSORS.get(_WRITTEN.get(kind, kind), legacy.TensorProcessor)
    names_of: Any = legacy.get_gguf_hf_weights_map
    known = names_of(model, processor(config={}))
    # Fused experts and the like are told by their processor's own patterns, which only it can say.
    own = processor is legacy.TensorProcessor or processor.process is legacy.TensorProcessor.process
    names = [tensor.name for tensor in header.tensors if tensor.name not in known and tensor.name not in _COMPUTED]
    return names if own or not any("exps" in name for name in names) else []


def _forget_packing(model: Any) -> None:
    """How the tensors were packed in the file is no property of the dense model that is in memory, and cannot be saved."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bar on the terminal: transformers' older GGUF loader draws one whatever its settings say.

    The caller holds `LOADING`, so nobody else sees the module meanwhile.
    """
    from transformers import modeling_gguf_pytorch_utils as library

    legacy: Any = library
    drawn = legacy.tqdm
    legacy.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        legacy.tqdm = drawn


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
