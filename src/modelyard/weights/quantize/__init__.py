"""Weights in fewer bits, in a folder that plain `from_pretrained` loads: the new form is proven against the source.

`methods` says what can be had and what it costs, `quantizing` does it.
"""

from __future__ import annotations

from modelyard.weights.quantize.methods import METHODS, Method, check_method
from modelyard.weights.quantize.quantizing import quantize

__all__ = ["METHODS", "Method", "check_method", "quantize"]
