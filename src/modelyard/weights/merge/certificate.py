"""What a merge did, in numbers and digests that anybody can check by doing it again. Holds values; reads no file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.digest import Digest
    from modelyard.weights.headers import TensorInfo
    from modelyard.weights.merge.adapter import Site

__all__ = ["Change", "MergeCertificate"]


@dataclass
class Change:
    """One tensor that the merge changed: by a LoRA (`site`) or by a tensor saved whole (`key`)."""

    tensor: str
    site: Site | None
    key: str | None
    info: TensorInfo
    changed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Integers and strings only, so that a digest may cover it; the scale is binary32, in hexadecimal."""
        plain: dict[str, Any] = {
            "tensor": self.tensor,
            "dtype": self.info.dtype,
            "elements": self.info.elements,
            "changed": self.changed,
        }
        if self.site is None:
            return plain | {"operation": "cast/1", "replaced_by": str(self.key)}
        return plain | {
            "operation": "lora/1",
            "module": self.site.module,
            "rank": self.site.rank,
            "alpha": repr(self.site.alpha),
            "scale": float(self.site.scale).hex(),
            "transposed": "yes" if self.site.transposed else "no",
        }


@dataclass
class MergeCertificate:
    """The proof of a merge.

    Attributes:
        operation: The exact operation that changed the weights.
        changes: Every tensor that was changed or replaced, in the order of the files.
        untouched: How many tensors have the base's bytes.
        base_digests, adapter_digests: What was read, by file name.
        outputs: What was written, by file name.
    """

    operation: str = "lora/1"
    changes: list[Change] = field(default_factory=list)
    untouched: int = 0
    base_digests: dict[str, Digest] = field(default_factory=dict)
    adapter_digests: dict[str, Digest] = field(default_factory=dict)
    outputs: dict[str, Digest] = field(default_factory=dict)

    @property
    def merged(self) -> int:
        """How many tensors a LoRA changed."""
        return sum(change.site is not None for change in self.changes)

    @property
    def replaced(self) -> int:
        """How many tensors the adapter had saved whole."""
        return len(self.changes) - self.merged

    @property
    def elements_changed(self) -> int:
        """How many elements have other bits than in the base."""
        return sum(change.changed for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain JSON of integers and strings: the same for every run with the same inputs."""
        return {
            "format": "modelyard/merge/1",
            "operation": self.operation,
            "merged": self.merged,
            "replaced": self.replaced,
            "untouched": self.untouched,
            "elements": sum(change.info.elements for change in self.changes),
            "elements_changed": self.elements_changed,
            "changes": [change.to_dict() for change in self.changes],
            "inputs": {"base": dict(self.base_digests), "adapter": dict(self.adapter_digests)},
            "outputs": dict(self.outputs),
        }
