"""Whole models merged: each method against its definition in float64, and everything around the arithmetic."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import adapter_bases as bases
import tiny_models
from derivations import derivation_reference as reference
from modelyard.errors import InputError, ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE, Certificate, read
from modelyard.weights.merge.mergekit import read_mergekit
from modelyard.weights.merge.models import merge_models
from weights.merge import algebra_cases, model_family

BASE, ONE, TWO = "base", "one", "two"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three Llamas in float32."""
    return model_family.write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def values(family: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Their tensors in float64."""
    return {name: model_family.tensors(folder) for name, folder in family.items()}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three Llamas in bfloat16, each over several files."""
    return model_family.write_family(tmp_path_factory.mktemp("halves"), "bfloat16", "16KB")


def merge(family: dict[str, Path], out: Path, method: str, names: list[str], **options: Any) -> Certificate:
    """`merge_models` of `one` and `two`, on `base` where the method counts from one."""
    base = None if method in {"linear", "passthrough"} else FolderFiles(family[options.pop("on", BASE)])
    return merge_models([FolderFiles(family[name]) for name in names], out, method=method, base=base, **options)


def near(found: Any, wanted: Any) -> bool:
    """Equal to a few roundings of float32."""
    return bool(np.all(np.abs(found - wanted) <= 1e-6 * np.abs(wanted).max() + 1e-9))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"weights": [0.3, 0.9]}),
    ("linear", {"weights": [0.3, -0.9], "parameters": {"normalize": False}}),
    ("task_arithmetic", {"weights": [0.7, -0.4], "parameters": {"lambda": 0.8}}),
    ("ties", {"weights": [0.7, 0.4], "density": [0.3, 0.6], "parameters": {"lambda": 1.2}}),
    ("ties", {"weights": [0.7, -0.4], "density": 0.5, "parameters": {"normalize": False}}),
    ("slerp", {"on": "one", "parameters": {"t": 0.3}}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
def test_methods_are_their_definitions(
    family: dict[str, Path], values: dict[str, dict[str, Any]], method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Every tensor is what the method's definition gives in float64, to float32's rounding, and transformers runs the result."""
    names = [TWO] if method == "slerp" else [ONE, TWO]
    certificate = merge(family, tmp_path / "out", method, names, **options)
    found, plain = model_family.tensors(tmp_path / "out"), options.get("parameters", {})
    for name, base in values[BASE].items():
        one, two = values[ONE][name], values[TWO][name]
        if method == "linear":
            wanted = model_family.linear([one, two], options["weights"], normalize=plain.get("normalize", True))
        elif method == "task_arithmetic":
            wanted = model_family.task_arithmetic(base, [one, two], options["weights"], plain["lambda"])
        elif method == "slerp":
            wanted = algebra_cases.slerp(one, two, 0.3)
        else:
            density = options["density"]
            densities = density if isinstance(density, list) else [density] * 2
            normalize, scale = plain.get("normalize", True), plain.get("lambda", 1.0)
            wanted = model_family.ties(base, [one, two], options["weights"], densities, scale, normalize=normalize)
        assert near(found[name], wanted)
    assert certificate.exactness == (THIS_MACHINE if method == "slerp" else EVERYWHERE)
    assert certificate.matched["tensors"] == len(found) == len(certificate.changes)
    model = algebra_cases.load(tmp_path / "out")
    assert torch.isfinite(model(input_ids=torch.arange(8)[None]).logits).all()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("densities", [[0.5, 0.5], [0.25, 0.75]])
def test_dare_is_the_scalar_definition(
    family: dict[str, Path], method: str, densities: list[float], tmp_path: Path
) -> None:
    """Each tensor is the base plus what `dare/1` or `dare/2` keeps, drawn by its own name, bit for bit by scalar loops (one tensor checked)."""
    merge(family, tmp_path / "out", method, [ONE, TWO], weights=[0.75, 0.5], density=densities, seed=5)
    name = "model.layers.1.self_attn.k_proj.weight"
    base, one, two = (
        load_file(family[each] / "model.safetensors")[name].numpy().reshape(-1) for each in (BASE, ONE, TWO)
    )
    thinned = [
        reference.thinned_at_random(
            list(x - base), model, np.float32(density), seed=5, name=name, element=0, rescale=True
        )
        for model, (x, density) in enumerate(zip((one, two), densities, strict=True))
    ]
    weights = [np.float32(0.75), np.float32(0.5)]
    wanted = reference.elected(
        list(base), thinned, weights, elect=method == "dare_ties", normalize=False, scale=np.float32(1)
    )
    found = load_file(tmp_path / "out" / "model.safetensors")[name].numpy().reshape(-1)
    assert found.tobytes() == np.array(wanted, np.float32).tobytes()


def test_nothing_shows_of_threads_and_blocks(halves: dict[str, Path], tmp_path: Path) -> None:
    """Threads and block sizes change no bit of a file, in any exact method."""
    for method, options in (
        ("linear", {}),
        ("ties", {"density": 0.4}),
        ("dare_linear", {"density": 0.5}),
        ("dare_ties", {"density": [0.5, 0.9]}),
    ):
        outputs = []
        for number, (threads, block) in enumerate([(1, 1 << 20), (2, 1 << 20), (1, 9000)]):
            certificate = merge(
                halves, tmp_path / f"{method}{number}", method, [ONE, TWO], weights=[0.6, 0.7], threads=threads,
                block_elements=block, **options,
            )  # fmt: skip
            outputs.append(certificate.outputs)
        assert outputs[0] == outputs[1] == outputs[2]


def test_half_precision_rounds_once(halves: dict[str, Path], tmp_path: Path) -> None:
    """Models in bfloat16 merge in float32 and round once; files, names and layout are the base's, and `dtype` casts the result."""
    merge(halves, tmp_path / "out", "task_arithmetic", [ONE, TWO], weights=[0.5, 0.25])
    assert {path.name for path in (tmp_path / "out").glob("model*")} == {
        path.name for path in halves[BASE].glob("model*")
    }
    values = {name: model_family.tensors(folder) for name, folder in halves.items()}
    found = model_family.tensors(tmp_path / "out")
    for name, base in values[BASE].items():
        wanted = model_family.task_arithmetic(base, [values[ONE][name], values[TWO][name]], [0.5, 0.25], 1.0)
        assert np.all(np.abs(found[name] - wanted) <= 2.0**-8 * np.abs(wanted) + 1e-30)
    merge(halves, tmp_path / "wide", "linear", [ONE, TWO], weights=[1.0, 1.0], dtype="float32", shard_size=1 << 30)
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert [path.name for path in (tmp_path / "wide").glob("*.safetensors")] == ["model.safetensors"]
    mean = model_family.linear([values[ONE]["lm_head.weight"], values[TWO]["lm_head.weight"]], [1, 1])
    assert near(model_family.tensors(tmp_path / "wide")["lm_head.weight"], mean)


def test_mixed_dtypes(family: dict[str, Path], halves: dict[str, Path], tmp_path: Path) -> None:
    """Models of two dtypes give what these promote to."""
    files = [FolderFiles(family[ONE]), FolderFiles(halves[TWO])]
    merge_models(files, tmp_path / "out", method="linear", weights=[1, 1])
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


def test_gradients_and_filters(family: dict[str, Path], values: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """A line over the layers and a filter by name reach the tensors that they are for; what lies outside of layers has the line's start."""
    config = read_mergekit(
        f"""
merge_method: linear
models:
  - model: {family[ONE]}
    parameters: {{weight: [1, 0]}}
  - model: {family[TWO]}
    parameters: {{weight: [{{filter: mlp, value: 3}}, {{value: [0, 1]}}]}}
"""
    )
    merge_models(config, tmp_path / "out")
    found = model_family.tensors(tmp_path / "out")
    assert near(found["lm_head.weight"], values[ONE]["lm_head.weight"])
    assert near(found["model.layers.0.self_attn.q_proj.weight"], values[ONE]["model.layers.0.self_attn.q_proj.weight"])
    assert near(found["model.layers.1.self_attn.q_proj.weight"], values[TWO]["model.layers.1.self_attn.q_proj.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert near(found[name], 0.25 * values[ONE][name] + 0.75 * values[TWO][name])


def test_layers_are_put_together(family: dict[str, Path], values: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Slices make a deeper model of layers of two, bits and config included, which transformers loads."""
    config = read_mergekit(
        f"""
merge_method: passthrough
slices:
  - sources: [{{model: {family[ONE]}, layer_range: [0, 2]}}]
  - sources: [{{model: {family[TWO]}, layer_range: [1, 2]}}]
"""
    )
    certificate = merge_models(config, tmp_path / "out")
    found = model_family.tensors(tmp_path / "out")
    source = {0: (ONE, 0), 1: (ONE, 1), 2: (TWO, 1)}
    for layer, (model, at) in source.items():
        name = "model.layers.{}.mlp.up_proj.weight"
        assert np.array_equal(found[name.format(layer)], values[model][name.format(at)])
    assert np.array_equal(found["lm_head.weight"], values[TWO]["lm_head.weight"])
    model = algebra_cases.load(tmp_path / "out")
    assert model.config.num_hidden_layers == 3
    assert certificate.exactness == EVERYWHERE


def test_files_beside_the_weights(family: dict[str, Path], tmp_path: Path) -> None:
    """Tokenizer, chat template and generation config come along from the base, or from the model that is named; a given template is the only one."""
    other = tmp_path / "other"
    tiny_models.save_model(other, tokenizer=tiny_models.make_tokenizer("{{ 'other' }}"))
    names = [family[ONE], other]
    text = "\n".join([
        "merge_method: linear", "models:", *(f"- {{model: {name}, parameters: {{weight: 1}}}}" for name in names)
    ])  # fmt: skip
    wanted = {
        "": tiny_models.TEMPLATE,
        f"tokenizer_source: {other}": "{{ 'other' }}",
        "chat_template: '{{ 1 }}'": "{{ 1 }}",
    }
    from transformers import AutoTokenizer

    for number, (line, template) in enumerate(wanted.items()):
        merge_models(read_mergekit(f"{text}\n{line}"), tmp_path / str(number))
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert tokenizer.chat_template == template
        assert (tmp_path / str(number) / "generation_config.json").is_file()
    auto = text + f"\n- {{model: {family[TWO]}, parameters: {{weight: 1}}}}\nchat_template: auto"
    merge_models(read_mergekit(auto), tmp_path / "auto")
    auto_tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "auto")
    assert auto_tokenizer.chat_template == tiny_models.TEMPLATE


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three Llamas with tied embeddings."""
    return model_family.write_family(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def test_tied_embeddings(tied: dict[str, Path], tmp_path: Path) -> None:
    """A tied output layer stays tied; one that is written out and equal is the same; one that differs is refused."""
    before = merge(tied, tmp_path / "plain", "linear", [ONE, TWO], weights=[1, 1])
    assert "lm_head.weight" not in load_file(tmp_path / "plain" / "model.safetensors")
    model = algebra_cases.load(tmp_path / "plain")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    held = load_file(tied[TWO] / "model.safetensors")
    for name, head in (("equal", held["model.embed_tokens.weight"]), ("other", held["model.embed_tokens.weight"] + 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((tied[TWO] / "config.json").read_bytes())
        save_file({**held, "lm_head.weight": head.clone()}, folder / "model.safetensors", {"format": "pt"})
    again = merge_models(
        [FolderFiles(tied[ONE]), FolderFiles(tmp_path / "equal")], tmp_path / "again", method="linear", weights=[1, 1]
    )
    assert again.outputs["model.safetensors"] == before.outputs["model.safetensors"]
    with pytest.raises(ModelError) as caught:
        merge_models(
            [FolderFiles(tied[ONE]), FolderFiles(tmp_path / "other")], tmp_path / "bad", method="linear", weights=[1, 1]
        )
    assert caught.value.code == "untied"


def test_a_tied_model_beside_an_untied_one(tied: dict[str, Path], family: dict[str, Path], tmp_path: Path) -> None:
    """Where the first model has an output layer of its own, a tied model's embedding stands for its."""
    merge_models([FolderFiles(family[ONE]), FolderFiles(tied[TWO])], tmp_path / "out", method="linear", weights=[1, 3])
    one, two, out = (model_family.tensors(folder) for folder in (family[ONE], tied[TWO], tmp_path / "out"))
    assert near(out["lm_head.weight"], 0.25 * one["lm_head.weight"] + 0.75 * two["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: tiny_models.make_llama(vocab_size=420), r"vocabularies of different sizes.*\[400, 32\].*\[420, 32\]"),
        (lambda: tiny_models.make_llama(intermediate_size=48), r"\[64, 32\].*\[48, 32\]|\[32, 64\].*\[32, 48\]"),
        (lambda: tiny_models.make_llama(num_attention_heads=2), "`num_attention_heads` 2.*has 4"),
        (lambda: tiny_models.make_llama(num_hidden_layers=3), "has 9 tensors that"),
        (lambda: tiny_models.make_llama(num_hidden_layers=1), "has no tensor `model.layers.1"),
        (bases.gpt2, "`model_type` 'gpt2'"),
    ],
)
def test_models_that_do_not_belong_together(family: dict[str, Path], make: Any, what: str, tmp_path: Path) -> None:
    """Another vocabulary, width, number of heads or layers, or architecture is refused with both values, and nothing is left."""
    make().save_pretrained(tmp_path / "strange")
    with pytest.raises(ModelError, match=what) as caught:
        merge_models(
            [FolderFiles(family[ONE]), FolderFiles(tmp_path / "strange")],
            tmp_path / "out",
            method="linear",
            weights=[1, 1],
        )
    assert caught.value.code == "different_models"
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


def test_integers_must_be_alike(family: dict[str, Path], tmp_path: Path) -> None:
    """A tensor of integers is taken over where all models have it alike, and refused by name where not."""
    folders = []
    for number, buffer in enumerate([[1, 2], [1, 2], [1, 3]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_bytes((family[ONE] / "config.json").read_bytes())
        held = load_file(family[ONE] / "model.safetensors")
        save_file({**held, "ids": torch.tensor(buffer)}, folder / "model.safetensors", {"format": "pt"})
        folders.append(FolderFiles(folder))
    merge_models(folders[:2], tmp_path / "out", method="linear", weights=[1, 1])
    assert load_file(tmp_path / "out" / "model.safetensors")["ids"].tolist() == [1, 2]
    with pytest.raises(ModelError, match="`ids`") as caught:
        merge_models(folders[1:], tmp_path / "bad", method="linear", weights=[1, 1])
    assert caught.value.code == "different_models"


def test_results_that_are_no_numbers(family: dict[str, Path], tmp_path: Path) -> None:
    """A NaN in a model and a result beyond float16 are refused by the tensor's name."""
    held = load_file(family[TWO] / "model.safetensors")
    held["model.norm.weight"][3] = float("nan")
    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / "config.json").write_bytes((family[TWO] / "config.json").read_bytes())
    save_file(held, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"`model\.norm\.weight`") as caught:
        merge_models(
            [FolderFiles(family[ONE]), FolderFiles(tmp_path / "nan")], tmp_path / "out", method="linear", weights=[1, 1]
        )
    assert caught.value.code == "nan_result"
    with pytest.raises(ModelError) as caught:
        merge(
            family,
            tmp_path / "out",
            "linear",
            [ONE, TWO],
            weights=[1e6, 1e6],
            parameters={"normalize": False},
            dtype="float16",
        )
    assert caught.value.code == "infinite_result"


def test_an_interrupted_merge_goes_on(halves: dict[str, Path], tmp_path: Path) -> None:
    """After Ctrl-C the same merge keeps the files that were finished, and its certificate is that of one run."""

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"weights": [0.5, 0.5], "density": 0.5}
    with pytest.raises(KeyboardInterrupt):
        merge(halves, tmp_path / "out", "ties", [ONE, TWO], progress=stop, **options)
    assert not (tmp_path / "out").exists()
    kept = {path.name: path.stat().st_ino for path in next(tmp_path.glob(".out.*")).glob("*.safetensors")}
    seen: list[tuple[int, int]] = []
    merge(halves, tmp_path / "out", "ties", [ONE, TWO], progress=lambda *at: seen.append(at), **options)
    merge(halves, tmp_path / "whole", "ties", [ONE, TWO], **options)
    assert any((tmp_path / "out" / name).stat().st_ino == inode for name, inode in kept.items())
    assert read(FolderFiles(tmp_path / "out")) == read(FolderFiles(tmp_path / "whole"))
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("linear", {"weights": [1, 1]}),
        ("dare_linear", {"weights": [1, 1], "density": 0.5}),
        ("slerp", {"on": "one", "parameters": {"t": 0.5}}),
    ],
)
def test_a_tensor_is_never_whole_in_memory(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A tensor of 24 MB is merged block by block: the peak is a small part of it."""
    family = {}
    for number, name in enumerate((BASE, ONE, TWO)):
        family[name] = tmp_path / name
        family[name].mkdir()
        (family[name] / "config.json").write_text('{"model_type": "llama"}')
        values = torch.full((3000, 2000), 1.0 + number)
        save_file({"w": values}, family[name] / "model.safetensors", {"format": "pt"})
    del values
    names = [TWO] if method == "slerp" else [ONE, TWO]
    peaks: list[int] = []

    def watch(done: int, total: int) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        merge(family, tmp_path / "out", method, names, block_elements=1 << 16, progress=watch, **options)
        # What reading a small JSON file sets aside lies before the first block.
        assert max(peaks[1:]) < 6 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("method", "options", "code"),
    [
        ("average", {}, "bad_merge_config"),
        ("linear", {}, "missing_parameter"),
        ("linear", {"weights": [1.0]}, "bad_merge_config"),
        ("linear", {"weights": [1.0, -1.0]}, "bad_number"),
        ("linear", {"weights": [1.0, 1.0], "density": 0.5}, "bad_merge_config"),
        ("linear", {"weights": [1.0, 1.0], "parameters": {"t": 1.0}}, "bad_merge_config"),
        ("linear", {"weights": [1.0, 1.0], "dtype": "int8"}, "unknown_dtype"),
        ("slerp", {"parameters": {"t": 0.5}}, "bad_merge_config"),
        ("dare_linear", {"weights": [1.0, 1.0], "density": 0.0}, "bad_number"),
        ("dare_linear", {"weights": [1.0, 1.0], "density": 0.5, "seed": -1}, "bad_seed"),
        ("passthrough", {}, "bad_merge_config"),
    ],
)
def test_wrong_options(
    family: dict[str, Path], method: str, options: dict[str, Any], code: str, tmp_path: Path
) -> None:
    """Each wrong option is refused with a code before anything is written."""
    with pytest.raises(InputError) as caught:
        merge(family, tmp_path / "out", method, [ONE, TWO], **options)
    assert caught.value.code == code
    assert not any(tmp_path.iterdir())


def test_other_vocabularies_are_said(family: dict[str, Path], tmp_path: Path) -> None:
    """Models whose tokenizers or positions differ merge with a warning that names them."""
    other = tmp_path / "other"
    tiny_models.save_model(other, tiny_models.make_llama(rms_norm_eps=1e-5))
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|user|>", "<|human|>"))
    certificate = merge_models(
        [FolderFiles(family[ONE]), FolderFiles(other)], tmp_path / "out", method="linear", weights=[1, 1]
    )
    assert len(certificate.warnings) == 2
    assert all(str(other) in warning for warning in certificate.warnings)
