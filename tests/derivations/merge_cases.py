"""Small merges for Hypothesis: values where rounding, ties, subnormals, signs of zero and overflow show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from derivations import derivation_reference as reference
from modelyard.derivations import Operands, apply_cast

_AWKWARD = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0**-149,
    -(2.0**-149),
    2.0**-126,
    2.0**-130,
    3.0e38,
    -3.0e38,
    65504.0,
    1.0 + 2**-23,
]
_VALUES = st.one_of(st.sampled_from(_AWKWARD), st.floats(-4, 4, width=32), st.integers(-3, 3).map(float))
_DTYPES = st.sampled_from(["F32", "F16", "BF16"])


@dataclass
class Case:
    """A merge's inputs: each tensor as its dtype keeps it."""

    shape: tuple[int, ...]
    sources: list[Any]
    dtypes: list[str]
    weights: list[np.float32]
    base: Any
    base_dtype: str
    density: np.float32
    to: str

    def operands(self, *, with_base: bool = True) -> Operands:
        """As the package takes them."""
        if not with_base:
            return Operands(self.sources, self.dtypes, self.weights)
        return Operands(self.sources, self.dtypes, self.weights, base=self.base, base_dtype=self.base_dtype)

    def wide_sources(self) -> list[list[np.float32]]:
        """As the reference takes them."""
        return [reference.widened(source, dtype) for source, dtype in zip(self.sources, self.dtypes, strict=True)]

    def wide_base(self) -> list[np.float32]:
        """The base as the reference takes it."""
        return reference.widened(self.base, self.base_dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to four models of up to 24 elements. Finite in binary32; F16 models may hold infinities of one sign only."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 6)))
    count = draw(st.integers(1, 4))

    def tensor(dtype: str) -> Any:
        size = shape[0] * shape[1]
        values = np.array(draw(st.lists(_VALUES, min_size=size, max_size=size)), np.float32)
        if dtype == "F16":
            values = np.clip(values, -65504, 65504)
        return apply_cast(values, "F32", dtype).reshape(shape)

    dtypes = [draw(_DTYPES) for _ in range(count)]
    base_dtype = draw(_DTYPES)
    weight = st.one_of(st.just(1.0), st.floats(-0.25, 0.25, width=32))
    return Case(
        shape,
        [tensor(dtype) for dtype in dtypes],
        dtypes,
        [np.float32(draw(weight)) for _ in range(count)],
        tensor(base_dtype),
        base_dtype,
        np.float32(draw(st.one_of(st.just(1.0), st.floats(0.015625, 1, width=32)))),
        draw(_DTYPES),
    )
