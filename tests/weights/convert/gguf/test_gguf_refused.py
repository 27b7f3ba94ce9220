"""What has no GGUF form is refused by name before anything is written, and so is a file that is no model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from modelyard.errors import ModelError, NotFoundError, RequestError
from modelyard.weights.convert.gguf import from_gguf, supported_types, to_gguf
from tiny_models import make_llama, save_model
from weights.convert.gguf.gguf_forms import Exports, strip


def edit(folder: Path, **values: Any) -> None:
    """Change a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values))


def copied(source: Path, target: Path) -> Path:
    """The same files in a folder that may be changed."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_another_architecture_is_refused_with_the_list(tmp_path: Path) -> None:
    """A model type without a GGUF form is named, and all that have one are."""
    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    with pytest.raises(ModelError, match="`opt`, which has no GGUF form") as caught:
        to_gguf(tmp_path / "opt", tmp_path / "out")
    assert caught.value.code == "unknown_architecture"
    assert caught.value.details["supported"] == supported_types()
    assert not (tmp_path / "out").exists()


def test_another_head_is_refused(tmp_path: Path) -> None:
    """A classifier on a Llama has no place in llama.cpp, and dropping its head would make another model."""
    save_model(tmp_path / "model", make_llama())
    edit(tmp_path / "model", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match="`LlamaForSequenceClassification`, which has no GGUF form"):
        to_gguf(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ("gemma2", {"query_pre_attn_scalar": 99}, "`query_pre_attn_scalar` is 99"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "follow no period"),
        ("gemma", {"tie_word_embeddings": False}, "no place for another"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "`dynamic` have no GGUF form"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(
    name: str, values: dict[str, Any], words: str, exports: Exports, tmp_path: Path
) -> None:
    """An option that a GGUF file cannot state is an error that names it: the file would be another model."""
    source = copied(exports.make(name).source, tmp_path / "model")
    edit(source, **values)
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        to_gguf(source, tmp_path / "out")
    assert caught.value.code == "unsupported_option"


def test_a_window_that_is_not_computed_is_a_warning(exports: Exports, tmp_path: Path) -> None:
    """llama.cpp computes Mistral without its window: short texts are right, and the certificate says which are not."""
    source = copied(exports.make("mistral").source, tmp_path / "model")
    edit(source, sliding_window=16)
    certificate = to_gguf(source, tmp_path / "out")
    assert any("without its sliding window of 16 tokens" in warning for warning in certificate.warnings)
    from_gguf(tmp_path / "out" / "model.gguf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text("utf-8"))["sliding_window"] == 16


def test_a_head_that_is_not_the_embedding_is_refused(exports: Exports, tmp_path: Path) -> None:
    """A folder that says tied and holds another head is not silently made one of the two."""
    source = copied(exports.make("llama").source, tmp_path / "model")
    edit(source, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"holds another as `lm_head\.weight`") as caught:
        to_gguf(source, tmp_path / "out")
    assert caught.value.code == "untied_head"


def test_types_and_dtypes_that_are_not_written_are_refused(exports: Exports, tmp_path: Path) -> None:
    """Q4_K is llama-quantize's, and int8 is no dtype of a folder."""
    made = exports.make("llama")
    with pytest.raises(RequestError, match="`Q4_K` is no type"):
        to_gguf(made.source, tmp_path / "out", type="Q4_K")
    with pytest.raises(RequestError, match="`int8` is no dtype"):
        from_gguf(made.file, tmp_path / "out", dtype="int8")
    with pytest.raises(NotFoundError):
        from_gguf(tmp_path / "missing.gguf", tmp_path / "out")


def test_a_masked_language_model_becomes_its_encoder_and_says_so(tmp_path: Path) -> None:
    """llama.cpp has no place for BERT's language head: what is left out is named, and what comes back is an encoder."""
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    certificate = to_gguf(tmp_path / "model", tmp_path / "out", type="F32")
    assert any("no place for the head; left out: cls.predictions" in warning for warning in certificate.warnings)
    from_gguf(tmp_path / "out" / "model.gguf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text("utf-8"))["architectures"] == ["BertModel"]


@pytest.mark.parametrize(
    ("changes", "words", "code"),
    [
        ({"drop": "blk.1.ffn_up.weight"}, "model.layers.1.mlp.up_proj.weight", "missing_tensors"),
        ({"without": ("llama.block_count",)}, "llama.block_count", "bad_metadata"),
        ({"head_count": 3}, "do not share", "bad_shape"),
        ({"model": "rwkv"}, "kind `rwkv`", "unsupported_tokenizer"),
        ({"added": ("split.count", 3)}, "one of 3 parts", "split_file"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused(
    changes: dict[str, Any], words: str, code: str, exports: Exports, tmp_path: Path
) -> None:
    """A sound GGUF that lacks a tensor or key, or contradicts itself, names what is wrong and leaves nothing."""
    file = strip(exports.make("llama").file, tmp_path / "broken.gguf", **changes)
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        from_gguf(file, tmp_path / "out")
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_code_in_a_carried_configuration_is_refused(exports: Exports, tmp_path: Path) -> None:
    """The configuration that a file carries passes the same gate as a folder's: nothing in it makes a loader run code."""
    import gguf

    made = exports.make("llama")
    read: Any = gguf.GGUFReader(str(made.file))
    carried = read.fields["modelyard.config"].contents()
    room = len(carried)
    hostile = json.dumps(
        json.loads(carried) | {"auto_map": {"AutoConfig": "x.Y"}, "pretraining_tp": 1}, separators=(",", ":")
    )
    plain = json.loads(carried)
    while len(hostile) > room:  # the same length, so that nothing after it moves
        plain.popitem()
        plain |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        hostile = json.dumps(plain | {"auto_map": {"AutoConfig": "x.Y"}}, separators=(",", ":"))
    data = made.file.read_bytes().replace(carried.encode(), hostile.ljust(room).encode())
    (tmp_path / "hostile.gguf").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        from_gguf(tmp_path / "hostile.gguf", tmp_path / "out")
    assert caught.value.code == "remote_code"
    assert not (tmp_path / "out").exists()
