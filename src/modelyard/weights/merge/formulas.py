"""PEFT's arithmetic for one tensor: what `merge_and_unload` makes of a weight, in its order of operations and its dtypes.

PEFT 0.21 with the defaults of `PeftModel.from_pretrained` and of `merge_and_unload` (`autocast_adapter_dtype=True`, `safe_merge=False`): factors
are float32 whatever the file has. Products are taken over whole tensors, because a BLAS may add in another order for another shape;
what is done element by element is done in parts that stay in a cache, which changes no bit. Knows tensors, no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelyard.weights.merge.plan import Site

__all__ = ["Scratch", "apply_sites"]

# Elements at a time: with their float32 product and sum they stay in a cache, and torch does not yet share fewer than 32768 among
# threads, whose waiting for each other costs more than these few operations. Reading and writing use the other cores meanwhile.
_PART = 30_000


class Scratch:
    """Float32 memory for products, used again from tensor to tensor. For one thread at a time."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, elements: int) -> Tensor:
        """A vector of `elements`, its content undefined; the next call with the same name gives the same memory."""
        import torch

        held = self._held.get(name)
        if held is None or held.numel() < elements:
            held = self._held[name] = torch.empty(elements)
        return held[:elements]


def apply_sites(
    weight: Tensor,
    sites: Sequence[Site],
    read: Callable[[str], Tensor],
    scratch: Scratch,
    *,
    out: Tensor | None = None,
    rounded: bool = False,
) -> Tensor:
    """The weight with all changes of its sites, in their order, in a tensor of the same dtype and shape.

    Args:
        weight: As it lies on disk: float32, float16 or bfloat16. Not written to.
        sites: Its changes.
        read: An adapter's tensor by its key, in the file's dtype and shape.
        scratch: Memory for products.
        out: Where the result may be put; it is the tensor returned only where that could be done.
        rounded: Every product is rounded to the weight's dtype before it is added, as PEFT does for MiCA.
    """
    merged = weight
    for site in sites:
        merged = _apply(merged, site, read, scratch, out if site is sites[0] else None, rounded=rounded)
    return merged


def _apply(
    weight: Tensor,
    site: Site,
    read: Callable[[str], Tensor],
    scratch: Scratch,
    out: Tensor | None,
    *,
    rounded: bool,
) -> Tensor:
    import torch

    if site.kind == "replaced":
        return _replace(weight, site, read(site.tensors["value"]))
    if site.kind == "tokens":
        rows = torch.tensor(site.token_rows)
        return weight.clone().index_copy_(0, rows, read(site.tensors["tokens"]).to(weight.dtype))
    if site.kind == "bias":
        merged = weight.clone()
        merged += _take(read(site.tensors["bias"]).float(), site.layout.b_rows) * float(site.scale)
        return merged
    if site.dora:
        return _dora(weight, site, read, scratch)
    merged = torch.empty_like(weight) if out is None or not weight.is_contiguous() else out
    seen, given = merged, weight
    if site.kind in {"linear", "expert"} and len(site.layout.rows) != weight.shape[0]:
        merged.copy_(weight)
        first, last = site.layout.rows.start, site.layout.rows.stop
        seen, given = (each.view(site.layout.shape)[first:last] for each in (merged, weight))
    product = _product(site, read, scratch)
    if site.module.endswith(".base_layer.out_proj"):
        # Half of a MultiheadAttention's doubled change is added as rounded, and then the other half as it is.
        half = float(site.scale) / 2
        _add(given, product, half, seen, scratch, rounded=True)
        _add(seen, product, half, seen, scratch, rounded=False)
    else:
        _add(given, product, float(site.scale), seen, scratch, rounded=rounded or _is_rounded(site))
    return merged


def _is_rounded(site: Site) -> bool:
    """Whether PEFT rounds the product to the weight's dtype before it adds it, so that the sum is rounded twice."""
    return site.kind in {"expert", "embedding"} or site.tensor.endswith(".in_proj_weight")


def _replace(weight: Tensor, site: Site, value: Tensor) -> Tensor:
    rows, layout = site.layout.rows, site.layout
    if len(rows) == layout.shape[0] and value.numel() == weight.numel():
        return _take(value, layout.b_rows).reshape(weight.shape).to(weight.dtype)
    merged = weight.clone()
    taken = _take(value, layout.b_rows).to(weight.dtype)
    merged.view(layout.shape)[rows.start : rows.stop] = taken.reshape(len(rows), -1)
    return merged


def _take(values: Tensor, rows: range | tuple[int, ...]) -> Tensor:
    """Those rows of `values`, which are all as they are where none or all are named in order."""
    if not rows or rows == range(values.shape[0] if values.ndim else 1):
        return values
    return values[list(rows)]


def _product(site: Site, read: Callable[[str], Tensor], scratch: Scratch) -> Tensor:
    """B @ A as a view of the tensor on disk, not yet scaled; the whole product of the module, cut afterwards."""
    import torch

    a, b, layout = read(site.tensors["A"]).float(), read(site.tensors["B"]).float(), site.layout
    if site.kind == "conv":
        return _convolve(a, b)
    if layout.experts > 1 and layout.expert is not None:
        # PEFT takes one batched product over all experts; each is a product of its own in it.
        a = a.reshape(layout.experts, -1, a.shape[-1])[layout.expert]
        b = b.reshape(b.shape[0], -1, layout.experts)[:, :, layout.expert]
        whole = torch.bmm(b[None], a[None])[0]
    else:
        whole = torch.mm(b, a, out=scratch.take("product", b.shape[0] * a.shape[1]).view(b.shape[0], a.shape[1]))
    whole = _take(whole, layout.b_rows)
    return whole.T if layout.transposed else whole


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    from torch.nn import functional

    if a.ndim == 4 and tuple(a.shape[2:]) == (1, 1):
        return (b.squeeze(3).squeeze(2) @ a.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3)
    convolve: Any = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[a.ndim]
    made: Tensor = convolve(a.transpose(0, 1), b).transpose(0, 1)
    return made


def _add(weight: Tensor, product: Tensor, scale: float, merged: Tensor, scratch: Scratch, *, rounded: bool) -> None:
    """Put weight + scale * product into `merged`, by parts; each element is rounded where PEFT rounds it."""
    import torch

    if all(each.is_contiguous() for each in (weight, product, merged)):
        weight, product, merged = (each.view(-1) for each in (weight, product, merged))
    height = weight.shape[0]
    width = weight[0].numel() if height else 0
    rows = max(_PART // max(width, 1), 1)
    parts, totals = (scratch.take(name, rows * width) for name in ("part", "total"))
    for start in range(0, height, rows):
        given = weight[start : start + rows]
        part, total = (each[: given.numel()].view(given.shape) for each in (parts, totals))
        torch.mul(product[start : start + rows], scale, out=part)
        if rounded:
            part.copy_(part.to(weight.dtype))
        # The sum in float32 and then rounded once, as torch adds tensors of two dtypes.
        total.copy_(given)
        total.add_(part)
        merged[start : start + rows].copy_(total)


def _dora(weight: Tensor, site: Site, read: Callable[[str], Tensor], scratch: Scratch) -> Tensor:
    """(magnitude / norm of each output's row) * (W + d), with PEFT's strides, since the order of a sum follows them."""
    import torch

    magnitude, change = read(site.tensors["magnitude"]).float(), _product(site, read, scratch).mul_(float(site.scale))
    if site.kind == "conv":
        norm = (weight + change).norm(p=2, dim=tuple(range(1, weight.ndim)), keepdim=True).transpose(1, 0)
        factor = (magnitude / norm).view(-1, *(1,) * (weight.ndim - 1))
    elif site.layout.transposed:
        norm = torch.linalg.norm(weight.T + change.T, dim=1)
        factor = (magnitude / norm).view(1, -1)
    else:
        norm = torch.linalg.norm(weight + change, dim=1)
        factor = (magnitude / norm).view(-1, 1)
    merged: Tensor = (factor * (weight + change)).to(weight.dtype)
    return merged
