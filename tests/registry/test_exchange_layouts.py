"""SmoLoRA's layouts, both ways: folders of versions and `model_registry.json`."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.errors import ConflictError, InputError, NotFoundError, RefError
from modelyard.registry import Version
from modelyard.registry.layouts import NOT_RECORDED, label_key
from registry.registry_helpers import Bench
from tiny_models import save_adapter, save_model

PICKLE = b"\x80\x04\x95\x0b" + bytes(7) + b"\x8c\x02os\x94."
WORDPIECE = json.dumps({"model": {"type": "WordPiece", "vocab": {"[UNK]": 1, "[PAD]": 0, "card": 2}}})


def adapter_folder(bench: Bench, value: float) -> Path:
    """A folder that looks like a LoRA of rank 2."""
    config = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"]}
    folder = bench.write({"adapter_config.json": json.dumps({**config, "base_model_name_or_path": "org/phi"})})
    save_file({"a": np.full((2, 4), value, np.float32)}, folder / "adapter_model.safetensors")
    return folder


def merged_folder(bench: Bench, value: float) -> Path:
    """A model folder with a tokenizer."""
    folder = bench.model_folder(value, {"model_type": "bert", "eos_token_id": 2, "pad_token_id": 0})
    (folder / "tokenizer.json").write_text(WORDPIECE)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "model_max_length": 8}')
    return folder


def lifecycle(bench: Bench, value: float, **metadata: str) -> tuple[Version, Version]:
    """An adapter and the version merged from it, in `team/intents`, with a run, a base and data behind them."""
    base = bench.model(0.0, "team/base", kind="base")
    data = bench.data()
    key = f"{int(value):064x}"
    bench.yard.start_run(
        key,
        step="train",
        inputs={"config": {"train.learning_rate": "0.0002", "train.batch_size": "4", "evaluate.batch_size": "9"}},
    )
    bench.yard.finish_run(key, {})
    adapter = bench.yard.commit(
        adapter_folder(bench, value),
        "team/intents",
        branch="adapters",
        kind="adapter",
        from_=[("finetuned", base), ("trained-on", data)],
        metadata={"loss": "0.25", "seconds": "12.5", "steps": "60"},
        inputs=key,  # type: ignore[arg-type]
    )
    merged = bench.yard.commit(
        merged_folder(bench, value), "team/intents", kind="merged", from_=[adapter, base], metadata=metadata
    )
    return adapter, merged


def test_every_file_that_the_guide_names(bench: Bench, tmp_path: Path) -> None:
    """A version is one folder with an adapter, a merged model and `metadata.json`; its own files are byte for byte there."""
    adapter, merged = lifecycle(bench, 1.0)
    written = bench.yard.checkout_layout("team/intents", tmp_path / "models")
    assert written.written == ("v2.0",)
    folder = tmp_path / "models" / "intents" / "v2.0"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_checkpoint", "final_merged", "metadata.json"]
    assert {path.name for path in (folder / "adapter_checkpoint").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.bin",
        "adapter_model.safetensors",
        "README.md",
    }
    assert {path.name for path in (folder / "final_merged").iterdir()} >= {
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    }
    for version, part in ((adapter, "adapter_checkpoint"), (merged, "final_merged")):
        files = bench.yard.files(version)
        assert all((folder / part / name).read_bytes() == files.read(name) for name in files.names())
    assert (folder / "final_merged" / "vocab.txt").read_text().split() == ["[PAD]", "[UNK]", "card"]
    generation = json.loads((folder / "final_merged" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)
    assert json.loads((folder / "final_merged" / "special_tokens_map.json").read_text()) == {"eos_token": "</s>"}


def test_the_bin_files_hold_the_same_tensors(bench: Bench, tmp_path: Path) -> None:
    """The `.bin` files load without running code and hold what the safetensors files hold; `bins=False` leaves them out."""
    import torch
    from safetensors.torch import load_file

    lifecycle(bench, 1.0)
    bench.yard.checkout_layout("team/intents", tmp_path / "with")
    folder = tmp_path / "with" / "intents" / "v2.0"
    for part, safe, pickled in (
        ("final_merged", "model.safetensors", "pytorch_model.bin"),
        ("adapter_checkpoint", "adapter_model.safetensors", "adapter_model.bin"),
    ):
        theirs = torch.load(folder / part / pickled, weights_only=True)
        ours = load_file(folder / part / safe)
        assert set(theirs) == set(ours)
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    bench.yard.checkout_layout("team/intents", tmp_path / "without", bins=False)
    assert not list((tmp_path / "without").rglob("*.bin"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_loaders_read_what_was_written(bench: Bench, tmp_path: Path) -> None:
    """Transformers and PEFT load both parts of the layout."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_model(tmp_path / "base")
    adapter = bench.yard.commit(save_adapter(tmp_path / "adapter", base), "team/m", branch="a", kind="adapter")
    bench.yard.commit(base, "team/m", kind="merged", from_=[("merged", adapter)])
    bench.yard.checkout_layout("team/m", tmp_path / "models")
    latest = tmp_path / "models" / "m" / "latest"
    model = AutoModelForCausalLM.from_pretrained(latest / "final_merged")
    AutoTokenizer.from_pretrained(latest / "final_merged")
    assert PeftModel.from_pretrained(model, str(latest / "adapter_checkpoint")) is not None


def test_metadata_has_the_guides_keys(bench: Bench, tmp_path: Path) -> None:
    """`metadata.json` has every key of the guide, from what the yard recorded, its time in UTC."""
    lifecycle(bench, 1.0)
    bench.yard.checkout_layout("team/intents", tmp_path, bins=False)
    found = json.loads((tmp_path / "intents" / "v2.0" / "metadata.json").read_text())
    assert datetime.fromisoformat(found["timestamp"]).utcoffset() == timedelta(0)
    assert found["base_model"] == "team/base@v1"
    assert found["dataset"] == "datasets/team/data@v1"
    assert found["training_config"] == {
        "learning_rate": 0.0002,
        "max_steps": 60,
        "batch_size": 4,
        "gradient_accumulation_steps": NOT_RECORDED,
    }
    assert found["lora_config"] == {"r": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    assert found["performance_metrics"] == {"final_loss": 0.25, "training_time": 12.5, "parameters_trained": 8}


def test_what_was_not_recorded_says_so(bench: Bench, tmp_path: Path) -> None:
    """A version that nobody recorded anything about has every key, in words, and no null anywhere."""
    bench.model(1.0, "team/plain", kind="merged")
    bench.yard.checkout_layout("team/plain", tmp_path, bins=False)
    text = (tmp_path / "plain" / "v1.0" / "metadata.json").read_text()
    found = json.loads(text)
    assert "null" not in text
    assert found["base_model"] == found["dataset"] == NOT_RECORDED
    for part in ("training_config", "lora_config", "performance_metrics"):
        assert set(found[part].values()) == {NOT_RECORDED}


def test_labels_are_ordered_by_number(bench: Bench, tmp_path: Path) -> None:
    """v10 comes after v9 and v1.10 after v1.9; `latest` is the highest of them, not the last in the alphabet."""
    assert sorted(["v1.10", "v10", "v9", "v1.9", "v2"], key=label_key) == ["v1.9", "v1.10", "v2", "v9", "v10"]
    for value, label in ((1.0, "v1.10"), (2.0, "v1.9"), (3.0, "v1.2")):
        bench.yard.tag(bench.model(value, "team/m", kind="merged"), label)
    written = bench.yard.checkout_layout("team/m", tmp_path, bins=False)
    assert written.written == ("v1.2", "v1.9", "v1.10")
    assert (tmp_path / "m" / "latest").readlink() == Path("v1.10")


def test_latest_is_switched_by_rename(bench: Bench, tmp_path: Path) -> None:
    """Whoever looks at `latest` while it moves always sees a link to a whole version; what was there is left alone."""
    bench.model(1.0, "team/m", kind="merged")
    bench.yard.checkout_layout("team/m", tmp_path, bins=False)
    before = (tmp_path / "m" / "v1.0" / "metadata.json").stat()
    bench.model(2.0, "team/m", kind="merged")
    replaced: list[tuple[str, bool]] = []
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        replaced.append((str(self.readlink()), Path(target).is_symlink()))
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        again = bench.yard.checkout_layout("team/m", tmp_path, bins=False)
    assert (again.written, again.kept, again.latest) == (("v2.0",), ("v1.0",), "v2.0")
    assert replaced == [("v2.0", True)]
    assert (tmp_path / "m" / "latest").readlink() == Path("v2.0")
    assert (tmp_path / "m" / "v1.0" / "metadata.json").stat().st_ino == before.st_ino
    assert not list((tmp_path / "m").glob(".*"))


def test_a_folder_of_somebody_else_is_a_conflict(bench: Bench, tmp_path: Path) -> None:
    """A label's folder with other content, or a `latest` that is no link, is never overwritten."""
    bench.model(1.0, "team/m", kind="merged")
    (tmp_path / "m" / "v1.0").mkdir(parents=True)
    (tmp_path / "m" / "v1.0" / "mine").write_text("x")
    with pytest.raises(ConflictError):
        bench.yard.checkout_layout("team/m", tmp_path)
    assert [path.name for path in (tmp_path / "m" / "v1.0").iterdir()] == ["mine"]
    (tmp_path / "two" / "m" / "latest").mkdir(parents=True)
    with pytest.raises(ConflictError):
        bench.yard.checkout_layout("team/m", tmp_path / "two")
    with pytest.raises(NotFoundError):
        bench.yard.checkout_layout("team/none", tmp_path)


def test_two_versions_with_one_label_are_a_conflict(bench: Bench, tmp_path: Path) -> None:
    """A tag that is another version's number as a label is refused before anything is written."""
    bench.model(1.0, "team/m", kind="merged")
    bench.yard.tag(bench.model(2.0, "team/m", kind="merged"), "v1.0")
    with pytest.raises(ConflictError, match=r"`v1\.0`"):
        bench.yard.checkout_layout("team/m", tmp_path)
    assert not (tmp_path / "m").exists()


@pytest.mark.row(27)
@pytest.mark.parametrize("label", ["../../evil", "/evil", "..", "latest", "a/b", "CON"])
def test_a_hostile_label_writes_nothing(bench: Bench, tmp_path: Path, label: str) -> None:
    """A label in a version's metadata that is a path is refused."""
    bench.model(1.0, "team/m", kind="merged", metadata={"smolora.label": label})
    with pytest.raises(RefError):
        bench.yard.checkout_layout("team/m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def layout(bench: Bench, folder: Path, versions: dict[str, float], metadata: dict[str, Any] | None = None) -> Path:
    """SmoLoRA's folders, as somebody else made them."""
    for label, value in versions.items():
        for part, source in (
            ("adapter_checkpoint", adapter_folder(bench, value)),
            ("final_merged", merged_folder(bench, value)),
        ):
            target = folder / label / part
            target.mkdir(parents=True)
            for path in source.iterdir():
                (target / path.name).write_bytes(path.read_bytes())
            (target / ("adapter_model.bin" if part.startswith("a") else "pytorch_model.bin")).write_bytes(PICKLE)
        described = metadata or {"timestamp": "2025-01-01T00:00:00", "dataset": "yelp", "lora_config": {"r": value}}
        (folder / label / "metadata.json").write_text(json.dumps(described))
    (folder / "latest").symlink_to(max(versions))
    return folder


def test_a_layout_is_imported_in_the_order_of_its_labels(bench: Bench, tmp_path: Path) -> None:
    """Numbers follow the labels as numbers; labels are tags; metadata is kept; pickles beside safetensors are listed."""
    folder = layout(bench, tmp_path / "phi", {"v1.10": 3.0, "v1.9": 2.0, "v10": 9.0, "v9": 8.0, "v1.0": 1.0})
    made = bench.yard.import_layout(folder, "team/phi")
    finals = [version for version in made.versions if version.kind == "merged"]
    assert [version.metadata["smolora.label"] for version in finals] == ["v1.0", "v1.9", "v1.10", "v9", "v10"]
    assert [version.number for version in finals] == sorted(version.number for version in finals)
    tags = {ref.name: ref.number for ref in bench.yard.refs("team/phi") if ref.type == "tag"}
    assert {"v1.0", "v1.9", "v1.10", "label-v9", "label-v10", "v1.0-adapter", "label-v9-adapter"} <= set(tags)
    assert bench.yard.resolve("team/phi@v1.9").id == finals[1].id
    assert finals[0].metadata["smolora.metadata.dataset"] == "yelp"
    assert json.loads(finals[0].metadata["smolora.metadata.lora_config"]) == {"r": 1.0}
    adapter = bench.yard.resolve("team/phi@v1.9-adapter")
    assert [(edge.type, edge.version) for edge in finals[1].lineage] == [("merged", adapter.id)]
    assert len([item for item in made.skipped if item.name.endswith(".bin")]) == 10
    assert bench.yard.import_layout(folder, "team/phi").versions == made.versions


def test_out_and_in_again(bench: Bench, tmp_path: Path) -> None:
    """What was written is read back: labels, the values of metadata.json, and the weights' own bytes."""
    folder = layout(bench, tmp_path / "phi", {"v9": 8.0, "v10": 9.0})
    bench.yard.import_layout(folder, "team/phi")
    written = bench.yard.checkout_layout("team/phi", tmp_path / "out")
    assert (written.written, written.latest) == (("v9", "v10"), "v10")
    there = json.loads((tmp_path / "out" / "phi" / "v9" / "metadata.json").read_text())
    assert (there["timestamp"], there["dataset"], there["lora_config"]) == ("2025-01-01T00:00:00", "yelp", {"r": 8.0})
    for part, name in (("final_merged", "model.safetensors"), ("adapter_checkpoint", "adapter_model.safetensors")):
        assert (written.folder / "v9" / part / name).read_bytes() == (folder / "v9" / part / name).read_bytes()
    made = bench.yard.import_layout(tmp_path / "out", "copy")
    assert [v.metadata["smolora.label"] for v in made.versions if v.kind == "merged"] == ["v9", "v10"]
    assert bench.yard.resolve("copy/phi@label-v9").metadata["smolora.metadata.dataset"] == "yelp"


def test_a_label_on_other_bytes_is_a_conflict(bench: Bench, tmp_path: Path) -> None:
    """A label that the repo has on other bytes refuses the whole import; no version of it is made."""
    bench.yard.import_layout(layout(bench, tmp_path / "a" / "phi", {"v1.1": 1.0}), "team/phi")
    before = len(bench.yard.versions("team/phi"))
    with pytest.raises(ConflictError, match="registered already"):
        bench.yard.import_layout(layout(bench, tmp_path / "b" / "phi", {"v1.0": 5.0, "v1.1": 2.0}), "team/phi")
    assert len(bench.yard.versions("team/phi")) == before


def test_pickles_only_are_skipped_or_converted(bench: Bench, tmp_path: Path) -> None:
    """A folder whose weights are pickles only is left out with the reason; with `convert` they are converted, isolated."""
    import torch

    folder = tmp_path / "phi" / "v1.0" / "final_merged"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, folder / "pytorch_model.bin")
    made = bench.yard.import_layout(tmp_path / "phi", "team/phi")
    assert made.versions == ()
    assert "--convert" in made.skipped[0].reason
    (version,) = bench.yard.import_layout(tmp_path / "phi", "team/phi", convert=True).versions
    assert [entry.path for entry in version.files] == ["config.json", "model.safetensors"]


def registry(tmp_path: Path, text: str | dict[str, Any]) -> Path:
    """A `model_registry.json`."""
    path = tmp_path / "model_registry.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_a_registry_is_imported(bench: Bench, tmp_path: Path) -> None:
    """Labels become tags, metadata and `registered_at` are kept, dead paths and paths that lead out are listed."""
    layout(bench, tmp_path / "models" / "sentiment", {"v1.0": 1.0, "v1.10": 2.0, "v1.9": 3.0})
    outside = bench.model_folder(7.0)
    file = registry(
        tmp_path / "models",
        {
            "sentiment": {
                "v1.10": {
                    "path": "./sentiment/v1.10/final_merged",
                    "metadata": {"base_model": "org/phi", "n": 3},
                    "registered_at": "2025-05-01T12:00:00",
                },
                "v1.9": {"path": "sentiment/v1.9", "metadata": {}, "registered_at": "2025-04-01T12:00:00"},
                "v1.0": {"path": "./sentiment/v1.0/adapter_checkpoint", "metadata": {}, "registered_at": "x"},
                "v0.1": {"path": "./sentiment/v0.1/final_merged", "metadata": {}, "registered_at": "x"},
                "v0.2": {"path": str(outside), "metadata": {}},
                "v0.3": {"metadata": {}},
            }
        },
    )
    made = bench.yard.import_registry(file, "team")
    finals = [version for version in made.versions if version.kind == "merged"]
    assert [version.metadata["smolora.label"] for version in finals] == ["v1.0", "v1.9", "v1.10"]
    last = bench.yard.resolve("team/sentiment@v1.10")
    assert last.metadata["smolora.registered_at"] == "2025-05-01T12:00:00"
    assert last.metadata["smolora.metadata.base_model"] == "org/phi"
    assert last.metadata["smolora.metadata.n"] == "3"
    reasons = {item.name: item.reason for item in made.skipped if item.name.startswith("sentiment v0")}
    assert reasons["sentiment v0.1"].startswith("dead path")
    assert "leads out" in reasons["sentiment v0.2"]
    assert reasons["sentiment v0.3"] == "it has no path"


def test_a_label_twice_is_a_conflict(bench: Bench, tmp_path: Path) -> None:
    """A registry with a label twice, or two labels for one tag, is refused; nothing is overwritten or imported."""
    layout(bench, tmp_path / "m", {"v9": 1.0})
    entry = '{"path": "m/v9", "metadata": {}}'
    for text in (f'{{"m": {{"v9": {entry}, "v9": {entry}}}}}', f'{{"m": {{"v9": {entry}, "label-v9": {entry}}}}}'):
        with pytest.raises(ConflictError):
            bench.yard.import_registry(registry(tmp_path, text), "team")
    assert bench.yard.repos() == []


@pytest.mark.row(27)
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 100_000, '{"m": 3}', '{"../x": {"v1.0": {"path": "m"}}}', '{"a/b": {"v": {"path": "m"}}}'],
)
def test_a_hostile_registry(bench: Bench, tmp_path: Path, text: str) -> None:
    """What is no registry, or whose names are paths, is refused."""
    model = bench.model_folder()
    model.rename(tmp_path / "m")
    with pytest.raises(InputError):
        bench.yard.import_registry(registry(tmp_path, text), "team")
    assert bench.yard.repos() == []


def test_a_base_is_an_edge(bench: Bench, tmp_path: Path) -> None:
    """With `base`, adapters are fine-tuned from it, so that they load."""
    base = bench.model(0.0, "team/base", kind="base")
    bench.yard.import_layout(layout(bench, tmp_path / "phi", {"v1.0": 1.0}), "team/phi", base="team/base")
    assert bench.yard.base_of("team/phi@v1.0-adapter").id == base.id
