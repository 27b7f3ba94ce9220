"""Imports: a Hugging Face cache, MLflow model folders, other yards."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.errors import ConflictError, InputError, IntegrityError, ModelError, NotFoundError, PickleError
from registry.registry_helpers import DATA, Bench

PICKLE = b"\x80\x04\x95\x0b" + bytes(7) + b"\x8c\x02os\x94."
SHA = "1234567890abcdef" * 2 + "12345678"
OTHER = "f" * 40


class Cache:
    """A Hugging Face cache as the hub's client lays it out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, repo: str, source: Path, commit: str = SHA, ref: str | None = "main", kind: str = "models") -> Path:
        """A snapshot of a folder's files: blobs, links to them, and a ref."""
        home = self.folder / f"{kind}--{repo.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        (home / "blobs").mkdir(parents=True, exist_ok=True)
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            name = path.relative_to(source)
            blob = home / "blobs" / f"{commit[:4]}-{name.as_posix().replace('/', '_')}"
            blob.write_bytes(path.read_bytes())
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        if ref is not None:
            (home / "refs").mkdir(exist_ok=True)
            (home / "refs" / ref).write_text(commit)
        return home


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "hub")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Bench]:
    """Another yard, empty."""
    folder = tmp_path / "other"
    folder.mkdir()
    made = Bench(folder, f"sqlite:///{folder / 'catalog.db'}")
    yield made
    made.close()


def shares_blocks(path: Path) -> bool:
    """Whether this disk gives a copy the original's blocks; then that is done, and costs no space either."""
    with path.open("rb") as source, path.with_name("clone").open("wb") as sink:
        try:
            fcntl.ioctl(sink, 0x40049409, source.fileno())
        except OSError:
            return False
    return True


def test_a_cached_model_is_linked(bench: Bench, cache: Cache) -> None:
    """A model of the cache becomes a version with its origin; its weights are the cache's own file, not a copy."""
    folder = bench.model_folder()
    save_file({"weight": np.zeros((3 << 20,), np.float32)}, folder / "model.safetensors")
    home = cache.add("org/name", folder)
    made = bench.yard.import_hf_cache(cache.folder, "org/name")
    (version,) = made.versions
    assert (version.name, version.kind, version.lineage) == ("org/name@v1", "base", ())
    assert version.metadata == {"origin": f"hf://org/name@{SHA}"}
    entry = version.file("model.safetensors")
    assert entry is not None
    blob = home / "blobs" / f"{SHA[:4]}-model.safetensors"
    stored = bench.store.file_path(entry.blake3)
    assert os.path.samestat(stored.stat(), blob.stat()) or shares_blocks(blob)
    assert bench.yard.import_hf_cache(cache.folder, "org/name").versions == (version,)


def test_what_is_skipped_is_listed(bench: Bench, cache: Cache) -> None:
    """Pickles, their index, code, other frameworks' weights and files never downloaded are left out, each with why."""
    folder = bench.model_folder()
    (folder / "pytorch_model.bin").write_bytes(PICKLE)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "tf_model.h5").write_text("x")
    (folder / "vocab.txt").write_text("a")
    home = cache.add("org/name", folder)
    (home / "blobs" / f"{SHA[:4]}-vocab.txt").unlink()
    made = bench.yard.import_hf_cache(cache.folder, "org/name", to="team/base")
    assert [entry.path for entry in made.versions[0].files] == ["config.json", "model.safetensors"]
    reasons = {item.name.removeprefix("org/name/"): item.reason for item in made.skipped}
    assert set(reasons) == {
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "modeling.py",
        "tf_model.h5",
        "vocab.txt",
    }
    assert reasons["vocab.txt"] == "not downloaded"
    assert "pickle" in reasons["pytorch_model.bin"]


def test_pickles_only_are_refused(bench: Bench, cache: Cache) -> None:
    """A model whose weights are pickles only is refused, with the command that converts them."""
    folder = bench.write({"config.json": "{}", "pytorch_model.bin": PICKLE})
    cache.add("org/name", folder)
    with pytest.raises(PickleError) as caught:
        bench.yard.import_hf_cache(cache.folder, "org/name")
    assert "pytorch_model.bin" in caught.value.message
    assert "yard convert" in str(caught.value.hint)
    assert bench.yard.repos() == []


def test_a_whole_cache(bench: Bench, cache: Cache) -> None:
    """Without a name every repo comes, data sets too; one that is broken does not keep the others out."""
    cache.add("org/one", bench.model_folder(1.0))
    cache.add("gpt", bench.model_folder(2.0))
    cache.add("org/data", bench.write({"rows.jsonl": "{}"}), kind="datasets")
    cache.add("org/broken", bench.write({"config.json": "{}", "model.safetensors": "x"}))
    made = bench.yard.import_hf_cache(cache.folder)
    assert sorted(version.name for version in made.versions) == ["datasets/org/data@v1", "hub/gpt@v1", "org/one@v1"]
    assert [item.name for item in made.skipped] == ["org/broken"]
    with pytest.raises(InputError):
        bench.yard.import_hf_cache(cache.folder, to="team/all")


def test_revisions_of_a_cache(bench: Bench, cache: Cache) -> None:
    """A revision is a ref or the first digits of a commit; with several snapshots and no `main` it has to be said."""
    cache.add("org/name", bench.model_folder(1.0), SHA, "main")
    cache.add("org/name", bench.model_folder(2.0), OTHER, None)
    one = bench.yard.import_hf_cache(cache.folder, "org/name", to="a/main").versions[0]
    assert one.metadata["origin"].endswith(SHA)
    two = bench.yard.import_hf_cache(cache.folder, "org/name@ffffffff", to="a/other").versions[0]
    assert two.metadata["origin"].endswith(OTHER)
    for wrong in ("org/name@1111111", "org/name@../refs/main", "org/nome", "org/name@nothing"):
        with pytest.raises(NotFoundError):
            bench.yard.import_hf_cache(cache.folder, wrong)
    (cache.folder / "models--org--name" / "refs" / "main").unlink()
    with pytest.raises(NotFoundError, match="2 snapshots"):
        bench.yard.import_hf_cache(cache.folder, "org/name")


@pytest.mark.row(16, 43)
def test_a_link_out_of_the_cache_is_refused(bench: Bench, cache: Cache, tmp_path: Path) -> None:
    """A snapshot with a link out of its repo, to a folder outside, or to a FIFO, is refused; nothing is linked or read."""
    secret = tmp_path / "secret"
    secret.write_text("key")
    before = secret.stat()
    for at, given in enumerate((secret, Path("/etc"), None)):
        home = cache.add(f"org/bad{at}", bench.model_folder(float(at)))
        target = given or home / "blobs" / "pipe"
        if given is None:
            os.mkfifo(target)
        (home / "snapshots" / SHA / "extra.txt").symlink_to(target)
        with pytest.raises(ModelError):
            bench.yard.import_hf_cache(cache.folder, f"org/bad{at}")
    assert bench.yard.repos() == []
    assert (secret.stat().st_mode, secret.stat().st_nlink) == (before.st_mode, 1)


def mlflow_folder(bench: Bench, more: str = "", files: dict[str, str | bytes] | None = None) -> Path:
    """An MLflow model of the transformers flavor, as `mlflow.transformers.save_model` lays it out."""
    model = bench.model_folder(3.0)
    mlmodel = (
        "artifact_path: model\n"
        "flavors:\n"
        "  python_function:\n"
        "    loader_module: mlflow.transformers\n"
        "  transformers:\n"
        "    components: [tokenizer]\n"
        "    model_binary: model\n"
        "    task: text-generation\n"
        "    source_model_name: org/name\n"
        "mlflow_version: 3.1.0\n"
        "model_uuid: 4d6b931052284ea1\n"
        "run_id: 7ddf8da935fb\n"
        "signature:\n"
        '  inputs: \'[{"type": "string"}]\'\n'
        "utc_time_created: '2026-07-31 06:30:13.123'\n" + more
    )
    content: dict[str, str | bytes] = {
        "MLmodel": mlmodel,
        "conda.yaml": "x",
        "components/tokenizer/tokenizer.json": "{}",
        "components/tokenizer/tokenizer_config.json": "{}",
    }
    content |= {f"model/{path.name}": path.read_bytes() for path in model.iterdir()}
    return bench.write(content | (files or {}))


def test_an_mlflow_model_becomes_one_folder(bench: Bench) -> None:
    """Model and tokenizer are one loadable folder; `MLmodel`'s facts are metadata; the rest is listed as left out."""
    made = bench.yard.import_mlflow(mlflow_folder(bench), "team/model")
    (version,) = made.versions
    assert [entry.path for entry in version.files] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert version.metadata["mlflow.run_id"] == "7ddf8da935fb"
    assert version.metadata["mlflow.model_uuid"] == "4d6b931052284ea1"
    assert version.metadata["mlflow.utc_time_created"] == "2026-07-31 06:30:13.123"
    assert set(json.loads(version.metadata["mlflow.flavors"])) == {"python_function", "transformers"}
    assert json.loads(version.metadata["mlflow.signature"]) == {"inputs": '[{"type": "string"}]'}
    assert {item.name for item in made.skipped} == {"MLmodel", "conda.yaml"}


def test_two_files_of_one_name_are_a_conflict(bench: Bench) -> None:
    """A tokenizer saved with the model and another among the components: a conflict, unless they are the same bytes."""
    same = mlflow_folder(bench, files={"model/tokenizer.json": "{}"})
    assert bench.yard.import_mlflow(same, "team/model").versions[0].number == 1
    with pytest.raises(ConflictError, match=r"tokenizer\.json"):
        bench.yard.import_mlflow(mlflow_folder(bench, files={"model/tokenizer.json": "{ }"}), "team/other")


def test_an_mlflow_adapter_brings_its_base(bench: Bench) -> None:
    """A PEFT model is an adapter version, and the base saved beside it another, at its `finetuned` edge."""
    weights = (bench.model_folder(9.0) / "model.safetensors").read_bytes()
    folder = mlflow_folder(
        bench, files={"peft/adapter_config.json": '{"r": 2}', "peft/adapter_model.safetensors": weights}
    )
    text = (folder / "MLmodel").read_text().replace("    task:", "    peft_adaptor: peft\n    task:")
    (folder / "MLmodel").write_text(text)
    adapter, base = bench.yard.import_mlflow(folder, "team/intents").versions
    assert (adapter.name, adapter.kind) == ("team/intents@v1", "adapter")
    assert base.name == "team/intents-base@v1"
    assert bench.yard.base_of(adapter).id == base.id


def test_artifacts_that_are_a_model(bench: Bench) -> None:
    """Without the transformers flavor, the one model folder among the artifacts is taken; several are a conflict."""
    model = {path.name: path.read_bytes() for path in bench.model_folder(1.0).iterdir()}
    one: dict[str, str | bytes] = {f"artifacts/m/{name}": data for name, data in model.items()}
    folder = bench.write({"MLmodel": "flavors: {python_function: {}}\n"} | one)
    assert len(bench.yard.import_mlflow(folder, "team/model").versions[0].files) == 2
    two = bench.write(one | {f"artifacts/n/{name}": data for name, data in model.items()})
    with pytest.raises(ConflictError, match="artifacts/m, artifacts/n"):
        bench.yard.import_mlflow(two, "team/other")


@pytest.mark.row(19, 20)
@pytest.mark.parametrize(
    ("flavors", "file", "says"),
    [
        ("sklearn: {pickled_model: model.pkl}", "model.pkl", "sklearn"),
        ("pytorch: {model_data: data}", "data/model.pth", "pytorch"),
        ("python_function: {python_model: python_model.pkl}", "python_model.pkl", "python_function"),
    ],
)
def test_pickled_flavors_are_refused_by_name(bench: Bench, flavors: str, file: str, says: str) -> None:
    """A flavor that is a pickle is refused; the message names the flavor and the file, and nothing is loaded."""
    folder = bench.write({"MLmodel": f"flavors: {{{flavors}}}\n", file: PICKLE})
    with pytest.raises(PickleError) as caught:
        bench.yard.import_mlflow(folder, "team/model")
    assert says in caught.value.message
    assert file in caught.value.message
    assert bench.yard.repos() == []


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nflavors: {transformers: {components: *b}}\n",
        "flavors: [",
        "just text",
        "flavors: {transformers: {model_binary: ../../etc}}",
        "flavors: {transformers: {model_binary: /etc}}",
        "flavors: {transformers: {components: [../..]}}",
        "flavors: {transformers: {components: 5}}",
        "!!python/object/apply:os.system ['true']",
        "flavors: x",
        "flavors: {transformers: {task: fill-mask, source_model_name: org/name}}",
    ],
)
def test_a_hostile_mlmodel(bench: Bench, text: str) -> None:
    """Aliases, tags, broken YAML and paths that lead out are refused."""
    with pytest.raises(ModelError):
        bench.yard.import_mlflow(bench.write({"MLmodel": text, "a.txt": "x"}), "team/model")
    assert bench.yard.repos() == []


def test_from_another_yard(bench: Bench, other: Bench) -> None:
    """A version of another yard keeps its id, and what it was made from comes along; again changes nothing."""
    base = bench.model(1.0, "team/base", kind="base")
    data = bench.data()
    made = bench.model(2.0, "team/tuned", from_=[base, data], message="m", metadata={"a": "b"})
    came = other.yard.import_version(bench.yard, "team/tuned")
    assert (came.version.id, came.version.metadata, came.missing) == (made.id, {"a": "b"}, ())
    assert other.yard.resolve(DATA).id == data.id
    assert other.yard.import_version(bench.yard, made) == came or len(other.yard.versions("team/tuned")) == 1
    alone = other.yard.import_version(bench.yard, made, with_lineage=False, to="mine/copy", branch="theirs")
    assert alone.version.name == "mine/copy@v1"


def test_damage_does_not_travel(bench: Bench, other: Bench) -> None:
    """A damaged file of the other yard stops the import, and no version is made."""
    version = bench.data("hello")
    stored = bench.store.file_path(version.files[0].blake3)
    stored.chmod(0o644)
    stored.write_bytes(b"jello")
    with pytest.raises(IntegrityError):
        other.yard.import_version(bench.yard, version)
    assert other.yard.repos() == []
