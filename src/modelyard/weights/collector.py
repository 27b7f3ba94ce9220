"""Python's cyclic garbage collector, put off while a model is loaded.

Importing torch and transformers makes millions of objects that stay, and each time their number has grown by some, all of
them are looked at: of 4.3 s that a first load took of the processor, 0.5 s went there, for nothing. Knows no models.
"""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collector_paused"]

_lock = threading.Lock()
_pauses = 0
_was_on = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic collection of cycles until the last of these blocks, of any thread, has ended; `gc.collect()` still works.

    >>> import gc
    >>> with collector_paused():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    global _pauses, _was_on  # noqa: PLW0603  # the collector is the process's, and so is the count
    with _lock:
        if _pauses == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_on:
                gc.enable()
