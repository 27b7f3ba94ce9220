"""Bounds of the numbers that options give, each refused by name; knows no task and no model."""

from __future__ import annotations

from typing import Any

from modelyard.errors import RequestError

__all__ = ["check_counts", "check_share"]


def check_counts(options: Any, *names: str) -> None:
    """That each of these fields of `options` is 1 or more, or None where it may be.

    Raises:
        RequestError: One of them is less.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RequestError(f"`{name}` is {value!r}", hint="1 or more", field=name)


def check_share(value: Any, name: str) -> None:
    """That `value` is a number from 0 to 1.

    Raises:
        RequestError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RequestError(f"`{name}` is {value!r}", hint="a number from 0 to 1", field=name)
