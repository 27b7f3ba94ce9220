"""Checkout, stored files and linked folders: whole, verified, or not at all."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from modelyard.errors import ConflictError, InputError, IntegrityError, ModelError, NotFoundError
from modelyard.registry import Yard
from modelyard.store import MemoryStore
from modelyard.weights.files import Files
from registry.registry_helpers import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry import Version
    from registry.registry_helpers import Bench


def damage(bench: Bench, version: Version, file: int = 0) -> None:
    """Flip a bit of a stored file, keeping its size."""
    path = bench.store.file_path(version.files[file].blake3)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("link", [False, True])
def test_a_checkout_is_what_was_committed(bench: Bench, link: bool) -> None:
    """Copied or linked, a checkout has the committed files and nothing else; its folders may be new or empty."""
    made = bench.yard.commit(bench.write({"a.txt": "1", "d/e/f.txt": "2", "empty": ""}), DATA)
    target = bench.folder / "new" / "out"
    paths = bench.yard.checkout(made, target, link=link)
    assert paths == [target / "a.txt", target / "d/e/f.txt", target / "empty"]
    assert [path.read_text() for path in paths] == ["1", "2", ""]
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    (bench.folder / "empty").mkdir()
    assert len(bench.yard.checkout(f"{DATA}@v1", str(bench.folder / "empty"), link=link)) == 3


def test_a_copy_can_be_changed_and_a_link_is_the_stored_file(bench: Bench) -> None:
    """Copies are the user's own; links share the stored bytes and are read-only."""
    made = bench.data("1")
    copied = bench.yard.checkout(made, bench.folder / "copy")[0]
    linked = bench.yard.checkout(made, bench.folder / "link", link=True)[0]
    copied.write_text("2")
    stored = bench.store.file_path(made.files[0].blake3)
    assert linked.samefile(stored)
    assert not copied.samefile(stored)
    assert stat.S_IMODE(linked.stat().st_mode) & 0o222 == 0
    assert bench.yard.files(made).read("data.txt") == b"1"


def test_a_target_that_holds_something_is_refused(bench: Bench) -> None:
    """A folder that is not empty, a file, and a link are refused and left as they are."""
    made = bench.data("1")
    full = bench.write({"mine.txt": "mine"})
    (bench.folder / "link").symlink_to(bench.folder / "nowhere")
    for target in (full, full / "mine.txt", bench.folder / "link"):
        with pytest.raises(ConflictError):
            bench.yard.checkout(made, target)
    assert (full / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.row(42, 18)
def test_a_damaged_object_is_never_served(bench: Bench, link: bool) -> None:
    """A promise: a flipped bit is an IntegrityError on read, path, checkout and linked folder, and nothing is left behind."""
    made = bench.yard.commit(bench.write({"a.txt": "1", "b.txt": "22"}), DATA)
    damage(bench, made, 1)
    files = bench.yard.files(made)
    assert files.read("a.txt") == b"1"
    for use in (
        lambda: files.read("b.txt"),
        lambda: files.path("b.txt"),
        lambda: bench.yard.path(made, "b.txt"),
        lambda: bench.yard.checkout(made, bench.folder / "out", link=link),
        lambda: bench.yard.folder(made),
    ):
        with pytest.raises(IntegrityError):
            use()
    assert not (bench.folder / "out").exists()
    assert not [path for path in bench.folder.iterdir() if path.name.endswith(".checkout")]


def test_a_missing_object_is_an_integrity_error(bench: Bench) -> None:
    """Bytes that are gone are named, not skipped."""
    made = bench.data("1")
    bench.store.file_path(made.files[0].blake3).unlink()
    for use in (
        lambda: bench.yard.files(made).read("data.txt"),
        lambda: bench.yard.checkout(made, bench.folder / "out"),
    ):
        with pytest.raises(IntegrityError):
            use()


def test_stored_files_are_files(bench: Bench) -> None:
    """A version's files serve whatever reads a folder: names, sizes, bounded reads, and near matches for what is missing."""
    made = bench.yard.commit(bench.write({"config.json": "{}", "z/a": "1"}), DATA)
    files = bench.yard.files(made)
    assert isinstance(files, Files)
    assert (files.names(), files.size("config.json"), files.label) == (["config.json", "z/a"], 2, f"{DATA}@v1")
    assert files.path("z/a").read_bytes() == b"1"
    with pytest.raises(ModelError, match="more than the 1"):
        files.read("config.json", limit=1)
    with pytest.raises(NotFoundError) as error:
        files.read("confg.json")
    assert "config.json" in (error.value.hint or "")


def test_a_linked_folder_is_built_once_and_shares_the_bytes(bench: Bench) -> None:
    """A version's folder of links appears under its id, costs no bytes, and is reused."""
    made = bench.yard.commit(bench.write({"a.txt": "1", "d/b.txt": "2"}), DATA)
    folder = bench.yard.folder(made)
    assert folder == bench.root / "links" / made.id
    assert (folder / "d/b.txt").samefile(bench.store.file_path(made.files[1].blake3))
    inode = folder.stat().st_ino
    assert bench.yard.folder(made).stat().st_ino == inode
    assert [path.name for path in folder.parent.iterdir()] == [made.id]


def _extra(folder: Path) -> None:
    (folder / "evil.py").write_text("print()")


def _missing(folder: Path) -> None:
    (folder / "data.txt").unlink()


def _replaced(folder: Path) -> None:
    (folder / "data.txt").unlink()
    (folder / "data.txt").write_text("2")


def _symlink(folder: Path) -> None:
    (folder / "data.txt").unlink()
    (folder / "data.txt").symlink_to("/etc/hostname")


def _folder_link(folder: Path) -> None:
    (folder / "sub").symlink_to("/etc")


@pytest.mark.parametrize("spoil", [_extra, _missing, _replaced, _symlink, _folder_link])
def test_a_linked_folder_that_was_changed_is_built_anew(bench: Bench, spoil: object) -> None:
    """Whatever somebody did to the folder of links, the next use gives exactly the version."""
    made = bench.data("1")
    folder = bench.yard.folder(made)
    assert callable(spoil)
    spoil(folder)
    again = bench.yard.folder(made)
    assert [(path.name, path.read_text(), path.is_symlink()) for path in again.iterdir()] == [("data.txt", "1", False)]
    assert [path.name for path in again.parent.iterdir()] == [made.id]


def test_an_equal_copy_in_a_linked_folder_is_fine(bench: Bench) -> None:
    """Where links are impossible the folder holds copies, which are compared by their bytes."""
    made = bench.data("1")
    folder = bench.yard.folder(made)
    (folder / "data.txt").unlink()
    (folder / "data.txt").write_text("1")
    inode = folder.stat().st_ino
    assert bench.yard.folder(made).stat().st_ino == inode


def test_a_yard_without_links_says_so(bench: Bench) -> None:
    """Without a place for links, `folder` is a typed error."""
    made = bench.data("1")
    with pytest.raises(InputError, match="no folder for links"):
        bench.open(links=None).folder(made)


def test_a_store_in_memory_checks_out(bench: Bench) -> None:
    """The registry works over any store: files of one in memory are copied and verified too."""
    yard: Yard = bench.open(store=MemoryStore())
    made = yard.commit(bench.write({"a.txt": "1"}), DATA)
    assert yard.checkout(made, bench.folder / "out")[0].read_text() == "1"
    assert yard.checkout(made, bench.folder / "linked", link=True)[0].read_text() == "1"


def test_a_checkout_is_as_open_as_its_users_umask(bench: Bench) -> None:
    """A checkout's folder is not private by accident of how it was made."""
    made = bench.data("1")
    before = os.umask(0o022)
    try:
        bench.yard.checkout(made, bench.folder / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((bench.folder / "out").stat().st_mode) == 0o755
