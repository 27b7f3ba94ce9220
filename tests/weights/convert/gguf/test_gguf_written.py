"""What is in a file: judged by the gguf package's reader and name map, by transformers, and by the format's own bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from modelyard.weights.convert.gguf import families, from_gguf, to_gguf
from modelyard.weights.files import FolderFiles
from modelyard.weights.gguf import read_gguf
from weights.convert.gguf.gguf_families import FAMILIES
from weights.convert.gguf.gguf_forms import Exports, expected_values, model_class, outputs

FACTORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


def name_map(file: Path, layers: int) -> Any:
    """The gguf package's own table for a file's architecture."""
    arch = gguf.GGUFReader(str(file)).fields["general.architecture"].contents()
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    return gguf.get_tensor_name_map(kind, layers)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_is_where_and_what_llama_cpp_expects(name: str, exports: Exports) -> None:
    """Names are those of the gguf package's own map, shapes and values what llama.cpp's form of each tensor is."""
    made = exports.make(name)
    config = transformers.AutoConfig.from_pretrained(made.source)
    table = name_map(made.file, config.num_hidden_layers)
    source = load_file(made.source / "model.safetensors")
    reader: Any = gguf.GGUFReader(str(made.file))
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors if tensor.name not in FACTORS}
    expected = {}
    for key, values in source.items():
        told = table.get_name(key.removeprefix("bert."), try_suffixes=(".weight", ".bias"))
        # BERT's pooler and classifier are llama.cpp's, and the package's map has other models' names for them.
        there = told or key.replace("bert.pooler.dense", "cls").replace("pooler.dense", "cls")
        there = key.replace("classifier", "cls.output") if key.startswith("classifier") else there
        expected[there] = expected_values(there, values, config)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert np.array_equal(found[key], values), key
    assert read_gguf(made.file).tensors[0].start == 0


@pytest.mark.parametrize(("kind", "share"), [("Q8_0", 0.57 / 127), ("Q4_0", 1.0 / 8)])
def test_blocks_are_within_half_a_step_of_the_values(kind: str, share: float, exports: Exports, tmp_path: Path) -> None:
    """Dequantized by the gguf package, no value is further off than its block's step allows; vectors are as they were."""
    made = exports.make("qwen3")
    certificate = to_gguf(made.source, tmp_path / "out", type=kind)
    exact = {tensor.name: np.asarray(tensor.data) for tensor in gguf.GGUFReader(str(made.file)).tensors}
    types = {}
    for tensor in gguf.GGUFReader(str(tmp_path / "out" / "model.gguf")).tensors:
        types[tensor.name] = tensor.tensor_type.name
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = exact[tensor.name]
        if values.ndim == 1:
            assert np.array_equal(read, values)
            continue
        steps = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) * (
            0.57 / 127 if types[tensor.name] == "Q8_0" else share
        )
        assert (np.abs(read - values).reshape(-1, 32) <= steps + 2e-3 * steps).all()
    assert types["token_embd.weight"] == "Q8_0"  # tied: its errors are the logits' own
    assert types["blk.0.attn_q.weight"] == kind
    assert types["blk.0.attn_q_norm.weight"] == "F32"
    errors = {change["type"]: change["relative_error"] for change in certificate.changes}
    assert 0.001 < errors["Q8_0"] < 0.01
    assert certificate.machine is not None
    assert certificate.machine["libraries"]["gguf"]


def test_rows_that_do_not_fill_blocks_are_f16(exports: Exports, tmp_path: Path) -> None:
    """A matrix whose rows are no multiple of 32 stays F16, and the certificate says how many are."""
    source = tmp_path / "odd"
    config = transformers.Qwen2Config(
        vocab_size=96, hidden_size=32, intermediate_size=72, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(source)
    certificate = to_gguf(source, tmp_path / "out", type="Q8_0")
    types = {tensor.name: tensor.type for tensor in read_gguf(tmp_path / "out" / "model.gguf").tensors}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    assert "1 tensors are F16: their rows do not fill blocks of 32" in certificate.warnings
    assert "it has no tokenizer: programs can only give it token ids" in certificate.warnings


@pytest.mark.parametrize(
    "name", ["llama", "llama tied, with biases", "llama unigram", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"]
)
def test_transformers_loads_the_file(name: str, exports: Exports) -> None:
    """The reader of transformers makes the same model of the file, given the configuration (its table leaves out some of each)."""
    made = exports.make(name)
    cls = model_class(name)
    config = transformers.AutoConfig.from_pretrained(made.source)
    loaded = cls.from_pretrained(made.file.parent, gguf_file=made.file.name, config=config)
    assert torch.allclose(outputs(loaded), outputs(cls.from_pretrained(made.source)), rtol=0, atol=1e-4)


def test_q8_0_computes_nearly_the_same(exports: Exports, tmp_path: Path) -> None:
    """A Q8_0 file, read back, gives logits within a few per cent of the largest."""
    made = exports.make("llama")
    to_gguf(made.source, tmp_path / "out", type="Q8_0")
    from_gguf(tmp_path / "out" / "model.gguf", tmp_path / "back")
    source, back = (
        outputs(model_class("llama").from_pretrained(folder)) for folder in (made.source, tmp_path / "back")
    )
    difference = (source - back).abs()
    assert 0 < difference.max() < 0.1 * source.abs().max()
    assert difference.mean() < 0.02 * source.abs().max()


def test_the_same_model_gives_the_same_file(exports: Exports, tmp_path: Path) -> None:
    """Two exports of one folder are one file, and the certificate has its digest and the tensors that changed."""
    made = exports.make("llama")
    again = to_gguf(FolderFiles(made.source), tmp_path / "out", type="F32", name="tiny")
    assert (tmp_path / "out" / "model.gguf").read_bytes() == made.file.read_bytes()
    assert again.outputs == made.certificate.outputs
    assert again.exactness == "everywhere"
    changed = {change["name"]: change["change"] for change in again.changes}
    assert changed == {
        f"blk.{layer}.attn_{part}.weight": word for layer in (0, 1) for part, word in (("q", "queries"), ("k", "keys"))
    }


def test_the_tables_have_one_name_for_each_module() -> None:
    """No two modules of a family share a name in the file, or a rebuilt folder would lack one."""
    for family in families.FAMILIES.values():
        assert len(set(family.modules.values())) == len(family.modules), family.arch
