"""`dare/1` against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derivations import derivation_reference as reference
from derivations.derivation_cases import DENSITY, GOLDEN, NAME, SEED, digest, numbers, operands
from derivations.merge_cases import Case, cases
from modelyard.derivations import STORAGE, Operands, apply_dare, dare_key
from modelyard.derivations.philox import draw_words
from modelyard.errors import InputError


@given(
    cases(),
    st.integers(0, 2**53 - 1),
    st.text(max_size=20),
    st.integers(0, 2**50),
    st.integers(1, 9),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_equals_its_definition(
    case: Case, seed: int, name: str, element: int, block_elements: int, threads: int
) -> None:
    """Vectors and blocks give what the definition's scalar loop gives, bit for bit; so does a refused NaN."""
    with np.errstate(all="ignore"):
        wanted = reference.dare(
            case.wide_base(), case.wide_sources(), case.weights, case.density, seed=seed, name=name, element=element
        )

    def made() -> bytes:
        return apply_dare(
            case.operands(), float(case.density), case.to, seed=seed, name=name, element=element,
            block_elements=block_elements, threads=threads,
        ).tobytes()  # fmt: skip

    if np.isnan(wanted).any():
        with pytest.raises(InputError):
            made()
    else:
        assert made() == reference.rounded(wanted, case.to)


@pytest.mark.parametrize("dtype", STORAGE)
def test_pinned_digest_is_the_definitions(dtype: str) -> None:
    """The golden digest is that of the scalar loop's result."""
    base, sources, weights = wide(operands(dtype))
    made = reference.dare(base, sources, weights, np.float32(DENSITY), seed=SEED, name=NAME, element=0)
    assert digest(np.frombuffer(reference.rounded(made, dtype), np.uint8)) == GOLDEN[f"dare/1 {dtype}"]


def wide(models: Operands) -> tuple[list[np.float32], list[list[np.float32]], list[np.float32]]:
    """The base and the models as binary32, and the weights."""
    base, each = np.empty(models.elements, np.float32), np.empty((models.count, models.elements), np.float32)
    models.widen_base(0, models.elements, base)
    for model in range(models.count):
        models.widen_source(model, 0, models.elements, each[model])
    return list(base), [list(source) for source in each], models.weights


def change(
    density: float, *, seed: int = 0, name: str = "w", element: int = 0, count: int = 20_000, models: int = 1
) -> np.ndarray:
    """What is added to a base of zeros by models of ones."""
    ones = [np.ones(count, np.float32)] * models
    merge = Operands(ones, ["F32"] * models, [1.0] * models, base=np.zeros(count, np.float32))
    return apply_dare(merge, density, "F32", seed=seed, name=name, element=element)


def test_keeps_the_density_and_rescales() -> None:
    """The share that is kept is the density's, and what is kept is multiplied by its inverse, so the mean stays."""
    made = change(0.25)
    assert set(made.tolist()) == {0.0, 4.0}
    assert abs(float((made > 0).mean()) - 0.25) < 5 * (0.25 * 0.75 / made.size) ** 0.5


def test_a_part_of_a_tensor_is_that_part() -> None:
    """From any element on, the result is the whole tensor's from there on."""
    whole = change(0.5, count=1000)
    for element in (1, 2, 3, 4, 517):
        assert change(0.5, element=element, count=1000 - element).tobytes() == whole[element:].tobytes()


def test_seed_name_and_model_have_streams_of_their_own() -> None:
    """Another seed, another name and another model drop other elements; the same ones drop the same."""
    first = change(0.5)
    assert change(0.5).tobytes() == first.tobytes()
    for other in (change(0.5, seed=1), change(0.5, name="v"), change(0.5, models=2) - first):
        assert 0.4 < float((other == first).mean()) < 0.6


def test_density_one_keeps_everything() -> None:
    """With a density of 1 nothing is dropped, and with the least one a kept word is below 1 of 2^32."""
    assert (change(1.0) == 1).all()
    assert (change(2.0**-32) == 0).all()


def test_threshold_is_exact() -> None:
    """A word is kept when it is below density * 2^32, and not when it equals it."""
    words = draw_words(dare_key(0, "w"), 0, 4096)
    element = int(np.argmin(words))
    word = int(words[element])
    assert 0 < word < 2**24 - 1  # so that both densities are binary32 numbers
    assert change(word / 2**32, count=4096)[element] == 0
    assert change((word + 1) / 2**32, count=4096)[element] != 0


def test_key_is_blake3_of_seed_and_name() -> None:
    """The key's words are the first 8 bytes of BLAKE3 of the seed's 8 bytes and the name's UTF-8."""
    import blake3

    start = blake3.blake3(bytes([7, 0, 0, 0, 0, 0, 0, 0]) + "ä.weight".encode()).digest()
    assert dare_key(7, "ä.weight") == (int.from_bytes(start[:4], "little"), int.from_bytes(start[4:8], "little"))


@pytest.mark.parametrize(
    ("density", "seed", "name", "code"),
    [
        (0.0, 0, "w", "bad_density"),
        (1.1, 0, "w", "bad_density"),
        (float("nan"), 0, "w", "bad_density"),
        (0.5, -1, "w", "bad_seed"),
        (0.5, 2**53, "w", "bad_seed"),
        (0.5, 0, "\ud800", "bad_name"),
    ],
)
def test_nonsense_is_refused(density: float, seed: int, name: str, code: str) -> None:
    """A density outside (0, 1], a seed beyond 53 bits and a name without UTF-8 are typed errors."""
    with pytest.raises(InputError) as caught:
        change(density, seed=seed, name=name, count=4)
    assert caught.value.code == code


def test_nan_is_refused_even_where_dropped() -> None:
    """A NaN, or infinities that cancel, in any difference is refused whether or not the element is kept."""
    for base, model in ((np.inf, np.inf), (0.0, np.nan), (np.nan, 0.0)):
        values = numbers("N", 64)
        source, start = values.copy(), values.copy()
        source[3], start[3] = model, base
        for seed in range(6):
            with pytest.raises(InputError) as caught:
                apply_dare(Operands([source], ["F32"], [1.0], base=start), 0.1, "F32", seed=seed, name="w")
            assert caught.value.code == "nan_result"


def test_infinity_of_one_model_is_a_result_where_kept() -> None:
    """An infinite change that is kept gives infinity; one that is dropped gives the base."""
    source = np.full(64, np.inf, np.float32)
    merge = Operands([source], ["F32"], [1.0], base=np.ones(64, np.float32))
    assert set(apply_dare(merge, 0.5, "F32", seed=0, name="w").tolist()) == {1.0, float("inf")}
