"""A derived segment computed again from its params: the same bytes, in pieces too, and nothing taken on trust."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations.derivation_cases import (
    DENSITIES,
    DENSITY,
    KEPT,
    NAME,
    SCALE,
    SEED,
    WEIGHTS,
    inputs,
    numbers,
    operands,
)
from modelyard.derivations import (
    STORAGE,
    Tally,
    apply_cast,
    apply_dare,
    apply_dare_2,
    apply_linear,
    apply_lora,
    apply_ties,
    apply_ties_2,
    cast_params,
    dare_2_params,
    dare_params,
    linear_params,
    lora_params,
    lora_scale,
    replay,
    ties_2_params,
    ties_params,
)
from modelyard.errors import InputError, IntegrityError, YardError

FROM = ["F32", "BF16", "F16"]


def models() -> list[Any]:
    """The golden cases' three models, as arrays."""
    return [apply_cast(numbers(f"X{i}", 40, 56), "F32", dtype) for i, dtype in enumerate(FROM)]


def buffers(start: int = 0, end: int | None = None, *, base: str | None = None) -> dict[str, bytes]:
    """Elements `start` to `end` of the models (and the base), by role."""
    made = {f"x{i}": model.reshape(-1)[start:end].tobytes() for i, model in enumerate(models())}
    return made if base is None else made | {"base": inputs(base)[0].reshape(-1)[start:end].tobytes()}


def case(operation: str) -> tuple[dict[str, Any], dict[str, bytes], int]:
    """Params, buffers and size of one good segment of each operation."""
    size = 40 * 56 * 2
    if operation == "lora/1":
        base, a, b = inputs("BF16")
        params = lora_params("BF16", (40, 56), rank=5, scale=lora_scale(7, 5), a_dtype="F32", b_dtype="F32")
        return params, {"w": base.tobytes(), "a": a.tobytes(), "b": b.tobytes()}, size
    if operation == "cast/1":
        return cast_params("F32", "BF16"), {"x": numbers("W", 40, 56).tobytes()}, size
    if operation == "linear/1":
        return linear_params(FROM, WEIGHTS, "BF16"), buffers(), size
    if operation == "ties/1":
        params = ties_params(FROM, WEIGHTS, "BF16", base_dtype="BF16", density=DENSITY)
        return params, buffers(base="BF16"), size
    if operation == "ties/2":
        params = ties_2_params(FROM, WEIGHTS, "BF16", base_dtype="BF16", kept=KEPT, tally=Tally(scale=SCALE))
        return params, buffers(base="BF16"), size
    if operation == "dare/2":
        params = dare_2_params(
            FROM,
            WEIGHTS,
            "BF16",
            base_dtype="BF16",
            densities=DENSITIES,
            seed=SEED,
            name=NAME,
            rescale=False,
            tally=Tally(),
        )
        return params, buffers(base="BF16"), size
    params = dare_params(FROM, WEIGHTS, "BF16", base_dtype="BF16", density=DENSITY, seed=SEED, name=NAME)
    return params, buffers(base="BF16"), size


def wanted(operation: str) -> bytes:
    """What the operation itself makes of these."""
    if operation == "lora/1":
        base, a, b = inputs("BF16")
        return apply_lora(base, "BF16", a, b, lora_scale(7, 5)).tobytes()
    if operation == "cast/1":
        return apply_cast(numbers("W", 40, 56), "F32", "BF16").tobytes()
    if operation == "linear/1":
        return apply_linear(operands("BF16", with_base=False), "BF16").tobytes()
    if operation == "ties/1":
        return apply_ties(operands("BF16"), DENSITY, "BF16").tobytes()
    if operation == "ties/2":
        return apply_ties_2(operands("BF16"), KEPT, "BF16", tally=Tally(scale=SCALE)).tobytes()
    if operation == "dare/2":
        made = apply_dare_2(operands("BF16"), DENSITIES, "BF16", seed=SEED, name=NAME, rescale=False, tally=Tally())
        return made.tobytes()
    return apply_dare(operands("BF16"), DENSITY, "BF16", seed=SEED, name=NAME).tobytes()


ALL = ["lora/1", "cast/1", "linear/1", "ties/1", "dare/1", "ties/2", "dare/2"]


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_replay_is_the_operation(operation: str, threads: int) -> None:
    """Params that went through JSON, and bytes, give what the operation gives on arrays."""
    params, roles, size = case(operation)
    assert replay(json.loads(json.dumps(params)), roles, size=size, threads=threads) == wanted(operation)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", STORAGE)
def test_lora_in_pieces_of_rows(transposed: bool, dtype: str) -> None:
    """A tensor cut in rows is put together from segments that are computed one by one, factors in any dtype."""
    base, a, b = inputs(dtype, transposed=transposed)
    small = apply_cast(a, "F32", "BF16"), apply_cast(b, "F32", "F16")
    scale = lora_scale(7, 5)
    whole = apply_lora(
        base,
        dtype,
        apply_cast(small[0], "BF16", "F32"),
        apply_cast(small[1], "F16", "F32"),
        scale,
        transposed=transposed,
    )
    pieces = []
    for row in range(0, len(base), 17):
        part = base[row : row + 17]
        params = lora_params(
            dtype, (part.shape[0], part.shape[1]), rank=5, scale=scale, a_dtype="BF16", b_dtype="F16", row=row, rows=len(base),
            transposed=transposed,
        )  # fmt: skip
        roles = {"w": part.tobytes(), "a": small[0].tobytes(), "b": small[1].tobytes()}
        pieces.append(replay(params, roles, size=part.nbytes))
    assert b"".join(pieces) == whole.tobytes()


def test_dare_in_pieces() -> None:
    """Pieces that begin at any element are the whole tensor's."""
    pieces = []
    for start, end in ((0, 1), (1, 1001), (1001, 2240)):
        params = dare_params(
            FROM, WEIGHTS, "BF16", base_dtype="BF16", density=DENSITY, seed=SEED, name=NAME, element=start
        )
        pieces.append(replay(params, buffers(start, end, base="BF16"), size=2 * (end - start)))
    assert b"".join(pieces) == wanted("dare/1")


HOSTILE = [
    ("lora/1", {"shape": [40, 57]}),
    ("lora/1", {"shape": [0, 56]}),
    ("lora/1", {"shape": [2**52, 2**52]}),
    ("lora/1", {"shape": [40]}),
    ("lora/1", {"shape": [40.0, 56]}),
    ("lora/1", {"shape": [True, 2240]}),
    ("lora/1", {"shape": [-40, -56]}),
    ("lora/1", {"shape": "40"}),
    ("lora/1", {"rank": 0}),
    ("lora/1", {"rank": 6}),
    ("lora/1", {"rank": 2**53}),
    ("lora/1", {"rank": -5}),
    ("lora/1", {"row": 1}),
    ("lora/1", {"row": -1}),
    ("lora/1", {"rows": 39}),
    ("lora/1", {"rows": 41}),
    ("lora/1", {"rows": 2**60}),
    ("lora/1", {"transposed": 2}),
    ("lora/1", {"transposed": 1}),
    ("lora/1", {"transposed": True}),
    ("lora/1", {"a_dtype": "F16"}),
    ("lora/1", {"b_dtype": "I8"}),
    ("lora/1", {"dtype": "F64"}),
    ("lora/1", {"dtype": None}),
    ("lora/1", {"scale": "7fc00000"}),
    ("lora/1", {"scale": "7f800000"}),
    ("lora/1", {"scale": "3F800000"}),
    ("lora/1", {"scale": "3f80000"}),
    ("lora/1", {"scale": 1}),
    ("cast/1", {"from": "BF16"}),
    ("cast/1", {"from": ["F32"]}),
    ("cast/1", {"dtype": "F32"}),
    ("linear/1", {"weights": []}),
    ("linear/1", {"weights": ["3f800000"] * 2}),
    ("linear/1", {"weights": "3f800000"}),
    ("linear/1", {"weights": ["3f800000"] * 4, "from": ["F32"] * 4}),
    ("linear/1", {"from": ["F32", "F32", "F32"]}),
    ("linear/1", {"from": ["F32", "BF16"]}),
    ("ties/1", {"density": "00000000"}),
    ("ties/1", {"density": "3f800001"}),
    ("ties/1", {"density": "bf000000"}),
    ("ties/1", {"density": 0.5}),
    ("ties/1", {"base_dtype": "F32"}),
    ("dare/1", {"seed": -1}),
    ("dare/1", {"seed": 2**53}),
    ("dare/1", {"seed": "42"}),
    ("dare/1", {"name": 3}),
    ("dare/1", {"name": "\ud800"}),
    ("dare/1", {"element": -1}),
    ("dare/1", {"element": 2**53}),
    ("dare/1", {"density": "7f800000"}),
    ("ties/2", {"kept": [1, 2]}),
    ("ties/2", {"kept": [1, 2, 2241]}),
    ("ties/2", {"kept": [1, 2, -1]}),
    ("ties/2", {"kept": 672}),
    ("ties/2", {"normalize": 2}),
    ("ties/2", {"scale": 1.0}),
    ("ties/2", {"scale": "7f800000"}),
    ("dare/2", {"densities": ["3f800000"] * 2}),
    ("dare/2", {"densities": ["00000000"] * 3}),
    ("dare/2", {"densities": "3f800000"}),
    ("dare/2", {"rescale": True}),
    ("dare/2", {"elect": 2}),
    ("dare/2", {"element": -1}),
]


@pytest.mark.parametrize(("operation", "change"), HOSTILE)
def test_hostile_params_are_refused(operation: str, change: dict[str, Any]) -> None:
    """Params that contradict themselves, the buffers or the size are one typed error that names the operation."""
    params, roles, size = case(operation)
    with pytest.raises(IntegrityError) as caught:
        replay(params | change, roles, size=size)
    assert caught.value.code == "bad_derivation"
    assert operation in caught.value.message


@pytest.mark.parametrize("operation", ALL)
def test_wrong_buffers_are_refused(operation: str) -> None:
    """A missing, a further, a shorter and a longer buffer, and a wrong size, are refused for every operation."""
    params, roles, size = case(operation)
    first = next(iter(roles))
    bad: list[tuple[dict[str, bytes], int]] = [
        ({name: data for name, data in roles.items() if name != first}, size),
        (roles | {"other": b""}, size),
        (roles | {first: roles[first][:-1]}, size),
        (roles | {first: roles[first] + b"\0"}, size),
        (roles, size - 2),
        (roles, 0),
        (roles, (64 << 20) + 2),
    ]
    for given_roles, given_size in bad:
        with pytest.raises(IntegrityError) as caught:
            replay(params, given_roles, size=given_size)
        assert caught.value.code == "bad_derivation"


@pytest.mark.parametrize("operation", ["lora/2", "svd/1", "", None, 1, ["lora/1"]])
def test_unknown_operations_are_refused_by_name(operation: Any) -> None:
    """Another operation is a typed error, never a guess."""
    params, roles, size = case("lora/1")
    with pytest.raises(IntegrityError) as caught:
        replay(params | {"operation": operation}, roles, size=size)
    assert caught.value.code in {"unknown_operation", "bad_derivation"}


def test_nothing_is_allocated_for_a_huge_shape() -> None:
    """A pack that claims terabytes is refused before memory is taken for them."""
    params, roles, _ = case("lora/1")
    tracemalloc.start()
    try:
        for shape in ([2**40, 1], [2**25, 1], [1, 2**25]):
            with pytest.raises(IntegrityError):
                replay(params | {"shape": shape, "rows": shape[0]}, roles, size=min(2 * shape[0] * shape[1], 64 << 20))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nan_is_the_operations_refusal() -> None:
    """A NaN that the inputs lead to is `nan_result`, so that a compaction knows to store bytes."""
    x = np.array([1, np.nan], np.float32).tobytes()
    with pytest.raises(InputError) as caught:
        replay(cast_params("F32", "BF16"), {"x": x}, size=4)
    assert caught.value.code == "nan_result"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(ALL), st.data())
@settings(deadline=None, max_examples=300)
def test_anything_else_is_a_typed_error(operation: str, data: st.DataObject) -> None:
    """Whatever JSON stands under whichever key, the answer is bytes of the right length or a typed error."""
    params, roles, size = case(operation)
    key = data.draw(st.sampled_from(sorted(params)))
    refused = ""
    try:
        made = replay(params | {key: data.draw(_JSON)}, roles, size=size)
    except YardError as error:
        made, refused = b"", error.code
    assert len(made) == size or refused in {"bad_derivation", "unknown_operation"}
