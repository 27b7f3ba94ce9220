"""Training and evaluation data: files in, checked rows out.

`load_rows` recognises the file format by its suffix (JSONL, JSON, CSV, TSV, Parquet, text; `.gz` on top of any but
Parquet) and the row format by its columns, and checks every row before anything is computed. Knows no tokenizer, no
model and no yard.

    rows = load_rows(Path("train.jsonl"))
    rows = load_rows(Path("banking77/train.csv"), columns={"prompt": "text", "completion": "category"})
"""

from __future__ import annotations

from modelyard.training.data.loading import load_rows
from modelyard.training.data.rows import Example, Rows

__all__ = ["Example", "Rows", "load_rows"]
