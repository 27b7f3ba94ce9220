"""Isolation: what training changes in the process it runs in, and puts back.

The libraries below print, warn, draw progress bars and use global state (random generators, thread counts). A library
that is silent and leaves no trace must switch that off for as long as it runs.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["compute_threads", "kept_random_state", "quiet_libraries"]

_EXPECTED = (
    # TRL 1.16 still uses transformers' older names for activation checkpointing.
    (FutureWarning, r".*gradient_checkpointing.*"),
    # The data loader is told not to pin memory, but accelerate's default asks anyway on machines without a GPU.
    (UserWarning, r".*pin_memory.*"),
)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No log lines below errors and no progress bars from transformers; expected warnings are dropped, others pass."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            for category, message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Python's, numpy's and torch's global generators continue afterwards as if nothing had happened."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # the global state is what is kept
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
