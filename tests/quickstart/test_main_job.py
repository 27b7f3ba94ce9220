"""The main job end to end, as a user runs it: `yard quickstart`, for real, once for all tests of this file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from processes import Quickstart

pytestmark = pytest.mark.xdist_group("quickstart")


def test_the_fine_tune_beats_the_base_and_passes_its_gate(quickstart: Quickstart) -> None:
    """The base scores near zero, the merged version at least 0.9 on 500 rows or more, and the gate says pass."""
    result = quickstart.result

    assert result["base_accuracy"] <= 0.02
    assert result["accuracy"] >= 0.9
    assert result["n"] >= 500
    assert result["p_value"] < 0.01
    assert result["gate"]["decision"] == "pass"


def test_no_test_row_occurs_in_any_training_text(quickstart: Quickstart) -> None:
    """The contamination check ran over both corpora and found no row and no held-out phrase."""
    found = quickstart.result["contamination"]

    assert set(found) == {"train", "base"}
    assert found["base"]["documents"] > 100_000
    assert [(part["contaminated"], part["phrases_found"]) for part in found.values()] == [(0, []), (0, [])]


def test_what_is_served_is_what_was_evaluated(quickstart: Quickstart) -> None:
    """The answer over HTTP carries the id of the merged version, whose report the gate judged, and is the right JSON."""
    result = quickstart.result
    shown = json.loads(quickstart.yard("show", "quickstart/support@production", "--json").stdout)

    assert result["served_version"] == result["versions"]["merged"] == shown["id"]
    assert {report["model"] for report in shown["reports"]} == {shown["id"]}
    assert json.loads(result["answer"])["order"] in result["question"]


def test_every_step_is_in_the_lineage(quickstart: Quickstart) -> None:
    """The merged version's lineage leads to the adapter, the base and the dataset."""
    graph = json.loads(quickstart.yard("lineage", "quickstart/support@production", "--json").stdout)
    versions = quickstart.result["versions"]

    assert {(child, kind, source) for child, kind, source in (edge.values() for edge in graph["edges"])} >= {
        (versions["merged"], "merged", versions["adapter"]),
        (versions["merged"], "merged", versions["base"]),
        (versions["adapter"], "finetuned", versions["base"]),
        (versions["adapter"], "trained-on", versions["dataset"]),
    }


def test_the_checked_out_folder_loads_anywhere(
    quickstart: Quickstart, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Transformers loads the checked out merged version and answers as the server did."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("out") / "model"
    assert quickstart.yard("checkout", "quickstart/support@production", str(folder)).returncode == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    messages = [{"role": "user", "content": quickstart.result["question"]}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]

    assert tokenizer.decode(made, skip_special_tokens=True) == quickstart.result["answer"]


def test_a_second_run_does_nothing_again(quickstart: Quickstart) -> None:
    """Run again, the quickstart finds every step done and makes no new version."""
    done = quickstart.yard("quickstart", "--json", timeout=300)
    result = json.loads(done.stdout)

    assert result["did_nothing"] is True
    assert result["versions"] == quickstart.result["versions"]


def test_the_gate_stays_with_the_alias(quickstart: Quickstart) -> None:
    """Promoting the adapter by hand is refused with the gate's reason and exit code 7, and the alias stays."""
    refused = quickstart.yard("promote", "quickstart/support@v1", "--to", "production", "--json")
    shown = json.loads(quickstart.yard("show", "quickstart/support@production", "--json").stdout)

    assert refused.returncode == 7
    assert "yard eval" in refused.stderr
    assert shown["id"] == quickstart.result["versions"]["merged"]
