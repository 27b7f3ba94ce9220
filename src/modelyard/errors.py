"""Every error that modelyard raises on purpose, in one tree.

::

    YardError                     1  something could not be done
    ├── InputError                1  what was given is not usable
    │   ├── RefError              2  not a well-formed reference or name
    │   ├── ModelError            1  a folder or file is not a usable model
    │   │   └── PickleError       1  weights that would run code when loaded
    │   ├── DataError             1  a data file or row is not usable
    │   ├── RecipeError           2  a recipe or option is wrong
    │   └── RequestError          2  an inference request is wrong
    ├── AuthError                 4  not allowed, or no valid token
    ├── NotFoundError             5  no such repo, version, ref, file
    ├── ConflictError             6  somebody else got there first, or it is in use
    ├── GateRefusedError          7  a gate did not pass
    ├── IntegrityError            8  stored bytes are not what their digest says
    ├── BusyError                 9  locked by another process
    ├── NoSpaceError             10  the disk is full
    └── InternalError             1  a fault of ours

The number is the exit code of the command line. Every error carries a stable `code` (for JSON), a message that names the
object and the cause, and a `hint`: the next step, as a command that can be pasted where there is one.

>>> try:
...     raise NotFoundError("no repo `team/intnets`", hint="did you mean `team/intents`?")
... except YardError as error:
...     print(error.code, error.exit_code, error.hint)
not_found 5 did you mean `team/intents`?
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AuthError",
    "BusyError",
    "ConflictError",
    "DataError",
    "GateRefusedError",
    "InputError",
    "IntegrityError",
    "InternalError",
    "ModelError",
    "NoSpaceError",
    "NotFoundError",
    "PickleError",
    "RecipeError",
    "RefError",
    "RequestError",
    "YardError",
    "near_match",
]


class YardError(Exception):
    """The root: catch this to catch everything that modelyard raises on purpose.

    Args:
        message: Names the object and the cause.
        hint: The next step, if there is one.
        code: A stable identifier for programs; defaults to the class's own.
        details: Plain values (str, int, float, list, dict) for `--json`.
    """

    code: str = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details
        if code is not None:
            self.code = code

    def to_dict(self) -> dict[str, Any]:
        """The error as the object that `--json` prints and the servers send."""
        plain: dict[str, Any] = {"code": self.code, "message": self.message, "exit_code": self.exit_code}
        if self.hint:
            plain["hint"] = self.hint
        if self.details:
            plain["details"] = self.details
        return plain


class InputError(YardError):
    """What was given is not usable; nothing was done."""

    code = "bad_input"


class RefError(InputError):
    """A reference, repo name, ref name or path is not well formed."""

    code = "bad_reference"
    exit_code = 2


class ModelError(InputError):
    """A folder or file is not a usable model: not a model at all, truncated, hostile, or incomplete."""

    code = "bad_model"


class PickleError(ModelError):
    """Weights in a pickle: loading them could run any code, so they are refused until converted in isolation."""

    code = "pickle_refused"


class DataError(InputError):
    """A data file or row is not usable; the message names the file and the row."""

    code = "bad_data"


class RecipeError(InputError):
    """A recipe, gate or option is wrong; the message names the key and the near match."""

    code = "bad_recipe"
    exit_code = 2


class RequestError(InputError):
    """An inference request asks for something impossible or not honoured; `details["field"]` names the field."""

    code = "bad_request"
    exit_code = 2


class AuthError(YardError):
    """Not allowed, or no valid token."""

    code = "unauthorized"
    exit_code = 4


class NotFoundError(YardError):
    """No such repo, version, ref, file, run or report."""

    code = "not_found"
    exit_code = 5


class ConflictError(YardError):
    """The state is not the one that was expected, or the object is in use."""

    code = "conflict"
    exit_code = 6


class GateRefusedError(YardError):
    """A gate did not pass, so the alias did not move."""

    code = "gate_refused"
    exit_code = 7


class IntegrityError(YardError):
    """Stored bytes are missing or are not what their digest says."""

    code = "damaged"
    exit_code = 8


class BusyError(YardError):
    """Another process holds what is needed; trying again later will do."""

    code = "busy"
    exit_code = 9


class NoSpaceError(YardError):
    """The disk is full; what was there before is untouched and readable."""

    code = "no_space"
    exit_code = 10


class InternalError(YardError):
    """A fault of modelyard's own."""

    code = "internal"


def near_match(word: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that `word` was probably meant to be, or None.

    >>> near_match("lerning_rate", ["learning_rate", "epochs"])
    'learning_rate'
    """
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
