"""Exact operations: typed buffers in, typed buffers out, the same bits on every machine.

`docs/design/derivations.md` defines them by name and version; a definition is never changed, only added to. Everything
here is IEEE binary32 arithmetic in a fixed order, each multiply and add rounded on its own, so neither threads nor block
sizes nor the processor's vector width can show in a result. This package knows no names, no files and no models.

>>> import numpy as np
>>> base = np.ones((1, 2), np.float32)
>>> apply_lora(base, "F32", np.array([[1, 2]], np.float32), np.array([[3]], np.float32), lora_scale(4, 2))
array([[ 7., 13.]], dtype=float32)
"""

from modelyard.derivations.cast import apply_cast
from modelyard.derivations.dare import apply_dare, dare_key
from modelyard.derivations.dora import Dora, apply_dora
from modelyard.derivations.election import Tally, apply_dare_2, apply_ties_2
from modelyard.derivations.linear import apply_linear
from modelyard.derivations.lora import Lora, apply_lora, lora_scale
from modelyard.derivations.numbers import STORAGE, Workspace, check_arithmetic
from modelyard.derivations.operands import Operands
from modelyard.derivations.params import (
    cast_params,
    dare_2_params,
    dare_params,
    dora_params,
    linear_params,
    lora_params,
    ties_2_params,
    ties_params,
)
from modelyard.derivations.replay import replay
from modelyard.derivations.ties import apply_ties

__all__ = [
    "OPERATIONS",
    "STORAGE",
    "Dora",
    "Lora",
    "Operands",
    "Tally",
    "Workspace",
    "apply_cast",
    "apply_dare",
    "apply_dare_2",
    "apply_dora",
    "apply_linear",
    "apply_lora",
    "apply_ties",
    "apply_ties_2",
    "cast_params",
    "check_arithmetic",
    "dare_2_params",
    "dare_key",
    "dare_params",
    "dora_params",
    "linear_params",
    "lora_params",
    "lora_scale",
    "replay",
    "ties_2_params",
    "ties_params",
]

OPERATIONS = ("lora/1", "cast/1", "linear/1", "ties/1", "dare/1", "ties/2", "dare/2", "dora/1")
"""The operations that exist, by name and version."""
