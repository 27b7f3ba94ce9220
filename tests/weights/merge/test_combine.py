"""Adapters combined in delta space, judged by the real PEFT's own deltas and the methods written in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import adapter_bases as bases
from adapter_kinds import KINDS
from derivations import derivation_reference as reference
from modelyard.errors import InputError, ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.certificate import EVERYWHERE, read
from modelyard.weights.merge.combination import combine
from weights.merge import algebra_cases as cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama, and adapters of it: plain, another, rank-stabilised with patterns and other modules, DoRA."""
    folder = tmp_path_factory.mktemp("combine")
    base = cases.write_base(folder / "base")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "other": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]},
        "rslora": {
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {"q_proj": 9},
        },
        "dora": {"use_dora": True},
    }
    adapters = {
        name: cases.write_adapter(base, folder / name, seed, **config)
        for seed, (name, config) in enumerate(kinds.items())
    }
    return {"base": base, **adapters}


@pytest.fixture(scope="module")
def deltas(made: dict[str, Path]) -> dict[str, cases.Deltas]:
    """What PEFT adds for each adapter, in float64."""
    return {name: cases.peft_deltas(made["base"], folder) for name, folder in made.items() if name != "base"}


def run(made: dict[str, Path], names: list[str], out: Path, **options: Any) -> cases.Deltas:
    """Combine, and give what PEFT makes of the result."""
    combine([FolderFiles(made[name]) for name in names], out, base=FolderFiles(made["base"]), **options)
    return cases.peft_deltas(made["base"], out)


@pytest.mark.parametrize("names", [["plain", "other"], ["plain", "rslora"], ["rslora", "other", "plain"]])
def test_linear_is_the_weighted_sum(
    made: dict[str, Path], deltas: dict[str, cases.Deltas], names: list[str], tmp_path: Path
) -> None:
    """PEFT loads the result, and adds the weighted sum of what it adds for each, whatever their ranks, scales and modules."""
    weights = [0.6, -0.4, 1.5][: len(names)]
    found = run(made, names, tmp_path / "out", weights=weights)
    assert cases.distance(found, cases.total([deltas[name] for name in names], weights)) < 2e-7


@pytest.mark.parametrize("name", ["plain", "rslora", "dora"])
def test_one_adapter_is_itself(
    made: dict[str, Path], deltas: dict[str, cases.Deltas], name: str, tmp_path: Path
) -> None:
    """One adapter with the weight 1 keeps its function; a DoRA at full rank does too."""
    rank = 16 if name == "dora" else None
    found = run(made, [name], tmp_path / "out", weights=[1.0], rank=rank)
    assert cases.distance(found, deltas[name]) < 2e-6


def test_peft_itself_is_wrong(made: dict[str, Path], deltas: dict[str, cases.Deltas], tmp_path: Path) -> None:
    """PEFT's weighted adapter of one rsLoRA is not that adapter (peft#3761), and its linear sum is not the sum (peft#3004); ours are."""
    from peft import PeftModel

    def weighted(names: list[str], weights: list[float]) -> cases.Deltas:
        model = PeftModel.from_pretrained(cases.load(made["base"]), str(made[names[0]]), adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(str(made[name]), adapter_name=name)
        model.add_weighted_adapter(names, weights, "sum", combination_type="linear")
        model.save_pretrained(str(tmp_path / "peft"), selected_adapters=["sum"])
        return cases.peft_deltas(made["base"], tmp_path / "peft" / "sum")

    twin = cases.write_adapter(made["base"], tmp_path / "twin", 9)
    everything = made | {
        "twin": twin,
        "stable": cases.write_adapter(made["base"], tmp_path / "stable", 3, use_rslora=True),
    }
    made = everything
    stable, sum_ = cases.peft_deltas(made["base"], made["stable"]), cases.peft_deltas(made["base"], twin)
    assert cases.distance(weighted(["stable"], [1.0]), stable) > 0.1
    assert cases.distance(run(made, ["stable"], tmp_path / "one", weights=[1.0]), stable) < 2e-7
    wanted = cases.total([deltas["plain"], sum_], [0.6, 0.4])
    assert cases.distance(weighted(["plain", "twin"], [0.6, 0.4]), wanted) > 0.1
    assert cases.distance(run(made, ["plain", "twin"], tmp_path / "two", weights=[0.6, 0.4]), wanted) < 2e-7


def test_linear_is_exact_everywhere(made: dict[str, Path], tmp_path: Path) -> None:
    """The factors are joined as they are, and B is rounded once from weight times scale times B: bits that no machine changes."""
    certificate = combine(
        [FolderFiles(made["plain"]), FolderFiles(made["other"])], tmp_path / "out", weights=[0.3, 0.7]
    )
    assert certificate.exactness == EVERYWHERE
    first, second = (load_file(made[name] / "adapter_model.safetensors") for name in ("plain", "other"))
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    a, b = key.format("A"), key.format("B")
    scaled = [
        (first[b].astype(np.float64) * (0.3 * float(np.float32(5 / 3)))).astype(np.float32),
        (second[b].astype(np.float64) * 0.7).astype(np.float32),
    ]
    assert np.array_equal(found[a], np.concatenate([first[a], second[a]]))
    assert np.array_equal(found[b], np.concatenate(scaled, axis=1))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"], config["lora_alpha"]) == (False, False, config["r"])


@pytest.mark.parametrize("method", ["linear", "svd"])
def test_a_lower_rank_is_the_best_one(
    made: dict[str, Path],
    deltas: dict[str, cases.Deltas],
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sum cut to a rank is the best approximation of that rank, its error is the certificate's, and no wide matrix is decomposed."""
    seen: list[tuple[int, ...]] = []
    plain = np.linalg.svd

    def watched(matrix: Any, **how: Any) -> Any:
        seen.append(matrix.shape)
        return plain(matrix, **how)

    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, "svd", watched)
        found = run(made, ["plain", "other"], tmp_path / "out", method=method, weights=[1.0, 0.5], rank=4)
    assert max(max(shape) for shape in seen) <= 7  # 3 and 4 joined
    whole = cases.total([deltas["plain"], deltas["other"]], [1.0, 0.5])
    assert cases.distance(found, {name: cases.best(delta, 4) for name, delta in whole.items()}) < 1e-6
    certificate = read(FolderFiles(tmp_path / "out"))
    assert certificate is not None
    for change in certificate.changes:
        delta = whole[f"{change['module']}.weight"]
        error = np.linalg.norm(delta - cases.best(delta, 4)) / np.linalg.norm(delta)
        assert change["error"] == pytest.approx(error, abs=1e-6)


def test_ties(made: dict[str, Path], deltas: dict[str, cases.Deltas], tmp_path: Path) -> None:
    """At full rank the result adds the TIES of the deltas, DoRA among them, and a missing module counts as zeros."""
    names, weights = ["plain", "rslora", "dora"], [1.0, 0.5, 2.0]
    found = run(made, names, tmp_path / "out", method="ties", weights=weights, density=0.3, rank=24)
    modules = {name for each in names for name in deltas[each]}
    wanted = {}
    for module in modules:
        shape = next(deltas[each][module] for each in names if module in deltas[each]).shape
        wanted[module] = cases.ties([deltas[each].get(module, np.zeros(shape)) for each in names], weights, 0.3)
    assert cases.distance(found, wanted) < 3e-6


def test_dare(made: dict[str, Path], deltas: dict[str, cases.Deltas], tmp_path: Path) -> None:
    """At full rank the result adds what `dare/1`'s scalar definition keeps of each delta, drawn by seed, adapter and module."""
    found = run(
        made, ["plain", "other"], tmp_path / "out", method="dare", weights=[0.5, 0.25], density=0.5, seed=7, rank=24
    )
    wanted = {}
    for tensor, value in cases.total([deltas["plain"], deltas["other"]], [1, 1]).items():
        parts = []
        for model, name in enumerate(("plain", "other")):
            delta = deltas[name].get(tensor, np.zeros(value.shape)).astype(np.float32)
            kept = reference.thinned_at_random(
                list(delta.reshape(-1)),
                model,
                np.float32(0.5),
                seed=7,
                name=tensor.removesuffix(".weight"),
                element=0,
                rescale=True,
            )
            parts.append(np.array(kept, np.float64).reshape(value.shape))
        wanted[tensor] = 0.5 * parts[0] + 0.25 * parts[1]
    assert cases.distance(found, wanted) < 3e-6


@pytest.mark.parametrize(("names", "rank"), [(["plain", "other"], None), (["plain", "dora"], 24)])
def test_slerp(
    made: dict[str, Path], deltas: dict[str, cases.Deltas], names: list[str], rank: int | None, tmp_path: Path
) -> None:
    """Module by module the result turns from one delta to the other, and a module that only one has is taken linearly."""
    found = run(made, names, tmp_path / "out", method="slerp", t=0.3, rank=rank)
    first, second = (deltas[name] for name in names)
    wanted = {}
    for module in first.keys() | second.keys():
        if module in first and module in second:
            wanted[module] = cases.slerp(first[module], second[module], 0.3)
        else:
            wanted[module] = 0.7 * first[module] if module in first else 0.3 * second[module]
    assert cases.distance(found, wanted) < 2e-6


@pytest.mark.parametrize("kind", ["embedding", "conv2d-patches", "conv1d", "conv1d-layers", "linear-float16-bfloat16"])
@pytest.mark.filterwarnings(
    "ignore"
)  # what the other libraries say while they load these architectures is their tests' matter
def test_every_kind_of_layer(kind: str, tmp_path: Path) -> None:
    """Embeddings, convolutions, transposed layers and half-precision factors combine too: twice itself by halves is itself."""
    import torch
    from peft import PeftModel

    made = KINDS[kind](tmp_path)
    files = FolderFiles(made.adapter)
    combine([files, files], tmp_path / "out", weights=[0.75, 0.25])
    answers = []
    for folder in (made.adapter, tmp_path / "out"):
        model = PeftModel.from_pretrained(made.load(dtype=torch.float32), str(folder)).eval()
        answers.append(made.run(model))
    assert (answers[0] - answers[1]).abs().max() <= 1e-5 * answers[0].abs().max()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("experts-qwen3-moe", "experts"),
        ("lora-bias", "lora_bias"),
        ("bias-all", "lora_bias"),
        ("tokens", "trainable_tokens"),
        ("multihead-attention", "attention"),
        ("modules-to-save", "modules_to_save"),
        ("dora-embedding", "dora"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_delta_is_refused(kind: str, code: str, tmp_path: Path) -> None:
    """What an adapter holds beside deltas is refused by name, and nothing is left behind."""
    made = KINDS[kind](tmp_path)
    with pytest.raises(ModelError) as caught:
        combine([FolderFiles(made.adapter)], tmp_path / "out", base=FolderFiles(made.base))
    assert caught.value.code == code
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_a_start_that_rewrites_the_base_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    """The factors of a PiSSA are no change of the base, and are not taken for one."""
    folder = tmp_path / "pissa"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes((made["plain"] / name).read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(ModelError) as caught:
        combine([FolderFiles(folder)], tmp_path / "out")
    assert caught.value.code == "start"


def test_saved_modules_are_averaged_when_asked(made: dict[str, Path], tmp_path: Path) -> None:
    """`saved="average"` takes the mean by the weights' shares; where one adapter lacks the module, it is refused."""
    one, two = (
        cases.write_adapter(made["base"], tmp_path / f"s{seed}", seed, modules_to_save=["lm_head"]) for seed in (1, 2)
    )
    key = "base_model.model.lm_head.weight"
    tensors = load_file(two / "adapter_model.safetensors")
    from safetensors.numpy import save_file

    save_file(tensors | {key: tensors[key] * 3}, two / "adapter_model.safetensors", {"format": "pt"})
    files = [FolderFiles(one), FolderFiles(two)]
    combine(files, tmp_path / "out", weights=[3.0, 1.0], saved="average")
    heads = [load_file(folder / "adapter_model.safetensors")[key] for folder in (one, two, tmp_path / "out")]
    assert np.allclose(heads[2], 0.75 * heads[0] + 0.25 * heads[1], atol=1e-7)
    assert "lm_head.weight" in cases.peft_deltas(made["base"], tmp_path / "out")
    with pytest.raises(ModelError) as caught:
        combine([files[0], FolderFiles(made["plain"])], tmp_path / "bad", saved="average")
    assert caught.value.code == "modules_to_save"


def test_different_bases_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    """Adapters that name two bases are refused, unless the caller says that these are one."""
    elsewhere = cases.write_base(tmp_path / "elsewhere")
    files = [FolderFiles(made["plain"]), FolderFiles(cases.write_adapter(elsewhere, tmp_path / "b", 5))]
    with pytest.raises(ModelError) as caught:
        combine(files, tmp_path / "out")
    assert caught.value.code == "different_bases"
    combine(files, tmp_path / "out", same_base=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_other_shapes_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    """A module whose delta has two shapes is refused with both of them."""
    wide = cases.write_base(tmp_path / "wide", bases.llama(intermediate_size=32))
    files = [FolderFiles(made["plain"]), FolderFiles(cases.write_adapter(wide, tmp_path / "b", 5))]
    with pytest.raises(ModelError, match=r"\(16, 24\).*\(16, 32\)") as caught:
        combine(files, tmp_path / "out", same_base=True)
    assert caught.value.code == "bad_shape"


def test_a_dora_needs_its_base(made: dict[str, Path], tmp_path: Path) -> None:
    """Without a base a DoRA has no delta, and the hint says what to give."""
    with pytest.raises(ModelError) as caught:
        combine([FolderFiles(made["dora"])], tmp_path / "out")
    assert caught.value.code == "no_base"
    assert "base=" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"method": "sum"}, "unknown_method"),
        ({"method": "ties"}, "missing_parameter"),
        ({"method": "ties", "density": 0.0}, "bad_density"),
        ({"method": "slerp"}, "missing_parameter"),
        ({"method": "slerp", "t": 0.5, "weights": [0.5, 1.0]}, "bad_number"),
        ({"weights": [1.0]}, "bad_number"),
        ({"weights": [1.0, float("nan")]}, "bad_number"),
        ({"rank": 0}, "bad_rank"),
        ({"method": "dare", "density": 0.5, "seed": -1}, "bad_seed"),
        ({"saved": "drop"}, "bad_option"),
    ],
)
def test_wrong_options_are_refused(made: dict[str, Path], options: dict[str, Any], code: str, tmp_path: Path) -> None:
    """Each wrong option has a code of its own, and nothing is written."""
    with pytest.raises(InputError) as caught:
        combine([FolderFiles(made["plain"]), FolderFiles(made["other"])], tmp_path / "out", **options)
    assert caught.value.code == code
    assert not any(tmp_path.iterdir())
