"""The table of tasks, against transformers' own tables: a mapping or an Auto class that it lacks fails here."""

from __future__ import annotations

import transformers
from transformers.models.auto import modeling_auto

from modelyard.weights.tasks import ADAPTER_TASKS, TASKS, find_task, task_of_architecture, tasks_named, tasks_of_type


def mappings() -> set[str]:
    """Every table of class names in transformers' auto module, by its name."""
    return {
        name
        for name, value in vars(modeling_auto).items()
        if name.startswith("MODEL_") and name.endswith("_NAMES") and isinstance(value, dict)
    }


def test_every_mapping_of_transformers_is_a_task() -> None:
    """Each `MODEL_*_NAMES` is the table of exactly one task, and no task has a table that is not there."""
    ours = [task.mapping for task in TASKS.values()]
    assert sorted(ours) == sorted(set(ours))
    assert set(ours) == mappings()


def test_every_auto_class_of_transformers_is_a_task() -> None:
    """Each public `AutoModel*` class, and `AutoBackbone`, is the class of one task; the bare `AutoModel` of two."""
    theirs = {name for name in dir(transformers) if name.startswith("AutoModel")} | {"AutoBackbone", "AutoModel"}
    ours = [task.auto for task in TASKS.values() if task.auto]
    assert sorted(ours) == sorted([*theirs, "AutoModel"])


def test_every_class_of_every_mapping_has_a_task() -> None:
    """Whatever class config.json names, if transformers lists it anywhere, some task has it."""
    for task in TASKS.values():
        assert task.architectures()
        for architecture in task.architectures():
            found = task_of_architecture(architecture)
            assert found is not None
            assert architecture in found.architectures()


def test_names_are_found_by_alias_and_type() -> None:
    """A task is found by each of its names, and every model type of a table by its tasks."""
    for task in TASKS.values():
        for name in (task.name, *task.aliases):
            assert find_task(name) is task
            assert tasks_named(name)[0] is task
        for kind in task.model_types():
            assert task in tasks_of_type(kind)


def test_every_task_of_peft_is_a_task() -> None:
    """Each `task_type` that an adapter's configuration may have stands for a task of the table."""
    from peft import TaskType

    assert set(ADAPTER_TASKS) == {one.value for one in TaskType}
    assert set(ADAPTER_TASKS.values()) <= set(TASKS)
