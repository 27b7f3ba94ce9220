"""One quantized model in a process of its own: how fast it writes, how fast it reads, and how well it predicts. `quantize.py` starts it.

The last line of its output is JSON: seconds of one token (median) by the clock and by the processor, of a prompt of 128 tokens
(best), the loss and the tokens of every document, bytes in memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

PROMPT = 32
READ = 128
ROUNDS = 5


def configuration(name: str) -> Any:
    """What `load` takes as `quantization`: None, a short name, or a configuration of torchao that has no short name."""
    if name == "bfloat16":
        return None
    if name not in {"torchao-int8-activations", "torchao-int4-grouped"}:
        return name
    import torch
    import torchao.quantization as library
    from transformers import TorchAoConfig

    make: Any = TorchAoConfig
    if name == "torchao-int8-activations":
        return make(library.Int8DynamicActivationInt8WeightConfig())
    return make(
        library.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009  missing from its stubs
            granularity=library.PerGroup(32),
        )
    )


def time_decoding(model: Any, tokens: int) -> tuple[float, float]:
    """Seconds of one token behind a prompt, with a cache: the medians of the clock's and of the processor's."""
    import torch

    ids = torch.arange(10, 10 + PROMPT).unsqueeze(0)
    clock, processor = [], []
    with torch.inference_mode():
        found = model(input_ids=ids, use_cache=True)
        for _ in range(tokens):
            chosen = found.logits[:, -1:].argmax(-1)
            began, used = time.perf_counter(), time.process_time()
            found = model(input_ids=chosen, past_key_values=found.past_key_values, use_cache=True)
            clock.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
    return statistics.median(clock[tokens // 8 :]), statistics.median(processor[tokens // 8 :])


def time_reading(model: Any) -> float:
    """Seconds of a prompt of `READ` tokens: the best of some."""
    import torch

    ids, times = torch.arange(10, 10 + READ).unsqueeze(0), []
    with torch.inference_mode():
        for _ in range(ROUNDS):
            began = time.perf_counter()
            model(input_ids=ids, logits_to_keep=1)
            times.append(time.perf_counter() - began)
    return min(times)


def measure_losses(model: Any, tokenizer: Any, documents: int) -> tuple[list[float], list[int]]:
    """Negative log-likelihood and tokens of documents of the generator that the base learned from, of a seed that it never saw."""
    import torch

    from modelyard.quickstart import corpus, pretrain

    losses, tokens = [], []
    with torch.inference_mode():
        for document in corpus.documents(documents, seed=1):
            ids = torch.tensor([pretrain.encode(tokenizer, document, 1.0)[0]])
            logits = model(input_ids=ids).logits.float()[0, :-1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")))
            tokens.append(ids.shape[1] - 1)
    return losses, tokens


def main() -> None:
    """Measure one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--documents", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from modelyard.weights.load import load
    from modelyard.weights.loading.quantization import footprint, quiet_imports

    quiet_imports()
    began = time.perf_counter()
    loaded = load(
        given.folder,
        quantization=configuration(given.kind),
        dtype="bfloat16",
        threads=given.threads,
        allow=("preprocessor",),
    )
    seconds = time.perf_counter() - began
    found: dict[str, Any] = {"load": seconds, "bytes": footprint(loaded.model)}
    if given.tokens:
        found["token"], found["token_processor"] = time_decoding(loaded.model, given.tokens)
        found["reading"] = time_reading(loaded.model)
    if given.documents:
        found["losses"], found["tokens"] = measure_losses(loaded.model, loaded.tokenizer, given.documents)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
