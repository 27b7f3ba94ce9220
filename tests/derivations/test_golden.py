"""Every exact operation gives the pinned bits, whatever computes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from derivations.derivation_cases import GOLDEN, extensions, golden_digests
from modelyard.derivations import OPERATIONS


def test_golden_digests() -> None:
    """The pinned digests hold: nobody changed an operation that stored bytes depend on."""
    assert golden_digests() == GOLDEN


def test_every_operation_is_pinned() -> None:
    """Each operation has golden digests, and nothing else has."""
    assert {case.split()[0] for case in GOLDEN} == set(OPERATIONS)


def test_blocks_of_one_element_do_not_show() -> None:
    """Element by element every operation gives the pinned bits (bfloat16 results: the others take as long again)."""
    made = golden_digests(["BF16"], block_elements=1)
    assert made == {case: digest for case, digest in GOLDEN.items() if case in made}
    assert {case.split()[0] for case in made} == set(OPERATIONS)


@pytest.mark.parametrize(("threads", "block_elements"), [(1, 100), (2, 7), (2, 1 << 16), (3, 57), (3, 1 << 16)])
def test_threads_and_blocks_do_not_show(threads: int, block_elements: int) -> None:
    """Every thread count and block size gives the pinned bits."""
    assert golden_digests(threads=threads, block_elements=block_elements) == GOLDEN


@pytest.mark.parametrize("threads", [1, 2])
def test_instruction_set_does_not_show(threads: int) -> None:
    """With every optional vector extension switched off, in a process of its own, the bits are the pinned ones."""
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(extensions()), "ATEN_CPU_CAPABILITY": "default"}
    code = f"import json, derivations.derivation_cases as d; print(json.dumps([d.extensions(), d.golden_digests(threads={threads})]))"
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], GOLDEN]


def test_document_pins_the_same_digests() -> None:
    """docs/design/derivations.md lists exactly the pinned digests."""
    text = (Path(__file__).parents[2] / "docs" / "design" / "derivations.md").read_text("utf-8")
    rows = [
        line.split("|") for line in text.splitlines() if line.startswith(tuple(f"| {name} " for name in OPERATIONS))
    ]
    assert {row[1].strip(): row[2].strip(" `") for row in rows} == GOLDEN
