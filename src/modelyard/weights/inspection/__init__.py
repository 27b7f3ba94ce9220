"""The parts of `weights.inspect`: counting tensors, quantized ones included, and the facts of a folder's small files."""
