"""The single steps of a lifecycle as functions, for the commands that do one thing.

They share the steps' code and the steps' keys: what a recipe evaluated is not evaluated again by hand, and the other way
round. This module does not know where a yard's folder is: `runs` is handed in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError, ModelError, NotFoundError
from modelyard.recipes import hubs, rows
from modelyard.recipes.events import ignore
from modelyard.recipes.runner import run
from modelyard.recipes.schema import DataSection, Recipe, data_section
from modelyard.recipes.sources import HubSource, VersionFile, is_path, parse_base, parse_data
from modelyard.recipes.steps.data import file_in
from modelyard.recipes.steps.evaluate import evaluate_version, evaluation_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelyard.evaluation import TaskConfig
    from modelyard.recipes.events import Progress
    from modelyard.recipes.resources import Resources
    from modelyard.recipes.runner import RunResult
    from modelyard.registry import Kind, Version, Yard
    from modelyard.training.config import TrainConfig

__all__ = ["EvaluationResult", "evaluate_reference", "import_model", "train_only"]


@dataclass(frozen=True)
class EvaluationResult:
    """A report, in short.

    Attributes:
        version: The version that was evaluated, by name.
        report: Digest of the stored report.
        cached: Whether this very evaluation had been done before.
        accuracy: The mean score.
        interval: Its 95 % interval.
        metrics: Every metric.
        n: How many examples.
        dataset: The dataset version, by name; None for a file that is in no yard.
    """

    version: str
    report: str
    cached: bool
    accuracy: float
    interval: tuple[float, float]
    metrics: dict[str, float]
    n: int
    dataset: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {**asdict(self), "interval": list(self.interval)}


def import_model(
    yard: Yard, source: str, *, to: str, kind: Kind | None = None, message: str = "", offline: bool = False
) -> Version:
    """Commit a model from a folder, a snapshot in a hub cache, or a hub (`hf://org/name[@rev]`).

    Args:
        yard: Where to.
        source: A path or a hub id.
        to: The repo.
        kind: Of the version; None reads it from the files.
        message: For people.
        offline: Whether a hub may not be asked for anything.

    Raises:
        NotFoundError: There is no such folder, or the hub or its cache has no such model.
        ModelError: It is no model and no adapter, or its weights are not sound (`PickleError` for a pickle).
    """
    if source.startswith("hf:"):
        parsed = parse_base(source)
        if not isinstance(parsed, HubSource):
            raise InputError(f"`{source}` is not a hub id", hint="write `hf://org/name` or `hf://org/name@revision`")
        snapshot = hubs.fetch(parsed, yard=yard, offline=offline)
        files, origin = snapshot.files, f"hf://{snapshot.repo}@{snapshot.commit}"
    else:
        if not Path(source).exists():
            raise NotFoundError(f"there is no folder `{source}`", hint="a hub id is written `hf://org/name`")
        files, origin = hubs.open_folder(Path(source)), source
    from modelyard.weights.checks import check_weights
    from modelyard.weights.inspect import inspect

    check_weights(files)
    found = inspect(files)
    if found.kind not in {"model", "adapter"}:
        raise ModelError(
            f"`{origin}` is no model: it has no config.json with weights", hint="to keep it anyway: yard commit"
        )
    given = kind or ("adapter" if found.kind == "adapter" else "base")
    return yard.commit(files, to, kind=given, message=message or f"imported from {origin}", metadata={"source": origin})


def train_only(
    yard: Yard,
    *,
    base: str,
    data: DataSection,
    to: str,
    config: TrainConfig,
    workspace: Path,
    runs: Path,
    base_repo: str | None = None,
    progress: Progress = ignore,
    resources: Resources | None = None,
    threads: int | None = None,
    offline: bool = False,
) -> RunResult:
    """Fine-tune a base on data and commit the adapter to branch `adapter` of `to`: a recipe up to its `train` step.

    Args:
        yard: Where versions live.
        base: As in a recipe.
        data: As in a recipe; `test` may be left out.
        to: The repo of the adapter.
        config: How to train.
        workspace: What relative paths in `base` and `data` are relative to.
        runs: A folder of the yard for checkpoints, scratch files and locks.
        base_repo: Where a base that is no version yet is committed; None derives it.
        progress: Told what happens.
        resources: Finds `package:NAME`.
        threads: Compute threads.
        offline: Whether a hub may not be asked for anything.

    Raises:
        YardError: As `run`.
    """
    recipe = Recipe(name="train", repo=to, base=base, base_repo=base_repo, data=data, train=config, merge=False)
    return run(
        recipe,
        yard,
        workspace=workspace,
        runs=runs,
        progress=progress,
        resources=resources,
        threads=threads,
        offline=offline,
        until="train",
    )


def evaluate_reference(
    yard: Yard,
    reference: str,
    *,
    data: str,
    task: TaskConfig | Mapping[str, Any] | str,
    options: Mapping[str, Any] | None = None,
    workspace: Path = Path(),
    again: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Evaluate a version on data and keep the report; what was evaluated before is not evaluated again.

    Args:
        yard: Where versions and reports live.
        reference: What to evaluate: a model or an adapter.
        data: A path, `datasets/ns/name[@rev]:file`, or `datasets/ns/name[@rev]`, which means its test file. Only a
            dataset version makes evidence that a gate on that dataset accepts.
        task: The task.
        options: How to read the file: keys of a recipe's `data` section (`format`, `columns`, `system`, `limit`,
            `seed`). For a dataset that a recipe committed, the default is what the recipe said.
        workspace: What a relative path is relative to.
        again: Evaluate even if this very evaluation is there.
        threads: Compute threads.
        progress: Told how many examples are done, of how many.

    Raises:
        NotFoundError: There is no such version, dataset or file.
        DataError: The rows cannot be evaluated.
        RecipeError: The task or an option is wrong.
    """
    from modelyard.evaluation import parse_task

    version, config = yard.resolve(reference), parse_task(task)
    path, dataset, section = _test_data(yard, data, dict(options or {}), workspace)
    inputs = evaluation_inputs(version, dataset, path.name, section, config) if dataset is not None else None
    record = yard.run_record(inputs.key) if inputs is not None and not again else None
    if record is not None and record.state == "finished" and record.outputs.get("report"):
        return _result(record.outputs, cached=True, dataset=dataset)
    examples = rows.examples(rows.read(path, section, "test"))
    if inputs is not None:
        yard.start_run(inputs.key, step="evaluate", inputs=inputs.to_dict())
    try:
        outputs = evaluate_version(
            yard, version, examples, config, dataset=dataset, file=path.name, threads=threads, progress=progress
        )
    except BaseException as error:
        if inputs is not None:
            yard.fail_run(inputs.key, error=str(error) or type(error).__name__)
        raise
    if inputs is not None:
        yard.finish_run(inputs.key, outputs)
    return _result(outputs, cached=False, dataset=dataset)


def _test_data(
    yard: Yard, data: str, options: dict[str, Any], workspace: Path
) -> tuple[Path, Version | None, DataSection]:
    """The file with the test rows, the dataset version it is in, and how to read it."""
    if is_path(data) or not data.startswith("datasets/"):
        path = workspace / data
        if not path.is_file():
            raise NotFoundError(f"there is no file `{path}`", hint="a dataset is written `datasets/ns/name[@rev]`")
        here = f"./{path.name}"
        return path, None, data_section({"train": here, "test": here, **options}, "data options")
    reference, colon, file = data.partition(":")
    version = yard.resolve(reference)
    if not colon:
        file = _test_file(version)
    source = parse_data(f"{reference}:{file}")
    if not isinstance(source, VersionFile):
        raise InputError(f"`{data}` is no file of a dataset")
    file_in(version, source.file, "data")
    section = rows.recovered(version.metadata, file).model_dump(exclude_none=True)
    return yard.folder(version) / file, version, data_section({**section, **options}, "data options")


def _test_file(version: Version) -> str:
    """The one file of a dataset version that holds test rows."""
    names = [entry.path for entry in version.files]
    tests = [name for name in names if Path(name).name.split(".")[0] == "test"]
    chosen = tests or (names if len(names) == 1 else [])
    if len(chosen) != 1:
        hint = f"name it: `{version.name}:{names[0]}`; it holds {', '.join(names[:10])}"
        raise NotFoundError(f"`{version.name}` has no single test file", hint=hint)
    return chosen[0]


def _result(outputs: Mapping[str, Any], *, cached: bool, dataset: Version | None) -> EvaluationResult:
    low, high = outputs["interval"]
    return EvaluationResult(
        version=outputs["model_name"],
        report=outputs["report"],
        cached=cached,
        accuracy=outputs["accuracy"],
        interval=(low, high),
        metrics=dict(outputs["metrics"]),
        n=outputs["n"],
        dataset=dataset.name if dataset is not None else None,
    )
