"""What the operating system refused, said in our words.

Knows error numbers and paths; does not know what the bytes were for.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelyard.errors import NoSpaceError, YardError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["explain", "explained"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def explain(error: OSError, path: str | os.PathLike[str], action: str) -> YardError:
    """The typed error for an `OSError` met while doing `action` (an infinitive, like "write") to `path`.

    >>> explain(OSError(errno.ENOSPC, "No space left on device"), "/yard/tmp", "write").code
    'no_space'
    >>> print(explain(PermissionError(errno.EACCES, "Permission denied"), "/yard/files", "read"))
    not allowed to read `/yard/files`: Permission denied
    """
    where = os.fspath(path)
    cause = error.strerror or str(error)
    number = error.errno
    name = errno.errorcode.get(number, "unknown") if number is not None else "unknown"
    if number in _FULL:
        return NoSpaceError(
            f"no space left to {action} `{where}`: {cause}",
            hint="free some space on that disk and try again; what was stored before is untouched",
            path=where,
            errno=name,
        )
    if number in _DENIED:
        advice = "the file system is mounted read-only" if number == errno.EROFS else f"look at `ls -ld {where}`"
        return YardError(
            f"not allowed to {action} `{where}`: {cause}", hint=advice, code="no_access", path=where, errno=name
        )
    if number == errno.EXDEV:
        return YardError(
            f"cannot {action} `{where}`: the yard spans two file systems",
            hint="keep the whole yard on one file system",
            code="io_failed",
            path=where,
            errno=name,
        )
    hint = "the disk may be failing: look at `dmesg` and `yard doctor`" if number == errno.EIO else None
    return YardError(f"could not {action} `{where}`: {cause}", hint=hint, code="io_failed", path=where, errno=name)


@contextmanager
def explained(path: str | os.PathLike[str], action: str) -> Iterator[None]:
    """Turn an `OSError` from the body into what `explain` makes of it."""
    try:
        yield
    except OSError as error:
        raise explain(error, path, action) from error
