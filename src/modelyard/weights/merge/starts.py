"""Starts that rewrote the base: PiSSA and OLoRA are repeated as PEFT repeats them, what cannot be is refused.

These adapters were not trained on the base but on what their start left of it: W - scale * B0 @ A0, with B0 and A0 the
start's own factors. PEFT 0.21 runs the start again on the base each time it loads such an adapter, and so does this module: with the same
LAPACK calls on the same float32 tensor, so that the bits are PEFT's on this machine. A start that is random, or needs what the
adapter does not hold, cannot be run again. Papers: PiSSA arXiv 2404.02948, OLoRA arXiv 2406.01775.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from modelyard.errors import ModelError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from modelyard.weights.merge.plan import Site

__all__ = ["REPEATED", "WHY_NOT", "refuse_start", "repeat_start"]

REPEATED = ("pissa", "olora")
"""Starts that follow from the base alone."""

WHY_NOT: Mapping[str, str] = {
    "pissa_niter": "its start is a randomised SVD, which gives other factors at each run: PEFT's own reload is another function",
    "corda": "its start needs the covariances of the data that it was started with, which the adapter does not hold",
    "lora_ga": "its start needs the gradients that it was started with, which the adapter does not hold; PEFT loads it onto the"
    " unchanged base, which is another function",
    "loftq": "its start quantizes the base on a GPU, and the base that is left is not in the adapter",
}
"""Starts that cannot be repeated, and why."""

_CONVERT = (
    "convert it where it was trained: model.save_pretrained(OUT, path_initial_model_for_weight_conversion=START), where START is"
    " the adapter as it was saved before training"
)
_SAVE_BASE = (
    "save the base that its training changed, `model.unload().save_pretrained(BASE)`, set init_lora_weights to true in"
    " adapter_config.json, and merge with --base BASE"
)


def repeat_start(start: str | None, label: str) -> Callable[[Tensor, Sequence[Site]], Tensor] | None:
    """What makes the weight that an adapter was trained on from the base's weight; None where that is the base's own.

    Args:
        start: `init_lora_weights` as `Options.start` has it.
        label: What messages call the adapter.

    Returns:
        A function of (a weight as on disk, its sites) to a tensor of the same dtype and shape.

    Raises:
        ModelError: `unsupported_start`, with the reason and how to convert the adapter.
    """
    if start is None:
        return None
    if start not in REPEATED:
        refuse_start(start, label)
    residual = _pissa if start == "pissa" else _olora

    def rewrite(weight: Tensor, sites: Sequence[Site]) -> Tensor:
        for site in sites:
            # PEFT starts linear layers so; an embedding's factors start at zero, and its weight stays.
            if site.kind == "linear" and site.low_rank:
                weight = residual(weight, site)
        return weight

    return rewrite


def refuse_start(start: str, label: str) -> NoReturn:
    """Raise `unsupported_start` for a start that is not repeated."""
    known = next((name for name in WHY_NOT if start.startswith(name)), None)
    why = WHY_NOT[known] if known else "it rewrites the base in a way that is not known here"
    raise ModelError(
        f"`{label}` cannot be merged: `init_lora_weights` is {show_name(start)}: {why}",
        code="unsupported_start",
        hint=_SAVE_BASE if known == "loftq" else _CONVERT,
    )


def _pissa(weight: Tensor, site: Site) -> Tensor:
    """W less its `rank` principal components."""
    import torch

    turned = site.layout.transposed
    scale = float(site.scale)
    wide = weight.to(torch.float32)
    wide = wide.T if turned else wide
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    values = values[: site.rank]
    values /= scale
    a = torch.diag(torch.sqrt(values)) @ right[: site.rank]
    b = left[:, : site.rank] @ torch.diag(torch.sqrt(values))
    rest: Tensor = (wide - scale * b @ a).to(weight.dtype)
    return rest.T if turned else rest


def _olora(weight: Tensor, site: Site) -> Tensor:
    """W less what the first `rank` columns of its QR decomposition make; PEFT takes no account of how a layer is stored."""
    import torch

    wide = weight.to(torch.float32).clone()
    q, r = torch.linalg.qr(wide)
    a, b = r[: site.rank].contiguous(), q[:, : site.rank].contiguous()
    wide -= float(site.scale) * b @ a
    return wide.to(weight.dtype)
