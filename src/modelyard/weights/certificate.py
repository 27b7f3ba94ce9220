"""`Certificate`: what an operation on weights did, in numbers and digests that anybody can check by doing it again.

JSON of a fixed form (docs/design/transforming.md), the file `certificate.json` of a folder that an operation wrote. This module holds values: it knows no
operation, opens no weights and measures nothing.

>>> made = Certificate("convert", "cast/1", outputs={"model.safetensors": "ab" * 32}, matched={"cast": 3, "kept": 1})
>>> Certificate.from_dict(made.to_dict()) == made
True
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.files import show_name
from modelyard.weights.output import write_file
from modelyard.weights.pipeline import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.digest import Digest
    from modelyard.weights.files import Files

__all__ = ["EVERYWHERE", "FILE", "FORMAT", "THIS_MACHINE", "Certificate", "describe_machine", "read"]

FORMAT = "modelyard/certificate/1"
FILE = "certificate.json"
"""The file's name in a folder; it never is one of the model's own files."""

EVERYWHERE = "everywhere"
"""Exactness of an operation of docs/design/derivations.md: the same bits on every machine."""
THIS_MACHINE = "this machine"
"""Exactness of what depends on libraries, processor or threads; `Certificate.machine` names them."""

_LIMIT = 256 << 20


@dataclass
class Certificate:
    """The proof of one operation.

    Attributes:
        operation: What was done: `merge`, `convert`, `quantize`, ...
        method: How: `lora/1`, `cast/1`, `ties`, `torchao-int8`, ...
        options: What it was asked with, as plain JSON.
        exactness: `EVERYWHERE` or `THIS_MACHINE`.
        inputs: Role (`base`, `adapter`, `source`) to file name to digest.
        outputs: File name to digest of what was written.
        matched: Counts by what they count, as `{"cast": 290, "kept": 1}`; plain JSON.
        changes: One entry for each tensor that was changed, in the order of the files; plain JSON.
        checks: Measured differences, as `parity.Check.to_dict` gives them.
        warnings: Sentences for people.
        machine: `describe_machine()` where `exactness` is `THIS_MACHINE`.
    """

    operation: str
    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    exactness: str = EVERYWHERE
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    matched: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    machine: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain JSON, its `format` first."""
        return {"format": FORMAT} | {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], label: str = FILE) -> Certificate:
        """The certificate that `to_dict` made. Unknown keys are left out: a later version may say more.

        Raises:
            ModelError: `bad_certificate`, naming the key that is missing or of another kind.
        """
        if plain.get("format") != FORMAT:
            raise _bad(label, f"its format is {show_name(str(plain.get('format')))}, not {FORMAT}")
        blank = cls("")
        values: dict[str, Any] = {}
        for each in fields(cls):
            default = getattr(blank, each.name)
            value = plain.get(each.name, default)
            kind = dict if each.name == "machine" and value is not None else type(default)
            if not isinstance(value, kind):
                raise _bad(label, f"`{each.name}` is not of the right kind")
            values[each.name] = value
        if not values["operation"]:
            raise _bad(label, "it names no `operation`")
        if not all(isinstance(digests, dict) for digests in values["inputs"].values()):
            raise _bad(label, "`inputs` does not map roles to files")
        if not all(isinstance(item, dict) for item in values["changes"] + values["checks"]):
            raise _bad(label, "`changes` and `checks` are not lists of objects")
        return cls(**values)

    def write(self, folder: Path) -> Digest:
        """Write `certificate.json` into `folder`, durably; its digest.

        Raises:
            FileExistsError: There is one.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        return write_file(folder / FILE, (text + "\n").encode())


def read(files: Files) -> Certificate | None:
    """The certificate among a model's files; None where there is none.

    Raises:
        ModelError: `bad_certificate`.
    """
    if FILE not in files.names():
        return None
    label = f"{files.label}/{FILE}"
    try:
        plain = json.loads(files.read(FILE, _LIMIT).decode("utf-8"))
    except (ValueError, RecursionError):
        raise _bad(label, "it is not JSON") from None
    if not isinstance(plain, dict):
        raise _bad(label, "it is not a JSON object")
    return Certificate.from_dict(plain, label)


def describe_machine(*libraries: str, threads: int | None = None) -> dict[str, Any]:
    """What an inexact result depends on: processor, system, threads and the versions of `libraries` that are installed.

    Args:
        libraries: Distribution names beside numpy: `torch`, `peft`, ...
        threads: Compute threads; None is every core that this process may use.
    """
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads or usable_cores(),
        "libraries": {name: version for name in ("numpy", *libraries) if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model: platform.processor() says only `x86_64` on most Linux systems."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no such file on other systems, and none is needed there
    return platform.processor() or platform.machine()


def _bad(label: str, what: str) -> ModelError:
    return ModelError(f"`{label}` is not a certificate: {what}", code="bad_certificate")
