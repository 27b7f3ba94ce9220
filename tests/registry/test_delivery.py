"""Handing versions out: adapters with their base, links without a second hash, paths by reference."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from modelyard.digest import digest_bytes
from modelyard.errors import ConflictError, IntegrityError, NotFoundError
from modelyard.registry.verified import Verified
from registry.registry_helpers import DATA, Bench, Wrapper
from tiny_models import save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.registry import Version
    from modelyard.store.base import ByteArea

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Counting(Wrapper):
    """Counts the files that are read to be compared with their digest."""

    hashed = 0

    def verify_file(self, digest: Digest, *, area: ByteArea = "files") -> None:
        self.hashed += 1
        super().verify_file(digest, area=area)


def adapter(bench: Bench) -> tuple[Version, Version]:
    """A base and an adapter on it; PEFT noted the folder of the training, which is gone."""
    base = bench.yard.commit(save_model(bench.folder / "llama"), "team/base")
    folder = save_adapter(bench.folder / "adapter", bench.folder / "llama")
    made = bench.yard.commit(folder, "team/adapter", from_=[base])
    shutil.rmtree(bench.folder / "llama")
    return base, made


@pytest.mark.parametrize("link", [False, True])
def test_an_adapter_is_checked_out_with_its_base(bench: Bench, link: bool) -> None:
    """PEFT loads the folder offline; only our copy of the configuration differs from what was committed."""
    from peft import AutoPeftModelForCausalLM

    base, made = adapter(bench)
    out = bench.folder / "out"
    paths = bench.yard.checkout(made, out, link=link)
    assert AutoPeftModelForCausalLM.from_pretrained(out, local_files_only=True) is not None
    config = json.loads((out / "adapter_config.json").read_text())
    stored = json.loads(bench.yard.files(made).read("adapter_config.json"))
    assert config == stored | {"base_model_name_or_path": str(out.absolute() / "base")}
    for entry in made.files:
        if entry.path != "adapter_config.json":
            assert digest_bytes((out / entry.path).read_bytes()) == entry.blake3
    for entry in base.files:
        assert digest_bytes((out / "base" / entry.path).read_bytes()) == entry.blake3
    assert all(path.is_file() for path in paths)
    assert len(paths) == len(made.files) + len(base.files)
    bench.store.verify_file(next(e.blake3 for e in made.files if e.path == "adapter_config.json"))


def test_an_adapter_without_its_base_is_what_was_committed(bench: Bench) -> None:
    """With `base=False`, or where lineage names none, every byte is as committed; asking for a base that is not known fails."""
    _, made = adapter(bench)
    bench.yard.checkout(made, bench.folder / "plain", base=False)
    lone = bench.yard.commit(bench.folder / "adapter", "team/lone")
    bench.yard.checkout(lone, bench.folder / "lone")
    for name in ("plain", "lone"):
        stored = bench.yard.files(made).read("adapter_config.json")
        assert (bench.folder / name / "adapter_config.json").read_bytes() == stored
        assert not (bench.folder / name / "base").exists()
    with pytest.raises(NotFoundError, match="which base"):
        bench.yard.checkout(lone, bench.folder / "asked", base=True)


def test_a_base_finds_room_beside_a_folder_of_its_name(bench: Bench) -> None:
    """An adapter with a folder `base` of its own keeps it; its base goes into another."""
    base = bench.model(0.0, to="team/base")
    folder = bench.model_folder(1.0)
    (folder / "config.json").unlink()
    (folder / "base").mkdir()
    (folder / "base" / "notes.txt").write_text("mine")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone"}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    made = bench.yard.commit(folder, "team/adapter", kind="adapter", from_=[base])
    bench.yard.checkout(made, bench.folder / "out")
    assert (bench.folder / "out" / "base" / "notes.txt").read_text() == "mine"
    config = json.loads((bench.folder / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bench.folder / "out" / "base-1")
    assert (bench.folder / "out" / "base-1" / "config.json").is_file()


def test_links_of_verified_files_cost_no_hash(bench: Bench) -> None:
    """What this boot wrote or verified, and nothing touched since, is linked without reading it; copies are always hashed."""
    store = Counting(bench.store)
    yard = bench.open(store=store)
    version = bench.yard.commit(bench.write({"a.txt": "1", "b.txt": "2"}), DATA)
    for name in ("one", "two", "three"):
        yard.checkout(version, bench.folder / name, link=True)
    assert store.hashed == 0
    path = bench.store.file_path(version.files[0].blake3)
    os.utime(path)
    yard.checkout(version, bench.folder / "four", link=True)
    assert store.hashed == 1
    yard.checkout(version, bench.folder / "five", link=True)
    assert store.hashed == 1


@pytest.mark.row(42, 43)
def test_a_changed_file_is_not_linked(bench: Bench) -> None:
    """A write of the same size, even with the time put back, is noticed, since no program can put back the inode's own."""
    version = bench.data("1")
    bench.yard.checkout(version, bench.folder / "one", link=True)
    path = bench.store.file_path(version.files[0].blake3)
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"2")
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError):
        bench.yard.checkout(version, bench.folder / "two", link=True)
    assert not (bench.folder / "two").exists()


def test_notes_of_another_boot_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart, and where no boot has a name, everything is hashed; old notes are removed."""
    boot = tmp_path / "boot"
    monkeypatch.setattr("modelyard.registry.verified._BOOT", boot)
    path, digest, notes = tmp_path / "x", digest_bytes(b"x"), Verified(tmp_path / "notes")
    path.write_bytes(b"x")
    notes.note(path, digest)
    assert not notes.knows(path, digest)
    boot.write_text("first\n")
    notes.note(path, digest)
    assert notes.knows(path, digest)
    assert not notes.knows(path, digest_bytes(b"y"))
    boot.write_text("second\n")
    assert not notes.knows(path, digest)
    notes.note(path, digest)
    assert [each.name for each in (tmp_path / "notes").iterdir()] == [".verified-second"]
    assert not Verified(None).knows(path, digest)


def test_a_path_by_reference(bench: Bench) -> None:
    """`REF:FILE` is the file itself, a bare REF a folder of links; an unknown file has its near match."""
    version = bench.yard.commit(bench.write({"a.txt": "1", "d/b.txt": "2"}), DATA)
    assert bench.yard.path(f"{DATA}@v1:d/b.txt") == bench.store.file_path(version.files[1].blake3)
    assert (bench.yard.path(DATA) / "d" / "b.txt").read_text() == "2"
    with pytest.raises(NotFoundError) as error:
        bench.yard.path(f"{DATA}:b.txt")
    assert "d/b.txt" in (error.value.hint or "")


def test_every_delivery_holds_a_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkout, path, folder and diff hold a lease that names the version, and let it go."""
    from modelyard.catalog import leases

    seen: list[str] = []
    real = leases.acquire

    def acquire(tx: object, lease_id: str, *, purpose: str, owner: str) -> None:
        seen.append(purpose)
        real(tx, lease_id, purpose=purpose, owner=owner)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr("modelyard.catalog.leases.acquire", acquire)
    version = bench.data("1")
    bench.yard.checkout(version, bench.folder / "out")
    bench.yard.path(version, "data.txt")
    bench.yard.folder(version)
    bench.yard.diff(version, version)
    assert [text.split()[0] for text in seen] == ["commit", "checkout", "path", "path", "diff"]
    assert all(str(version.id) in text for text in seen[1:])
    with bench.yard._context.catalog.read() as connection:
        assert leases.listing(connection) == []


def test_the_history_of_every_ref(any_bench: Bench) -> None:
    """A branch, tag or alias has its moves, also by a deletion, also when it is gone; a branch its versions' past too."""
    bench = any_bench
    one, two = bench.data("1"), bench.data("2")
    bench.yard.branch(one, "dev")
    three = bench.data("3", branch="dev")
    bench.yard.promote(three, "live")
    bench.yard.delete(three, force=True)
    assert [(e.action, e.version) for e in bench.yard.log(f"{DATA}@dev")] == [
        ("delete", f"{DATA}@v3"),
        ("commit", f"{DATA}@v3"),
        ("branch", f"{DATA}@v1"),
        ("commit", f"{DATA}@v1"),
    ]
    assert [e.action for e in bench.yard.log(f"{DATA}@live")] == ["delete", "promote"]  # the alias is gone
    assert [e.version for e in bench.yard.log(f"{DATA}@main")] == [f"{DATA}@v1", f"{DATA}@v2", f"{DATA}@v1"]
    assert [e.action for e in bench.yard.log(f"{DATA}@dev", limit=2)] == ["delete", "commit"]
    page = bench.yard.log(f"{DATA}@dev", limit=1)
    assert [*page, *bench.yard.log(f"{DATA}@dev", before=page[-1].seq)] == bench.yard.log(f"{DATA}@dev")
    with pytest.raises(NotFoundError):
        bench.yard.log(f"{DATA}@never")
    assert two.number == 2


def test_a_target_that_is_full_is_refused_before_anything(bench: Bench) -> None:
    """An adapter's checkout into a folder with files changes nothing there."""
    _, made = adapter(bench)
    full = bench.write({"mine.txt": "mine"})
    with pytest.raises(ConflictError):
        bench.yard.checkout(made, full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
