"""Which class of transformers is built, and what task it does.

By an exact class (`model_class`), by a task, or by the class that config.json names as its own. A task's class is looked up
in transformers' own tables (`weights.tasks`), so the tasks that have a table and no Auto class are found too. Knows names
and classes; builds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.architecture import find_base_class
from modelyard.weights.loading.configs import read_architecture
from modelyard.weights.loading.legacy import modern_class
from modelyard.weights.tasks import TASKS, TaskInfo, task_of_architecture, tasks_named, tasks_of_type

__all__ = ["Choice", "choose", "find_class"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is built.

    Attributes:
        cls: The class of transformers.
        task: What it does, a name of `TASKS`.
        config: The configuration that it is built with: the text part of a composite one for a class of the text part.
        own: The class that the checkpoint was saved as; None where config.json names none.
    """

    cls: Any
    task: str
    config: Any
    own: Any

    @property
    def is_own(self) -> bool:
        """Whether the checkpoint was saved as the class that is built, so that nothing of it may lack."""
        return self.own is self.cls


def choose(config: Any, label: str, *, task: str | None = None, model_class: str | None = None) -> Choice:
    """The class for a configuration.

    Args:
        config: The configuration.
        label: What messages call it.
        task: The task that is asked for.
        model_class: The name of a class of transformers, or of an Auto class.

    Raises:
        RequestError: No such class; or the class is none of `task`'s.
        ModelError: `no_task_class`: transformers has no class of this model type for the task; `unknown_architecture`:
            config.json names a class that transformers has not, or none and no task was asked for.
    """
    named = read_architecture(config)
    own = find_class(named) if named else None
    if model_class is not None:
        wanted = modern_class(model_class)
        info = _task_of_auto(wanted)
        if info is None:
            return _exact(config, wanted, own, task)
        task = info.name
    if task is not None:
        return _by_task(config, label, tasks_named(task), own)
    if own is None and named is None:
        # What was saved before classes were named in config.json (DeBERTa): its base, where that is of use by itself.
        base = find_class(find_base_class(config.model_type, generative=False) or "")
        if base is not None:
            return Choice(base, _task_of(base), _fitting(config, base), None)
    if own is None:
        raise _nameless(config, label, named)
    return Choice(own, _task_of(own), _fitting(config, own), own)


def _task_of(cls: Any) -> str:
    info = task_of_architecture(cls.__name__)
    return info.name if info else "feature-extraction"


def find_class(name: str) -> Any | None:
    """The model class of transformers with this name, or None."""
    import transformers

    found = getattr(transformers, name, None) if name.isidentifier() else None
    if found is None or not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        return None
    return found


def _exact(config: Any, name: str, own: Any, task: str | None) -> Choice:
    found = find_class(name)
    if found is None:
        names = {each for info in TASKS.values() for each in info.architectures()}
        meant = near_match(name, sorted(names))
        raise RequestError(
            f"transformers has no model class `{name}`",
            hint=f"did you mean `{meant}`?" if meant else "give a class as transformers calls it, e.g. `BertModel`",
            field="model_class",
        )
    tasks = [info for info in TASKS.values() if name in info.architectures()]
    if task is not None:
        wanted = tasks_named(task)
        if tasks and not {info.name for info in tasks} & {info.name for info in wanted}:
            raise RequestError(
                f"`{name}` is no class for {task}",
                hint=f"it is for {', '.join(info.name for info in tasks)}",
                field="model_class",
            )
        tasks = [info for info in wanted if info in tasks] or wanted
    return Choice(found, tasks[0].name if tasks else "feature-extraction", _fitting(config, found), own)


def _by_task(config: Any, label: str, tasks: list[TaskInfo], own: Any) -> Choice:
    for info in tasks:
        if own is not None and own.__name__ in info.architectures():
            return Choice(own, info.name, _fitting(config, own), own)
    for kind in _types(config):
        for info in tasks:
            found = find_class(info.model_types().get(kind, ""))
            if found is not None:
                return Choice(found, info.name, _fitting(config, found), own)
    able = [info.name for info in tasks_of_type(config.model_type)]
    raise ModelError(
        f"transformers has no class of `{config.model_type}` for {tasks[0].name}, which `{label}` is",
        code="no_task_class",
        hint=f"it can do {', '.join(able)}" if able else "give an exact class as `model_class`",
        model_type=config.model_type,
        tasks=able,
    )


def _types(config: Any) -> list[str]:
    """The model type, and the one of its own text part (CLIP's): its class reads the composite's files.

    A text part that is another architecture (LLaVA's Llama) has other names there, and is none.
    """
    text = getattr(config, "text_config", None)
    if text is None or type(text).__module__ != type(config).__module__:
        return [config.model_type]
    return [config.model_type, text.model_type]


def _fitting(config: Any, cls: Any) -> Any:
    """The part of a configuration that a class is built with."""
    wanted = getattr(cls, "config_class", None)
    if wanted is None or isinstance(config, wanted):
        return config
    for key in config.sub_configs:
        part = getattr(config, key, None)
        if part is not None and isinstance(part, wanted):
            if key == "text_config":
                part = config.get_text_config()
                if getattr(config, "quantization_config", None) is not None:
                    part.quantization_config = config.quantization_config
            return part
    raise RequestError(
        f"`{cls.__name__}` is built with a `{wanted.__name__}`, and this is a `{type(config).__name__}`",
        hint=f"give a class of `{config.model_type}`",
        field="model_class",
    )


def _task_of_auto(name: str) -> TaskInfo | None:
    if not name.startswith("Auto"):
        return None
    for info in TASKS.values():
        if info.auto == name:
            return info
    names = sorted({info.auto for info in TASKS.values() if info.auto})
    meant = near_match(name, names)
    raise RequestError(
        f"no Auto class `{name}`",
        hint=f"did you mean `{meant}`?" if meant else "pass the task as `task`",
        field="model_class",
    )


def _nameless(config: Any, label: str, named: str | None) -> ModelError:
    able = [info.name for info in tasks_of_type(config.model_type)]
    what = f"the architecture `{named}`, which transformers does not have" if named else "no architecture"
    return ModelError(
        f"`{label}` names {what}",
        code="unknown_architecture",
        hint=f"say what it is for: task={able[0]!r}" if able else "give its class as `model_class`",
        architecture=named,
        tasks=able,
    )
