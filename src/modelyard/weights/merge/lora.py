"""Exact LoRA merging under its first name; `merging` has all of it."""

from modelyard.weights.merge.merging import merge_lora

__all__ = ["merge_lora"]
