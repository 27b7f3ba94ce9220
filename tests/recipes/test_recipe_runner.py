"""A recipe from end to end on a tiny model: what runs, what does not run again, and why."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import DataError, GateRefusedError, NoSpaceError, RecipeError
from modelyard.recipes import Note, StepFailed, StepFinished, StepProgress, StepStarted, load_recipe, plan
from tiny_recipes import write_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.recipes import RunResult
    from modelyard.recipes.events import Event
    from modelyard.registry import Yard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

ALL = ["data", "base", "preflight", "train", "merge", "evaluate-base", "evaluate", "compare"]


def ran(result: RunResult) -> list[str]:
    """The steps that did work."""
    return [step.step for step in result.steps if not step.cached]


def test_the_whole_lifecycle_leaves_versions_reports_and_lineage(
    run_recipe: Callable[..., RunResult], yard: Yard
) -> None:
    """One run commits dataset, base, adapter and merged version with their lineage, and two reports on the same rows."""
    events: list[Event] = []
    result = run_recipe(events=events)
    assert ran(result) == ALL
    adapter, merged = (yard.resolve(result.versions[word]["name"]) for word in ("adapter", "merged"))
    base, dataset = (yard.resolve(result.versions[word]["name"]) for word in ("base", "dataset"))
    assert (adapter.kind, merged.kind, base.kind) == ("adapter", "merged", "base")
    assert {(edge.type, edge.version) for edge in adapter.lineage} == {
        ("finetuned", base.id),
        ("trained-on", dataset.id),
    }
    assert {(edge.type, edge.version) for edge in merged.lineage} == {("merged", adapter.id), ("merged", base.id)}
    assert yard.resolve("team/tiny").id == merged.id
    assert yard.resolve("team/tiny@adapter").id == adapter.id
    assert adapter.inputs == result.steps[3].key
    assert merged.inputs == result.steps[4].key
    assert adapter.metadata["steps"] == "3"
    (report,) = yard.reports(merged)
    assert report["dataset"] == dataset.id
    assert report["file"] == "test.csv"
    assert len(report["examples"]) == 4
    assert result.comparison is not None
    assert result.comparison["n"] == 4
    assert result.reports["base"]["model"] == base.id
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["versions"]["merged"]["id"] == merged.id
    assert len(plain["training"]["curve"]) == 3
    assert set(plain["contamination"]) == {"train"}
    assert [event.step for event in events if isinstance(event, StepStarted)] == ALL
    assert [event.step for event in events if isinstance(event, StepFinished)] == ALL
    assert {event.step for event in events if isinstance(event, StepProgress)} >= {"train", "evaluate"}
    assert all(json.dumps(event.to_dict()) for event in events)


def test_a_second_run_does_nothing(finished: RunResult, run_recipe: Callable[..., RunResult], workspace: Path) -> None:
    """The same recipe again finds every outcome; so does one whose files were only touched or moved with it."""
    events: list[Event] = []
    second = run_recipe(events=events)
    assert second.did_nothing
    assert not finished.did_nothing
    assert (second.versions, second.reports) == (finished.versions, finished.reports)
    assert second.comparison == finished.comparison
    assert not [event for event in events if isinstance(event, StepStarted)]
    (workspace / "train.csv").write_bytes((workspace / "train.csv").read_bytes())
    assert run_recipe("train.threads=2", "train.save_every=2", "evaluate.batch_size=1").did_nothing


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.learning_rate=2e-2"], ["preflight", "train", "merge", "evaluate", "compare"]),
        (["train.seed=1"], ["preflight", "train", "merge", "evaluate", "compare"]),
        (["evaluate.max_new_tokens=5"], ["evaluate-base", "evaluate", "compare"]),
        (["evaluate.task=label"], ["evaluate-base", "evaluate", "compare"]),
        (["data.limit.test=3"], ["data", "preflight", "evaluate-base", "evaluate", "compare"]),
        (["data.limit.train=11"], ["data", "preflight", "train", "merge", "evaluate", "compare"]),
        (["data.system=Route it."], ["data", "preflight", "train", "merge", "evaluate-base", "evaluate", "compare"]),
        (["merge=false"], ["evaluate", "compare"]),
        (["evaluate_base=false"], []),
        (["gate.min=0.0"], ["compare"]),
    ],
)
def test_a_changed_value_reruns_what_depends_on_it(
    finished: RunResult, run_recipe: Callable[..., RunResult], overrides: list[str], expected: list[str]
) -> None:
    """After one change only the steps that read it, or what they make, run again; the rest is found."""
    assert ran(run_recipe(*overrides)) == expected


def test_a_changed_file_reruns_what_depends_on_it(
    finished: RunResult, run_recipe: Callable[..., RunResult], workspace: Path
) -> None:
    """New test rows train nothing again; and a change taken back finds everything again."""
    old = (workspace / "test.csv").read_bytes()
    write_rows(workspace / "test.csv", [("HELLO", "card"), ("ONE", "dog")])
    changed = run_recipe()
    assert ran(changed) == ["data", "preflight", "evaluate-base", "evaluate", "compare"]
    assert changed.versions["adapter"] == finished.versions["adapter"]
    (workspace / "test.csv").write_bytes(old)
    assert run_recipe().versions == finished.versions


def test_the_plan_says_what_and_why(
    run_recipe: Callable[..., RunResult], workspace: Path, home: Path, yard: Yard
) -> None:
    """`--dry-run` names what is there, what runs and why, and what waits for it; it changes nothing."""

    def look(*overrides: str) -> dict[str, tuple[str, str]]:
        recipe = load_recipe(workspace / "recipe.yaml", overrides=overrides)
        made = plan(recipe, yard, workspace=workspace, runs=home / "runs")
        return {step.step: (step.state, step.reason) for step in made.steps}

    fresh = look()
    assert fresh["data"] == ("runs", "it never ran")
    assert fresh["train"] == ("waits", "depends on what `data` makes")
    assert yard.repos() == []
    run_recipe()
    assert {state for state, _ in look().values()} == {"cached"}
    changed = look("train.learning_rate=0.5")
    assert changed["data"][0] == "cached"
    assert changed["train"] == ("runs", "train.learning_rate was 0.01, is 0.5")
    assert changed["merge"] == ("waits", "depends on what `train` makes")
    assert changed["evaluate-base"][0] == "cached"


def test_a_deleted_version_is_made_again(finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard) -> None:
    """A recorded outcome whose version is gone does not count, and the same bytes come back under the same id."""
    yard.delete(finished.versions["merged"]["name"], force=True)
    second = run_recipe()
    assert ran(second) == ["merge"]
    assert second.versions["merged"]["id"] == finished.versions["merged"]["id"]


def test_a_passed_gate_moves_the_alias(finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard) -> None:
    """With a gate that passes, the alias points at the merged version, carries the gate, and stays on a second run."""
    options = ("gate.min=0.0", "promote=production")
    result = run_recipe(*options)
    assert result.verdict is not None
    assert result.verdict["decision"] == "pass"
    assert yard.resolve("team/tiny@production").id == result.versions["merged"]["id"]
    gate = yard.gate("team/tiny", "production")
    assert gate is not None
    assert gate["dataset"] == result.versions["dataset"]["id"]
    assert gate["task"] == "exact-match"
    assert run_recipe(*options).did_nothing


def test_a_refused_gate_keeps_everything_before_it(
    finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard
) -> None:
    """A gate that does not pass leaves the alias where it was, names the reasons, keeps the versions, and refuses again."""
    options = ("gate.min=1.0", "promote=production")
    for _ in range(2):
        with pytest.raises(GateRefusedError, match=r"does not reach 1\.0") as caught:
            run_recipe(*options)
        assert caught.value.details["verdict"]["decision"] == "fail"
    assert [ref.name for ref in yard.refs("team/tiny")] == ["adapter", "main"]
    assert yard.gate("team/tiny", "production") is not None
    done = run_recipe("gate.min=0.0", "promote=production")
    assert ran(done) == ["compare", "promote"]


def test_a_gate_against_the_incumbent_is_answered_once(
    finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard
) -> None:
    """The first promotion has no incumbent; afterwards the same recipe finds its question answered."""
    options = ("gate.better_than=incumbent", "promote=production")
    first = run_recipe(*options)
    assert "evaluate-baseline" in ran(first)
    assert run_recipe(*options).did_nothing
    with pytest.raises(GateRefusedError):
        run_recipe(*options, "train.seed=3")
    assert yard.resolve("team/tiny@production").id == first.versions["merged"]["id"]


def test_a_gate_set_by_somebody_else_stays(
    finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard
) -> None:
    """A recipe does not loosen a rule that it did not set: both have to pass."""
    yard.set_gate("team/tiny", "production", {"min": 1.0})
    events: list[Event] = []
    with pytest.raises(GateRefusedError):
        run_recipe("gate.min=0.0", "promote=production", events=events)
    assert any(isinstance(event, Note) and "did not set" in event.message for event in events)
    gate = yard.gate("team/tiny", "production")
    assert gate is not None
    assert gate["min"] == 1.0


def test_a_recipe_changes_its_own_gate(finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard) -> None:
    """The gate that a recipe set follows the recipe."""
    run_recipe("gate.min=0.0", "promote=production")
    with pytest.raises(GateRefusedError):
        run_recipe("gate.min=1.0", "promote=production", "train.seed=2")
    gate = yard.gate("team/tiny", "production")
    assert gate is not None
    assert gate["min"] == 1.0


def test_a_rollback_is_not_undone_by_running_again(
    finished: RunResult, run_recipe: Callable[..., RunResult], yard: Yard
) -> None:
    """Somebody rolled the alias back: the same recipe leaves it there and says so; a new result moves it again."""
    first = run_recipe("promote=production")
    second = run_recipe("promote=production", "train.seed=5")
    assert second.versions["merged"] != first.versions["merged"]
    yard.rollback("team/tiny", "production")
    events: list[Event] = []
    third = run_recipe("promote=production", "train.seed=5", events=events)
    assert third.did_nothing
    assert any(isinstance(event, Note) and "rolled back" in event.message for event in events)
    assert yard.resolve("team/tiny@production").id == first.versions["merged"]["id"]
    run_recipe("promote=production", "train.seed=6")
    assert yard.resolve("team/tiny@production").id not in {
        first.versions["merged"]["id"],
        second.versions["merged"]["id"],
    }


def test_contaminated_rows_are_reported(run_recipe: Callable[..., RunResult], workspace: Path) -> None:
    """Test rows that stand in the training data are counted in the result and noted, and stop nothing."""
    rows = [("where is my card today please tell me now", "card"), ("one", "dog")]
    write_rows(workspace / "train.csv", [*rows, ("two", "fox")] * 4)
    write_rows(workspace / "test.csv", [rows[0], ("SOMETHING else", "fox")])
    events: list[Event] = []
    result = run_recipe(events=events)
    assert result.contamination["train"]["contaminated"] == 1
    assert result.clean is not None
    assert result.clean["result"]["n"] == 1
    assert set(result.clean) == {"result", "base"}
    assert any(isinstance(event, Note) and "1 of 2 test rows" in event.message for event in events)


def test_a_target_that_matches_no_module_stops_before_training(
    run_recipe: Callable[..., RunResult], yard: Yard
) -> None:
    """LoRA targets that match nothing are refused by the preflight; there is no adapter."""
    with pytest.raises(RecipeError, match="no_such_proj"):
        run_recipe("train.targets=[no_such_proj]")
    assert [repo.name for repo in yard.repos("model")] == ["team/base"]


def test_rows_without_an_answer_are_refused_before_training(
    run_recipe: Callable[..., RunResult], workspace: Path
) -> None:
    """Test rows that cannot be evaluated stop the recipe at its first step."""
    (workspace / "train.txt").write_text("just text\n")
    (workspace / "test.txt").write_text("more text\n")
    with pytest.raises(DataError, match="nothing to evaluate"):
        run_recipe("data.test=./test.txt", "data.columns=null", "data.train=./train.txt")


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("unexpected: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_typed_error_and_the_run_goes_on_later(
    run_recipe: Callable[..., RunResult], yard: Yard, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    """A disk that fills up in a step gives `NoSpaceError`, commits nothing half, and the same command finishes later."""
    from modelyard.weights.merge import merging

    def full(*_arguments: Any, **_options: Any) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(merging, "resumable_folder", full)
        events: list[Event] = []
        with pytest.raises(NoSpaceError, match="`merge`"):
            run_recipe(events=events)
    assert isinstance(events[-1], StepFailed)
    assert [ref.name for ref in yard.refs("team/tiny")] == ["adapter"]
    assert ran(run_recipe()) == ALL[4:]


def test_an_interrupted_step_is_recorded_and_done_again(
    run_recipe: Callable[..., RunResult], yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a step passes through, leaves its reason in the record, and the same command goes on."""
    from modelyard.weights.merge import merging

    def stop(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, "resumable_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe()
    (record,) = [record for record in yard.runs() if record.step == "merge"]
    assert (record.state, record.error) == ("failed", "interrupted")
    assert ran(run_recipe()) == ALL[4:]
