"""A model's weights in another dtype, by the exact operation `cast/1`: the plainest use of `rewriting`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.weights.convert.rewriting import rewrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.weights.certificate import Certificate
    from modelyard.weights.files import Files

__all__ = ["cast"]


def cast(source: Files, out: Path, dtype: str, *, progress: Callable[[int, int], None] | None = None) -> Certificate:
    """Write a model or adapter with every floating-point tensor in `dtype`, under the same names: `rewrite` with that alone.

    Args:
        source: The model or adapter.
        out: A folder that does not exist yet.
        dtype: `bfloat16`, `float16` or `float32`.
        progress: Called with (bytes done, bytes in all) of the weights that are written.

    Raises:
        InputError, ModelError, BusyError, ConflictError, NoSpaceError: As `rewrite`.
    """
    return rewrite(source, out, dtype=dtype, progress=progress)
