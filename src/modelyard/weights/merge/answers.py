"""How far the two answers to a merge into a quantized base are from what was trained: the adapter on the quantized base.

One answer adds the adapter to what the base dequantizes to, the other to the weights that it was quantized from. The adapter was trained on the
first; the second undoes the quantization's error, which training may have made up for. Which is nearer depends on the two, so it is measured.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelyard.weights.files import FolderFiles

if TYPE_CHECKING:
    from modelyard.weights.files import Files
    from modelyard.weights.parity import Check

    Answer = Literal["dequantized", "original"]

__all__ = ["compare_answers"]


def compare_answers(
    base: Files,
    adapter: Files,
    merged: Path,
    *,
    chosen: Answer,
    original: Files | None = None,
    mode: Literal["exact", "peft"] = "exact",
    threads: int | None = None,
) -> list[Check]:
    """Measure the merged folder, and the other answer where it can be had, against the adapter on its quantized base.

    The other answer is merged into a temporary folder beside `merged`, which takes a model's room for that long.

    Args:
        base: The quantized base.
        adapter: The adapter that was trained on it.
        merged: What was merged.
        chosen: Which answer that is.
        original: The weights before quantization; without them there is no other answer to `dequantized`.
        mode: As the merge was made.
        threads: Compute threads of torch; None leaves them.

    Returns:
        The checks of `proof.prove` with the answer's name in front of theirs: the chosen one's first.

    Raises:
        ModelError: As `prove`.
    """
    from modelyard.weights.merge.merging import merge
    from modelyard.weights.merge.proof import prove

    checks = _name(prove(base, adapter, FolderFiles(merged), threads=threads), chosen)
    other: Answer = "original" if chosen == "dequantized" else "dequantized"
    if other == "original" and original is None:
        return checks
    with tempfile.TemporaryDirectory(prefix=".answer-", dir=merged.parent) as scratch:
        folder = Path(scratch) / other
        source = original if other == "original" else None
        merge(base, adapter, folder, mode=mode, quantized=other, original=source, threads=threads)
        return checks + _name(prove(base, adapter, FolderFiles(folder), threads=threads), other)


def _name(checks: list[Check], answer: str) -> list[Check]:
    return [replace(check, name=f"{answer}: {check.name}") for check in checks]
