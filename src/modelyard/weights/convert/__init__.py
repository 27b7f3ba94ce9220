"""Other forms of the same weights: pickles to safetensors and back, dtypes, shards, names, GGUF. One direction per file."""

from modelyard.weights.convert.bins import to_bin
from modelyard.weights.convert.casting import cast
from modelyard.weights.convert.pickles import Conversion, convert_pickle
from modelyard.weights.convert.planning import TensorPlan
from modelyard.weights.convert.rewriting import plan_rewrite, rewrite

__all__ = ["Conversion", "TensorPlan", "cast", "convert_pickle", "plan_rewrite", "rewrite", "to_bin"]
