"""mergekit's YAML: what is understood, and what is refused by the place in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import InputError, NotFoundError, YardError
from modelyard.weights.merge.mergekit import read_mergekit
from modelyard.weights.merge.settings import Conditional, evaluate, resolve

TIES = """
models:
  - model: one
    parameters: {weight: 0.5, density: [0.2, 0.8]}
  - model: two
    parameters:
      weight:
        - filter: mlp
          value: 1e-1
        - value: 0.3
merge_method: ties
base_model: base
parameters:
  normalize: true
  int8_mask: true
  lambda: 1.5
dtype: float32
out_dtype: bfloat16
tokenizer_source: base
"""
SLERP = """
slices:
  - sources:
      - {model: one, layer_range: [0, 2]}
      - {model: two, layer_range: [0, 2]}
merge_method: slerp
base_model: one
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - {value: 0.5}
tokenizer: {source: two}
chat_template: auto
"""


def test_a_whole_file(tmp_path: Path) -> None:
    """Every key of a TIES merge is read with mergekit's meaning: the base joins the models, 1e-1 is a number, int8_mask warns."""
    (tmp_path / "m.yml").write_text(TIES)
    config = read_mergekit(tmp_path / "m.yml")
    assert (config.method, config.base, config.models) == ("ties", "base", ("base", "one", "two"))
    assert [each.model for each in config.slices[0].inputs] == ["one", "two", "base"]
    assert config.slices[0].inputs[1].parameters["weight"] == (Conditional(0.1, "mlp"), Conditional(0.3))
    assert config.parameters == {"normalize": True, "lambda": 1.5}
    assert (config.dtype, config.out_dtype, config.tokenizer) == ("float32", "bfloat16", None)
    assert len(config.warnings) == 1
    assert "int8_mask" in config.warnings[0]


def test_slices() -> None:
    """Slices, their layers, another model's tokenizer and the chat template are read."""
    config = read_mergekit(SLERP)
    assert [each.layers for each in config.slices[0].inputs] == [(0, 2), (0, 2)]
    assert (config.tokenizer, config.chat_template, config.donor) == ("two", "auto", "one")


def test_parameters_by_tensor_and_layer() -> None:
    """A list is a line over the layers, a filter is a part of a name, the first that fits counts, and inner scopes come first."""
    t = read_mergekit(SLERP).parameters["t"]
    found = [
        evaluate(t, f"model.layers.{n}.self_attn.q_proj.weight", place) for n, place in ((0, 0.0), (1, 0.25), (2, 1.0))
    ]
    assert found == [0.0, 0.25, 1.0]
    assert evaluate(t, "model.layers.0.mlp.up_proj.weight", 0.0) == 0.5
    assert evaluate([1.0, 0.0, 4.0], "x", 0.75) == 2.0
    assert evaluate([True, False], "x", 0.9) is True
    assert evaluate((Conditional(1.0, "mlp"),), "self_attn", 0.0) is None
    assert resolve("w", 7.0, ({"w": (Conditional(1.0, "mlp"),)}, {"w": 2.0}), "self_attn", 0.0) == 2.0
    assert resolve("w", 7.0, ({},), "x", 0.0) == 7.0
    with pytest.raises(InputError) as caught:
        resolve("weight", None, ({},), "x", 0.0)
    assert caught.value.code == "missing_parameter"


LINEAR: dict[str, str] = {
    "merge_method": "linear",
    "models": "[{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]",
}


def written(**changes: str | None) -> str:
    """A linear merge with some keys replaced, added or (None) left out."""
    return "\n".join(f"{key}: {value}" for key, value in {**LINEAR, **changes}.items() if value is not None)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"merge_method": "model_stock"}, "merge_method"),
        ({"merge_method": "tie"}, "`tie` is not a method"),
        ({"merge_method": None}, "merge_method"),
        ({"modules": "{}"}, "`modules`"),
        ({"slice": "[]"}, "`slice`"),
        ({"models": None}, "exactly one of"),
        ({"slices": "[]"}, "exactly one of"),
        ({"models": "[]"}, "`models`"),
        ({"models": "[a]"}, r"models\[0\]"),
        ({"models": "[{model: a, weight: 1}]"}, r"models\[0\].weight"),
        ({"models": "[{model: 3}]"}, r"models\[0\].model"),
        ({"models": "[{model: base+lora}]"}, r"models\[0\].model"),
        ({"models": "[{model: {model: {path: a}, lora: {path: b}}}]"}, r"models\[0\].model.lora"),
        ({"models": "[{model: a, parameters: {density: 0.5}}]"}, r"models\[0\].parameters.density"),
        ({"models": "[{model: a, parameters: {weight: many}}]"}, r"models\[0\].parameters.weight"),
        ({"models": "[{model: a, parameters: {weight: [1, .inf]}}]"}, r"parameters.weight\[1\]"),
        ({"models": "[{model: a, parameters: {weight: []}}]"}, "parameters.weight"),
        ({"models": "[{model: a, parameters: {weight: [{filter: 3, value: 1}]}}]"}, r"weight\[0\].filter"),
        ({"models": "[{model: a, parameters: {weight: [{filter: x}]}}]"}, r"weight\[0\]"),
        ({"models": "[{model: a}, {model: a}]"}, "twice"),
        ({"parameters": "{normalize: 3}"}, "parameters.normalize"),
        ({"dtype": "int8"}, "dtype"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"tokenizer_source": "base"}, "tokenizer_source"),
        ({"tokenizer": "{source: a, tokens: {x: {}}}"}, "tokenizer.tokens"),
        ({"tokenizer": "{source: a}", "tokenizer_source": "a"}, "tokenizer"),
        ({"chat_template": "chatml"}, "chat_template"),
        ({"merge_method": "ties"}, "base_model"),
        ({"merge_method": "slerp", "base_model": "a", "parameters": "{t: 0.5}", "models": "[{model: a}]"}, "takes 2 model"),
        ({"merge_method": "passthrough", "models": "[{model: a}, {model: b}]"}, "takes 1 model"),
        ({"models": None, "slices": "[{sources: [{model: a}]}]"}, r"slices\[0\].sources\[0\].layer_range"),
        ({"models": None, "slices": "[{sources: [{model: a, layer_range: [2, 1]}]}]"}, "layer_range"),
        (
            {"models": None, "slices": "[{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]}]"},
            "different numbers of layers",
        ),
        ({"models": None, "slices": "[{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}]"}, "residual_weight"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, str | None], place: str) -> None:
    """Each key or value that has no meaning here is an error that names its place."""
    with pytest.raises(InputError, match=place) as caught:
        read_mergekit(written(**changes))
    assert caught.value.code == "bad_merge_config"


def test_an_adapter_on_a_model_says_what_to_do() -> None:
    """`model+lora` is refused with the command that merges it first."""
    with pytest.raises(InputError) as caught:
        read_mergekit(written(models="[{model: team/base+team/lora}]"))
    assert caught.value.hint == "yard merge team/base team/lora --to ./merged"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "a: [",
        "a: 1\na: 2",
        "? [a]\n: 1",
        "a: !!python/object/apply:os.system [id]",
        "a: !x b",
        "--- {a: 1}\n--- {b: 2}",
        "a: &x [1]\nb: *y",
        "a: 1e999999999999_",
        "x: " + "[" * 40 + "]" * 40,
        "x: " + "[" * 9000,
        "x: [" + "1," * 5000 + "]",
        "x: " + "y" * (1 << 16),
        "\n".join(["a0: &a0 [1,1,1,1,1,1,1,1,1]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]),
        "a: &a [*a]",
    ],
    ids=range(16),
)  # fmt: skip
def test_hostile_texts_are_refused(text: str) -> None:
    """Tags, repeated keys, bombs of aliases, depth and size are one typed error, without running or expanding anything."""
    with pytest.raises(InputError) as caught:
        read_mergekit(text)
    assert caught.value.code == "bad_merge_config"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_CONFIGS = st.fixed_dictionaries(
    {"merge_method": st.sampled_from(["linear", "ties", "slerp", "passthrough"]) | _VALUES},
    optional={
        "models": st.lists(st.fixed_dictionaries({"model": st.sampled_from("ab") | _VALUES}, optional={"parameters": _VALUES}), max_size=3),
        "slices": _VALUES,
        "base_model": st.sampled_from("ab") | _VALUES,
        "parameters": st.dictionaries(st.sampled_from(["weight", "t", "normalize", "density"]), _VALUES) | _VALUES,
        "dtype": _VALUES,
        "tokenizer": _VALUES,
    },
)  # fmt: skip


@given(_CONFIGS)
@settings(deadline=None, max_examples=60)
def test_anything_is_a_configuration_or_a_typed_error(config: dict[str, Any]) -> None:
    """Whatever stands under the keys, the answer is a configuration of a known method or the one error."""
    import yaml

    method = code = ""
    try:
        method = read_mergekit(yaml.safe_dump(config)).method
    except YardError as error:
        code = error.code
    assert method in {"linear", "ties", "slerp", "passthrough"} or code == "bad_merge_config"


def test_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is said to be missing; one that is no text is refused."""
    with pytest.raises(NotFoundError):
        read_mergekit(tmp_path / "none.yml")
    (tmp_path / "bad.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        read_mergekit(tmp_path / "bad.yml")
