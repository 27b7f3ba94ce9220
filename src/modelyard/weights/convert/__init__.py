"""Other forms of the same weights: pickles to safetensors and back, dtypes, shards, names, GGUF. One direction per file."""

from modelyard.weights.convert.casting import Casting, cast
from modelyard.weights.convert.forms import convert, plan_convert
from modelyard.weights.convert.pickles import Conversion, convert_pickle

__all__ = ["Casting", "Conversion", "cast", "convert", "convert_pickle", "plan_convert"]
