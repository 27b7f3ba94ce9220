"""How many bytes a model's tensors take in memory.

`get_memory_footprint` of transformers counts elements times element size, which for torchao and quanto tensors is the
size that they had before they were quantized. Here a tensor that is made of others is counted by those, and memory that
several tensors share is counted once. Knows modules and tensors; knows no files.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["measure"]


def measure(model: Any) -> int:
    """Bytes of all parameters and buffers of a `torch.nn.Module`; tensors on the meta device take none."""
    seen: dict[tuple[str, int], int] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        for part in _parts(tensor):
            if part.device.type != "meta":
                storage = part.untyped_storage()
                seen[str(part.device), storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _parts(tensor: Any) -> Iterator[Any]:
    """The plain tensors that a tensor is made of: itself, or what its subclass or its quantization keeps."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
    else:
        for name in flatten()[0]:
            yield from _parts(getattr(tensor, name))
    # bitsandbytes keeps scales beside the packed parameter: absmax, the code book, and both again when nested.
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (part for part in (state.absmax, state.code, state.offset) if part is not None)
        state = state.state2
    for name in ("SCB", "CB"):
        part = getattr(tensor, name, None)
        if part is not None:
            yield part
