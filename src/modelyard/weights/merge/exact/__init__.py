"""Mode `exact`: a plan carried out by the operations of docs/design/derivations.md alone, the same bits on every machine."""

from modelyard.weights.merge.exact.engine import merge_exact

__all__ = ["merge_exact"]
