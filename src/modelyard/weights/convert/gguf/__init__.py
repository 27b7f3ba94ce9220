"""GGUF out and in: a model of transformers as the one file that llama.cpp reads, and any such file as a model folder.

`to_gguf` and `from_gguf` undo each other to the bit for F32, F16 and BF16. Architectures are data (`families`); what is not there is
refused by name. Knows no yard and builds no model, except where `check_gguf` compares two.
"""

from modelyard.weights.convert.gguf.checking import TOLERANCES, check_gguf
from modelyard.weights.convert.gguf.families import FAMILIES, Family, supported_types
from modelyard.weights.convert.gguf.layout import TYPES
from modelyard.weights.convert.gguf.reading import from_gguf
from modelyard.weights.convert.gguf.writing import to_gguf

__all__ = ["FAMILIES", "TOLERANCES", "TYPES", "Family", "check_gguf", "from_gguf", "supported_types", "to_gguf"]
