"""Each code of the doctor about tensors, tokenizers, templates and adapters: broken in one way, and exactly that is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.weights.doctor import BaseIds, SingleFile, diagnose
from modelyard.weights.files import FolderFiles
from task_models import text
from tiny_models import TEMPLATE, make_llama, save_adapter, save_model
from weights.doctor_cases import copy, edit, find, only, rewrite
from weights.gguf_files import gguf

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# Names, shapes and values


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "student."])
def test_wrapped_names(llama: Path, prefix: str) -> None:
    """`wrapped_names`: a wrapper's prefix on every name, also one that nobody knows."""
    rewrite(llama, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    assert prefix in only(llama, "wrapped_names").message


def test_a_wrapper_inside_the_names(llama: Path) -> None:
    """`wrapped_names` too: single compiled layers."""
    rewrite(llama, lambda held: {n.replace("layers.0.", "layers.0._orig_mod."): v for n, v in held.items()})
    assert "_orig_mod." in only(llama, "wrapped_names").message


def test_labels_mismatch(originals: Path, tmp_path: Path) -> None:
    """`labels_mismatch`: another number of labels than classes in the weights, with both numbers."""
    bert = copy(originals / "bert", tmp_path)
    classes = len(json.loads((bert / "config.json").read_text())["id2label"])
    edit(
        bert,
        id2label={str(at): f"l{at}" for at in range(classes + 4)},
        label2id={f"l{at}": at for at in range(classes + 4)},
    )
    found = find(bert)
    assert {finding.code for finding in found} == {"labels_mismatch"}
    assert f"{classes + 4} labels" in found[0].message
    assert f"{classes} classes" in found[0].message


def test_labels_that_are_not_each_others_inverse(originals: Path, tmp_path: Path) -> None:
    """`labels_mismatch` as a warning: names that come out under the wrong number."""
    bert = copy(originals / "bert", tmp_path)
    names = json.loads((bert / "config.json").read_text())["id2label"]
    edit(bert, label2id={name: len(names) - 1 - int(at) for at, name in names.items()})
    only(bert, "labels_mismatch", "warning")


def test_image_size(originals: Path, tmp_path: Path) -> None:
    """`image_size`: the configuration's size does not give the positions that are there; the processor's, a warning."""
    vit = copy(originals / "vit", tmp_path)
    edit(vit, "preprocessor_config.json", size={"height": 48, "width": 48})
    only(vit, "image_size", "warning")
    edit(vit, "preprocessor_config.json", size={"height": 64, "width": 64})
    edit(vit, image_size=64)
    assert "image_size" in only(vit, "image_size", "error").message


def test_no_output_layer(tmp_path: Path) -> None:
    """`no_output_layer`: untied by the configuration, and stored without an output layer."""
    folder = save_model(tmp_path / "tied", make_llama(tie_word_embeddings=True))
    edit(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in only(folder, "no_output_layer").message


@pytest.mark.parametrize("said", ["bfloat16", "float16"])
def test_dtype_mismatch(llama: Path, said: str) -> None:
    """`dtype_mismatch`: the configuration says another dtype than the tensors have."""
    edit(llama, dtype=said)
    assert said in only(llama, "dtype_mismatch").message


def test_nonfinite_in_float8(tmp_path: Path) -> None:
    """`nonfinite` knows the NaN of formats that have no infinity."""
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([0, 0x7F, 0xFF, 0x7E]))
    (found,) = diagnose(SingleFile(path))
    assert (found.code, "w (2 of 4)" in found.message) == ("nonfinite", True)


def test_nonfinite_in_gguf(tmp_path: Path) -> None:
    """`nonfinite` looks into the plain floats of a GGUF file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"w": (0, (8,))})[:-32] + np.full(8, np.inf, "<f4").tobytes())
    assert [found.code for found in diagnose(SingleFile(path))] == ["nonfinite"]


def test_random_weights(tmp_path: Path) -> None:
    """`random_weights`: the mark of a model that nobody trained, as long as it is true; `bad_mark`: one of no form."""
    from modelyard.weights.untrained import Untrained, mark

    folder = save_model(tmp_path / "model")
    mark(folder, Untrained("random", 3, None))
    assert "seed 3" in only(folder, "random_weights").message
    rewrite(folder, lambda tensors: tensors | {"model.norm.weight": np.full(32, 2, np.float32)})
    assert find(folder) == []
    edit(folder, modelyard_untrained={"format": 1, "kind": "nonsense"})
    assert "bad_mark" in {found.code for found in find(folder)}


# Tokenizer, template, preprocessor


def test_tokenizer_larger(llama: Path) -> None:
    """`tokenizer_larger`: a word whose id has no row."""
    held = json.loads((llama / "tokenizer.json").read_text())
    held["added_tokens"].append({"id": 400, "content": "<|extra|>", "special": True, "single_word": False,
                                 "lstrip": False, "rstrip": False, "normalized": False})  # fmt: skip
    (llama / "tokenizer.json").write_text(json.dumps(held))
    assert "<|extra|>" in only(llama, "tokenizer_larger").message


def test_special_token_missing(llama: Path) -> None:
    """`special_token_missing`: the configuration names a word that the vocabulary has not."""
    edit(llama, "tokenizer_config.json", unk_token="<|nothing|>")
    assert "<|nothing|>" in only(llama, "special_token_missing").message


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_token_id_out_of_range(llama: Path, file: str) -> None:
    """`token_id_out_of_range`: an id that no row of the embeddings has, in either file."""
    edit(llama, file, bos_token_id=400)
    found = only(llama, "token_id_out_of_range")
    assert file in found.message
    assert "400" in found.message


def test_pad_is_eos(llama: Path) -> None:
    """`pad_is_eos`: training that masks padding would mask the end too; the hint names an unused token."""
    edit(llama, "tokenizer_config.json", pad_token="<|end|>")
    assert "<|pad|>" in str(only(llama, "pad_is_eos").hint)


def test_eos_mismatch(llama: Path) -> None:
    """`eos_mismatch`: the tokenizer ends with one token, generation stops at another."""
    edit(llama, eos_token_id=4)
    edit(llama, "generation_config.json", eos_token_id=4)
    assert "<|end|>" in only(llama, "eos_mismatch").message


def test_max_length(llama: Path, tmp_path: Path) -> None:
    """`max_length`: the tokenizer lets more pass than there are positions; an error only for a table of positions."""
    edit(llama, "tokenizer_config.json", model_max_length=4096)
    only(llama, "max_length", "info")
    bert = text.MODELS["text-classification"](tmp_path / "bert")
    edit(bert, "tokenizer_config.json", model_max_length=100_000)
    only(bert, "max_length", "warning")


def test_no_tokenizer(originals: Path, tmp_path: Path) -> None:
    """`no_tokenizer`: a text model without one."""
    bert = copy(originals / "bert", tmp_path)
    for path in bert.glob("*"):
        if path.name.startswith(("tokenizer", "vocab", "special")):
            path.unlink()
    only(bert, "no_tokenizer")


def test_no_chat_template(llama: Path, originals: Path) -> None:
    """`no_chat_template`: good to know where the tokenizer has such words, a warning where the base has a template."""
    (llama / "chat_template.jinja").unlink()
    only(llama, "no_chat_template", "info")
    only(llama, "no_chat_template", "warning", base=FolderFiles(originals / "llama"))


def test_template_changed(llama: Path, originals: Path) -> None:
    """`template_changed`: not the base's."""
    (llama / "chat_template.jinja").write_text(TEMPLATE.replace("<|end|>", "<|end|>\\n"))
    only(llama, "template_changed", base=FolderFiles(originals / "llama"))


@pytest.mark.parametrize("source", ["{% for x in %}", "{{ messages[9].content.x() }}", "{{ 1 / 0 }}"])
def test_template_broken(llama: Path, source: str) -> None:
    """`template_broken`: it does not parse, or fails on a plain conversation."""
    (llama / "chat_template.jinja").write_text(source)
    only(llama, "template_broken")


@pytest.mark.row(23)
def test_template_unsafe(llama: Path, originals: Path) -> None:
    """`template_unsafe`: it leaves the sandbox; the hint takes the base's where that is known."""
    (llama / "chat_template.jinja").write_text("{{ lipsum.__globals__ }}")
    found = find(llama, base=FolderFiles(originals / "llama"))
    assert [finding.code for finding in found] == ["template_unsafe", "template_changed"]
    assert f"--base {originals / 'llama'} --fix" in str(found[0].hint)
    only(llama, "template_unsafe")


def test_eos_not_in_template(llama: Path) -> None:
    """`eos_not_in_template`: what the template writes behind an answer ends none."""
    (llama / "chat_template.jinja").write_text(TEMPLATE.replace("<|end|>", "<|system|>"))
    found = only(llama, "eos_not_in_template")
    assert "<|end|>" in found.message
    assert "<|system|>" in found.message


def test_no_generation_config(llama: Path) -> None:
    """`no_generation_config`: with the tokens that it should hold; a warning only where nothing else says the end."""
    (llama / "generation_config.json").unlink()
    assert "eos_token_id 1" in only(llama, "no_generation_config", "info").message
    edit(llama, eos_token_id=None)
    assert "eos_token_id 1" in only(llama, "no_generation_config", "warning").message


def test_no_preprocessor(originals: Path, tmp_path: Path) -> None:
    """`no_preprocessor`: an image model whose images nobody can prepare."""
    vit = copy(originals / "vit", tmp_path)
    (vit / "preprocessor_config.json").unlink()
    only(vit, "no_preprocessor")


# Adapters


def factors(folder: Path, change: Any) -> None:
    """Change the adapter's tensors by name."""
    rewrite(folder, change, "adapter_model.safetensors")


@pytest.mark.row(25)
def test_no_base(adapter: Path) -> None:
    """`no_base`: nothing says what it belongs to."""
    edit(adapter, "adapter_config.json", base_model_name_or_path=None)
    only(adapter, "no_base")


@pytest.mark.row(25)
def test_base_differs_by_lineage(adapter: Path) -> None:
    """`base_differs`: the lineage records another base than the one given."""
    only(adapter, "base_differs", ids=BaseIds("a" * 64, "b" * 64))
    assert find(adapter, ids=BaseIds("a" * 64, "a" * 64)) == []


@pytest.mark.row(25)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_base_differs_by_its_copy(originals: Path, tmp_path: Path) -> None:
    """`base_differs`: PEFT keeps the base's embeddings beside a LoRA on them, and they are not this base's."""
    adapter = save_adapter(tmp_path / "on-embeddings", originals / "llama", target_modules=["embed_tokens"])
    assert find(adapter, base=FolderFiles(originals / "llama")) == []
    other = save_model(tmp_path / "other", make_llama(seed=5))
    only(adapter, "base_differs", base=FolderFiles(other))


@pytest.mark.row(25)
@pytest.mark.parametrize("rank", [0, -1, True, "8", None])
def test_bad_rank_in_the_configuration(adapter: Path, rank: Any) -> None:
    """`bad_rank`: a rank that is none."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": rank}))
    assert "bad_rank" in {found.code for found in find(adapter)}


@pytest.mark.row(25)
@pytest.mark.parametrize("rank", [0, 40])
def test_bad_rank_in_the_factors(adapter: Path, rank: int) -> None:
    """`bad_rank`: factors of rank 0, or of more than the layer's smaller side."""
    edit(adapter, "adapter_config.json", r=max(rank, 1))

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: np.ones((rank, value.shape[1]) if "lora_A" in name else (value.shape[0], rank), np.float32)
            for name, value in tensors.items()
        }

    factors(adapter, change)
    found = find(adapter)
    assert {finding.code for finding in found} == {"bad_rank"}
    assert f"rank {rank}" in found[0].message


@pytest.mark.row(25)
def test_rank_mismatch(adapter: Path) -> None:
    """`rank_mismatch`: the configuration says another rank than the factors have, and a pattern makes it right."""
    edit(adapter, "adapter_config.json", r=8)
    assert {found.code for found in find(adapter)} == {"rank_mismatch"}
    edit(adapter, "adapter_config.json", rank_pattern={"q_proj": 4, r".*\.v_proj": 4})
    assert find(adapter) == []


@pytest.mark.row(25)
def test_empty_adapter(adapter: Path) -> None:
    """`empty_adapter`: a LoRA without factors."""
    factors(adapter, lambda _: {"base_model.model.x": np.ones(2, np.float32)})
    only(adapter, "empty_adapter")


@pytest.mark.row(25)
def test_unpaired_factor(adapter: Path) -> None:
    """`unpaired_factor`: A without B."""
    factors(adapter, lambda held: {n: v for n, v in held.items() if "layers.0.self_attn.q_proj.lora_B" not in n})
    assert "layers.0.self_attn.q_proj" in only(adapter, "unpaired_factor").message


@pytest.mark.row(25)
def test_target_missing(adapter: Path, originals: Path) -> None:
    """`target_missing`: it changes a module that the base has not."""
    factors(adapter, lambda held: {n.replace("layers.1.", "layers.7."): v for n, v in held.items()})
    found = only(adapter, "target_missing", base=FolderFiles(originals / "llama"))
    assert "model.layers.7.self_attn.q_proj" in found.message


@pytest.mark.row(25)
def test_adapter_shape(adapter: Path, tmp_path: Path) -> None:
    """`adapter_shape`: a base of another width, with both shapes."""
    wide = save_model(tmp_path / "wide", make_llama(hidden_size=64))
    found = find(adapter, base=FolderFiles(wide))
    assert {finding.code for finding in found} == {"adapter_shape"}
    assert "(32, 32)" in found[0].message
    assert "(64, 64)" in found[0].message


@pytest.mark.row(25)
def test_adapter_dtype(adapter: Path, originals: Path) -> None:
    """`adapter_dtype`: half precision on a base of single precision."""
    factors(adapter, lambda held: {name: value.astype(np.float16) for name, value in held.items()})
    only(adapter, "adapter_dtype", base=FolderFiles(originals / "llama"))


def test_untrained(adapter: Path) -> None:
    """`untrained`: B is zero, as before the first step."""
    factors(adapter, lambda held: {n: v * 0 if "lora_B" in n else v for n, v in held.items()})
    only(adapter, "untrained")
