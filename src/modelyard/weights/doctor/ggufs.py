"""GGUF files: values of the formats whose bits are numbers. Headers were read with the other files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import YardError
from modelyard.weights.doctor.findings import SHOWN, from_error, make, some
from modelyard.weights.files import show_name
from modelyard.weights.gguf import read_gguf
from modelyard.weights.values import count_in_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding

__all__ = ["examine_ggufs"]


def examine_ggufs(case: Case) -> Iterator[Finding]:
    """One pass over the tensors that are plain floats; quantized blocks keep their scales and are not looked into."""
    found = [name for name, content in case.contents.items() if content == "gguf" and name not in case.broken]
    for name in found:
        try:
            yield from _values(case, name)
        except YardError as error:
            yield from_error(error)
    if found and case.headers:
        what = f"there is more than one set of weights: {some(found)} beside {some(case.headers)}; a loader takes safetensors"
        yield make("two_weight_sets", what, case.mend)


def _values(case: Case, name: str) -> Iterator[Finding]:
    header = read_gguf(case.files.path(name))
    broken = []
    with case.files.path(name).open("rb") as stream:
        for tensor in header.tensors:
            stream.seek(header.data_start + tensor.start)
            count = count_in_range(stream, tensor.type, tensor.end - tensor.start)
            if count:
                broken.append(f"{show_name(tensor.name)} ({count})")
    if broken:
        what = f"`{show_name(name)}`: {len(broken)} tensors hold NaN or infinity: {', '.join(broken[:SHOWN])}"
        yield make("nonfinite", what, "convert it again from a checkpoint whose values are finite")
