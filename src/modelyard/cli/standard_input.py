"""Text from standard input, which may be closed or hold bytes that are no text. Knows no command."""

from __future__ import annotations

import sys

from modelyard.errors import RequestError

__all__ = ["read_text"]


def read_text(what: str) -> str:
    """All of standard input as text.

    Args:
        what: What it stands for, for messages.

    Raises:
        RequestError: It is closed, or holds no text in its encoding.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise RequestError(f"there is no {what}, and standard input is closed", hint=f"give the {what} as an argument")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is no text in {error.encoding}", hint="iconv -t utf-8 FILE") from error
