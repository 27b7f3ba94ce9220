"""Every adapter kind x {attach, merge exact, merge peft}, run for real, as the rows of docs/reference/formats.md; exports beside it.

PEFT is the judge: attached, ours answers as its `PeftModel`; merged exactly, the model answers as the attached one does; merged as
PEFT does, no element differs from what its `merge_and_unload` and `save_pretrained` write.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adapter_kinds import Kind, Made

__all__ = ["EXPORTS", "PAGE", "STEPS", "Row", "line", "render", "run_kind"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "formats.md"
EXPORTS = ROOT / "docs" / "reference" / "exports.json"
STEPS = ("attach", "merge exact", "merge peft")
_YES = "yes"
_TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Row:
    """What became of one kind: `yes`, or the reason why not, for each of `STEPS`."""

    kind: str
    group: str
    cells: tuple[str, ...]


def run_kind(kind: Kind, folder: Path) -> Row:
    """Attach and merge one kind of adapter in both modes."""
    with warnings.catch_warnings():
        # PEFT and transformers warn of much here (tied weights, merges that lose a little); what counts is what comes out.
        warnings.simplefilter("ignore")
        made = kind(folder)
        attached = _run_attached(kind, made)
        return Row(
            kind.name,
            kind.group,
            (
                _attach(kind, made, attached),
                _merge_exact(made, folder / "exact", attached),
                _merge_peft(kind, made, folder),
            ),
        )


def _run_attached(kind: Kind, made: Made) -> Any:
    """What base and adapter answer in PEFT; None where PEFT cannot attach the adapter."""
    return None if kind.peft == "unloadable" else made.run(made.attach())


def _attach(kind: Kind, made: Made, attached: Any) -> str:
    from modelyard.weights.load import load
    from modelyard.weights.loading.adapters import using

    if attached is None:
        return f"PEFT cannot: {kind.why}"
    if kind.peft == "wrong" and _same(made.run(made.attach()), attached, 0.0) != _YES:
        return f"PEFT's own answers change from load to load: {kind.why}"
    dtype = str(made.load().dtype).removeprefix("torch.")
    try:
        model = load(
            made.base, adapters={"it": made.adapter}, model_class=made.model, dtype=dtype, allow=("preprocessor",)
        )
    except YardError as error:
        return _reason(error, made)
    with using(model.model, "it"):
        # The sums of torch's float16 products depend on where their operands lie in memory; the others' do not.
        return _same(made.run(model.model), attached, _TOLERANCE[dtype] if dtype == "float16" else 0.0)


def _merge_exact(made: Made, out: Path, attached: Any, **how: Any) -> str:
    from modelyard.weights.files import FolderFiles
    from modelyard.weights.merge import merge

    if made.original is not None and not how:
        return _both(made, out, attached)
    try:
        merge(FolderFiles(made.base), FolderFiles(made.adapter), out, threads=1, **how)
    except YardError as error:
        return _reason(error, made)
    model = made.load(out)
    if attached is None:
        changed = made.run(made.load()).sub(made.run(model)).abs().max() > 0
        return _YES if changed else "the merge changed nothing"
    return _same(made.run(model), attached, _TOLERANCE[str(made.load().dtype).removeprefix("torch.")])


def _both(made: Made, out: Path, attached: Any, **how: Any) -> str:
    """A quantized base: each of the two answers merges, and is judged by the adapter attached to the base that it is of."""
    from peft import PeftModel

    from modelyard.weights.files import FolderFiles

    original = made.original
    assert original is not None
    of_original = made.run(PeftModel.from_pretrained(made.load(original), str(made.adapter)).eval())
    answers = {
        "dequantized": _merge_exact(made, out / "d", attached, quantized="dequantized", **how),
        "original": _merge_exact(
            made, out / "o", of_original, quantized="original", original=FolderFiles(original), **how
        ),
    }
    return "; ".join(f"`{which}`: {answer}" for which, answer in answers.items())


def _merge_peft(kind: Kind, made: Made, folder: Path) -> str:
    import torch

    from modelyard.weights.files import FolderFiles
    from modelyard.weights.merge import merge

    if made.original is not None:
        return _both(made, folder / "peft", _run_attached(kind, made), mode="peft")
    try:
        merge(
            FolderFiles(made.base),
            FolderFiles(made.adapter),
            folder / "peft",
            mode="peft",
            threads=torch.get_num_threads(),
        )
    except YardError as error:
        return _reason(error, made)
    if kind.peft != "right":
        return f"merged; PEFT has nothing to compare it with: {kind.why}"
    made.attach().merge_and_unload().save_pretrained(folder / "judge")
    return _equal(_tensors(folder / "peft"), _tensors(folder / "judge"))


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    if ours.keys() != theirs.keys():
        return f"other names than PEFT: {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])}"
    import torch

    def _bits(tensor: Any) -> Any:
        return tensor.reshape(-1).view(torch.uint8)

    def _is_odd(one: Any, other: Any) -> bool:
        return (one.dtype, one.shape) != (other.dtype, other.shape) or not torch.equal(_bits(one), _bits(other))

    odd = [name for name, tensor in ours.items() if _is_odd(tensor, theirs[name])]
    return f"differs from PEFT in {', '.join(sorted(odd)[:3])}" if odd else _YES


def _same(ours: Any, theirs: Any, tolerance: float) -> str:
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    return _YES if difference <= tolerance else f"differs by {difference:.1e} of the largest value"


def _reason(error: YardError, made: Made) -> str:
    """The error's words without the folder's name, which changes from run to run."""
    return error.message.replace(f"{made.base.parent}/", "").replace("|", "/")


def line(row: Row) -> str:
    """The row of the page."""
    return f"| {row.group} | `{row.kind}` | {' | '.join(row.cells)} |"


def render(rows: Iterable[Row], exports: Mapping[str, Any] | None = None) -> str:
    """The whole page."""
    found = exports if exports is not None else json.loads(EXPORTS.read_text("utf-8"))
    return "\n".join([*_HEAD, *(line(row) for row in rows), *_export_lines(found), ""])


_HEAD = (
    "# Formats: what is merged, and what is exported",
    "",
    "Generated by `python scripts/formats_page.py`; `tests/weights/merge/test_formats_page.py` runs each row again. Every row is a tiny base and a real PEFT",
    "adapter (`tests/adapter_kinds.py`). *attach*: `load(base, adapters=...)` answers as PEFT's own model. *merge exact*: the merged model answers as base and",
    "adapter do (to 2e-5 of the largest value in float32, 0.1 in bfloat16). *merge peft*: no element differs from PEFT's `merge_and_unload` and `save_pretrained`.",
    "Anything but `yes` is what the command says.",
    "",
    "## Adapters",
    "",
    "| group | kind | " + " | ".join(STEPS) + " |",
    "|---|---|" + "---|" * len(STEPS),
)


def _export_lines(found: Mapping[str, Any]) -> list[str]:
    """The table of exports, as `make test-slow` recorded it: an architecture a line, a target and type a column."""
    cells: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for row in found["rows"]:
        cell = f"{row['difference']:.0e}" if row["result"] == "pass" else _footnote(str(row["result"]), notes)
        cells.setdefault(row["architecture"], {})[f"`{row['target']}` {row['type']}"] = cell
    targets = list(dict.fromkeys(target for row in cells.values() for target in row))
    libraries = ", ".join(f"{name} {version}" for name, version in found["libraries"].items())
    return [
        "",
        "## Exports",
        "",
        "Recorded by `tests/weights/export/test_export_matrix.py` (`make test-slow`): a tiny model of each architecture, exported and compared with its source on single",
        "rows, a padded batch and greedy generation with cache. The number is the largest difference, as a share of the largest value; a letter is a reason, below.",
        "Quantized types of models this small and untrained differ much: docs/benchmarks.md has a trained one.",
        f"With {libraries}.",
        "",
        f"| architecture | {' | '.join(targets)} |",
        "|---|" + "---|" * len(targets),
        *(f"| {name} | {' | '.join(row.get(target, '') for target in targets)} |" for name, row in cells.items()),
        "",
        *(f"- **{_letter(at)}**: {note}" for at, note in enumerate(notes)),
    ]


def _footnote(reason: str, notes: list[str]) -> str:
    if reason not in notes:
        notes.append(reason)
    return f"**{_letter(notes.index(reason))}**"


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else f"a{chr(ord('a') + at - 26)}"
