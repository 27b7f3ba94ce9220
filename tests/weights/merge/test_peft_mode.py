"""Mode `peft` against PEFT itself: the merged folder of `merge_and_unload` and `save_pretrained`, bit for bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_kinds import KINDS
from modelyard.errors import ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.checkpoint import Checkpoint
from modelyard.weights.merge import merge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adapter_kinds import Made

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:peft"),
]
WRONG = [name for name, kind in KINDS.items() if kind.peft == "wrong"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PEFT's side runs with the number of threads that ours is told."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


def ours(made: Made, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """What mode `peft` writes, by the names on disk."""
    merge(FolderFiles(made.base), FolderFiles(made.adapter), out, mode="peft", **options)
    return read(out)


def theirs(made: Made, out: Path) -> dict[str, torch.Tensor]:
    """What PEFT writes."""
    made.attach().merge_and_unload().save_pretrained(out)
    return read(out)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def count_differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> int:
    """In how many bytes two models of the same names, dtypes and shapes differ."""
    assert ours.keys() == theirs.keys()
    different = 0
    for name, value in ours.items():
        other = theirs[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        different += int((value.reshape(-1).view(torch.uint8) != other.reshape(-1).view(torch.uint8)).sum())
    return different


@pytest.mark.parametrize(
    "name", ["linear-bfloat16-float32", "dora-float32", "embedding", "experts-qwen3-moe", "modules-to-save-norms"]
)
def test_no_bit_differs_from_peft(tmp_path: Path, name: str) -> None:
    """What PEFT merges rightly is merged in the same bits, under the same names on disk; `test_formats_page` says it of every kind."""
    made = KINDS[name](tmp_path)
    found = ours(made, tmp_path / "ours", threads=1)
    assert count_differing(found, theirs(made, tmp_path / "peft")) == 0
    base = read(made.base)
    assert any(not torch.equal(value, base[name]) for name, value in found.items() if name in base)


@pytest.mark.parametrize("name", ["dora-conv1d", "experts-gpt-oss-bfloat16", "start-pissa", "conv2d"])
def test_two_threads_give_the_bits_of_two_threads(tmp_path: Path, name: str) -> None:
    """With two threads the bits are those that PEFT gives with two threads."""
    torch.set_num_threads(2)
    made = KINDS[name](tmp_path)
    assert count_differing(ours(made, tmp_path / "ours", threads=2), theirs(made, tmp_path / "peft")) == 0
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", WRONG)
def test_what_peft_merges_wrongly_is_refused(tmp_path: Path, name: str) -> None:
    """Where PEFT's merge is another function than its adapter attached, mode `peft` says why and what to do."""
    made = KINDS[name](tmp_path)
    with pytest.raises(ModelError) as caught:
        ours(made, tmp_path / "ours")
    assert caught.value.code in {"tied_embeddings", "unsupported_start", "layer_replication"}
    assert caught.value.code == "layer_replication" or caught.value.hint
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", [name for name in WRONG if name.startswith("tied")])
def test_peft_s_merge_is_another_function(tmp_path: Path, name: str) -> None:
    """The refusal is just: PEFT's merged model computes something else than its adapter attached."""
    made = KINDS[name](tmp_path)
    attached = made.attach()
    wanted = made.run(attached)
    found = made.run(attached.merge_and_unload())
    assert float((wanted - found).abs().max()) > 0.5 * float(wanted.abs().max())


def test_what_peft_cannot_load_is_merged(tmp_path: Path) -> None:
    """An adapter of transformers 4 for a ViT, which PEFT refuses, changes exactly the tensors that it names."""
    made = KINDS["linear-vit-of-transformers-4"](tmp_path)
    found, base = ours(made, tmp_path / "ours"), read(made.base)
    changed = {name for name, value in found.items() if not torch.equal(value, base[name])}
    assert changed == {name for name in base if name.endswith(("attention.query.weight", "attention.value.weight"))}


def test_an_untied_head_that_was_saved_whole_is_peft_s(tmp_path: Path) -> None:
    """A head saved whole over a tied embedding is a tensor of its own, and the folder loads as PEFT's attached model."""
    made = KINDS["tied-saved-head"](tmp_path)
    ours(made, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is False
    wanted, found = made.run(made.attach()), made.run(made.load(tmp_path / "ours"))
    assert float((wanted - found).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_shards_keep_their_files(tmp_path: Path) -> None:
    """A base in several files gives the same tensors in the same files, with the same bits as one in one file."""
    made = KINDS["linear-bfloat16-float32"](tmp_path)
    whole = ours(made, tmp_path / "whole", threads=1)
    split = tmp_path / "split"
    made.load().save_pretrained(split, max_shard_size="4KB")
    files = sorted(path.name for path in split.glob("*.safetensors"))
    assert len(files) > 3
    certificate = merge(FolderFiles(split), FolderFiles(made.adapter), tmp_path / "out", mode="peft", threads=1)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == files
    assert sorted(certificate.inputs["base"]) == files
    assert count_differing(read(tmp_path / "out"), whole) == 0


def test_an_interrupted_merge_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C keeps the files that are finished; the same merge again reads only the others, and the bits are the same."""
    made = KINDS["linear-float32-float32"](tmp_path)
    split = tmp_path / "split"
    made.load().save_pretrained(split, max_shard_size="4KB")
    base, adapter = FolderFiles(split), FolderFiles(made.adapter)
    whole = ours(made, tmp_path / "whole", threads=1)
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "out", mode="peft", threads=1, progress=stop)
    assert not (tmp_path / "out").exists()
    opened: list[str] = []
    real = Checkpoint.open

    def note(self: Checkpoint, shard: str) -> Any:
        opened.append(shard)
        return real(self, shard)

    monkeypatch.setattr(Checkpoint, "open", note)
    certificate = merge(base, adapter, tmp_path / "out", mode="peft", threads=1)
    again = {name for name in opened if name.startswith("model")}
    assert again
    assert again < {path.name for path in split.glob("*.safetensors")}
    assert count_differing(read(tmp_path / "out"), whole) == 0
    assert sum(change["elements"] > 0 for change in certificate.changes) == 14


def test_the_certificate_names_the_machine(tmp_path: Path) -> None:
    """The certificate says mode, counts, libraries, BLAS, vector instructions and threads, and how many elements changed."""
    made = KINDS["dora-bfloat16"](tmp_path)
    certificate = merge(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out", mode="peft", threads=1)
    assert (certificate.method, certificate.exactness) == ("peft", "this machine")
    assert certificate.machine is not None
    assert certificate.machine["threads"] == 1
    assert {"torch", "peft"} <= certificate.machine["libraries"].keys()
    assert certificate.machine["blas"]
    assert certificate.machine["instructions"]
    counts = {key: certificate.matched[key] for key in ("merged", "replaced", "added", "untouched")}
    assert counts == {"merged": 14, "replaced": 0, "added": 0, "untouched": 7}
    base, found = read(made.base), read(tmp_path / "out")
    for change in certificate.changes:
        name = change["tensor"]
        assert change["kind"] == "dora"
        assert change["changed"] == int((base[name].view(torch.int16) != found[name].view(torch.int16)).sum())


def test_infinite_results_are_refused(tmp_path: Path) -> None:
    """A product that does not fit float16 names its tensor and leaves nothing behind."""
    made = KINDS["linear-float16-float32"](tmp_path)
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
    tensors[key] *= 1e6
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj") as caught:
        ours(made, tmp_path / "ours")
    assert caught.value.code == "infinite_result"
    assert not (tmp_path / "ours").exists()
