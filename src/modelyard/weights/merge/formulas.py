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

__all__ = ["apply_sites", "delta"]

_PART = 1 << 19  # elements: with their float32 product and sum they fit a second-level cache

Read = "Callable[[str], Tensor]"


def apply_sites(
    weight: Tensor, sites: Sequence[Site], read: Callable[[str], Tensor], *, rounded: bool = False
) -> Tensor:
    """The weight with all changes of its sites, in their order, in a tensor of the same dtype and shape.

    Args:
        weight: As it lies on disk: float32, float16 or bfloat16. Not written to.
        sites: Its changes.
        read: An adapter's tensor by its key, in the file's dtype and shape.
        rounded: Every product is rounded to the weight's dtype before it is added, as PEFT does for MiCA.
    """
    merged = weight
    for site in sites:
        merged = _apply(merged, site, read, rounded=rounded)
    return merged


def delta(site: Site, read: Callable[[str], Tensor]) -> Tensor:
    """Scale * B @ A as PEFT takes it, float32, in the layout of the tensor on disk; a convolution's has its kernel's axes.

    Args:
        site: A low-rank one.
        read: As `apply_sites` has it.
    """
    product = _product(site, read)
    return product.mul_(float(site.scale))


def _apply(weight: Tensor, site: Site, read: Callable[[str], Tensor], *, rounded: bool) -> Tensor:
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
        return _dora(weight, site, read)
    merged, given = torch.empty_like(weight), weight
    seen = merged
    if site.kind in {"linear", "expert"} and len(site.layout.rows) != weight.shape[0]:
        merged.copy_(weight)
        first, last = site.layout.rows.start, site.layout.rows.stop
        seen, given = (each.view(site.layout.shape)[first:last] for each in (merged, weight))
    product = _product(site, read)
    if site.module.endswith(".base_layer.out_proj"):
        # Half of a MultiheadAttention's doubled change is added as rounded, and then the other half as it is.
        half = float(site.scale) / 2
        _add(given, product, half, seen, rounded=True)
        _add(seen, product, half, seen, rounded=False)
    else:
        _add(given, product, float(site.scale), seen, rounded=rounded or _is_rounded(site))
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


def _product(site: Site, read: Callable[[str], Tensor]) -> Tensor:
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
        whole = b @ a
    whole = _take(whole, layout.b_rows)
    return whole.T if layout.transposed else whole


def _convolve(a: Tensor, b: Tensor) -> Tensor:
    from torch.nn import functional

    if a.ndim == 4 and tuple(a.shape[2:]) == (1, 1):
        return (b.squeeze(3).squeeze(2) @ a.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3)
    convolve: Any = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[a.ndim]
    made: Tensor = convolve(a.transpose(0, 1), b).transpose(0, 1)
    return made


def _add(weight: Tensor, product: Tensor, scale: float, merged: Tensor, *, rounded: bool) -> None:
    """Merged = weight + scale * product, by parts; each element is rounded where PEFT rounds it."""
    import torch

    width = max(weight[0].numel(), 1) if weight.shape[0] else 1
    rows = max(_PART // width, 1)
    for start in range(0, weight.shape[0], rows):
        part = product[start : start + rows] * scale
        if rounded:
            part = part.to(weight.dtype)
        torch.add(weight[start : start + rows], part, out=merged[start : start + rows])


def _dora(weight: Tensor, site: Site, read: Callable[[str], Tensor]) -> Tensor:
    """(magnitude / norm of each output's row) * (W + d), with PEFT's strides, since the order of a sum follows them."""
    import torch

    magnitude, change = read(site.tensors["magnitude"]).float(), delta(site, read)
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
