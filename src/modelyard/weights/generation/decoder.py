"""The tensors of decoding: one forward pass a step for all rows, which join and leave between steps.

Rows are padded on the left, so that the newest token of every row stands in the last column: positions are each row's
own, and padding is masked. A new row is computed by itself and then joined to the running ones by padding the shorter
cache. That is exact for architectures whose cache is keys and values by column (full or sliding attention); for the
others (state-space, convolution, chunked attention, or a forward pass that takes no positions) each row keeps a cache
of its own, which is slower and as right. Knows nothing of text (`Generation` does) or of queues (`engine` does).

One `Decoder` belongs to one thread at a time. Inference mode is entered and left inside each call.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.generation.loop import Generation, Progress
from modelyard.weights.generation.sampling import choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Decoder"]

_CACHES = ("past_key_values", "cache_params")
_NOT_FINITE = "the model's logits are not finite"


@dataclass
class _Batch:
    """Rows that share a cache. `padding[i]` columns of row i are padding; `width` columns are in the cache."""

    rows: list[Generation]
    cache: Any
    width: int
    padding: list[int]


class Decoder:
    """Decodes many answers with one model.

    Args:
        model: A causal language model of transformers, in eval mode (a PEFT model's base with its adapter in place).

    Raises:
        ModelError: The model keeps no cache that this loop can use.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        self._cache_name = next((name for name in _CACHES if name in accepted), None)
        if self._cache_name is None:
            raise ModelError(f"{type(model).__name__} keeps no cache between tokens: it cannot generate here")
        self._takes_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._joinable = self._takes_positions and "attention_mask" in accepted and _has_column_cache(model)
        self._waiting: list[Generation] = []
        self._batches: list[_Batch] = []

    @classmethod
    def decodes(cls, model: Any) -> bool:
        """Whether a model is one that this loop can step: its prompt is continued, and it keeps a cache."""
        accepted = inspect.signature(model.forward).parameters
        return not model.config.is_encoder_decoder and any(name in accepted for name in _CACHES)

    @property
    def joinable(self) -> bool:
        """Whether rows share one cache and one forward pass."""
        return self._joinable

    def __len__(self) -> int:
        """How many answers are running or waiting for their first step."""
        return len(self._waiting) + sum(len(batch.rows) for batch in self._batches)

    def add(self, generations: Sequence[Generation]) -> None:
        """Take answers in; their prompts are computed in the next step, together where the model allows."""
        self._waiting.extend(generations)

    def remove(self, generation: Generation) -> None:
        """Let an answer go before it is over; nothing happens if it is not here."""
        if generation in self._waiting:
            self._waiting.remove(generation)
            return
        for batch in self._batches:
            if generation in batch.rows:
                self._keep(batch, [row is not generation for row in batch.rows])
        self._batches = [batch for batch in self._batches if batch.rows]

    def clear(self) -> None:
        """Let everything go, caches included."""
        self._waiting, self._batches = [], []

    def step(self) -> list[Progress]:
        """One token for every running answer, then the first one for every new answer.

        Answers that are over have left when it returns. A row whose logits are not finite gets its `error` set and
        leaves; the others go on.
        """
        import torch

        progress: list[Progress] = []
        with torch.inference_mode():
            for batch in self._batches:
                progress += self._advance(batch)
            new, self._waiting = self._waiting, []
            for group in [new] if self._joinable and new else [[one] for one in new]:
                batch, logits = self._start(group)
                progress += self._settle(batch, logits)
                self._join(batch)
            self._batches = [batch for batch in self._batches if batch.rows]
        return progress

    def _start(self, rows: list[Generation]) -> tuple[_Batch, Tensor]:
        """Compute the prompts of `rows`, padded on the left to the longest."""
        import torch

        width = max(len(row.prompt_ids) for row in rows)
        padding = [width - len(row.prompt_ids) for row in rows]
        ids = torch.tensor([[0] * pad + list(row.prompt_ids) for pad, row in zip(padding, rows, strict=True)])
        positions = torch.arange(width).unsqueeze(0) - torch.tensor(padding).unsqueeze(1)
        batch = _Batch(rows, self._new_cache(), 0, padding)
        return batch, self._forward(batch, ids, positions.clamp(min=0))

    def _advance(self, batch: _Batch) -> list[Progress]:
        """One more token for every row of a batch."""
        import torch

        ids = torch.tensor([[row.output_ids[-1]] for row in batch.rows])
        positions = torch.tensor([[batch.width - pad] for pad in batch.padding])
        return self._settle(batch, self._forward(batch, ids, positions))

    def _forward(self, batch: _Batch, ids: Tensor, positions: Tensor) -> Tensor:
        """Run `ids`, (rows, columns), behind what is cached; the last column's logits, float32, (rows, vocabulary)."""
        import torch

        device = self._model.device
        batch.width += ids.shape[1]
        given: dict[str, Any] = dict(self._last_only)
        if self._takes_positions:
            given["position_ids"] = positions.to(device)
        if any(batch.padding):
            columns, padding = torch.arange(batch.width), torch.tensor(batch.padding)
            given["attention_mask"] = (columns.unsqueeze(0) >= padding.unsqueeze(1)).long().to(device)
        if batch.cache is not None:
            given[str(self._cache_name)] = batch.cache
        outputs = self._model(input_ids=ids.to(device), use_cache=True, return_dict=True, **given)
        batch.cache = getattr(outputs, str(self._cache_name))
        logits: Tensor = outputs.logits[:, -1, :].float()
        return logits

    def _settle(self, batch: _Batch, logits: Tensor) -> list[Progress]:
        """Choose each row's token, hand it over, and let go of the rows that are over."""
        progress = []
        for row, token in zip(batch.rows, choose(logits, batch.rows), strict=True):
            if token is None:
                row.error = _NOT_FINITE
                progress.append(Progress(row, (), ""))
            else:
                progress.append(row.take(token))
        self._keep(batch, [not row.over for row in batch.rows])
        return progress

    def _keep(self, batch: _Batch, wanted: list[bool]) -> None:
        """Let go of the unwanted rows and of the columns that only they filled."""
        import torch

        if all(wanted):
            return
        kept = [at for at, keep in enumerate(wanted) if keep]
        batch.rows = [batch.rows[at] for at in kept]
        batch.padding = [batch.padding[at] for at in kept]
        if not kept:
            batch.cache = None
            return
        with torch.inference_mode():
            batch.cache.batch_select_indices(torch.tensor(kept, device=self._model.device))
            empty = min(batch.padding)
            if empty:
                _drop_columns(batch.cache, empty)
                batch.width -= empty
                batch.padding = [pad - empty for pad in batch.padding]

    def _join(self, batch: _Batch) -> None:
        if not batch.rows:
            return
        running = next((other for other in self._batches if other.rows), None) if self._joinable else None
        if running is None:
            self._batches.append(batch)
            return
        width = max(running.width, batch.width)
        _join_caches(running.cache, batch.cache, width)
        for part in (running, batch):
            part.padding = [pad + width - part.width for pad in part.padding]
        running.rows += batch.rows
        running.padding += batch.padding
        running.width = width

    def _new_cache(self) -> Any:
        if not self._joinable:
            return None  # the model makes the cache that its architecture needs
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)


def _has_column_cache(model: Any) -> bool:
    """Whether every layer caches keys and values by column, so that rows can be joined and columns dropped."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, get_layer_types_and_kwargs

    text = model.config.get_text_config(decoder=True)
    kinds, _ = get_layer_types_and_kwargs(text)
    # Chunked attention caches like a sliding window, but its chunks begin at fixed columns, which padding would shift.
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=text).layers)


def _join_caches(cache: Any, other: Any, width: int) -> None:
    """Put `other`'s rows below `cache`'s, both padded on the left to `width` columns."""
    import torch
    from torch.nn.functional import pad

    for mine, its in zip(cache.layers, other.layers, strict=True):
        if not mine.is_initialized:
            continue  # a layer that reads another layer's keys
        columns = max(mine.keys.shape[-2], its.keys.shape[-2])
        for name in ("keys", "values"):
            parts = [getattr(layer, name) for layer in (mine, its)]
            padded = [pad(part, (0, 0, columns - part.shape[-2], 0)) for part in parts]
            setattr(mine, name, torch.cat(padded, dim=0))
        if hasattr(mine, "cumulative_length"):
            mine.cumulative_length = width


def _drop_columns(cache: Any, count: int) -> None:
    """Take the first `count` columns, all padding, off a cache."""
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        if hasattr(layer, "cumulative_length"):  # a sliding window keeps the last columns only
            layer.cumulative_length -= count
            have = min(layer.keys.shape[-2], layer.cumulative_length)
        else:
            have = layer.keys.shape[-2] - count
        layer.keys = layer.keys[..., layer.keys.shape[-2] - have :, :]
        layer.values = layer.values[..., layer.values.shape[-2] - have :, :]
