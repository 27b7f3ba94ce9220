"""A model becomes a .gguf file and the same model again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from modelyard.weights.convert.gguf import from_gguf
from weights.convert.gguf.gguf_families import FAMILIES, TEXTS
from weights.convert.gguf.gguf_forms import Exports, model_class, outputs, strip


def settings(folder: Path, name: str = "config.json") -> dict[str, object]:
    """A JSON file of a folder."""
    return dict(json.loads((folder / name).read_text("utf-8")))


@pytest.mark.parametrize("name", FAMILIES)
def test_f32_gives_back_the_bits_the_configuration_and_the_tokenizer(
    name: str, exports: Exports, tmp_path: Path
) -> None:
    """Out and in again, nothing has changed: tensors to the bit, config.json, generation_config.json, ids of the tokenizer."""
    made = exports.make(name)
    from_gguf(made.file, tmp_path / "back")
    source, back = load_file(made.source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert source.keys() == back.keys()
    assert all(source[key].dtype == back[key].dtype and torch.equal(source[key], back[key]) for key in source)
    assert settings(tmp_path / "back") == settings(made.source)
    if (made.source / "generation_config.json").exists():
        assert settings(tmp_path / "back", "generation_config.json") == settings(made.source, "generation_config.json")
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (made.source, tmp_path / "back"))
    assert [before(text)["input_ids"] for text in TEXTS] == [after(text)["input_ids"] for text in TEXTS]
    assert (type(before), before.chat_template) == (type(after), after.chat_template)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize(("kind", "dtype"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "bfloat16")])
def test_half_precision_gives_back_the_bits(name: str, kind: str, dtype: str, exports: Exports, tmp_path: Path) -> None:
    """Norms that were widened, one more and transposed are the original bits again, in the original dtype."""
    made = exports.make(name, kind, dtype)
    from_gguf(made.file, tmp_path / "back")
    source, back = load_file(made.source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert all(source[key].dtype == back[key].dtype and torch.equal(source[key], back[key]) for key in source)
    assert settings(tmp_path / "back")["dtype"] == dtype


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_another_converter_is_the_same_model(name: str, exports: Exports, tmp_path: Path) -> None:
    """Configuration and tokenizer are rebuilt from llama.cpp's own keys alone: the same outputs to the bit, the same ids."""
    made = exports.make(name)
    file = strip(made.file, tmp_path / "stripped.gguf")
    certificate = from_gguf(file, tmp_path / "back")
    cls = model_class(name)
    source, back = cls.from_pretrained(made.source), cls.from_pretrained(tmp_path / "back")
    # Without the carried bits a norm is what is left of it beside a one.
    assert torch.allclose(outputs(source), outputs(back), rtol=0, atol=1e-4 if "gemma" in name else 0)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (made.source, tmp_path / "back"))
    texts = [
        text for text in TEXTS if not text.startswith(" ")
    ]  # of which llama.cpp has its own view, see the warnings
    assert [before(text)["input_ids"] for text in texts] == [after(text)["input_ids"] for text in texts]
    assert not certificate.warnings


def test_a_changed_key_is_believed(exports: Exports, tmp_path: Path) -> None:
    """A tool that set another context length is right, not the configuration that the file carries."""
    import gguf

    made = exports.make("llama")
    copy = tmp_path / "changed.gguf"
    copy.write_bytes(made.file.read_bytes())
    reader = gguf.GGUFReader(str(copy), "r+")
    field = reader.fields["llama.context_length"]
    field.parts[field.data[0]][0] = 64
    reader.data.flush()
    from_gguf(copy, tmp_path / "back")
    config = settings(tmp_path / "back")
    assert (config["max_position_embeddings"], config["model_type"]) == (64, "llama")


def test_shards_and_dtype_are_what_was_asked(exports: Exports, tmp_path: Path) -> None:
    """`dtype` casts every tensor, and `shard_size` cuts the folder into files with an index that transformers reads."""
    made = exports.make("qwen2")
    certificate = from_gguf(made.file, tmp_path / "back", dtype="bfloat16", shard_size=40_000)
    assert len([name for name in certificate.outputs if name.endswith(".safetensors")]) > 1
    back = model_class("qwen2").from_pretrained(tmp_path / "back")
    source = load_file(made.source / "model.safetensors")
    for key, values in back.state_dict().items():
        assert values.dtype == torch.bfloat16
        assert torch.equal(values, source[key].to(torch.bfloat16))
