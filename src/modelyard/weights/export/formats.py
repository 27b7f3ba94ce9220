"""What can be exported to: the formats, the types of numbers of each, the packages they need and how exact they have to be.

Values and look-ups in them; starts nothing, and asks a package only what architectures it knows.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from modelyard.errors import ModelError, RequestError, near_match

__all__ = ["FORMATS", "PACKAGES", "TYPES", "check_request", "default_tolerance", "supported_architectures"]

TYPES: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32",),
    "openvino": ("fp32", "fp16"),
    "genai": ("int4", "int8", "fp32"),
    "gguf": ("F16", "F32", "BF16", "Q8_0", "Q4_0"),
}
"""Format to its types, the default first. Of OpenVINO and genai it is the weights' type: what is computed is float32."""

FORMATS = tuple(TYPES)

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnx_ir", "onnxruntime"),
    "openvino": ("openvino",),
    "genai": ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai"),
    "gguf": (),
}
"""Modules that a format needs and the core does not have: the extra `export`."""

# Largest difference from the source in float32, relative to the largest magnitude of its output. Sums in another order cost
# about 1e-6; float16 weights 5e-4. What rounding to 8 and 4 bits costs depends on the model: these bounds tell a working
# graph from a broken one, and the certificate has what was measured.
_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1, "int4": 0.5}


def check_request(format: str, type: str | None) -> str:  # noqa: A002  the names of `export`
    """The type to export with.

    Raises:
        RequestError: No such format, or no such type of it.
        ModelError: `missing_package`: what the format needs is not installed.
    """
    if format not in TYPES:
        meant = near_match(format, FORMATS)
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(FORMATS)}"
        raise RequestError(f"no export format `{format}`", hint=hint, field="format")
    known = TYPES[format]
    chosen = known[0] if type is None else type
    if chosen not in known:
        raise RequestError(
            f"an export to {format} has no type `{chosen}`", hint=f"one of {', '.join(known)}", field="type"
        )
    for package in PACKAGES[format]:
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"an export to {format} needs the package `{package}`, which is not installed",
                code="missing_package",
                hint="pip install 'modelyard[export]'",
                package=package,
            )
    return chosen


def default_tolerance(type: str) -> float:  # noqa: A002  as `export` has it
    """The tolerance of an export of this type when none is asked for.

    >>> default_tolerance("fp32")
    0.0001
    """
    return _TOLERANCES[type]


@cache
def supported_architectures(format: str) -> frozenset[str] | None:  # noqa: A002  the name of `export`
    """The classes that a format is made for; None where it is found out by trying, as transformers' exporters do.

    onnxruntime-genai's builder has no list: its own dispatch is read, not run.
    """
    if format != "genai":
        return None
    import re

    spec = importlib.util.find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        return frozenset()
    text = (Path(spec.origin).parent / "models" / "builder.py").read_text("utf-8")
    return frozenset(re.findall(r'config\.architectures\[0\] == "(\w+)"', text))
