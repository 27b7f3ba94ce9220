"""Each code of the doctor: a sound tiny checkpoint is broken in exactly one way, and exactly that is found."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import modelyard.weights.doctor as doctor_package
from modelyard.weights.doctor import CODES, BaseIds, Finding, SingleFile, diagnose
from modelyard.weights.files import FolderFiles
from modelyard.weights.gguf import GGUF_CODES
from modelyard.weights.headers import CODES as HEADER_CODES
from task_models import audio, multimodal, text, vision
from tiny_models import TEMPLATE, make_llama, make_tokenizer, save_adapter, save_model
from weights.gguf_files import gguf

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "diagnosing.md"
REFUSALS = {"not_a_folder", "incomplete_version", "bad_model", "damaged"}
"""Codes of errors that other modules raise about a checkpoint, which an examination passes on."""


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound models of this module: `llama`, its `shards`, `adapter`, `vit`, `bert`."""
    folder = tmp_path_factory.mktemp("doctor")
    llama = make_llama()
    save_model(folder / "llama", llama)
    llama.save_pretrained(folder / "shards", max_shard_size="40KB")
    make_tokenizer().save_pretrained(folder / "shards")
    save_adapter(folder / "adapter", folder / "llama")
    vision.MODELS["image-classification"](folder / "vit")
    text.MODELS["text-classification"](folder / "bert")
    return folder


@pytest.fixture
def llama(originals: Path, tmp_path: Path) -> Path:
    """A copy of the language model, to be broken."""
    return copy(originals / "llama", tmp_path)


@pytest.fixture
def shards(originals: Path, tmp_path: Path) -> Path:
    """A copy of the language model in shards."""
    return copy(originals / "shards", tmp_path)


@pytest.fixture
def adapter(originals: Path, tmp_path: Path) -> Path:
    """A copy of the adapter."""
    return copy(originals / "adapter", tmp_path)


def copy(source: Path, target: Path) -> Path:
    """A copy of a model folder below `target`."""
    return Path(shutil.copytree(source, target / source.name))


def find(folder: Path, **options: Any) -> list[Finding]:
    """What the doctor finds in a folder."""
    return diagnose(FolderFiles(folder), **options)


def only(folder: Path, code: str, level: str | None = None, **options: Any) -> Finding:
    """The one thing that is found, which has this code and the level of the table (or another one)."""
    found = find(folder, **options)
    assert [finding.code for finding in found] == [code], [finding.message for finding in found]
    assert found[0].level == (level or CODES[code])
    assert found[0].hint
    return found[0]


def edit(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    path = folder / name
    held = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}), "utf-8")


def rewrite(folder: Path, change: Any, name: str = "model.safetensors") -> None:
    """Replace the tensors of a file by what `change` makes of them."""
    save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})


def index_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The path of the index, and what it holds."""
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text("utf-8"))


# What is sound


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        (text, "text-generation"),
        (text, "text-classification"),
        (text, "fill-mask"),
        (text, "text2text-generation"),
        (text, "question-answering"),
        (vision, "image-classification"),
        (vision, "object-detection"),
        (vision, "normal-estimation"),
        (audio, "ctc"),
        (audio, "automatic-speech-recognition"),
        (audio, "text-to-spectrogram"),
        (multimodal, "image-text-to-text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sound_model_of_every_kind_has_no_findings(tasks: Any, name: str, tmp_path: Path) -> None:
    """Models as transformers saves them, of text, images and sound, have nothing wrong."""
    assert [found.message for found in find(tasks.MODELS[name](tmp_path / "model"))] == []


def test_sound_shards_and_adapters_have_no_findings(originals: Path) -> None:
    """Neither has a model in shards, nor an adapter with its base."""
    assert find(originals / "shards") == []
    assert find(originals / "adapter", base=FolderFiles(originals / "llama")) == []


def test_a_sound_gguf_file_has_no_findings(tmp_path: Path) -> None:
    """A GGUF file by itself, and as the one file of a folder, has nothing wrong."""
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"w": (0, (8,))}))
    assert diagnose(SingleFile(path)) == []
    assert find(tmp_path) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bits", [4, 8])
def test_sound_quantized_weights_have_no_findings(originals: Path, tmp_path: Path, bits: int) -> None:
    """Weights that bitsandbytes packed, as transformers saves them, have nothing wrong; without a module's parts, it is missing."""
    import transformers

    configure: Any = transformers.BitsAndBytesConfig
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    asked = configure(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    folder = tmp_path / "packed"
    load(originals / "llama", quantization_config=asked).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    assert [found.message for found in find(folder)] == []
    rewrite(folder, lambda held: {name: value for name, value in held.items() if "layers.1.mlp.up_proj" not in name})
    assert "model.layers.1.mlp.up_proj.weight" in only(folder, "missing_tensors").message


def test_a_snapshot_of_the_hub_cache_has_no_findings(originals: Path, tmp_path: Path) -> None:
    """A folder of links into the cache's own blobs, as every tool of the hub keeps it, is examined like any other."""
    repo = tmp_path / "models--org--name"
    shutil.copytree(originals / "llama", repo / "blobs")
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in (repo / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    assert find(snapshot) == []
    (snapshot / "notes.json").symlink_to("/etc/passwd")
    only(snapshot, "not_a_regular_file")


def test_a_single_safetensors_file_is_examined(llama: Path) -> None:
    """One file is examined by itself: its header and its values, and not what a folder should hold."""
    path = llama / "model.safetensors"
    assert diagnose(SingleFile(path)) == []
    rewrite(llama, lambda tensors: tensors | {"model.norm.weight": np.full(32, np.nan, np.float32)})
    assert [found.code for found in diagnose(SingleFile(path))] == ["nonfinite"]


# Files


def test_avoidable_pickle(llama: Path) -> None:
    """`avoidable_pickle`: pickled weights, a warning beside safetensors; `yard convert` leaves or converts them."""
    (llama / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    beside = only(llama, "avoidable_pickle", "warning")
    assert "beside `model.safetensors`" in beside.message
    (llama / "model.safetensors").unlink()
    assert "the weights are pickles" in only(llama, "avoidable_pickle").message
    assert str(beside.hint).startswith(f"yard convert {llama}")


@pytest.mark.parametrize("name", ["vocab.txt", "training_args.bin", "model.safetensors"])
def test_pickle(llama: Path, name: str) -> None:
    """`pickle`: a pickle under any name, and what training left."""
    (llama / name).write_bytes(pickle.dumps({"lr": 1}))
    assert name in only(llama, "pickle").message


def test_archive(llama: Path) -> None:
    """`archive`: a compressed file under the weights' name."""
    (llama / "model.safetensors").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    only(llama, "archive")


def test_empty_file(llama: Path) -> None:
    """`empty_file`: a tokenizer file without a byte."""
    (llama / "tokenizer.model").touch()
    only(llama, "empty_file")


def test_wrong_name(llama: Path) -> None:
    """`wrong_name`: safetensors under a name that no loader looks for."""
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert "pytorch_model.safetensors" in only(llama, "wrong_name").message


def test_unknown_format(llama: Path) -> None:
    """`unknown_format`: named like weights, and nothing that anyone reads."""
    (llama / "pytorch_model.bin").write_bytes(b"\x01\x02\x03 nothing")
    only(llama, "unknown_format")


@pytest.mark.parametrize(
    ("name", "head", "library"),
    [
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "TensorFlow"),
        ("flax_model.msgpack", b"\x81\xa6params\x80", "Flax"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch:", "ONNX"),
        ("weights", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ],
)
def test_foreign_weights(llama: Path, name: str, head: bytes, library: str) -> None:
    """`foreign_weights`: another library's, told by content; a warning beside safetensors, an error in their place."""
    (llama / name).write_bytes(head + bytes(64))
    assert library in only(llama, "foreign_weights", "warning").message
    (llama / "model.safetensors").unlink()
    assert library in only(llama, "foreign_weights", "error").message


def test_not_a_regular_file(llama: Path) -> None:
    """`not_a_regular_file`: a link out of the folder."""
    (llama / "notes").symlink_to("/etc/passwd")
    only(llama, "not_a_regular_file")


def test_unsafe_path(shards: Path) -> None:
    """`unsafe_path`: an index that names a file outside the folder."""
    path, index = index_of(shards)
    index["weight_map"]["lm_head.weight"] = "../outside.safetensors"
    path.write_text(json.dumps(index))
    assert "unsafe_path" in {found.code for found in find(shards)}


def test_bad_json(llama: Path) -> None:
    """`bad_json`: a configuration that was cut off."""
    (llama / "generation_config.json").write_text('{"eos_token_id": ')
    assert "generation_config.json" in only(llama, "bad_json").message


def test_file_too_large(llama: Path) -> None:
    """`file_too_large`: a configuration of gigabytes is not read."""
    with (llama / "special_tokens_map.json").open("wb") as stream:
        stream.truncate(65 << 20)
    assert "file_too_large" in {found.code for found in find(llama)}


def test_remote_code(llama: Path) -> None:
    """`remote_code`: a configuration that asks for code of its own."""
    edit(llama, auto_map={"AutoModel": "modeling.Model"})
    assert "auto_map" in only(llama, "remote_code").message


# The set of weights


def test_misnamed_weights(llama: Path) -> None:
    """`misnamed_weights`: the only weights have a name that loaders do not look for."""
    (llama / "model.safetensors").rename(llama / "weights.safetensors")
    assert "weights.safetensors" in only(llama, "misnamed_weights").message


def test_missing_index(shards: Path) -> None:
    """`missing_index`: all shards, and nothing that names them."""
    index_of(shards)[0].unlink()
    only(shards, "missing_index")


def test_bad_index(shards: Path) -> None:
    """`bad_index`: an index without its map."""
    index_of(shards)[0].write_text('{"metadata": {}}')
    only(shards, "bad_index")


@pytest.mark.parametrize("indexed", [True, False])
def test_missing_shard(shards: Path, indexed: bool) -> None:
    """`missing_shard`: a shard that the index, or the others' names, say should be there; its tensors are no second finding."""
    next(shards.glob("model-00002-*")).unlink()
    if not indexed:
        index_of(shards)[0].unlink()
    only(shards, "missing_shard")


@pytest.mark.row(17)
@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.norm.weight"])
def test_index_mismatch(shards: Path, tensor: str) -> None:
    """`index_mismatch`: a tensor in another shard than the index says, named with both; also one that was alone in its shard."""
    path, index = index_of(shards)
    wrong = min(set(index["weight_map"].values()) - {index["weight_map"][tensor]})
    right, index["weight_map"][tensor] = index["weight_map"][tensor], wrong
    path.write_text(json.dumps(index))
    found = only(shards, "index_mismatch")
    assert right in found.message
    assert wrong in found.message


def test_index_without_a_tensor(shards: Path) -> None:
    """`index_mismatch` too: a tensor of a shard that the index does not name."""
    path, index = index_of(shards)
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    assert "lm_head.weight" in only(shards, "index_mismatch").message


def test_duplicate_tensor(shards: Path) -> None:
    """`duplicate_tensor`: one name in two shards."""
    weight_map = index_of(shards)[1]["weight_map"]
    home, other = (
        weight_map["lm_head.weight"],
        next(s for s in weight_map.values() if s != weight_map["lm_head.weight"]),
    )
    head = load_file(shards / home)["lm_head.weight"]
    rewrite(shards, lambda tensors: tensors | {"lm_head.weight": head}, other)
    path, index = index_of(shards)
    index["metadata"]["total_size"] += head.nbytes
    path.write_text(json.dumps(index))
    only(shards, "duplicate_tensor")


def test_stray_shard(shards: Path) -> None:
    """`stray_weights`: a shard that an older index named."""
    shutil.copy(next(shards.glob("model-00001-*")), shards / "model-00009-of-00009.safetensors")
    assert "model-00009-of-00009" in only(shards, "stray_weights").message


@pytest.mark.parametrize("other", ["model.fp16.safetensors", "consolidated.safetensors"])
def test_two_weight_sets(llama: Path, other: str) -> None:
    """`two_weight_sets`: a variant of the weights beside them."""
    shutil.copy(llama / "model.safetensors", llama / other)
    assert other in only(llama, "two_weight_sets").message


def test_a_single_file_beside_shards(shards: Path, originals: Path) -> None:
    """`two_weight_sets` too: one file and an index with its shards."""
    shutil.copy(originals / "llama" / "model.safetensors", shards)
    only(shards, "two_weight_sets")


def test_total_size(shards: Path) -> None:
    """`total_size`: an index whose sum is wrong; good to know, since no loader reads it."""
    path, index = index_of(shards)
    index["metadata"]["total_size"] = 7
    path.write_text(json.dumps(index))
    only(shards, "total_size", "info")


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


# The table and the page


def named_codes() -> set[str]:
    """Every code that the doctor's own source gives to a finding."""
    folder = Path(str(doctor_package.__file__)).parent
    found: set[str] = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "make":
                first = node.args[0]
                found |= {str(first.value)} if isinstance(first, ast.Constant) else set()
    return found


def test_every_code_of_the_source_is_in_the_table() -> None:
    """No finding has a code that `CODES` lacks."""
    assert named_codes() <= set(CODES)


def test_every_code_has_a_test_here() -> None:
    """Each code of the table is broken on purpose in the doctor's tests."""
    here = Path(__file__).parent
    said = "".join(path.read_text("utf-8") for path in here.glob("test_doctor*.py"))
    assert {code for code in CODES if f'"{code}"' not in said} == set()


def test_the_guide_explains_every_code() -> None:
    """docs/guides/diagnosing.md has a row for each code, of the table and of the refused headers, and for no other."""
    rows = set(re.findall(r"^\| `(\w+)` \|", GUIDE.read_text("utf-8"), re.MULTILINE))
    assert rows == set(CODES) | set(HEADER_CODES) | set(GGUF_CODES) | REFUSALS
