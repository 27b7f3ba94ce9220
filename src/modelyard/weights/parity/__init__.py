"""Whether two forms of one model compute the same: fixed inputs, runners, and the measured differences between them.

What merging, quantizing and exporting have in common. `fixed_inputs` makes the same batches for the same model each time,
a `Runner` computes them (`TorchRunner` here; exports bring their own), `compare` measures, and a `Check` is what a
certificate keeps. Knows no file formats and writes nothing.

>>> import numpy as np
>>> class Constant:
...     def __init__(self, value):
...         self.value = value
...     def outputs(self, batch):
...         return {"logits": np.full((*batch.inputs["input_ids"].shape, 3), self.value, np.float32)}
...     def generate(self, batch, tokens):
...         return None
>>> batch = Batch({"input_ids": np.zeros((1, 4), np.int64)}, None, "one")
>>> [check] = compare(Constant(2.0), Constant(2.5), [batch], tolerance=0.1)
>>> check.name, check.max_difference, check.scale, check.holds
('one: logits', 0.5, 2.0, False)
"""

from __future__ import annotations

from modelyard.weights.parity.batches import LENGTHS, Batch
from modelyard.weights.parity.checks import Check, compare, failing
from modelyard.weights.parity.inputs import fixed_inputs
from modelyard.weights.parity.runners import Recorded, Runner, TorchRunner, extend, record

__all__ = [
    "LENGTHS",
    "Batch",
    "Check",
    "Recorded",
    "Runner",
    "TorchRunner",
    "compare",
    "extend",
    "failing",
    "fixed_inputs",
    "record",
]
