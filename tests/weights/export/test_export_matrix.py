"""Every architecture to every target is what docs/reference/exports.json says; and the trap that the padded check is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export_matrix import ARCHITECTURES, EXPORTS, read_rows, run_pair, tasks_of
from modelyard.errors import ModelError
from modelyard.weights.export import exporting, samples, steps
from modelyard.weights.parity import Batch


def test_the_data_has_every_pair() -> None:
    """Each architecture of the matrix has a row for each target: `pass` with its difference, or a reason; and nothing else is there."""
    rows = read_rows()
    assert set(rows) == {(name, target) for name in ARCHITECTURES for target in EXPORTS}
    for (name, target), row in rows.items():
        assert row["task"] == tasks_of()[name]
        assert row["type"] == EXPORTS[target]
        passed = row["result"] == "pass"
        assert passed == ("difference" in row)
        assert not passed or 0 <= row["difference"] <= 1e-4
        assert passed or len(row["result"]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_pair_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    """The architecture is exported to each target again, in processes of their own: what comes of it is what the data says."""
    rows = read_rows()
    for target in EXPORTS:
        assert run_pair(name, target, tmp_path)["result"] == rows[name, target]["result"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lost_mask_is_found_by_the_padded_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced with a mask of ones the graph has no attention_mask: right for single rows, and `export_differs` for padded ones."""
    from modelyard.weights.export import tracing

    seen: list[Any] = []

    def full(batches: Any, core: Any) -> dict[str, Any]:
        sample = samples.pick_sample(batches, core)
        return {
            "input_ids": sample["input_ids"],
            "attention_mask": sample["attention_mask"].new_ones(sample["input_ids"].shape),
        }

    def maskless(folder: Path, reference: Any, batches: Any, job: Any) -> Any:
        from modelyard.weights.export import open_export
        from modelyard.weights.parity import compare

        runner: Any = open_export(folder, threads=1)
        graph = runner._graphs["model"]
        assert "attention_mask" not in graph.inputs

        class Blind:
            """What somebody would do who knows the graph's inputs alone: no mask, whatever the batch."""

            def outputs(self, batch: Batch) -> dict[str, Any]:
                return runner.outputs(Batch({"input_ids": batch.inputs["input_ids"]}, None, batch.name))  # type: ignore[no-any-return]

            def generate(self, batch: Batch, tokens: int) -> None:
                return None

        seen.extend(compare(reference, Blind(), batches, tolerance=job.tolerance, tokens=0))
        return seen

    monkeypatch.setattr(exporting, "run_in_process", steps.run_job)
    monkeypatch.setattr(tracing, "pick_sample", full)
    monkeypatch.setattr(tracing, "refuse_constant", lambda sample: None)
    monkeypatch.setattr(steps, "compare_export", maskless)
    source = ARCHITECTURES["Llama"](tmp_path / "model")
    with pytest.raises(ModelError, match="padded: logits differs") as caught:
        exporting.export(source, tmp_path / "out", "onnx", threads=1)
    assert caught.value.code == "export_differs"
    assert {check.name: check.holds for check in seen} == {
        "length 4: logits": True,
        "length 7: logits": True,
        "length 12: logits": True,
        "padded: logits": False,
    }
    assert not (tmp_path / "out").exists()
