"""One inference or training step of a model on the meta device: exact sizes of everything it holds, nothing allocated.

The model is built by transformers from its configuration, with PEFT's adapter and torch's optimizer where there is training,
and is run on tensors without memory; the cache is asked for its shapes. Knows classes of transformers by their
configuration; reads no file.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.estimate.inputs import make_inputs, make_labels
from modelyard.weights.estimate.machine import HEAP_BLOCK
from modelyard.weights.estimate.sizes import Profile
from modelyard.weights.estimate.tracking import Tracker, fused_attention, storage_bytes, without_values
from modelyard.weights.loading.lock import loading
from modelyard.weights.loading.quantization import quiet_imports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from modelyard.weights.estimate.workload import Workload

__all__ = ["Profile", "build_model", "cache_tensors", "heap_bytes", "run_profile"]

GRANULE = {"cpu": 1, "cuda": 512}
"""What an allocation is rounded up to, by device; torch's CUDA allocator gives multiples of 512 bytes."""


def run_profile(config: Mapping[str, Any], workload: Workload, dtype: str) -> Profile:
    """Build the model that `config` describes without memory, and run one step of `workload` on it.

    Args:
        config: The content of config.json.
        workload: What is done.
        dtype: `float32`, `bfloat16` or `float16`: what weights are loaded as.

    Raises:
        ModelError: `unknown_architecture`; `no_sample_input`; `estimate_failed`: the class cannot be run without values.
    """
    quiet_imports()
    with loading():  # nothing is loaded; but PEFT and modelling code read what loads in other threads would swap
        return _run(config, workload, dtype)


def _run(config: Mapping[str, Any], workload: Workload, dtype: str) -> Profile:
    model = build_model(config, dtype)
    weights = storage_bytes([*model.parameters(), *model.buffers()])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shapes = _linear_shapes(model)
    linear = (sum(rows * columns for rows, columns in shapes), sum(rows for rows, _ in shapes))
    largest = max((rows * columns for rows, columns in shapes), default=0)
    try:
        found = _train(model, workload) if workload.training else _infer(model, workload)
    except (ModelError, RequestError):
        raise
    except Exception as error:
        # Modelling code of any class runs here, on tensors without values: what it raises is that it needs values.
        raise ModelError(
            f"`{type(model).__name__}` cannot be run without its values: {type(error).__name__}: {str(error)[:300]}",
            code="estimate_failed",
            hint="`yard inspect` says how large its weights are",
        ) from error
    return Profile(parameters=parameters, weights=weights, linear=linear, largest=largest, **found)


def build_model(config: Mapping[str, Any], dtype: str) -> Any:
    """The model on the meta device, in eval mode, with parameters of `dtype` but those that its class keeps in float32.

    Raises:
        ModelError: `unknown_architecture`: transformers has no such class, or cannot build it from this configuration.
    """
    import torch

    from modelyard.weights.architecture import build_without_memory

    model = build_without_memory(config)
    kept = [str(name) for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    if dtype == "float16":
        kept += [str(name) for name in getattr(model, "_keep_in_fp32_modules", None) or ()]
    target = getattr(torch, dtype)
    for name, parameter in model.named_parameters():
        keep = any(re.search(rf"(^|\.){re.escape(part)}(\.|$)", name) for part in kept)
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if keep else target)
    return model.eval()


def cache_tensors(output: Any) -> list[Any]:
    """Every tensor that a model's output keeps for the next token: keys, values, and states of recurrent layers."""
    import torch

    found: list[Any] = []
    seen: set[int] = set()
    stack = [getattr(output, name, None) for name in ("past_key_values", "cache_params", "state", "mems")]
    while stack:
        item = stack.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif type(item).__module__.startswith("transformers"):
            stack.extend(value for key, value in vars(item).items() if not key.endswith("config"))
    return [tensor for tensor in found if tensor.numel() > 1]


def heap_bytes(events: Iterable[tuple[int, int]]) -> int:
    """The most bytes that blocks below `machine.HEAP_BLOCK` hold at once, of events as `Tracker` has them.

    >>> heap_bytes([(1, 8), (2, 64 << 20), (3, 4), (1, -8), (4, 2)])
    12
    """
    live = most = 0
    for _, size in events:
        if abs(size) < HEAP_BLOCK:
            live += size
            most = max(most, live)
    return most


def _infer(model: Any, workload: Workload) -> dict[str, Any]:
    """A forward pass over the prompt, and for a model that generates the last of the new tokens."""
    import torch

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tracker = _tracker(model, workload)
    options = _generation_options(model)
    length = _text_length(model, workload)
    with torch.no_grad(), _attention(workload):
        inputs = make_inputs(model, workload.batch, length)
        with tracker:
            output = model(**inputs, **options)
        peak, size = tracker.peak, storage_bytes(cache_tensors(output))
        events = list(tracker.events)
        heap = heap_bytes(events)
        del output
        if options and size and workload.new_tokens:
            last_peak, last_heap, size = _last_token(model, workload, options, length, size)
            peak, heap = max(peak, last_peak), max(heap, last_heap)
    return {
        "trainable": 0,
        "kv_cache": size,
        "gradients": 0,
        "optimizer": 0,
        "adapter": 0,
        "peak": max(peak, size),
        "heap": heap,
        "events": events,
    }


def _last_token(
    model: Any, workload: Workload, options: dict[str, Any], length: int, size: int
) -> tuple[int, int, int]:
    """(peak, of it from the heap, cache) in bytes of the last token's step: the cache holds everything before it."""
    encoder = "decoder_input_ids" in make_inputs(model, 1, 1)
    if encoder and workload.new_tokens == 1:
        return 0, 0, size  # the token that decoding begins with is the one whose step was counted
    before = workload.new_tokens - 1 if encoder else length + workload.new_tokens - 1
    inputs = make_inputs(model, workload.batch, length if encoder else before, targets=before)
    output = model(**inputs, **options)
    name = next((key for key in ("past_key_values", "cache_params", "state") if getattr(output, key, None)), None)
    if name is None:
        return 0, 0, storage_bytes(cache_tensors(output))
    cache = output[name]
    held = cache_tensors(output)
    tracker = _tracker(model, workload)
    tracker.live = tracker.peak = storage_bytes(held)
    small = sum(size for tensor in held if (size := tensor.untyped_storage().nbytes()) < HEAP_BLOCK)
    for tensor in held:
        tracker.forget(tensor)  # counted above; what replaces it is counted when it is made
    step = make_inputs(model, workload.batch, 1, targets=1)
    if encoder:
        step = {"decoder_input_ids": step["decoder_input_ids"], "encoder_outputs": _encoded(output)}
    del output, held
    with tracker:
        after = model(**step, **{name: cache}, **options)
    return tracker.peak, small + heap_bytes(tracker.events), storage_bytes(cache_tensors(after))


def _encoded(output: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)


def _train(model: Any, workload: Workload) -> dict[str, Any]:
    """Two steps of the optimizer: the second has its states, and is what every later one is."""
    import torch

    length = _text_length(model, workload)
    inputs = make_inputs(model, workload.batch, length, targets=length)
    labels = make_labels(model, workload.batch, length)
    if labels:
        inputs.pop("decoder_input_ids", None)  # made from the labels
    trained = _adapted(model, workload) if workload.mode == "lora" else model
    if workload.gradient_checkpointing:
        _checkpoint(model, workload.device)
    trained.train()
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    adapter = storage_bytes(parameters) if workload.mode == "lora" else 0
    tracker = _tracker(trained, workload)
    kind = torch.optim.AdamW if workload.optimizer == "adamw" else torch.optim.SGD
    optimizer: Any = kind(parameters, lr=1e-4, foreach=not workload.device.startswith("cpu"))
    # Fake gradients scale nothing, so any sum of the outputs is as good a loss as theirs where they have none.
    for step in range(2):
        if step:
            tracker.peak, first = tracker.live, len(tracker.events)
        with _attention(workload), tracker:
            output = trained(**inputs, **labels)
            loss = output.loss if labels and output.loss is not None else _any_loss(output)
            marks = [len(tracker.events)]
            loss.backward()
            del output, loss
            marks.append(len(tracker.events))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return {
        "trainable": sum(parameter.numel() for parameter in parameters),
        "kv_cache": 0,
        "gradients": storage_bytes(parameters),
        "optimizer": storage_bytes(states),
        "adapter": adapter,
        "peak": tracker.peak,
        "heap": heap_bytes(tracker.events[first:]),
        "events": tracker.events[first:],
        "marks": tuple(mark - first for mark in marks),
    }


def _any_loss(output: Any) -> Any:
    import torch

    tensors = [value for value in output.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    return sum(tensor.float().sum() for tensor in tensors[:1])


def _adapted(model: Any, workload: Workload) -> Any:
    """The model with LoRA, as `get_peft_model` makes it: adapters of float32 on weights of any dtype."""
    from peft import LoraConfig, get_peft_model

    targets: Any = workload.targets if isinstance(workload.targets, str) else list(workload.targets)
    lora = LoraConfig(r=workload.rank, lora_alpha=2 * workload.rank, target_modules=targets)
    try:
        with warnings.catch_warnings():
            # PEFT's own pattern for fused experts, which `all-linear` leaves alone.
            warnings.filterwarnings(
                "ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning
            )
            made: Any = get_peft_model(model, lora)
    except ValueError as error:
        raise RequestError(
            f"LoRA cannot be put on `{targets}` of `{type(model).__name__}`: {str(error)[:200]}",
            hint="--targets all-linear, or endings of module names that `yard inspect` shows",
            field="targets",
        ) from error
    return made


def _checkpoint(model: Any, device: str) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise RequestError(f"`{type(model).__name__}` has no gradient checkpointing", field="gradient_checkpointing")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # torch leaves function modes behind in the backward pass; what is computed again there needs the same attention.
    again = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), fused_attention(device))}
    enable(again)
    model.enable_input_require_grads()


def _tracker(model: Any, workload: Workload) -> Tracker:
    known = [*model.parameters(), *model.buffers()]
    return Tracker(known, granule=GRANULE.get(workload.device.partition(":")[0], 1))


@contextlib.contextmanager
def _attention(workload: Workload) -> Iterator[None]:
    import torch

    known: Any = torch.autocast

    def autocast(device_type: str, *options: Any, **named: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else known(device_type, *options, **named)

    # PEFT turns autocast off around experts, on the device of the weights, and torch knows none for meta. Whoever else asks
    # meanwhile gets what there is for every other device.
    torch.autocast = autocast  # type: ignore[assignment,misc]
    try:
        with fused_attention(workload.device), without_values():
            yield
    finally:
        torch.autocast = known  # type: ignore[misc]


def _generation_options(model: Any) -> dict[str, Any]:
    """What `generate` passes to `forward` of a model that writes; nothing for the others."""
    import inspect

    if not (hasattr(model, "can_generate") and model.can_generate()):
        return {}
    taken = inspect.signature(model.forward).parameters
    return {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in taken else {})


def _text_length(model: Any, workload: Workload) -> int:
    """The length asked for, within what learned positions allow."""
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(text, "max_position_embeddings", None)
    learned = any(re.search(r"wpe\.|position_embed|embed_position", name) for name, _ in model.named_parameters())
    if learned and isinstance(positions, int) and workload.length > positions:
        raise RequestError(
            f"a row of {workload.length} tokens is longer than the {positions} that this model has positions for",
            hint=f"--length {positions}",
            field="length",
        )
    return workload.length


def _linear_shapes(model: Any) -> list[tuple[int, int]]:
    """(rows, columns) of every linear layer but the output layer."""
    from torch import nn

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        (int(module.weight.shape[0]), int(module.weight.shape[1]))
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
