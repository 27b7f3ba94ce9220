"""A head that an adapter brings and its base has not: a classifier on a language model.

PEFT saves it whole, and the adapter says, by its task or by the class it was trained on, which class has it. The merged folder is then of
that class: it holds the head, and its configuration names the class and as many labels. Asks transformers, since only the class knows
what its head is called; reads no weights.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.weights.architecture import build_without_memory, compare_tensors
from modelyard.weights.files import show_name
from modelyard.weights.merge.plan.options import refuse
from modelyard.weights.merge.plan.site import Added, Layout, Site
from modelyard.weights.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.merge.plan.disk import Disk
    from modelyard.weights.merge.plan.options import Options

__all__ = ["Head", "add_head"]

_TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
}
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Head:
    """A head to be added: `sites` and `added` by tensor, and the configuration's new values."""

    def __init__(self) -> None:
        self.sites: dict[str, list[Site]] = {}
        self.added: dict[str, Added] = {}
        self.config: dict[str, Any] = {}


def add_head(disk: Disk, adapter: Checkpoint, options: Options, whole: Mapping[str, str]) -> Head:
    """The head that the tensors `whole` (name to key), which the base has not, make.

    Raises:
        ModelError: `no_match`: no class is known that has them; `bad_shape`; `incomplete_head`: that class needs tensors which
            neither the base nor the adapter has.
    """
    name = _class_name(disk, options)
    listed = ", ".join(f"`{show_name(tensor)}`" for tensor in list(whole)[:3])
    if name is None:
        what = f"the base has no {listed}, and nothing says which class the adapter was trained on"
        refuse(options.label, "no_match", what, hint="merge into a base of the class that it was trained on")
    shapes = {tensor: adapter.info(key).shape for tensor, key in whole.items()}
    labels = min((shape[0] for shape in shapes.values() if len(shape) == 2), default=0)
    config = _config_of(disk.config, name, labels)
    expected = {
        tensor: tuple(value.shape)
        for tensor, value in build_without_memory({**disk.config, **config}).state_dict().items()
    }
    for tensor, shape in shapes.items():
        if expected.get(tensor) != shape:
            what = (
                f"`{show_name(tensor)}` has the shape {shape}, and {name} has there {expected.get(tensor, 'no tensor')}"
            )
            refuse(options.label, "bad_shape" if tensor in expected else "no_match", what)
    _check_complete(disk, options, config, expected, whole)
    made = Head()
    made.config = {key: value for key, value in config.items() if disk.config.get(key) != value}
    dtype = _main_dtype(disk)
    for tensor, key in whole.items():
        shape = shapes[tensor]
        high = shape[0] if shape else 1
        layout = Layout((high, prod(shape[1:])), range(high), b_rows=range(high))
        made.added[tensor] = Added(None, dtype, shape)
        made.sites[tensor] = [
            Site(tensor, "replaced", tensor.rpartition(".")[0], {"value": key}, layout, 0, 0.0, np.float32(1))
        ]
    return made


def _class_name(disk: Disk, options: Options) -> str | None:
    if options.base_class:
        return options.base_class
    task = TASKS.get(_TASKS.get(options.task or "", ""))
    return task.model_types().get(str(disk.config.get("model_type"))) if task else None


def _config_of(config: Mapping[str, Any], name: str, labels: int) -> dict[str, Any]:
    """The configuration's values for class `name` with this many labels; labels that the base names already are kept."""
    made: dict[str, Any] = {"architectures": [name]}
    known = config.get("id2label")
    count = len(known) if isinstance(known, dict) else 2
    if labels and count != labels:
        made["id2label"] = {str(label): f"LABEL_{label}" for label in range(labels)}
        made["label2id"] = {f"LABEL_{label}": label for label in range(labels)}
    return made


def _check_complete(
    disk: Disk,
    options: Options,
    settings: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    whole: Mapping[str, str],
) -> None:
    """Refuse a class that would start with tensors drawn at random: the function that was trained cannot be had."""
    shapes = {tensor: disk.base.info(tensor).shape for tensor in disk.base.home} | {
        tensor: expected[tensor] for tensor in whole
    }
    missing = compare_tensors({**disk.config, **settings}, shapes).missing
    if missing:
        shown = ", ".join(f"`{show_name(tensor)}`" for tensor in missing[:3])
        what = f"{settings['architectures'][0]} also needs {shown}, which neither the base nor the adapter has"
        refuse(options.label, "incomplete_head", what)


def _main_dtype(disk: Disk) -> str:
    """The dtype that a head takes, as PEFT gives it: the one that the base is loaded in."""
    named = _DTYPES.get(str(disk.config.get("dtype") or disk.config.get("torch_dtype")))
    if named:
        return named
    counted: Counter[str] = Counter()
    for tensor in disk.base.home:
        info = disk.base.info(tensor)
        counted[info.dtype] += info.elements if info.dtype in STORAGE else 0
    return counted.most_common(1)[0][0]
