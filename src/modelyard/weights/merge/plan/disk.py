"""From the names that an adapter uses to the tensors on a base's disk.

In most bases the two are equal, or differ by one prefix, and then nothing is imported. Else the architecture is built without memory and
asked (`mapped`), by the module's name and by the raw name on disk: adapters of transformers 4 use the latter, and merge although PEFT
no longer loads them. A match is complete and unambiguous or an error that lists names.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.files import show_name
from modelyard.weights.merge.names import add_prefix
from modelyard.weights.merge.plan.mapped import Mapped, Piece

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["Disk", "Piece"]

_MANY, _LONG = 5000, 256


class Disk:
    """A base's tensors, by every name that an adapter may use for them.

    Args:
        base: Its weights.
        config: Its config.json.
        label: What messages call the adapter.
    """

    def __init__(self, base: Checkpoint, config: Mapping[str, Any], label: str) -> None:
        self.base, self.config, self._label = base, config, label

    @cached_property
    def mapped(self) -> Mapped:
        """The base's architecture; building it imports torch.

        Raises:
            ModelError: `unknown_architecture`.
        """
        return Mapped(self.config, {name: self.base.info(name).shape for name in self.base.home})

    def pieces(self, name: str) -> list[Piece]:
        """Where a tensor lies that `match` gave the name of."""
        return [Piece(name)] if name in self.base.home else self.mapped.pieces(name)

    def source(self, name: str) -> str:
        """The name itself where it is stored, else that of the tensor it is tied to, which holds its values."""
        if name in self.base.home:
            return name
        tied = self.mapped.tied
        while name not in self.mapped.names and name in tied:
            name = tied[name]
        return name

    def match(self, wanted: Iterable[str], may_lack: Collection[str] = ()) -> dict[str, str]:
        """Each wanted name to the tensor's name on disk, or to its name in the architecture where it is stored in another way.

        Args:
            wanted: Tensor names as the adapter has them.
            may_lack: Names that may have no counterpart, and are then left out.

        Raises:
            ModelError: `no_match`, listing what has no counterpart and what is near it; `ambiguous_names`.
        """
        names, free = list(wanted), set(may_lack)
        needed = [name for name in names if name not in free]
        found = add_prefix(names, self.base.home, self._label, needed)
        if not all(name in found for name in needed):
            found = self._match_mapped(names, needed)
        if len(set(found.values())) != len(found):
            raise ModelError(
                f"`{self._label}` cannot be merged: two of its names mean one tensor", code="ambiguous_names"
            )
        return found

    def _match_mapped(self, names: list[str], needed: list[str]) -> dict[str, str]:
        found = {name: name for name in names if name in self.base.home}
        known = set(self.base.home)
        try:
            modules = {*self.mapped.names, *self.mapped.tied}
        except ModelError as error:
            if error.code != "unknown_architecture":
                raise
        else:
            rest = [name for name in names if name not in found]
            found |= add_prefix(rest, modules, self._label, [name for name in needed if name not in found])
            known |= modules
        missing = [name for name in needed if name not in found]
        if missing:
            self._refuse(missing, needed, known)
        return found

    def _refuse(self, missing: list[str], wanted: list[str], known: Collection[str]) -> None:
        what = "none" if len(missing) == len(wanted) else f"only {len(wanted) - len(missing)}"
        shown = ", ".join(f"`{show_name(name)}`" for name in missing[:3])
        # Nearness costs time for each pair of names: a few names say what is wrong.
        few = [name for name in sorted(known) if len(name) < _LONG][:_MANY]
        short = [name for name in missing[:3] if len(name) < _LONG]
        near = [match for name in short for match in get_close_matches(name, few, 1, 0.6)] or few[:3]
        there = ", ".join(f"`{show_name(name)}`" for name in dict.fromkeys(near))
        raise ModelError(
            f"`{self._label}` cannot be merged: {what} of its {len(wanted)} tensors are in the base, which lacks {shown}"
            f" (it has {there}, ...)",
            code="no_match",
            hint="merge into the base it was trained on, which `yard show ADAPTER` names where it is known",
            missing=list(missing[:100]),
            near=near[:100],
        )
