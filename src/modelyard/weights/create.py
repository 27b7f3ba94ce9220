"""A model from a configuration, with weights drawn from a seed and marked as such.

For tests, for training from scratch, and for looking at an architecture. Knows configurations; reads no weights.

>>> model = create("bert", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=50)
>>> model.task, model.untrained.kind, model.model.training
('fill-mask', 'random', False)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.loading.classes import choose
from modelyard.weights.loading.configs import load_config, make_config, override, read_architecture
from modelyard.weights.loading.dtypes import DTYPES
from modelyard.weights.loading.lock import loading
from modelyard.weights.loading.report import LoadReport
from modelyard.weights.tasks import tasks_of_type

if TYPE_CHECKING:
    from modelyard.weights.model import Model

__all__ = ["create", "default_task"]


def create(
    source: str | Path | Any,
    /,
    *,
    task: str | None = None,
    model_class: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    **overrides: Any,
) -> Model:
    """A model with random weights, in eval mode.

    Args:
        source: A model type of transformers (`bert`), a configuration object, or a folder with a config.json, whose
            preprocessors come along.
        task: What it is for; by default what the configuration names, else what its model type is mostly for.
        model_class: An exact class of transformers instead.
        seed: What every weight is drawn from: the same seed and configuration give the same bits.
        dtype: `float32`, `bfloat16` or `float16`.
        **overrides: Keys of the configuration, `**{"text_config.hidden_size": 32}` for one inside another.

    Raises:
        RequestError: No such model type, key, value, class or dtype; the hint has the near match.
        ModelError: transformers cannot build it.
    """
    import torch

    from modelyard.weights.loading.building import draw
    from modelyard.weights.model import Model

    if dtype not in DTYPES[1:]:
        meant = near_match(str(dtype), DTYPES[1:])
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(DTYPES[1:])}"
        raise RequestError(f"`dtype` is {dtype!r}", hint=hint, field="dtype")
    with loading():
        config, folder = _configuration(source, overrides)
        label = config.model_type if folder is None else str(folder)
        if task is None and model_class is None and read_architecture(config) is None:
            task = default_task(config)
        choice = choose(config, label, task=task, model_class=model_class)
        built = draw(choice, getattr(torch, dtype), seed, label)
        processor = _preprocessor(folder, built.choice.task)
    return Model(
        built.model,
        processor,
        built.choice.task,
        folder if folder is not None else Path(config.model_type),
        load_report=LoadReport(added=tuple(sorted(built.model.state_dict())), seed=seed),
        untrained=built.untrained,
    )


def default_task(config: Any) -> str:
    """What a model type is mostly for, where nobody says.

    An encoder and decoder pair first for its own tasks, then masked language models, then text generation; else the
    first task that transformers has a class of this type for.

    Raises:
        ModelError: transformers has no class of this type for any task.
    """
    able = [info.name for info in tasks_of_type(config.model_type)]
    if not able:
        raise ModelError(
            f"transformers has no task for the model type `{config.model_type}`",
            code="no_task_class",
            hint="give an exact class as `model_class`",
        )
    paired = [name for name in able if name in {"text2text-generation", "automatic-speech-recognition"}]
    if getattr(config, "is_encoder_decoder", False) and paired:
        return paired[0]
    return "fill-mask" if "fill-mask" in able else able[0]


def _configuration(source: Any, overrides: dict[str, Any]) -> tuple[Any, Path | None]:
    """The configuration, and the folder that it came from."""
    if isinstance(source, Path) or (isinstance(source, str) and source.startswith((".", "/", "~"))):
        folder = Path(source).expanduser()
        return load_config(folder, **overrides), folder
    if isinstance(source, str):
        return make_config(source, **overrides), None
    if not hasattr(source, "model_type"):
        raise RequestError(
            f"`source` is a {type(source).__name__}",
            hint="a model type, a configuration of transformers, or a folder",
            field="source",
        )
    return (override(source, overrides) if overrides else copy.deepcopy(source)), None


def _preprocessor(folder: Path | None, task: str) -> Any:
    from modelyard.weights.loading.preprocessors import has_preprocessor, load_preprocessor

    return load_preprocessor(folder, task) if folder is not None and has_preprocessor(folder) else None
