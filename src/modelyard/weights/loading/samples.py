"""Whether what is in memory is what the files hold: a few values at both ends of every tensor, compared.

transformers draws what it takes for missing, and a class whose initialisation does not ask whether a weight was loaded draws
it over, with a clean report (transformers issue 46620). A tensor that was drawn differs in its first values already, so
reading every byte again is not needed. Looks at tensors that are renamed only: what is joined, cut or transposed on the
way, quantized, or kept on disk is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.errors import ModelError
from modelyard.weights.loading.heads import renamed_only

if TYPE_CHECKING:
    from collections.abc import Container

    from modelyard.weights.checkpoint import Checkpoint, Shard
    from modelyard.weights.headers import TensorInfo

__all__ = ["find_redrawn", "refuse_redrawn"]

_VALUES = 16  # at each end


def refuse_redrawn(label: str, model: Any, checkpoint: Checkpoint, drawn: Container[str] = ()) -> None:
    """Raise `ModelError` (`reinitialised`) if a parameter has not the values that the files hold.

    Args:
        label: What messages call the folder.
        model: The loaded model, before anything was trained or quantized.
        checkpoint: The files.
        drawn: Parameters that were drawn on purpose.
    """
    names = [name for name in find_redrawn(model, checkpoint) if name not in drawn]
    if names:
        shown = ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")
        raise ModelError(
            f"{label}: {len(names)} tensors were initialised anew after they were loaded: {shown}",
            code="reinitialised",
            hint="the class's own initialisation does it: pip install -U transformers, or report it there",
            tensors=names,
        )


def find_redrawn(model: Any, checkpoint: Checkpoint) -> list[str]:
    """Parameters of `model` whose first and last values are not those of the files."""
    import torch

    held = dict(model.named_parameters())
    names = renamed_only(model, checkpoint.home)
    twice = {target for target, count in Counter(names.values()).items() if count > 1}
    found = []
    for shard_name in checkpoint.shards:
        with checkpoint.open(shard_name) as shard:
            for name, info in shard.header.in_file_order():
                target = names.get(name)
                parameter = held.get(target) if target is not None and target not in twice else None
                if parameter is None or not _comparable(parameter, info):
                    continue
                flat = parameter.detach().reshape(-1)
                ends = torch.cat((flat[:_VALUES], flat[-_VALUES:])).cpu()
                if not torch.equal(ends.nan_to_num(), _ends(shard, info).to(ends.dtype).nan_to_num()):
                    found.append(str(target))
    return sorted(found)


def _comparable(parameter: Any, info: TensorInfo) -> bool:
    import torch

    plain = type(parameter) is torch.nn.Parameter and type(parameter.data) is torch.Tensor
    if not plain or parameter.is_meta or info.dtype not in STORAGE or not parameter.is_floating_point():
        return False
    return tuple(parameter.shape) == tuple(info.shape) and bool(info.elements)


def _ends(shard: Shard, info: TensorInfo) -> Any:
    """The first and last values of a tensor on disk, as a torch tensor of its own dtype."""
    import torch

    width = (info.end - info.start) // info.elements
    size = min(_VALUES, info.elements) * width
    data = bytearray(2 * size)
    view = memoryview(data)
    shard.read_into(view[:size], info.start)
    shard.read_into(view[size:], info.end - size)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return torch.from_numpy(np.frombuffer(data, np.uint8)).view(kinds[info.dtype])
