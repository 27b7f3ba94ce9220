"""Training: a base folder and rows in, an adapter folder out.

    rows = load_rows(Path("train.jsonl"))                     # recognised and checked, or a DataError with file and row
    config = TrainConfig(rank=16, epochs=2)                   # strict; a typo names its near match
    print(preflight(Path("base"), rows, config).to_dict())    # seconds: tokens, coverage, memory, findings
    result = train(Path("base"), rows, config, Path("work"))  # resumes by itself; result.adapter is a PEFT folder

Knows folders and values only: no yard, no database, no HTTP, no terminal.
"""

from __future__ import annotations

from modelyard.training.config import TrainConfig
from modelyard.training.data import Example, Rows, load_rows
from modelyard.training.preflight import Finding, Preflight, preflight
from modelyard.training.sft import TrainResult, train

__all__ = [
    "Example",
    "Finding",
    "Preflight",
    "Rows",
    "TrainConfig",
    "TrainResult",
    "load_rows",
    "preflight",
    "train",
]
