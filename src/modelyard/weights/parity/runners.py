"""What computes a batch: the `Runner` protocol, `TorchRunner` for models of transformers and PEFT, and `record`.

A recorded runner answers from memory, so that a reference and a candidate need not be there at the same time. Knows models
and arrays; knows no tolerances.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from modelyard.weights.parity.batches import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Recorded", "Runner", "TorchRunner", "extend", "record"]


@runtime_checkable
class Runner(Protocol):
    """What computes the outputs of a batch."""

    def outputs(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """The outputs of one forward pass, float32, by the names that transformers' output class has; the main one first.

        Rows padded on the left are computed with the positions that they have alone, as when they generate.
        """
        ...

    def generate(self, batch: Batch, tokens: int) -> list[list[int]] | None:
        """The next `tokens` greedy tokens of each row, decoded with a cache; None where the model writes no text.

        No token ends a row before that, and nothing but the largest logit chooses.
        """
        ...


_WRITING = frozenset({
    "text-generation",
    "text2text-generation",
    "image-text-to-text",
    "any-to-any",
    "automatic-speech-recognition",
})  # fmt: skip


class TorchRunner:
    """A model of transformers, with its adapters if it has any.

    Args:
        model: A `weights.model.Model`, a model of transformers or one of PEFT, in eval mode.
        generates: Whether it writes text; by default what its class says.
    """

    def __init__(self, model: Any, *, generates: bool | None = None) -> None:
        held = model.model if _is_ours(model) else model
        self._core = held.get_base_model() if hasattr(held, "get_base_model") else held
        self._taken = inspect.signature(self._core.forward).parameters
        self._generates = self._writes() if generates is None else generates

    def outputs(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """See `Runner.outputs`: every floating-point tensor of the model's output, caches left out."""
        import torch

        from modelyard.weights.loading.lock import seeded

        given = self._tensors(batch)
        positions = _positions(batch) if "position_ids" in self._taken else None
        if positions is not None:
            given["position_ids"] = torch.from_numpy(positions).to(self._core.device)
        if "use_cache" in self._taken:
            given["use_cache"] = False
        # A speech model draws noise while it computes: from one seed, it draws the same each time.
        with torch.inference_mode(), seeded(0):
            found = self._core(**given, return_dict=True)
        return dict(_floats(found))

    def generate(self, batch: Batch, tokens: int) -> list[list[int]] | None:
        """See `Runner.generate`: transformers' own loop, with its cache and nothing that the checkpoint's defaults add."""
        if not self._generates:
            return None
        import torch
        from transformers import GenerationConfig
        from transformers.generation.utils import GenerationMixin

        given = self._tensors(batch)
        start = given.pop("decoder_input_ids", None)
        if start is not None:
            given["decoder_input_ids"] = start[:, :1]
        make: Any = GenerationConfig
        config = make(do_sample=False, num_beams=1, max_new_tokens=tokens, use_cache=True)
        config.pad_token_id = _pad_id(self._core)
        config.decoder_start_token_id = getattr(self._core.config, "decoder_start_token_id", None)
        kept = self._core.generation_config
        # generate() fills what a configuration leaves open from the model's own: penalties, forced tokens, an end.
        self._core.generation_config = config
        try:
            with torch.inference_mode():
                run: Any = GenerationMixin.generate
                made = run(self._core, **given, generation_config=config)
        finally:
            self._core.generation_config = kept
        found: list[list[int]] = made[:, -tokens:].tolist()
        return found

    def _writes(self) -> bool:
        from modelyard.weights.tasks import task_of_architecture

        info = task_of_architecture(type(self._core).__name__)
        can = getattr(self._core, "can_generate", None)
        return bool(info and info.name in _WRITING and can and can())

    def _tensors(self, batch: Batch) -> dict[str, Any]:
        """The inputs that the model takes, as tensors where it is; floats in its dtype."""
        import torch

        device, dtype = self._core.device, self._core.dtype
        made = {}
        for name, values in batch.inputs.items():
            if name in self._taken:
                tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device)
                made[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return made


class Recorded:
    """What a runner said of some batches; see `record`."""

    def __init__(
        self, outputs: dict[str, dict[str, NDArray[np.float32]]], tokens: dict[str, list[list[int]] | None]
    ) -> None:
        self._outputs = outputs
        self._tokens = tokens

    def outputs(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """See `Runner.outputs`; a batch that was not recorded is a KeyError."""
        return self._outputs[batch.name]

    def generate(self, batch: Batch, tokens: int) -> list[list[int]] | None:
        """See `Runner.generate`; at most the tokens that were recorded."""
        found = self._tokens[batch.name]
        return None if found is None else [row[:tokens] for row in found]


def record(runner: Runner, batches: Sequence[Batch], *, tokens: int = 16) -> Recorded:
    """Everything that `compare` asks of a reference, kept in memory: the model can go afterwards.

    Args:
        runner: The reference.
        batches: Each with a name of its own.
        tokens: As `compare` will be told.
    """
    outputs: dict[str, dict[str, NDArray[np.float32]]] = {}
    written: dict[str, list[list[int]] | None] = {}
    for batch in batches:
        outputs[batch.name] = runner.outputs(batch)
        found = written[batch.name] = runner.generate(batch, tokens) if tokens else None
        if found is not None:
            extended, _ = extend(batch, found)
            outputs[extended.name] = runner.outputs(extended)
    return Recorded(outputs, written)


def extend(batch: Batch, tokens: Sequence[Sequence[int]]) -> tuple[Batch, int]:
    """A batch with tokens behind each row, and the position whose logits chose the first of them.

    Of an encoder-decoder the tokens follow the decoder's start token.
    """
    inputs = dict(batch.inputs)
    new = np.asarray(tokens, np.int64)
    name = f"{batch.name} and {new.shape[1]} tokens"
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"] = np.concatenate((inputs["decoder_input_ids"][:, :1], new), axis=1)
        return Batch(inputs, batch.mask, name), 0
    shape = inputs["input_ids"].shape
    for key, values in batch.inputs.items():
        if key == "input_ids":
            inputs[key] = np.concatenate((values, new), axis=1)
        elif values.shape == shape:
            more = np.full(new.shape, int("attention_mask" in key), values.dtype)
            inputs[key] = np.concatenate((values, more), axis=1)
    return Batch(inputs, None, name), shape[1] - 1


def _is_ours(model: Any) -> bool:
    from modelyard.weights.model import Model

    return isinstance(model, Model)


def _floats(found: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every floating-point tensor of an output, those of a tuple (the maps of a backbone) by number; no caches."""
    import torch

    for name, value in (("output", found),) if isinstance(found, torch.Tensor) else found.items():
        if isinstance(value, tuple | list):
            parts = [(f"{name}.{at}", part) for at, part in enumerate(value)]
        else:
            parts = [(name, value)]
        for key, part in parts:
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                yield key, part.detach().float().cpu().contiguous().numpy()


def _positions(batch: Batch) -> NDArray[np.int64] | None:
    """Each row's own positions where it is padded on the left; None where the model counts right by itself."""
    mask = batch.inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or "input_ids" not in batch.inputs or mask[:, 0].all():
        return None
    positions: NDArray[np.int64] = np.maximum(np.cumsum(mask, axis=1, dtype=np.int64) - 1, 0)
    return positions


def _pad_id(core: Any) -> int:
    text = core.config.get_text_config() if hasattr(core.config, "get_text_config") else core.config
    found = getattr(text, "pad_token_id", None)
    return int(found) if isinstance(found, int) and found >= 0 else 0
