"""Whether a number of labels means something to a class. Knows configurations and shapes of modules; reads no file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError
from modelyard.weights.loading.configs import label_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.weights.loading.classes import Choice

__all__ = ["check_labels"]


def check_labels(choice: Choice, build: Callable[[Any], Any], label: str) -> None:
    """Refuse a number of labels for a class of which nothing depends on it: it would be taken, and mean nothing.

    Args:
        choice: The class, and the configuration with the labels in it.
        build: Makes a model without memory (`plan.build_meta`) of a configuration.
        label: What messages call the model.

    Raises:
        RequestError: No tensor of the class has another shape with one label more.
    """
    count = int(choice.config.num_labels)
    first, other = (
        {
            name: tuple(tensor.shape)
            for name, tensor in build(label_config(choice.config, number, None)).state_dict().items()
        }
        for number in (count, count + 1)
    )
    if first == other:
        raise RequestError(
            f"`num_labels` and `id2label` are for a head that labels, and {choice.cls.__name__}, "
            f"which `{label}` is loaded as for {choice.task}, has none",
            hint="say what the labels are for, e.g. task='text-classification', or leave them out",
            field="num_labels",
        )
