"""Several exports in one process, which imports the libraries once: `python export_together.py JOBS FOLDER INPUTS`.

JOBS is a list of keyword arguments of `export`. Then transformers itself opens FOLDER and computes INPUTS; its logits are printed.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from modelyard.weights.export import exporting, steps


def main(jobs: str, folder: str, inputs: str) -> None:
    """Do every job with the steps that a worker does, here; then read an export with transformers."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with mock.patch.object(exporting, "run_in_process", steps.run_job):
        for job in json.loads(jobs):
            exporting.export(Path(job.pop("source")), Path(job.pop("out")), threads=1, **job)
    import torch
    from transformers.exporters.base import ExportedModel

    read: Any = ExportedModel.from_pretrained
    model = read(folder, device="cpu")
    given = {name: torch.tensor(values) for name, values in json.loads(inputs).items()}
    sys.stdout.write("\n" + json.dumps(model(**given).logits.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
