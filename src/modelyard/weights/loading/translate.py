"""What a library raises about a folder, as a `ModelError` that names the folder. Knows no models."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import ModelError, YardError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["first_line", "translated"]


@contextmanager
def translated(folder: Path | str, done: str = "loaded") -> Iterator[None]:
    """Turn any library's exception about `folder` into a `ModelError`; ours pass as they are.

    >>> try:
    ...     with translated("./bert"):
    ...         raise ValueError("head size 7 does not divide 32")
    ... except ModelError as error:
    ...     print(error.message)
    `./bert` cannot be loaded: head size 7 does not divide 32
    """
    try:
        yield
    except YardError:
        raise
    except MemoryError:
        raise  # not the folder's fault
    except Exception as error:
        # Any library below may raise anything about a file that it cannot use: the cause is kept, and named.
        there = Path(folder).exists()  # else it is a model type or a class, and no doctor looks at those
        hint = f"run `yard doctor {folder}`" if there else "look at the values of its configuration"
        raise ModelError(f"`{folder}` cannot be {done}: {first_line(error)}", hint=hint) from error


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, at most 500 characters; its kind when it says nothing."""
    return str(error).strip().split("\n")[0][:500] or type(error).__name__
