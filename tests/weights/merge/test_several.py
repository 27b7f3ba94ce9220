"""Several adapters merged straight into their base: nothing is cut off, and what is exact is `lora/1`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import adapter_bases as bases
from modelyard.errors import InputError, ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE
from modelyard.weights.merge.several import merge_adapters
from weights.merge import algebra_cases as cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama in bfloat16 over several files, and two adapters and a DoRA of it."""
    folder = tmp_path_factory.mktemp("several")
    bases.llama().to(torch.bfloat16).save_pretrained(folder / "base", max_shard_size="8KB")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "stable": {"use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
        "dora": {"use_dora": True},
    }
    for seed, (name, config) in enumerate(kinds.items()):
        cases.write_adapter(folder / "base", folder / name, seed, **config)
    return {name: folder / name for name in ("base", *kinds)}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize(
    ("names", "method", "options"),
    [
        (["plain", "stable"], "linear", {"weights": [0.5, -0.75]}),
        (["plain", "dora"], "linear", {"weights": [0.5, 0.5]}),
        (["plain", "stable"], "ties", {"weights": [1.0, 0.5], "density": 0.4}),
        (["plain", "stable"], "slerp", {"t": 0.25}),
    ],
)
def test_the_merge_is_the_base_plus_the_function(
    made: dict[str, Path], names: list[str], method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Every weight is the base's plus the function of the deltas, in float64, to one rounding of bfloat16; all others keep their bits."""
    certificate = merge_adapters(
        FolderFiles(made["base"]),
        [FolderFiles(made[name]) for name in names],
        tmp_path / "out",
        method=method,
        **options,
    )
    before, after = tensors(made["base"]), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    each = [cases.peft_deltas(made["base"], made[name]) for name in names]
    for name, weight in before.items():
        found = [delta[name] for delta in each if name in delta]
        if not found:
            assert torch.equal(weight, after[name])
            continue
        zeros = np.zeros(weight.shape)
        parts = [delta.get(name, zeros) for delta in each]
        if method == "linear":
            change = sum(share * part for share, part in zip(options["weights"], parts, strict=True))
        elif method == "ties":
            change = cases.ties(parts, options["weights"], options["density"])
        else:
            change = cases.slerp(parts[0], parts[1], 0.25) if len(found) == 2 else 0.75 * parts[0] + 0.25 * parts[1]
        wanted = weight.double().numpy() + change
        assert np.all(np.abs(after[name].double().numpy() - wanted) <= 2.0**-8 * np.abs(wanted) + 1e-5)
    assert certificate.exactness == (EVERYWHERE if "dora" not in names and method == "linear" else THIS_MACHINE)
    assert certificate.matched["tensors"] == len({name for delta in each for name in delta})
    cases.load(tmp_path / "out")


def test_linear_has_the_bits_of_lora(made: dict[str, Path], tmp_path: Path) -> None:
    """One adapter with the weight 1 gives the bits of the exact merge where its scale is a power of two, with any threads."""
    from modelyard.weights.merge import merge_lora

    adapter = cases.write_adapter(made["base"], tmp_path / "a", 4, r=4, lora_alpha=8)
    merge_lora(FolderFiles(made["base"]), FolderFiles(adapter), tmp_path / "one")
    for threads in (1, 2):
        out = tmp_path / f"several{threads}"
        merge_adapters(FolderFiles(made["base"]), [FolderFiles(adapter)], out, weights=[1.0], threads=threads)
        for path in sorted((tmp_path / "one").glob("*.safetensors")):
            assert (out / path.name).read_bytes() == path.read_bytes()


def test_dare_into_the_base_is_the_combined_adapter(made: dict[str, Path], tmp_path: Path) -> None:
    """Both draw the same numbers for a module: the merge is the base plus what the full-rank adapter adds."""
    from modelyard.weights.merge.combination import combine

    files, options = [FolderFiles(made["plain"]), FolderFiles(made["stable"])], {"density": 0.5, "seed": 3}
    combine(files, tmp_path / "adapter", method="dare", rank=24, **options)  # type: ignore[arg-type]
    merge_adapters(FolderFiles(made["base"]), files, tmp_path / "out", method="dare", **options)  # type: ignore[arg-type]
    deltas, before, after = (
        cases.peft_deltas(made["base"], tmp_path / "adapter"),
        tensors(made["base"]),
        tensors(tmp_path / "out"),
    )
    assert deltas
    for name, delta in deltas.items():
        wanted = before[name].double().numpy() + delta
        assert np.all(np.abs(after[name].double().numpy() - wanted) <= 2.0**-8 * np.abs(wanted) + 1e-5)


def test_an_interrupted_merge_goes_on(made: dict[str, Path], tmp_path: Path) -> None:
    """After Ctrl-C the same merge takes what was finished, and ends with the same files."""
    files = [FolderFiles(made["plain"]), FolderFiles(made["stable"])]

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapters(FolderFiles(made["base"]), files, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    kept = {path.name: path.stat().st_ino for path in next(tmp_path.glob(".out.*")).glob("*.safetensors")}
    again = merge_adapters(FolderFiles(made["base"]), files, tmp_path / "out")
    whole = merge_adapters(FolderFiles(made["base"]), files, tmp_path / "whole")
    assert any((tmp_path / "out" / name).stat().st_ino == inode for name, inode in kept.items())
    assert (again.outputs, again.changes) == (whole.outputs, whole.changes)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_what_is_no_delta_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    """A module saved whole and one side of tied embeddings are refused with the way to do it; `svd` is no merge."""
    saved = cases.write_adapter(made["base"], tmp_path / "saved", 1, modules_to_save=["lm_head"])
    with pytest.raises(ModelError) as caught:
        merge_adapters(FolderFiles(made["base"]), [FolderFiles(saved)], tmp_path / "out")
    assert caught.value.code == "modules_to_save"
    tied = cases.write_base(tmp_path / "tied", bases.llama(tie_word_embeddings=True))
    adapter = cases.write_adapter(tied, tmp_path / "embedding", 1, target_modules=["embed_tokens"])
    with pytest.raises(ModelError) as caught:
        merge_adapters(FolderFiles(tied), [FolderFiles(adapter)], tmp_path / "out")
    assert caught.value.code == "tied_embeddings"
    with pytest.raises(InputError):
        merge_adapters(FolderFiles(made["base"]), [FolderFiles(made["plain"])], tmp_path / "out", method="svd")
    assert not (tmp_path / "out").exists()
