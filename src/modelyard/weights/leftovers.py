"""Which names in a checkpoint's files are harmless, though the model that is loaded has no place for them.

Most of the much-used checkpoints hold some: the head that they were pretrained with, a pooler that their class does not
have, buffers that former versions of transformers saved. Such a tensor is left out and reported; any other name that
nothing takes is a fault, since it may be a weight under a wrong name.

Knows names and shapes of tensors, and classes of transformers; reads no values.
"""

from __future__ import annotations

import copy
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Shape = tuple[int, ...]

__all__ = ["find_harmless", "is_idle", "is_pooler", "lacks_pooler"]


def _is_scalar(shape: Shape) -> bool:
    return all(size == 1 for size in shape)


def _is_causal_mask(shape: Shape) -> bool:
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


_RELICS: tuple[tuple[re.Pattern[str], Callable[[Shape], bool]], ...] = (
    (re.compile(r"(^|\.)(attn|attention)\.bias$"), _is_causal_mask),  # of GPT-2, GPT-Neo, GPT-J, GPT-NeoX
    (re.compile(r"(^|\.)masked_bias$"), _is_scalar),  # what their masked scores were set to
    (re.compile(r"\.inv_freq$"), lambda shape: len(shape) == 1),  # rotary embeddings, layer by layer
    (re.compile(r"(^|\.)position_ids$"), lambda shape: len(shape) <= 2),
    (re.compile(r"(^|\.)(encoder|decoder)\.version$"), _is_scalar),  # fairseq's mark
    (re.compile(r"\.num_batches_tracked$"), _is_scalar),
)
"""Buffers that former versions of transformers saved and the present ones do not have, by name and shape."""

_IDLE = re.compile(r"(^|\.)masked_spec_embed$")


_POOLER = re.compile(r"(^|\.)pooler\.")


def is_idle(name: str) -> bool:
    """Whether a parameter is read in training alone, so that without it no answer changes.

    It stands for masked frames of sound, and several recognizers of the hub were saved without it.
    """
    return _IDLE.search(name) is not None


def lacks_pooler(cls: Any, names: Iterable[str], build: Callable[[], Any]) -> bool:
    """Whether a base class of transformers has a pooler of weights that no file holds, and can be built without it.

    Args:
        cls: The class.
        names: The files' tensors.
        build: Gives the model of the class, on the meta device; called only where the answer needs it. (Swin's pooler has no
            weights, so there is none to lack.)
    """
    takes = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    if not takes or any(is_pooler(name) for name in names):
        return False
    return any(is_pooler(name) for name in build().state_dict())


def is_pooler(name: str) -> bool:
    """Whether a tensor is a pooler's."""
    return _POOLER.search(name) is not None


def find_harmless(left: Mapping[str, Shape | None], model: Any) -> frozenset[str]:
    """Those of `left` that are no fault: ignored by transformers itself, buffers, or of another class of the architecture.

    Args:
        left: Names that `model` has no place for, as transformers renames them for it, with their shapes on disk; None
            where a shape is not known.
        model: The model, loaded or on the meta device. Its other classes are built on the meta device, one after another,
            only while names are unexplained.
    """
    if not left:
        return frozenset()
    patterns = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    buffers = {_bare(name, model) for name, _ in model.named_buffers()}

    def known(name: str, shape: Shape | None) -> bool:
        return (
            _bare(name, model) in buffers
            or any(pattern.search(name) for pattern in patterns)
            or any(pattern.search(name) and (shape is None or fits(shape)) for pattern, fits in _RELICS)
        )

    found = {name for name, shape in left.items() if known(name, shape)}
    rest = set(left) - found
    if rest:
        for sibling in _siblings(type(model), model.config):
            theirs = {_bare(name, sibling) for name in (*sibling.state_dict(), *dict(sibling.named_buffers()))}
            explained = {name for name in rest if _bare(name, model) in theirs}
            found |= explained
            rest -= explained
            if not rest:
                break
    return frozenset(found)


def _siblings(cls: Any, config: Any) -> Iterator[Any]:
    """The other classes of the architecture on the meta device: what it was pretrained as first, then the base."""
    import torch
    import transformers

    from modelyard.weights.loading.lock import LOADING

    kinds = [
        kind
        for kind in vars(inspect.getmodule(cls)).values()
        if inspect.isclass(kind)
        and issubclass(kind, transformers.PreTrainedModel)
        and kind is not cls
        and kind.config_class is cls.config_class
        and kind.base_model_prefix == cls.base_model_prefix
        and not kind.__name__.endswith("PreTrainedModel")
    ]
    for kind in sorted(kinds, key=_nearness):
        build: Any = kind._from_config  # noqa: SLF001  what AutoModel.from_config calls
        try:
            with LOADING, torch.device("meta"):
                made: Any = build(copy.deepcopy(config))
        except Exception:  # noqa: BLE001, S112
            continue  # a class that cannot be built from this configuration, for whatever reason, explains nothing
        yield made


def _nearness(kind: Any) -> tuple[int, str]:
    name = kind.__name__
    order = (name.endswith("ForPreTraining"), name.endswith("Model"), "LM" in name)
    return (order.index(True) if True in order else len(order)), name


def _bare(name: str, model: Any) -> str:
    """A name without the prefix of the base model, which files have or have not."""
    prefix = model.base_model_prefix
    return name.removeprefix(f"{prefix}.") if prefix else name
