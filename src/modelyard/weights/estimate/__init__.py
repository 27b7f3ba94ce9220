"""How much memory a model takes, before anything of it is allocated.

`estimate` counts one inference or training step of the checkpoint's own class, run on tensors without memory; for the
families of `FAMILIES` the same numbers come from closed forms, in milliseconds and without any library.

>>> from modelyard.weights.estimate import Workload
>>> Workload(mode="lora", batch=4).training
True
"""

from __future__ import annotations

from modelyard.weights.estimate.estimation import estimate
from modelyard.weights.estimate.workload import (
    MODES,
    OPTIMIZERS,
    QUANTIZATIONS,
    Estimate,
    Machine,
    Mode,
    Option,
    Workload,
)

__all__ = ["MODES", "OPTIMIZERS", "QUANTIZATIONS", "Estimate", "Machine", "Mode", "Option", "Workload", "estimate"]
