"""The one lock around every load by transformers or PEFT in this process.

transformers swaps process globals while it loads (the default dtype, `PreTrainedModel.tie_weights`, tensor constructors), so
two loads at once damage one another and every later one. Whoever calls `from_pretrained`, `from_config` or a class of
transformers with a configuration in this process, training included, holds `LOADING`.

Knows no models.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOADING", "loading", "seeded"]

LOADING = threading.RLock()
"""Held around every load by transformers or PEFT in this process."""


@contextmanager
def loading() -> Iterator[None]:
    """Hold `LOADING`, with transformers' progress bars and log tables off: what they say comes back as errors."""
    from modelyard.weights.loading.quantization import quiet_imports

    quiet_imports()
    from transformers.utils import logging as library_logging

    logging: Any = library_logging  # its functions carry no types
    with LOADING, warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5.23 renamed; nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from `seed` in the block, and leave the generators as they were found."""
    import torch

    cuda: Any = torch.cuda  # its functions carry no types
    devices = list(range(cuda.device_count())) if cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
