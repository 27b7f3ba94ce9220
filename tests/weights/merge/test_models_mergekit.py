"""Whole-model merges against mergekit itself, where it can be imported. It is no dependency: without it these tests say so and skip."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.weights.merge.mergekit import read_mergekit
from modelyard.weights.merge.models import merge_models
from weights.merge import model_family

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mergekit.merge", reason="mergekit is not installed: pip install mergekit")

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own

NAMES = ("base", "one", "two")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three Llamas in float32."""
    return model_family.write_family(tmp_path_factory.mktemp("family"))


def models(*parameters: str, base: str | None = None, shared: str = "{}") -> str:
    """The part of a configuration that names models `one` and `two`."""
    lines = [
        f"  - {{model: {name}, parameters: {given}}}" for name, given in zip(("one", "two"), parameters, strict=False)
    ]
    return "\n".join(["models:", *lines, f"parameters: {shared}", *([f"base_model: {base}"] if base else [])])


CASES = {
    "linear": ("linear", models("{weight: 0.3}", "{weight: [0.1, 0.9]}"), 3e-7),
    "linear unnormalized": ("linear", models("{weight: 0.3}", "{weight: 0.9}", shared="{normalize: false}"), 3e-7),
    "task arithmetic": (
        "task_arithmetic", models("{weight: 0.7}", "{weight: -0.4}", base="base", shared="{lambda: 0.8}"), 3e-7,
    ),
    "task arithmetic normalized": (
        "task_arithmetic", models("{weight: 0.7}", "{weight: 0.4}", base="base", shared="{normalize: true}"), 3e-7,
    ),
    "slerp": (
        "slerp",
        "base_model: one\nmodels: [{model: one}, {model: two}]\nparameters: {t: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: [0.9, 0.2]}, {value: 0.5}]}",
        5e-7,
    ),
    "ties": (
        "ties",
        models("{weight: 0.7, density: 0.4}", "{weight: [0.1, 0.9], density: [0.2, 0.8]}", base="base", shared="{lambda: 1.3}"),
        0.0,
    ),
    "ties unnormalized": (
        "ties", models("{weight: 0.7, density: 0.4}", "{weight: -0.4}", base="base", shared="{normalize: false}"), 0.0,
    ),
    "dare of everything": ("dare_linear", models("{weight: 0.7}", "{weight: 0.4}", base="base"), 3e-7),
    "dare ties of everything": ("dare_ties", models("{weight: 0.7}", "{weight: 0.4}", base="base"), 3e-7),
    "layers": (
        "passthrough",
        "slices:\n  - sources: [{model: one, layer_range: [0, 2]}]\n  - sources: [{model: two, layer_range: [0, 1]}]",
        0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_file_gives_the_same_model(family: dict[str, Path], case: str, tmp_path: Path) -> None:
    """One configuration, merged by both in float32: the same tensors, to a few roundings; equal where both round in one order."""
    import yaml

    theirs_config, theirs_merge, theirs_options = (
        importlib.import_module(f"mergekit.{name}") for name in ("config", "merge", "options")
    )
    method, text, tolerance = CASES[case]
    tree: Any = yaml.safe_load(f"merge_method: {method}\ndtype: float32\n{text}")
    named = yaml.safe_dump(tree)
    for name in NAMES:
        named = named.replace(f"model: {name}\n", f"model: {family[name]}\n")
    theirs_merge.run_merge(
        theirs_config.MergeConfiguration.model_validate(yaml.safe_load(named)),
        str(tmp_path / "theirs"),
        theirs_options.MergeOptions(quiet=True, write_model_card=False),
    )
    merge_models(read_mergekit(named), tmp_path / "ours")
    theirs, ours = model_family.tensors(tmp_path / "theirs"), model_family.tensors(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert max(float(np.abs(theirs[name] - ours[name]).max()) for name in ours) <= tolerance
