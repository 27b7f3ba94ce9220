"""What a folder's weights can be quantized to, and why not to the rest.

A method has to have a form on disk that transformers reads by itself, and there must not be another one that is faster on a CPU, loses
no more and takes no more memory: `benchmarks/quantize.py` measures that, docs/benchmarks.md has its table. Short names are those of `loading.quantization`,
which quantizes while it loads and writes nothing. Knows names and configurations; reads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.loading import quantization as loading

__all__ = ["METHODS", "REFUSED", "Method", "check_method", "make_config"]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to quantize.

    Attributes:
        name: The short name.
        bits: About how many bits a quantized number takes on disk.
        tolerance: The largest difference of an output that holds by default, relative to its largest magnitude.
        what: What is done to every linear layer.
    """

    name: str
    bits: float
    tolerance: float
    what: str


METHODS = {
    method.name: method
    for method in (
        Method("torchao-int8", 8.1, 0.15, "int8, one scale a row"),
        Method("bnb-4bit", 4.5, 0.5, "NF4, one scale for 64 numbers"),
    )
}
"""What `quantize` offers."""

REFUSED = {
    "bnb-8bit": (
        "on a CPU it is slower than torchao-int8, which loses no more and takes no more memory",
        'yard quantize SOURCE --method torchao-int8 --to TARGET; on a GPU, load(..., quantization="bnb-8bit")',
    ),
    "torchao-int4": (
        "torchao cannot write the layout that is fast on a CPU, and the one that it can is slower and larger than torchao-int8, and loses more",
        'yard quantize SOURCE --method bnb-4bit --to TARGET; or load(..., quantization="torchao-int4"), which is fast',
    ),
    "int8-dynamic": (
        "torch packs its layers in memory, and transformers reads no such form",
        'yard quantize SOURCE --method torchao-int8 --to TARGET; or load(..., quantization="int8-dynamic"), which is fast',
    ),
}
"""Methods of `load` that `quantize` has not: the reason, and what to do instead."""


def check_method(name: str) -> Method:
    """The method called `name`; its package is installed.

    Raises:
        RequestError: `no_quantization`: there is no such method, or it is not offered; the message has the reason.
        ModelError: `missing_package`.
    """
    method = METHODS.get(name)
    if method is None:
        refused = REFUSED.get(name)
        meant = near_match(name, [*METHODS, *REFUSED])
        if refused is not None:
            message, hint = f"`{name}` makes no folder: {refused[0]}", refused[1]
        else:
            message = f"no quantization `{name}`"
            hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(METHODS)}"
        raise RequestError(message, code="no_quantization", hint=hint, field="method", available=list(METHODS))
    loading.check(name)
    return method


def make_config(method: Method, dtype: str) -> Any:
    """The configuration object that `from_pretrained` takes and config.json keeps.

    Args:
        method: Of `METHODS`.
        dtype: What is computed in and kept for what is not quantized, a name of torch.

    Raises:
        ModelError: `missing_package`.
    """
    import torch

    return loading.make_config(method.name, dtype=getattr(torch, dtype))


def refuse_source(label: str, config: dict[str, Any]) -> None:
    """Refuse weights that are quantized already.

    Args:
        label: What messages call the source.
        config: Its config.json.

    Raises:
        ModelError: `already_quantized`.
    """
    held = config.get("quantization_config")
    if isinstance(held, dict):
        name = str(held.get("quant_method", "a method that it does not name"))
        raise ModelError(
            f"`{label}` is quantized already, by {name}",
            code="already_quantized",
            hint="quantize the weights that it was made from: rounding twice loses more than once",
            quant_method=name,
        )
