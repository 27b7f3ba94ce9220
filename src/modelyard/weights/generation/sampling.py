"""From logits to tokens, row by row.

Each row has its own parameters and its own random sequence, and nothing here mixes rows: a row's token is a function of
its logits, its parameters, its tokens so far and its next random number. Knows nothing of models, caches or text.

The order is: penalties, temperature, `top_k`, `top_p` (of what `top_k` left), `min_p`, then one draw by the inverse of
the cumulative distribution in the order of token ids. That order, rather than one by probability, is what keeps a draw
the same when two nearly equal probabilities change places by a rounding.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelyard.weights.generation.loop import Generation, GenerationParams

__all__ = ["choose", "keep_likely", "penalize", "pick"]

_FIRST_LOOK = 256
"""How many of the likeliest tokens are sorted before giving up on not sorting them all."""


def choose(logits: Tensor, rows: Sequence[Generation]) -> list[int | None]:
    """The next token of every row; None for a row whose logits hold a NaN or +inf, which no token can be chosen from.

    Args:
        logits: Float32, (rows, vocabulary). Not changed.
        rows: One for each row of `logits`.
    """
    import torch

    if any(row.params.penalized for row in rows):
        logits = torch.stack(
            [penalize(logits[at], row) if row.params.penalized else logits[at] for at, row in enumerate(rows)]
        )
    best, tokens = logits.amax(dim=-1), logits.argmax(dim=-1)
    chosen: list[int | None] = tokens.tolist()
    drawn = [at for at, row in enumerate(rows) if not row.params.greedy]
    sound = torch.isfinite(best).tolist()
    drawn = [at for at in drawn if sound[at]]
    if drawn:
        for at, token in zip(drawn, _draw(logits[drawn], [rows[at] for at in drawn]), strict=True):
            chosen[at] = token
    return [token if sound[at] else None for at, token in enumerate(chosen)]


def penalize(logits: Tensor, row: Generation) -> Tensor:
    """One row's logits, (vocabulary,), with its penalties applied; a new tensor."""
    import torch

    params, device = row.params, logits.device
    logits = logits.clone()
    size = logits.shape[0]
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({i for i in (*row.prompt_ids, *row.output_ids) if i < size}), device=device)
        value = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(value < 0, value * penalty, value / penalty)
    if row.output_ids and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(row.output_ids)
        ids = torch.tensor(list(counts), device=device)
        times = torch.tensor(list(counts.values()), device=device, dtype=logits.dtype)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * times
    return logits


def keep_likely(logits: Tensor, params: Sequence[GenerationParams]) -> Tensor:
    """`logits`, (rows, vocabulary), with -inf wherever `top_k`, `top_p` or `min_p` leave a token out; a new tensor.

    The likeliest token always stays. Where tokens are exactly equal at the edge, any of them may be the ones that stay.
    """
    import torch

    size = logits.shape[-1]
    look = min(size, max(_FIRST_LOOK, *(item.top_k for item in params)))
    ranked, ids = logits.topk(look, dim=-1)
    column = {"device": logits.device, "dtype": torch.float32}
    top_k = torch.tensor([[item.top_k or size] for item in params], device=logits.device)
    top_p = torch.tensor([[item.top_p] for item in params], **column)  # type: ignore[arg-type]
    min_p = torch.tensor([[item.min_p] for item in params], **column)  # type: ignore[arg-type]
    # What top_k leaves is the whole of what top_p shares out; without top_k that is the whole vocabulary.
    everything = logits.logsumexp(dim=-1, keepdim=True)
    rank = torch.arange(look, device=logits.device)
    best_k = ranked.masked_fill(rank >= top_k, -torch.inf)
    share = torch.where(top_k < size, best_k.logsumexp(dim=-1, keepdim=True), everything)
    probability = (best_k - share).exp()
    before = probability.cumsum(dim=-1) - probability
    unlimited = (top_k >= size) & (top_p >= 1.0)
    if look < size and bool(((before[:, -1:] + probability[:, -1:] < top_p) & (top_k >= size) & ~unlimited).any()):
        ranked, ids = logits.sort(dim=-1, descending=True)  # a flat distribution: top_p reaches past the first look
        probability = (ranked - everything).exp()
        rank = torch.arange(size, device=logits.device)
        before = probability.masked_fill(rank >= top_k, 0.0).cumsum(dim=-1) - probability
    out = (rank >= top_k) | ((before >= top_p) & (top_p < 1.0) & (rank > 0))
    kept = torch.full_like(logits, -torch.inf).scatter(-1, ids, ranked.masked_fill(out, -torch.inf))
    kept = torch.where(unlimited, logits, kept)
    floor = logits.amax(dim=-1, keepdim=True) + min_p.log()  # log 0 is -inf: nothing is below it
    return kept.masked_fill(kept < floor, -torch.inf)


def _draw(logits: Tensor, rows: Sequence[Generation]) -> list[int]:
    """One token for each row by its own parameters and its own next random number."""
    import torch

    temperature = torch.tensor([[row.params.temperature] for row in rows], device=logits.device)
    # Less the largest first: a tiny temperature then sends the others to -inf instead of the largest to +inf.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    params = [row.params for row in rows]
    if any(item.top_k or item.top_p < 1.0 or item.min_p for item in params):
        logits = keep_likely(logits, params)
    return pick(logits, [row.draw() for row in rows])


def pick(logits: Tensor, numbers: Sequence[float]) -> list[int]:
    """One token for each row of `logits`, (rows, vocabulary), by the inverse of its cumulative distribution.

    Args:
        logits: Float32; -inf where a token may not be drawn.
        numbers: One in [0, 1) for each row.
    """
    import torch

    cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(dim=-1)
    at = torch.tensor(numbers, dtype=torch.float64).unsqueeze(1).to(logits.device)
    found = torch.searchsorted(cumulative, at * cumulative[:, -1:], right=True)
    return [int(token) for token in found.squeeze(-1).tolist()]
