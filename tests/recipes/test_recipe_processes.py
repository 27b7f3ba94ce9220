"""A recipe in processes of its own: killed, run twice at once, interrupted, and run again without loading a model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.recipes import RunResult

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

SCRIPT = """
import json, sys, time
from pathlib import Path
from modelyard.app import open_yard
from modelyard.errors import YardError
from modelyard.recipes import StepProgress, StepStarted, load_recipe, run
from modelyard.settings import Settings

work, home, pause, seconds, *overrides = sys.argv[1:]
steps = []

def listen(event):
    if isinstance(event, StepStarted):
        steps.append(event.step)
    if isinstance(event, (StepStarted, StepProgress)):
        print(event.step, getattr(event, "detail", ""), flush=True)
        if event.step == pause.partition(":")[0] and pause.partition(":")[2] in getattr(event, "detail", ""):
            time.sleep(float(seconds))

started = time.monotonic()
try:
    result = run(
        load_recipe(Path(work) / "recipe.yaml", overrides=overrides),
        open_yard(Settings(home=Path(home), author="tester"), create=True),
        workspace=Path(work), runs=Path(home) / "runs", progress=listen)
except YardError as error:
    print(json.dumps({"error": error.to_dict()}), flush=True)
    sys.exit(error.exit_code)
print(json.dumps({"result": result.to_dict(), "steps": steps, "seconds": time.monotonic() - started,
                  "heavy": sorted({"torch", "transformers", "peft", "trl", "datasets"} & set(sys.modules))}), flush=True)
"""


def start(workspace: Path, home: Path, *overrides: str, pause: str = "-", seconds: float = 60) -> subprocess.Popen[str]:
    """Start the recipe in a process; `pause` is `STEP:TEXT`, where it waits to be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(workspace), str(home), pause, str(seconds), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a process and return what it said at its end."""
    out, err = process.communicate(timeout=120)
    assert out.strip(), err
    said: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return said


def stop_at(process: subprocess.Popen[str], text: str, how: signal.Signals) -> None:
    """Read what the process says until `text` occurs, and send it a signal."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            break
    else:
        pytest.fail(f"the process never said {text!r}: {process.stderr.read() if process.stderr else ''}")
    process.send_signal(how)
    process.communicate(timeout=120)


@pytest.fixture
def finished_versions(_finished_once: tuple[Path, RunResult]) -> dict[str, Any]:
    """The versions that an undisturbed run of the recipe makes."""
    return _finished_once[1].versions


@pytest.mark.parametrize("pause", ["train:step 2 of 3", "merge:"])
def test_kill_9_and_the_same_recipe_goes_on(
    workspace: Path, home: Path, finished_versions: dict[str, Any], pause: str, request: pytest.FixtureRequest
) -> None:
    """A run killed in training or merging is continued by the same recipe, to the very same versions."""
    process = start(workspace, home, pause=pause)
    stop_at(process, pause.replace(":", " "), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    result: RunResult = request.getfixturevalue("run_recipe")()
    step = pause.partition(":")[0]
    assert next(found.step for found in result.steps if not found.cached) == step
    assert result.versions == finished_versions
    if step == "train":
        assert result.outputs("train")["resumed_from"] is not None
    left = {path.name for path in (home / "runs").iterdir()}
    assert left <= {"fingerprints.json", "locks", "recipes", "scratch"}


@pytest.mark.usefixtures("finished")
def test_a_second_run_loads_no_model_library(workspace: Path, home: Path) -> None:
    """Finding that there is nothing to do imports neither torch nor transformers and takes well under five seconds."""
    said = finish(start(workspace, home))
    assert said["result"]["did_nothing"]
    assert said["heavy"] == []
    assert said["seconds"] < 5


def test_the_same_recipe_at_the_same_time_is_refused(
    workspace: Path, home: Path, run_recipe: Callable[..., RunResult]
) -> None:
    """A second run of a running recipe is told the process id, and disturbs nothing; another recipe is not held up."""
    first = start(workspace, home, pause="data:")
    try:
        assert first.stdout is not None
        while "data" not in first.stdout.readline():
            pass
        with pytest.raises(BusyError, match=f"process {first.pid}") as caught:
            run_recipe()
        assert caught.value.details["pid"] == first.pid
        assert not run_recipe("name=other", "repo=team/other", until="data").did_nothing
    finally:
        first.kill()
        first.communicate(timeout=60)
    assert not run_recipe(until="data").did_nothing


def test_ctrl_c_in_training_saves_the_state(
    workspace: Path, home: Path, finished_versions: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """An interrupted training saves its state and ends as Ctrl-C does; the same recipe goes on from there."""
    process = start(workspace, home, "train.save_every=100", pause="train:step 1 of 3", seconds=2)
    stop_at(process, "train step 1", signal.SIGINT)
    result: RunResult = request.getfixturevalue("run_recipe")()
    assert result.outputs("train")["resumed_from"] in {1, 2}
    assert result.versions == finished_versions


def test_runs_of_two_recipes_share_what_is_the_same(finished: RunResult, run_recipe: Callable[..., RunResult]) -> None:
    """Another recipe with the same base and data trains for itself and finds the base's evaluation done."""
    started = time.monotonic()
    result = run_recipe("name=other", "repo=team/other", "data.repo=team/tiny-data")
    by_name = {step.step: step.cached for step in result.steps}
    assert by_name["base"]
    assert by_name["evaluate-base"]
    assert not by_name["train"]
    assert result.versions["dataset"] == finished.versions["dataset"]
    assert time.monotonic() - started < 60
