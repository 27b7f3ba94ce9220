"""`lora/1` against its definition, and the same bits whatever computes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.derivations import STORAGE, Lora, Workspace, apply_cast, apply_lora, check_arithmetic, lora_scale
from modelyard.errors import InputError

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text("utf-8"))


def numbers(seed: str, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Float32 in [-1, 1) that follow from a text alone: BLAKE3's output, 24 bits for each."""
    count = int(np.prod(shape))
    bits = np.frombuffer(blake3.blake3(seed.encode()).digest(length=4 * count), "<u4")
    made = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return made.reshape(shape)


def inputs(dtype: str, *, transposed: bool = False) -> tuple[Any, Any, Any]:
    """Base, A and B of the golden digests: weight (40, 56) or its transpose, rank 5."""
    shape = (56, 40) if transposed else (40, 56)
    return apply_cast(numbers("W", *shape), "F32", dtype), numbers("A", 5, 56), numbers("B", 40, 5)


def digest(array: Any) -> str:
    """BLAKE3 of an array's bytes."""
    return blake3.blake3(np.ascontiguousarray(array).tobytes()).hexdigest()


def golden_digests() -> dict[str, str]:
    """What this process computes for every golden case."""
    made = {}
    for dtype in STORAGE:
        for transposed in (False, True):
            base, a, b = inputs(dtype, transposed=transposed)
            out = apply_lora(base, dtype, a, b, lora_scale(7, 5), transposed=transposed)
            made[f"lora/1 {dtype}{' transposed' if transposed else ''}"] = digest(out)
    for from_ in STORAGE:
        for to in STORAGE:
            made[f"cast/1 {from_} to {to}"] = digest(apply_cast(inputs(from_)[0], from_, to))
    return made


def extensions() -> list[str]:
    """The optional vector extensions that numpy uses in this process."""
    features: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    return [name for name in features.__cpu_dispatch__ if features.__cpu_features__.get(name)]


def by_definition(base: Any, a: Any, b: Any, scale: np.float32) -> Any:
    """`lora/1` on a float32 base, one scalar operation after another, as its definition reads."""
    out = np.empty_like(base)
    for i in range(base.shape[0]):
        for j in range(base.shape[1]):
            acc = np.float32(0)
            for k in range(a.shape[0]):
                acc = np.float32(acc + np.float32(np.float32(scale * b[i, k]) * a[k, j]))
            out[i, j] = np.float32(base[i, j] + acc)
    return out


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_equals_its_definition(rows: int, rank: int, columns: int, seed: int) -> None:
    """Vectors and blocks give what the definition's scalar loop gives, bit for bit."""
    base = numbers(f"{seed}W", rows, columns)
    a, b, scale = numbers(f"{seed}A", rank, columns), numbers(f"{seed}B", rows, rank), lora_scale(3, rank)
    wanted = by_definition(base, a, b, scale)
    assert apply_lora(base, "F32", a, b, scale, block_elements=5).tobytes() == wanted.tobytes()
    turned = apply_lora(np.ascontiguousarray(base.T), "F32", a, b, scale, transposed=True)
    assert np.ascontiguousarray(turned.T).tobytes() == wanted.tobytes()


def test_negative_zero_products_start_from_positive_zero() -> None:
    """The sum starts at +0, so a base of -0 plus products of -0 is +0."""
    base = np.array([[-0.0]], np.float32)
    out = apply_lora(base, "F32", np.array([[0.0]], np.float32), np.array([[-1.0]], np.float32), np.float32(1))
    assert not np.signbit(out[0, 0])


def test_golden_digests() -> None:
    """The pinned digests hold: nobody changed an operation that stored bytes depend on."""
    assert golden_digests() == GOLDEN["digests"]


@pytest.mark.parametrize(("threads", "block_elements"), [(1, 1), (1, 100), (2, 1 << 16), (2, 7), (3, 57)])
def test_threads_and_blocks_do_not_show(threads: int, block_elements: int) -> None:
    """Every thread count and block size gives the pinned bits."""
    for dtype in STORAGE:
        for transposed in (False, True):
            base, a, b = inputs(dtype, transposed=transposed)
            out = apply_lora(
                base,
                dtype,
                a,
                b,
                lora_scale(7, 5),
                transposed=transposed,
                threads=threads,
                block_elements=block_elements,
            )
            assert digest(out) == GOLDEN["digests"][f"lora/1 {dtype}{' transposed' if transposed else ''}"]


@pytest.mark.parametrize("threads", [1, 2])
def test_instruction_set_does_not_show(threads: int) -> None:
    """With every optional vector extension switched off, in a process of its own, the bits are the pinned ones."""
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(extensions()), "ATEN_CPU_CAPABILITY": "default"}
    code = "import json, test_lora as t; print(json.dumps([t.extensions(), t.golden_digests()]))"
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], GOLDEN["digests"]]


def test_rows_may_come_in_any_order() -> None:
    """Applying rows one by one, last first, gives what the whole gives."""
    base, a, b = inputs("BF16")
    lora = Lora(a, b, lora_scale(7, 5), "BF16")
    out = np.empty_like(base)
    for row in reversed(range(len(base))):
        lora.apply(base[row : row + 1], out[row : row + 1], row, Workspace(16))
    assert digest(out) == GOLDEN["digests"]["lora/1 BF16"]


def test_scale_is_rounded_once() -> None:
    """The scale is the binary64 quotient rounded to binary32, also for rank-stabilised LoRA."""
    assert lora_scale(1, 3) == np.float32(1 / 3)
    assert lora_scale(16, 7, rslora=True) == np.float32(16 / 7**0.5)


@pytest.mark.parametrize(
    ("alpha", "rank", "code"), [(1, 0, "bad_rank"), (float("inf"), 4, "bad_alpha"), (1e39, 1, "bad_alpha")]
)
def test_scale_refuses_what_gives_no_number(alpha: float, rank: int, code: str) -> None:
    """A rank of zero and an alpha beyond binary32 are typed errors."""
    with pytest.raises(InputError) as caught:
        lora_scale(alpha, rank)
    assert caught.value.code == code


@pytest.mark.parametrize("where", ["base", "factor", "sum"])
def test_nan_is_refused(where: str) -> None:
    """A NaN in the base, in a factor, or made by infinities that cancel is an error, never a result."""
    base, a, b = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    if where == "base":
        base[1, 2] = np.nan
    elif where == "factor":
        a[0, 0] = np.nan
    else:
        base[:], b[:] = -np.inf, np.inf
    with pytest.raises(InputError) as caught:
        apply_lora(base, "F32", a, b, np.float32(1))
    assert caught.value.code == "nan_result"


def test_overflow_is_reported() -> None:
    """A result beyond the dtype's largest number becomes infinity, and `apply` says so."""
    lora = Lora(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), np.float32(65504), "F16")
    out = np.empty((1, 1), np.float16)
    assert lora.apply(np.full((1, 1), 16, np.float16), out, 0, Workspace(4))
    assert np.isinf(out[0, 0])
    assert not lora.apply(np.full((1, 1), 15, np.float16), out, 0, Workspace(4))
    assert out[0, 0] == 65504


def test_flushed_subnormals_are_refused() -> None:
    """In a thread that flushes subnormal numbers to zero an exact operation refuses to run."""
    import torch

    caught: list[InputError] = []

    def work() -> None:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormal numbers")
        try:
            check_arithmetic()
        except InputError as error:
            caught.append(error)
        finally:
            torch.set_flush_denormal(False)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    check_arithmetic()
    assert [error.code for error in caught] == ["flush_to_zero"]


@pytest.mark.parametrize(
    ("a", "b", "code"),
    [((2, 3), (4, 3), "bad_shape"), ((0, 3), (4, 0), "bad_rank"), ((2, 3, 1), (4, 2), "bad_shape")],
)
def test_factors_that_do_not_fit_are_refused(a: tuple[int, ...], b: tuple[int, ...], code: str) -> None:
    """Factors that do not multiply, or have no rank, are typed errors."""
    with pytest.raises(InputError) as caught:
        Lora(np.zeros(a, np.float32), np.zeros(b, np.float32), np.float32(1), "F32")
    assert caught.value.code == code


def test_document_pins_the_same_digests() -> None:
    """docs/design/derivations.md lists exactly the pinned digests."""
    text = (Path(__file__).parents[2] / "docs" / "design" / "derivations.md").read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| lora/", "| cast/"))]
    assert {row[1].strip(): row[2].strip(" `") for row in rows} == GOLDEN["digests"]
