"""One process that loads a model and computes one token, for `load.py`: prints what it took as JSON.

The clock of the process starts before this file imports anything that a load needs; the clock of the call starts when the
libraries are there, the code of the model's class too.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable


def plain(folder: str) -> Callable[[], Any]:
    """`from_pretrained` of the model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load() -> Any:
        AutoTokenizer.from_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    return load


def yard(home: str, *, trust: bool) -> Callable[[], Any]:
    """`yard.load`, which gives both too."""
    import modelyard

    def load() -> Any:
        return modelyard.open(home).load("bench/model", dtype="bfloat16", trust_verified=trust).model

    return load


def main(kind: str, where: str, *, ready: bool) -> None:
    """Load what lies at `where`; with `ready`, libraries are imported before the clock of the call starts."""
    load = plain(where) if kind == "plain" else yard(where, trust=kind == "trusted")
    if ready:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
        from transformers.models.auto import modeling_auto  # noqa: F401
        from transformers.models.llama import modeling_llama  # noqa: F401

        if kind != "plain":
            import modelyard
            import modelyard.registry.loading
            import modelyard.weights.load
            import modelyard.weights.loading.building
            import modelyard.weights.loading.preprocessors

            modelyard.open(where)
    began, processor = time.perf_counter(), time.process_time()
    model = load()
    loaded, spent, total = time.perf_counter(), time.process_time() - processor, time.process_time()
    import torch

    with torch.inference_mode():
        token = int(model(torch.tensor([[1, 2, 3]])).logits[0, -1].argmax())
    done = time.perf_counter()
    plain_result = {
        "seconds": loaded - began,
        "processor": spent,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "size": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "loaded": loaded - BEGAN,
        "total": total,
        "first_token": done - began,
        "token": token,
    }
    sys.stdout.write(json.dumps(plain_result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], ready=sys.argv[3] == "ready")
