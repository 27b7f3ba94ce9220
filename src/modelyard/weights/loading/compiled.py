"""`torch.compile` around a loaded model, where this machine has the compiler that it needs.

Compiling happens at the first call and again for each new kind of input; what it costs and gains was measured
(`docs/log.md`). Knows modules, not tasks.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from typing import Any

from modelyard.errors import ModelError
from modelyard.weights.loading.lock import LOADING

__all__ = ["check_compiler", "compile_model", "find_compiler", "plain_state"]

_WRAPPED = "_orig_mod."


def find_compiler(device: str = "cpu") -> str | None:
    """The C++ compiler that torch would use for the CPU, `triton` for an accelerator; None where there is none."""
    if device.partition(":")[0] != "cpu":
        return "triton"
    from torch._inductor import config

    names = config.cpp.cxx
    for name in names if isinstance(names, tuple | list) else (names,):
        if name is not None and (found := shutil.which(name)):
            return found
    return None


def check_compiler(device: str = "cpu") -> str:
    """As `find_compiler`, where there must be one.

    Raises:
        ModelError: `no_compiler`: nothing could be compiled here.
    """
    found = find_compiler(device)
    if found is None:
        raise ModelError(
            "`compile` needs a C++ compiler, and there is none on the PATH",
            code="no_compiler",
            hint="install g++ or clang, or leave `compile` out",
        )
    return found


def compile_model(model: Any, *, device: str = "cpu") -> Any:
    """Compile `model.forward` in place; the same object comes back, with the same names of parameters.

    Shapes are dynamic, because every batch has its own lengths. The module is not wrapped, so nothing that is saved
    is called `_orig_mod`.

    Raises:
        ModelError: `no_compiler`.
    """
    check_compiler(device)
    with LOADING, warnings.catch_warnings():
        # torch's compiler still uses what torch deprecates; that is said when it is imported, and nobody here can help it.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._inductor.compile_fx")
        model.compile(dynamic=True)
    return model


def plain_state(model: Any) -> dict[str, Any]:
    """The state of a model without `_orig_mod` in any name, whoever compiled whichever part of it.

    >>> import torch
    >>> sorted(plain_state(torch.nn.ModuleDict({"_orig_mod": torch.nn.Linear(2, 2)})))
    ['bias', 'weight']
    """
    return {name.replace(_WRAPPED, ""): tensor for name, tensor in model.state_dict().items()}
