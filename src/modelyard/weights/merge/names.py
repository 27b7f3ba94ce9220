"""Names of a model's two embeddings, and names that differ by one prefix.

A base saved without its head lacks the head's prefix (`h.0...` for `transformer.h.0...`), and an adapter trained without a head lacks it
where the base has it. One prefix is therefore tried for all names at once. Knows names only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = ["add_prefix", "is_head", "is_input_embedding"]

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)


def is_head(tensor: str) -> bool:
    """Whether this is a language model's output layer."""
    return tensor in _HEADS or tensor.endswith(tuple(f".{name}" for name in _HEADS))


def is_input_embedding(tensor: str) -> bool:
    """Whether this is a language model's input embedding."""
    return tensor in _EMBEDDINGS or tensor.endswith(tuple(f".{name}" for name in _EMBEDDINGS))


def add_prefix(
    wanted: Sequence[str], present: Collection[str], label: str, needed: Collection[str] | None = None
) -> dict[str, str]:
    """Each wanted tensor name to the present one: as it is, or with one prefix more or less than all that are not there.

    Args:
        wanted: Names as an adapter has them.
        present: Names that there are.
        label: What messages call the adapter.
        needed: Which of `wanted` must be there for a prefix to fit; None is all of them.

    Returns:
        What was found. Names without a counterpart are left out.

    Raises:
        ModelError: `ambiguous_names` when two prefixes would fit.

    >>> add_prefix(["transformer.h.0.w"], {"h.0.w"}, "x"), add_prefix(["h.0.w"], {"model.h.0.w"}, "x"), add_prefix(["w"], {"v"}, "x")
    ({'transformer.h.0.w': 'h.0.w'}, {'h.0.w': 'model.h.0.w'}, {})
    """
    known = set(present)
    plain = {name: name for name in wanted if name in known}
    missing = [name for name in wanted if name not in known]
    asked = set(wanted if needed is None else needed)
    must = [name for name in missing if name in asked]
    if not must:
        return plain
    tried: list[Callable[[str], str]] = [
        f"{prefix}.{{}}".format for prefix in sorted({name.partition(".")[0] for name in present}) if "{" not in prefix
    ]
    firsts = {name.partition(".")[0] for name in must}
    if len(firsts) == 1 and not any(name.startswith(f"{next(iter(firsts))}.") for name in known):
        tried.append(lambda name: name.partition(".")[2])
    fitting = [change for change in tried if known.issuperset(map(change, must))]
    if len(fitting) > 1:
        raise ModelError(f"`{label}` cannot be merged: its names fit the base in two ways", code="ambiguous_names")
    return plain | {name: change(name) for change in fitting for name in missing if change(name) in known}
