"""Counting what a computation would allocate, on tensors that have a shape and no memory (torch's meta device).

`Tracker` follows every storage that an operation makes until nothing holds it any more, autograd included, so its `peak` is
what an allocator without waste would have had to give. Attention is counted as the fused kernels do it: they keep their
inputs, their output and one number for each query, and never the matrix of all scores. Knows torch; knows no models.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Tracker", "fused_attention", "storage_bytes", "without_values"]


_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p")


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the memory behind tensors, what several share counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({_key(storage): storage.nbytes() for storage in storages}.values())


def _key(storage: Any) -> int:
    """What tells one memory from another: torch has no public name for it."""
    return int(storage._cdata)  # noqa: SLF001


class Tracker:
    """The live bytes of what is computed while it is entered, and the most there were.

    Attributes:
        live: Bytes that are held now, beyond what was `known` before.
        peak: The most bytes that were held at once.
        events: (number of the storage, its bytes), negative when it is let go: in the order in which it happened.
    """

    def __init__(self, known: Iterable[Any] = (), *, granule: int = 1) -> None:
        self.live = self.peak = 0
        self.events: list[tuple[int, int]] = []
        self._granule = granule
        self._held: dict[int, Any] = {}
        self._count = 0
        self._mode = _mode(self)
        for tensor in known:
            self.forget(tensor)

    def forget(self, tensor: Any) -> None:
        """Do not count this tensor's memory: it is a parameter, or was there before."""
        storage = tensor.untyped_storage()
        self._held[_key(storage)] = storage

    def __enter__(self) -> Tracker:
        self._mode.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._mode.__exit__(*reason)

    def see(self, tensor: Any) -> None:
        """Count this tensor's memory if it is new."""
        storage = tensor.untyped_storage()
        key = _key(storage)
        if key in self._held:
            return
        size = -(-storage.nbytes() // self._granule) * self._granule
        number = self._count = self._count + 1
        self.live += size
        self.peak = max(self.peak, self.live)
        self.events.append((number, size))

        def let_go(_: Any) -> None:
            self.live -= size
            self.events.append((number, -size))
            del self._held[key]

        self._held[key] = weakref.ref(storage, let_go)


def _mode(tracker: Tracker) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for item in tree_leaves(made):
                if isinstance(item, torch.Tensor):
                    tracker.see(item)
            return made

    return Mode()  # type: ignore[no-untyped-call]


def without_values() -> Any:
    """A context in which modelling code may ask a meta tensor for a value: a check that `all` holds holds, one for `any` not.

    That is what rows without padding, packing, overflow or early ends answer, which are what an estimate is of. Numbers are 1.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten: Any = torch.ops.aten
    ask_value = aten._local_scalar_dense.default  # noqa: SLF001  # `Tensor.item`
    grouped = aten._grouped_mm.default  # noqa: SLF001  # its meta version takes bfloat16 only, its CPU one everything
    asked_any: Any = weakref.WeakKeyDictionary()  # storages of what `any` made

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is ask_value and args[0].device.type == "meta":
                if args[0].dtype == torch.bool:
                    return args[0].untyped_storage() not in asked_any
                return 1.0 if args[0].is_floating_point() else 1
            if func is grouped and args[0].device.type == "meta":
                return _grouped(*args, **(kwargs or {}))
            made = func(*args, **(kwargs or {}))
            if func.overloadpacket is aten.any:
                asked_any[made.untyped_storage()] = True
            return made

    return Mode()  # type: ignore[no-untyped-call]


def _grouped(left: Any, right: Any, offsets: Any = None, **options: Any) -> Any:
    """What `torch._grouped_mm` gives: a matrix for each group where both are cut by `offsets`, else one row a row."""
    shape = [left.shape[0], right.shape[-1]] if right.dim() == 3 else [offsets.shape[0], left.shape[0], right.shape[1]]
    if left.dim() == 3:
        shape = [*left.shape[:-1], right.shape[-1]] if right.dim() == 3 else [left.shape[1], right.shape[1]]
    return left.new_empty(shape, dtype=options.get("out_dtype") or left.dtype)


def fused_attention(device: str) -> Any:
    """A context in which `scaled_dot_product_attention` allocates on meta tensors what its fused kernel does on `device`.

    On a CPU the fused kernel is not taken with dropout, or where keys and values have different widths: then every score is
    held, as without this.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    attention = torch.nn.functional.scaled_dot_product_attention

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
            batch, heads, length = query.shape[:3]
            out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
            ctx.save_for_backward(query, key, value, mask, out, query.new_empty(query.shape[:3], dtype=torch.float32))
            return out

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            query, key, value, *_rest = ctx.saved_tensors
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = dict(kwargs or {})
            named = dict(zip(_ATTENTION, args, strict=False)) | given if func is attention else {}
            if func is not attention or not _is_fused(device, **named):
                return func(*args, **given)
            mask = named.get("attn_mask")
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.empty_like(mask, dtype=named["query"].dtype)  # the kernels take numbers only
            return Fused.apply(named["query"], named["key"], named["value"], mask)  # type: ignore[no-untyped-call]

    return Mode()


def _is_fused(device: str, query: Any, key: Any, value: Any, **options: Any) -> bool:
    if query.dim() != 4 or query.device.type != "meta":
        return False
    if not device.startswith("cpu"):
        return True
    widths = {int(tensor.shape[-1]) for tensor in (query, key, value)}
    return not options.get("dropout_p") and len(widths) == 1
