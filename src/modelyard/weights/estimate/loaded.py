"""What one step of a model that is in memory takes, for whoever ran out of it: cheap, and never an error.

Knows a loaded module's configuration and class; reads no file.
"""

from __future__ import annotations

from typing import Any

__all__ = ["step_bytes"]


def step_bytes(model: Any, *, length: int, device: str = "cpu") -> int | None:
    """Bytes that one row of `length` tokens takes in a forward pass beyond the weights: activations, and keys and values.

    A run of the model's class on the meta device, in a second or so; every row of a batch takes the same again.

    Args:
        model: A module of transformers or PEFT.
        length: Tokens of the row.
        device: Where it runs.

    Returns:
        None where it cannot be told: a class that no sample is known for, rows beyond its positions, no configuration, or
        while another thread loads a model (which is not waited for).
    """
    from modelyard.weights.estimate.profile import run_profile
    from modelyard.weights.estimate.workload import DTYPES, Workload
    from modelyard.weights.loading.lock import LOADING

    if not LOADING.acquire(blocking=False):
        return None
    try:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = {**inner.config.to_dict(), "architectures": [type(inner).__name__]}
        config.pop("quantization_config", None)  # activations are those of the plain model
        dtype = str(inner.dtype).removeprefix("torch.")
        workload = Workload(batch=1, length=length, new_tokens=0, device=device)
        return run_profile(config, workload, dtype if dtype in DTYPES else "float32").peak
    except Exception:  # noqa: BLE001  # asked while an error is handled: whatever fails here, the answer is that it is not known
        return None
    finally:
        LOADING.release()
