"""What every transformation shares: the work's folder, the commit with its lineage, and the certificate beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelyard.errors import BusyError, InputError, ModelError, NotFoundError, RefError, YardError
from modelyard.registry import transforms
from modelyard.registry.merging import Bench as Workbench
from modelyard.registry.rebuild import rebuild
from modelyard.registry.transforms import Operand, Transformed, transform
from modelyard.weights.certificate import FILE, Certificate
from registry.registry_helpers import Bench, report


def write(out: Path, value: float = 2.0) -> Certificate:
    """A tiny model with its certificate, as an operation of `weights` writes one."""
    out.mkdir(parents=True)
    (out / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": np.full((3, 4), value, np.float32)}, out / "model.safetensors")
    made = Certificate("double", "linear/1", matched={"doubled": 1}, checks=[{"max_difference": 0.25}])
    made.write(out)
    return made


def doubled(bench: Bench, to: str | Path, work: Any = write, **options: Any) -> Transformed:
    """Double `team/model`'s head into `to`."""
    context = bench.yard._context
    source = transforms.find(context, "team/model", bench.yard.fetch)
    given: dict[str, Any] = {"options": {}, "kind": "merged", "edges": [("merged", source)]} | options
    return transform(context, "double", [source], to, work, **given)


def test_the_result_is_a_version_with_lineage(bench: Bench) -> None:
    """What the work wrote is committed as the asked kind, with an edge to what it was made from."""
    source = bench.model()
    made = doubled(bench, "team/doubled").version
    assert made is not None
    assert (made.kind, [(edge.type, edge.version) for edge in made.lineage]) == ("merged", [("merged", source.id)])
    assert sorted(entry.path for entry in made.files) == ["config.json", "model.safetensors"]


def test_the_certificate_is_beside_the_version(bench: Bench) -> None:
    """The certificate is no file of the version and no report, and is there word for word."""
    bench.model()
    made = doubled(bench, "team/doubled")
    assert made.version is not None
    assert bench.yard.certificates(made.version) == [made.certificate.to_dict()]
    assert bench.yard.reports(made.version) == []
    assert bench.yard.certificates("team/model") == []


def test_measurements_do_not_change_the_version(bench: Bench) -> None:
    """The same weights measured differently are the same version, with two certificates."""
    bench.model()
    first = doubled(bench, "team/doubled").version

    def again(out: Path) -> Certificate:
        made = write(out)
        made.checks = [{"max_difference": 0.5}]
        return made

    second = doubled(bench, "team/doubled", again).version
    assert first is not None
    assert second is not None
    assert first.id == second.id
    assert [each["checks"] for each in bench.yard.certificates(first)] == [
        [{"max_difference": 0.25}],
        [{"max_difference": 0.5}],
    ]


def test_a_folder_keeps_its_certificate(bench: Bench, tmp_path: Path) -> None:
    """Written to a folder, the certificate is the file `certificate.json`, and nothing is committed."""
    bench.model()
    made = doubled(bench, tmp_path / "out")
    assert (made.version, made.folder, made.sources) == (None, tmp_path / "out", ("team/model@v1",))
    assert (tmp_path / "out" / FILE).is_file()
    assert [repo.name for repo in bench.yard.repos()] == ["team/model"]


def test_work_that_was_done_and_not_committed_is_not_done_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the commit fails, the same command again commits what lies there."""
    bench.model()
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "commit", lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            doubled(bench, "team/doubled")

    def never(_: Path) -> Certificate:
        raise AssertionError("it was done already")

    made = doubled(bench, "team/doubled", never).version
    assert made is not None
    assert load_file(bench.yard.path(made, "model.safetensors"))["weight"][0, 0] == 2.0
    assert not list((bench.root / "runs" / "scratch").iterdir())


def test_other_options_are_other_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted command left is not taken for the result of another one."""
    bench.model()
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "commit", lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            doubled(bench, "team/doubled", options={"by": 2})
    made = doubled(bench, "team/doubled", lambda out: write(out, 3.0), options={"by": 3}).version
    assert made is not None
    assert load_file(bench.yard.path(made, "model.safetensors"))["weight"][0, 0] == 3.0


def test_the_same_work_twice_at_once_is_busy(bench: Bench) -> None:
    """A second process that asks for what is being made is told so."""
    bench.model()

    def twice(out: Path) -> Certificate:
        with pytest.raises(BusyError, match="this very double"):
            doubled(bench, "team/doubled")
        return write(out)

    assert doubled(bench, "team/doubled", twice).version is not None


def test_a_collection_leaves_work_under_way(bench: Bench) -> None:
    """`gc` between the work and its commit removes neither the work's folder nor what it reads."""
    bench.model()

    def collected(out: Path) -> Certificate:
        made = write(out)
        bench.yard.collect(grace_days=0)
        assert (out / FILE).is_file()
        return made

    assert doubled(bench, "team/doubled", collected).version is not None


def test_pickles_are_for_folders(bench: Bench) -> None:
    """What a yard never holds is refused with the way out, and no version is made."""
    bench.model()

    def pickled(out: Path) -> Certificate:
        made = write(out)
        (out / "pytorch_model.bin").write_bytes(b"")
        return made

    with pytest.raises(ModelError) as caught:
        doubled(bench, "team/doubled", pickled)
    assert (caught.value.code, caught.value.hint) == ("pickle_in_yard", "write it to a folder: --to ./FOLDER")


def test_a_bundle_carries_the_certificate(bench: Bench, tmp_path: Path) -> None:
    """A version that leaves as a file has its certificate on the other side."""
    bench.model()
    made = doubled(bench, "team/doubled")
    assert made.version is not None
    bench.yard.pack(made.version, tmp_path / "doubled.yard")
    (tmp_path / "there").mkdir()
    other = Bench(tmp_path / "there", f"sqlite:///{tmp_path / 'there.db'}")
    other.yard.unpack(tmp_path / "doubled.yard")
    assert other.yard.certificates("team/doubled") == [made.certificate.to_dict()]
    other.close()


def test_a_rebuilt_catalog_knows_it(bench: Bench, tmp_path: Path) -> None:
    """A certificate survives the loss of the catalog."""
    from modelyard.catalog import Catalog
    from modelyard.registry import Yard

    bench.model()
    made = doubled(bench, "team/doubled")
    fresh = Catalog(f"sqlite:///{tmp_path / 'fresh.db'}")
    rebuild(bench.store, fresh)
    found = Yard(bench.store, fresh).open().certificates("team/doubled")
    fresh.close()
    assert found == [made.certificate.to_dict()]


def test_a_report_cannot_pose_as_a_certificate(bench: Bench) -> None:
    """An evaluation task of that name is refused: gates would not see its report."""
    version = bench.model()
    with pytest.raises(InputError, match="not called `certificate`"):
        bench.yard.add_report(version, report(version, [True], task="certificate"))


def test_without_a_yard_there_are_folders_only(tmp_path: Path) -> None:
    """A bench resolves paths, and says what a reference needs."""
    bench = Workbench(lambda _: tmp_path)
    (tmp_path / "model").mkdir()
    assert bench._find(tmp_path / "model") == Operand(None, str(tmp_path / "model"), path=tmp_path / "model")
    with pytest.raises(RefError, match="a version of a yard"):
        bench._find("team/model")
    with pytest.raises(NotFoundError, match="no folder or file"):
        bench._find(tmp_path / "nowhere")


def test_changed_files_are_other_work(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done and not committed is not taken for the result when a file of the source folder changed since."""
    folder = tmp_path / "source"
    write(folder, 1.0)
    context = bench.yard._context

    def run() -> Transformed:
        source = transforms.find(context, str(folder), bench.yard.fetch)
        value = float(load_file(folder / "model.safetensors")["weight"][0, 0]) * 2
        return transform(
            context, "double", [source], "team/doubled", lambda out: write(out, value), options={}, kind=None, edges=[]
        )

    with monkeypatch.context() as patched:
        patched.setattr(transforms, "commit", _refuse)
        with pytest.raises(KeyboardInterrupt):
            run()
    save_file({"weight": np.full((3, 4), 5, np.float32)}, folder / "model.safetensors")
    made = run().version
    assert made is not None
    assert load_file(bench.yard.path(made, "model.safetensors"))["weight"][0, 0] == 10


def _refuse(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("to", "branch"), [("team/new@v1", "main"), ("team/new", "bad branch"), ("A B", "main")])
def test_a_target_that_no_commit_takes_is_refused_before_the_work(bench: Bench, to: str, branch: str) -> None:
    """A name that the commit would refuse after hours of work is refused before its first byte."""
    bench.model()
    started: list[Path] = []

    def work(out: Path) -> Certificate:
        started.append(out)
        return write(out)

    with pytest.raises(YardError):
        doubled(bench, to, work, branch=branch)
    assert started == []


def test_a_target_inside_its_source_is_refused(tmp_path: Path) -> None:
    """A folder below the source would be read as a part of it by the next run; nothing is written there."""
    folder = tmp_path / "source"
    write(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as caught:
        Workbench(lambda *_, **__: tmp_path).convert(folder, folder / "deep" / "down", dtype="float16")
    assert caught.value.code == "target_in_source"
    assert sorted(folder.rglob("*")) == before


def test_work_that_fails_leaves_no_folder_in_the_yard(bench: Bench) -> None:
    """An error of the work would come again, so nothing of it is kept for a next run."""
    bench.model()

    def work(out: Path) -> Certificate:
        raise ModelError(f"no `{out.name}` of this")

    with pytest.raises(ModelError):
        doubled(bench, "team/doubled", work)
    links = bench.yard._context.links
    assert links is not None
    assert not list((links.parent / "runs" / "scratch").iterdir())


def test_an_option_that_combine_lacks_is_named(tmp_path: Path) -> None:
    """A misspelt setting is an error that lists the settings, not a fault of the program."""
    with pytest.raises(InputError) as caught:
        Workbench(lambda *_, **__: tmp_path).combine([tmp_path], tmp_path / "out", densty=0.5)
    assert "densty" in str(caught.value)
    assert "density" in str(caught.value.hint)
