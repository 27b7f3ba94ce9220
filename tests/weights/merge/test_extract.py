"""A LoRA from two checkpoints, judged by the real PEFT and by numpy's SVD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import adapter_bases as bases
from adapter_kinds import KINDS
from modelyard.errors import InputError, ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.certificate import Certificate, read
from modelyard.weights.merge.extraction import extract
from weights.merge import algebra_cases as cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
]


def disturb(base: Path, folder: Path, names: tuple[str, ...], size: float = 0.01) -> Path:
    """The base with random changes in the parameters whose names end so."""
    model = cases.load(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    model.save_pretrained(folder)
    return folder


def run(base: Path, tuned: Path, out: Path, **options: Any) -> Certificate:
    """An extraction; rank 4 unless told otherwise."""
    return extract(FolderFiles(base), FolderFiles(tuned), out, **{"rank": 4, **options})


def change_of(one: Path, other: Path) -> cases.Deltas:
    """The difference of two models' tensors in float64."""
    left, right = (cases.load(folder).double().state_dict() for folder in (one, other))
    found = {name: (right[name] - left[name]).numpy() for name in left}
    return {name: value for name, value in found.items() if np.abs(value).max() > 1e-9}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama."""
    return cases.write_base(tmp_path_factory.mktemp("extract") / "base")


@pytest.fixture(scope="module")
def merged(base: Path) -> Path:
    """The Llama with a rank-4 LoRA merged into it by PEFT, in float32."""
    from peft import PeftModel

    adapter = cases.write_adapter(base, base.parent / "adapter", 3, r=4)
    PeftModel.from_pretrained(cases.load(base), str(adapter)).merge_and_unload().save_pretrained(base.parent / "merged")
    return base.parent / "merged"


def test_a_merged_lora_is_found_again(base: Path, merged: Path, tmp_path: Path) -> None:
    """A rank-4 merge is extracted at rank 4 to what float32 lost, module by module, and PEFT attaches the result."""
    certificate = run(base, merged, tmp_path / "out")
    assert cases.distance(cases.peft_deltas(base, tmp_path / "out"), change_of(base, merged)) < 2e-6
    modules = {change["module"] for change in certificate.changes}
    assert modules == {f"model.layers.{n}.{name}" for n in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}
    assert all(change["error"] < 1e-5 and change["energy"] > 0.99999 for change in certificate.changes)
    assert certificate.matched == {"modules": 4, "saved": 0, "lost": 0}


def test_a_lower_rank_is_the_best_one(base: Path, merged: Path, tmp_path: Path) -> None:
    """Below the true rank each module is its best approximation, and the certificate says what it keeps."""
    certificate = run(base, merged, tmp_path / "out", rank=2)
    change = change_of(base, merged)
    found = cases.peft_deltas(base, tmp_path / "out")
    assert cases.distance(found, {name: cases.best(delta, 2) for name, delta in change.items()}) < 2e-6
    for each in certificate.changes:
        delta = change[f"{each['module']}.weight"]
        error = np.linalg.norm(delta - cases.best(delta, 2)) / np.linalg.norm(delta)
        assert each["error"] == pytest.approx(error, abs=1e-5)


def test_an_error_that_suffices_lowers_the_rank(base: Path, merged: Path, tmp_path: Path) -> None:
    """With `min_error` no module has more than rank 4 of 12, and PEFT loads ranks that differ by module."""
    certificate = run(base, merged, tmp_path / "out", rank=12, min_error=0.3)
    ranks = {change["module"]: change["rank"] for change in certificate.changes}
    change = change_of(base, merged)
    for module, rank in ranks.items():
        delta = change[f"{module}.weight"]
        errors = [np.linalg.norm(delta - cases.best(delta, each)) / np.linalg.norm(delta) for each in (rank, rank - 1)]
        assert errors[0] <= 0.3 < errors[1]
    assert max(ranks.values()) <= 4
    assert cases.peft_deltas(base, tmp_path / "out").keys() == change.keys()


@pytest.mark.parametrize("exact", [True, False])
def test_both_decompositions_find_it(base: Path, merged: Path, exact: bool, tmp_path: Path) -> None:
    """Whole or projected at random, the SVD gives the same adapter, and the certificate says which it was."""
    certificate = run(base, merged, tmp_path / "out", exact=exact)
    assert cases.distance(cases.peft_deltas(base, tmp_path / "out"), change_of(base, merged)) < 5e-6
    assert {change["decomposition"] for change in certificate.changes} == {"whole" if exact else "random projection"}


def test_targets(base: Path, merged: Path, tmp_path: Path) -> None:
    """Only the targets are extracted; a target that names no linear layer is refused."""
    run(base, merged, tmp_path / "out", targets=["q_proj"])
    assert all(name.endswith("q_proj.weight") for name in cases.peft_deltas(base, tmp_path / "out"))
    with pytest.raises(InputError) as caught:
        run(base, merged, tmp_path / "bad", targets=["norm"])
    assert caught.value.code == "no_match"


def test_what_is_no_linear_layer(base: Path, tmp_path: Path) -> None:
    """Norms and embeddings that changed are listed with a warning, or saved whole: then the function is the tuned model's."""
    from peft import PeftModel

    tuned = disturb(base, tmp_path / "tuned", ("norm.weight", "embed_tokens.weight", "k_proj.weight"), 0.3)
    certificate = run(base, tuned, tmp_path / "without", rank=8)
    lost = {change["tensor"] for change in certificate.changes if "lost" in change}
    assert lost == {name for name in change_of(base, tuned) if "k_proj" not in name}
    assert len(certificate.warnings) == 1
    kept = run(base, tuned, tmp_path / "with", rank=16, save_others=True)
    assert (kept.matched["lost"], kept.warnings) == (0, [])
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        wanted = cases.load(tuned)(input_ids=tokens).logits
        found = PeftModel.from_pretrained(cases.load(base), str(tmp_path / "with"))(input_ids=tokens).logits
    assert (wanted - found).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["conv1d", "linear-vit-of-transformers-4", "classifier", "tied-saved-ensured"])
@pytest.mark.filterwarnings(
    "ignore"
)  # what the other libraries say while they load these architectures is their tests' matter
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Transposed layers, names that differ on disk, a bias that changed and tied embeddings: the adapter attached answers as the tuned model."""
    from peft import PeftModel

    from modelyard.weights.merge import merge_lora

    made = KINDS[kind](tmp_path)
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "tuned")
    run(made.base, tmp_path / "tuned", tmp_path / "out", save_others=True)
    attached = PeftModel.from_pretrained(made.load(), str(tmp_path / "out")).eval()
    wanted = made.run(made.load(tmp_path / "tuned"))
    assert (made.run(attached) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_an_interrupted_extraction_goes_on(
    base: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C the layers that were done are not decomposed again, and the files are those of one run."""
    from modelyard.weights.merge import extraction, lowrank

    counted: list[int] = []
    plain = lowrank.factorize

    def counting(*args: Any, **options: Any) -> Any:
        counted.append(1)
        return plain(*args, **options)

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "factorize", counting)
    with pytest.raises(KeyboardInterrupt):
        run(base, merged, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    assert len(counted) == 3
    run(base, merged, tmp_path / "out")
    assert len(counted) == 4
    run(base, merged, tmp_path / "whole")
    left, right = (read(FolderFiles(tmp_path / name)) for name in ("out", "whole"))
    assert left == right
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "certificate.json"}


def test_half_precision(base: Path, merged: Path, tmp_path: Path) -> None:
    """A tuned model in bfloat16 of a base in float32 has the difference of the two as they are stored."""
    cases.load(merged).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    run(base, tmp_path / "half", tmp_path / "out", rank=16)
    half = load_file(merged / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    rounded = torch.from_numpy(half[name]).to(torch.bfloat16).double().numpy()
    wanted = rounded - load_file(base / "model.safetensors")[name]
    assert np.abs(cases.peft_deltas(base, tmp_path / "out")[name] - wanted).max() < 1e-6


def test_models_that_do_not_belong_together(base: Path, merged: Path, tmp_path: Path) -> None:
    """Other shapes, other tensors and other architectures are refused with what differs; two equal models have nothing to extract."""
    others = {
        r"\[96, 16\] and \[104, 16\]": bases.llama(vocab_size=104),
        "has no tensor `model.layers.2": bases.llama(num_hidden_layers=3),
        "'llama', the other a 'gpt2'": bases.gpt2(),
    }
    for number, (what, model) in enumerate(others.items()):
        model.save_pretrained(tmp_path / str(number))
        with pytest.raises(ModelError, match=what) as caught:
            run(base, tmp_path / str(number), tmp_path / "out")
        assert caught.value.code == "different_models"
    with pytest.raises(ModelError) as caught:
        run(merged, merged, tmp_path / "out")
    assert caught.value.code == "no_difference"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "code"), [({"rank": 0}, "bad_rank"), ({"min_error": 1.0}, "bad_number")])
def test_wrong_options(base: Path, merged: Path, options: dict[str, Any], code: str, tmp_path: Path) -> None:
    """A rank below 1 and an error that is none are refused."""
    with pytest.raises(InputError) as caught:
        run(base, merged, tmp_path / "out", **options)
    assert caught.value.code == code


def test_the_configuration_is_a_plain_lora(base: Path, merged: Path, tmp_path: Path) -> None:
    """The adapter says what it was made from, and has the scale 1."""
    run(base, merged, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["task_type"]) == (4, 4, False, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == str(base)
