"""Mode `exact`: a plan carried out by the operations of docs/design/derivations.md alone, the same bits on every machine."""

from modelyard.weights.merge.exact.engine import MERGE_BLOCK, merge_exact

__all__ = ["MERGE_BLOCK", "merge_exact"]
