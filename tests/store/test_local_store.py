"""What is particular to a store in a folder: opening, the layout, links and pipes in the way, imports."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.digest import Digest, digest_bytes
from modelyard.errors import ConflictError, InputError, IntegrityError, NotFoundError, YardError
from modelyard.store import LocalStore
from modelyard.store.faults import failpoint
from modelyard.store.filesystem import FileSystem, TmpFile


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "yard").init()


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# -- opening -----------------------------------------------------------------------------------------------------------


def test_init_makes_the_specified_layout(tmp_path: Path) -> None:
    """`init` makes exactly the folders and the `format` file of the specification, parents included."""
    LocalStore(tmp_path / "a" / "b" / "yard").init()
    found = {str(path.relative_to(tmp_path / "a/b/yard")) for path in (tmp_path / "a/b/yard").rglob("*")}
    assert found == {"files", "format", "journal", "manifests", "packs", "reports", "tmp"}
    assert (tmp_path / "a/b/yard/format").read_bytes() == b'{"features":[],"format":"modelyard/store/1"}\n'


def test_init_again_changes_nothing(store: LocalStore) -> None:
    """`init` on a yard keeps every object."""
    store.put_file([b"file"])
    store.put("manifests", b"manifest")
    store.publish_journal(1, b"entry")
    before = files_below(store.root)
    LocalStore(store.root).init()
    assert files_below(store.root) == before


def test_init_leaves_other_files_alone(tmp_path: Path) -> None:
    """A folder that holds something else becomes a yard around it."""
    (tmp_path / "notes.txt").write_text("mine")
    LocalStore(tmp_path).init()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_init_puts_back_a_missing_folder(store: LocalStore) -> None:
    """A yard that lost an empty folder (copied by a tool that skips those) says so on opening, and `init` repairs it."""
    digest = store.put_file([b"kept"]).blake3
    (store.root / "reports").rmdir()
    with pytest.raises(IntegrityError, match="`reports/` is missing") as caught:
        LocalStore(store.root).open()
    assert "yard init" in str(caught.value.hint)
    LocalStore(store.root).init().verify_file(digest)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None], ids=["folder", "file", "nothing"])
def test_opening_what_is_no_yard_says_how_to_make_one(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A plain folder, a file and nothing at all are each no yard; the hint is `yard init`, and nothing is created."""
    make(tmp_path / "plain")
    with pytest.raises(NotFoundError, match="no yard at") as caught:
        LocalStore(tmp_path / "plain").open()
    assert "yard init" in str(caught.value.hint)
    assert [path for path in (tmp_path / "plain").glob("*") if (tmp_path / "plain").is_dir()] == []


def test_the_first_use_opens(tmp_path: Path) -> None:
    """A store that was never opened checks the folder when it is first used, for reading as for writing."""
    with pytest.raises(NotFoundError, match="no yard at"):
        LocalStore(tmp_path).has_file(Digest("0" * 64))
    with pytest.raises(NotFoundError, match="no yard at"):
        LocalStore(tmp_path).put_file([b"x"])


@pytest.mark.parametrize(
    "format_text",
    [
        '{"features":[],"format":"modelyard/store/2"}',
        '{"features":["packs/1"],"format":"modelyard/store/1"}',
        '{"features":["packs/1"],"format":"modelyard/store/12","other":1}',
    ],
)
@pytest.mark.row(52)
def test_a_newer_yard_is_refused_and_not_touched(store: LocalStore, format_text: str) -> None:
    """A later format or an unknown feature is refused by `open` and `init` alike, naming both formats."""
    store.put_file([b"x"])
    (store.root / "format").chmod(0o600)
    (store.root / "format").write_text(format_text)
    before = files_below(store.root)
    for call in (LocalStore(store.root).open, LocalStore(store.root).init):
        with pytest.raises(InputError, match="modelyard/store/1") as caught:
            call()
        assert caught.value.code == "newer_format"
        assert json.loads(format_text)["format"] in caught.value.message
    assert files_below(store.root) == before


def test_keys_that_a_later_version_adds_are_ignored(store: LocalStore) -> None:
    """An unknown key in `format` that no feature announces does not matter."""
    (store.root / "format").chmod(0o600)
    (store.root / "format").write_text('{"created_by":"1.2","features":[],"format":"modelyard/store/1"}')
    LocalStore(store.root).open()


@pytest.mark.parametrize(
    "text",
    ["", "\0", "[]", "{}", '{"format":"modelyard/store/1"}', '{"features":{},"format":"modelyard/store/1"}',
     '{"features":[],"format":"other/1"}', '{"features":[],"format":1}', "[" * 60_000, "{" + " " * 70_000 + "}"],
    ids=range(10),
)  # fmt: skip
def test_a_damaged_format_file_is_an_integrity_error(store: LocalStore, text: str) -> None:
    """Anything that is not the format's text is refused, however hostile."""
    (store.root / "format").chmod(0o600)
    (store.root / "format").write_text(text)
    with pytest.raises(IntegrityError, match="format"):
        LocalStore(store.root).open()


def test_a_folder_that_is_a_link_is_refused(store: LocalStore, tmp_path: Path) -> None:
    """An area that was replaced by a symbolic link is damage: publication could leave the disk."""
    (tmp_path / "elsewhere").mkdir()
    (store.root / "manifests").rmdir()
    (store.root / "manifests").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="`manifests/` is not a folder"):
        LocalStore(store.root).open()


# -- layout ------------------------------------------------------------------------------------------------------------


def test_objects_lie_where_the_specification_says(store: LocalStore) -> None:
    """Each object's place is that of the specification, mode 0444, and `tmp/` is empty afterwards."""
    file = store.put_file([b"file"]).blake3
    manifest, report = store.put("manifests", b"manifest"), store.put("reports", b"report")
    store.publish_journal(12, b"entry")
    found = files_below(store.root)
    del found["format"]
    assert found == {
        f"files/{file[:2]}/{file}": b"file",
        f"manifests/{manifest}": b"manifest",
        f"reports/{report}": b"report",
        "journal/12": digest_bytes(b"entry").encode() + b"\nentry",
    }
    assert {stat.S_IMODE((store.root / name).stat().st_mode) for name in found} == {0o444}


def test_names_that_are_no_objects_are_ignored(store: LocalStore) -> None:
    """Strangers in an area, wrong folders and odd journal names are not listed and harm nothing."""
    file = store.put_file([b"file"]).blake3
    store.publish_journal(1, b"entry")
    other = "f" * 64 if not file.startswith("ff") else "e" * 64
    for name in (f"files/{file[:2]}/README", f"files/{file[:2]}/{other}", "files/.DS_Store", "manifests/.nfs0001",
                 "journal/01", "journal/-1", "journal/2.tmp", "journal/" + "9" * 19):  # fmt: skip
        (store.root / name).write_text("stranger")
    (store.root / "files" / "zz").mkdir()
    assert list(store.digests("files")) == [file]
    assert list(store.digests("manifests")) == []
    assert list(store.journal()) == [(1, b"entry")]


def test_a_yard_can_be_copied_without_its_links_and_modes(store: LocalStore, tmp_path: Path) -> None:
    """A byte copy of a yard's files and folders is a yard."""
    digest = store.put_file([b"file"]).blake3
    for folder in ("journal", "manifests", "packs", "reports", "tmp"):
        (tmp_path / "copy" / folder).mkdir(parents=True)
    for name, data in files_below(store.root).items():
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "copy" / name).write_bytes(data)
    copy = LocalStore(tmp_path / "copy").open()
    copy.verify_file(digest)
    copy.put_file([b"more"])


def test_a_large_object_area_needs_no_handle_per_object(store: LocalStore) -> None:
    """Storing and reading leaves no descriptor open."""
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    for number in range(20):
        store.verify_file(store.put_file([b"%d" % number]).blake3)
        store.get("reports", store.put("reports", b"%d" % number))
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    assert after == before


# -- things in the way -------------------------------------------------------------------------------------------------


def _link_to_same_bytes(path: Path) -> None:
    copy = path.parent.parent.parent.parent / "same-bytes"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(copy)


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("replace", [_link_to_same_bytes, _dangling_link, _pipe])
@pytest.mark.row(43)
def test_a_file_replaced_by_something_else_is_damage(store: LocalStore, replace: Callable[[Path], None]) -> None:
    """A link, even to the same bytes, and a named pipe in place of a file are never followed or waited for; a put repairs it."""
    digest = store.put_file([b"file"]).blake3
    replace(store.file_path(digest))
    assert not store.has_file(digest)
    for call in (store.open_file, store.file_path, store.file_size, store.verify_file):
        with pytest.raises(IntegrityError, match=r"symbolic link|not a regular file"):
            call(digest)
    store.put_file([b"file"])
    store.verify_file(digest)


def test_a_folder_in_place_of_a_file_is_damage(store: LocalStore) -> None:
    """A folder under a digest's name is reported for what it is, and storing over it is a typed error that names it."""
    digest = store.put_file([b"file"]).blake3
    path = store.file_path(digest)
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError, match="not a regular file"):
        store.verify_file(digest)
    with pytest.raises(YardError, match=digest):
        store.put_file([b"file"])


def test_a_link_in_place_of_a_manifest_or_entry_is_damage(store: LocalStore, tmp_path: Path) -> None:
    """Manifests and journal entries are not read through links either."""
    digest = store.put("manifests", b"manifest")
    store.publish_journal(1, b"entry")
    for name in (f"manifests/{digest}", "journal/1"):
        path = store.root / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="symbolic link"):
        store.get("manifests", digest)
    with pytest.raises(IntegrityError, match="journal entry 1"):
        list(store.journal())
    store.publish_journal(1, b"entry")
    assert list(store.journal()) == [(1, b"entry")]


@pytest.mark.row(48)
def test_only_stale_files_are_swept_from_tmp(store: LocalStore) -> None:
    """Sweeping takes what nobody holds and leaves folders, links and a living writer's file."""
    writer = FileSystem()
    living = writer.create_tmp(store.root / "tmp")
    stale = writer.create_tmp(store.root / "tmp")
    writer.close(stale)
    (store.root / "tmp" / "folder").mkdir()
    (store.root / "tmp" / "link").symlink_to("nowhere")
    assert store.remove_leftovers() == 1
    assert {path.name for path in (store.root / "tmp").iterdir()} == {living.path.name, "folder", "link"}
    writer.close(living)


# -- journal on odd disks ----------------------------------------------------------------------------------------------


def test_the_journal_works_without_hard_links(tmp_path: Path) -> None:
    """Where the disk has no hard links an entry is renamed into place, and still never over another."""

    class NoLinks(FileSystem):
        def link(self, file: TmpFile, target: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    store = LocalStore(tmp_path).init()
    odd = LocalStore(tmp_path, NoLinks())
    odd.publish_journal(1, b"entry")
    odd.publish_journal(1, b"entry")
    with pytest.raises(ConflictError):
        odd.publish_journal(1, b"other")
    assert list(store.journal()) == [(1, b"entry")]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_an_entry_published_by_somebody_else_at_the_same_moment_wins(tmp_path: Path, links: bool) -> None:
    """Two writers race for a number after both saw it free: the first entry stays, the second writer gets a conflict."""
    first = LocalStore(tmp_path).init()

    class Late(FileSystem):
        def fsync(self, file: TmpFile) -> None:
            super().fsync(file)
            first.publish_journal(1, b"first")

        def link(self, file: TmpFile, target: Path) -> None:
            if not links:
                raise OSError(errno.EOPNOTSUPP, "no links here")
            super().link(file, target)

    with pytest.raises(ConflictError):
        LocalStore(tmp_path, Late()).publish_journal(1, b"second")
    LocalStore(tmp_path, Late()).publish_journal(1, b"first")
    assert list(first.journal()) == [(1, b"first")]


# -- imports -----------------------------------------------------------------------------------------------------------

BIG = 8 << 20


class Cloning(FileSystem):
    """A disk that can share blocks, played by a plain copy; the original changes right afterwards."""

    def clone(self, file: TmpFile, source: int) -> bool:
        size = os.fstat(source).st_size
        os.write(file.fd, os.pread(source, size, 0))
        return True


def test_a_cloned_file_is_hashed_as_stored(tmp_path: Path) -> None:
    """Where the disk shares blocks, the hashes are those of our copy, and storing is as durable as otherwise."""
    data = bytes(range(256)) * (BIG // 256) + b"end"
    (tmp_path / "original").write_bytes(data)
    LocalStore(tmp_path / "yard").init()
    digests = LocalStore(tmp_path / "yard", Cloning()).import_file(tmp_path / "original")
    store = LocalStore(tmp_path / "yard")
    assert digests == store.put_file([data])
    store.verify_file(digests.blake3)


def test_importing_stored_bytes_writes_nothing(tmp_path: Path) -> None:
    """A second import of a large file is a read: the disk's every write would fail."""
    (tmp_path / "original").write_bytes(b"x" * (BIG + 1))
    digests = LocalStore(tmp_path / "yard").init().import_file(tmp_path / "original")
    again = LocalStore(tmp_path / "yard", failpoint("create_tmp:1:ENOSPC"))
    assert again.import_file(tmp_path / "original") == digests


@pytest.mark.parametrize("size", [10, BIG + 10])
def test_a_file_that_changes_while_it_is_imported_is_refused(tmp_path: Path, size: int) -> None:
    """An original that grows during the import, however fast, is an `InputError` with the code `changed`."""
    original = tmp_path / "original"
    original.write_bytes(bytes(size))
    LocalStore(tmp_path / "yard").init()

    class Growing(FileSystem):
        def write(self, file: TmpFile, data: bytes) -> None:
            super().write(file, data)
            with original.open("ab") as stream:
                stream.write(b"more")

    grower = LocalStore(tmp_path / "yard", Growing())
    with pytest.raises(InputError, match="changed while it was read") as caught:
        grower.import_file(original)
    assert caught.value.code == "changed"


def test_importing_a_pipe_is_refused_at_once(tmp_path: Path, store: LocalStore) -> None:
    """A named pipe is no regular file; nobody waits for a writer."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        store.import_file(tmp_path / "pipe")


def test_importing_follows_a_link_to_a_file(tmp_path: Path, store: LocalStore) -> None:
    """A hub cache's files are links: what they point to is imported."""
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("blob")
    assert store.import_file(tmp_path / "link").blake3 == digest_bytes(b"weights")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(NotFoundError, match="dangling"):
        store.import_file(tmp_path / "dangling")


# -- packs -------------------------------------------------------------------------------------------------------------

PACKS_FORMAT = b'{"features":["packs"],"format":"modelyard/store/1"}\n'


def test_a_yard_says_that_it_has_packs_before_it_has_one(store: LocalStore) -> None:
    """`format` gets the feature with the first pack, not with files, and every later pack finds it there."""
    store.put_file([b"file"])
    assert (store.root / "format").read_bytes() == b'{"features":[],"format":"modelyard/store/1"}\n'
    first = store.put_file([b"pack"], area="packs").blake3
    assert (store.root / "format").read_bytes() == PACKS_FORMAT
    assert (store.root / "packs" / first[:2] / first).read_bytes() == b"pack"
    LocalStore(store.root).put_file([b"another"], area="packs")
    assert (store.root / "format").read_bytes() == PACKS_FORMAT
    LocalStore(store.root).init()


def test_a_pack_that_fails_leaves_a_yard_that_older_versions_refuse_for_nothing(tmp_path: Path) -> None:
    """The feature is durable before the pack's first byte is published: EIO at the pack's rename leaves the one without the other."""
    LocalStore(tmp_path).init()
    with pytest.raises(YardError):
        LocalStore(tmp_path, failpoint("rename:2:EIO")).put_file([b"pack"], area="packs")
    assert (tmp_path / "format").read_bytes() == PACKS_FORMAT
    assert list(LocalStore(tmp_path).digests("packs")) == []


def test_what_format_says_besides_is_kept(store: LocalStore) -> None:
    """Adding the feature keeps the keys that somebody else put there."""
    (store.root / "format").chmod(0o600)
    (store.root / "format").write_text('{"features":[],"format":"modelyard/store/1","made":"by hand \u00e9"}')
    LocalStore(store.root).put_file([b"pack"], area="packs")
    found = json.loads((store.root / "format").read_bytes())
    assert found == {"features": ["packs"], "format": "modelyard/store/1", "made": "by hand \u00e9"}


# -- imports that link -------------------------------------------------------------------------------------------------


def test_a_linked_import_is_the_original_by_another_name(tmp_path: Path, store: LocalStore) -> None:
    """With `link`, the object is the original's inode, read-only; no byte is written."""
    original = tmp_path / "original"
    original.write_bytes(b"x" * (BIG + 1))
    yard = LocalStore(store.root, failpoint("write:1:ENOSPC"))
    digests = yard.import_file(original, link=True)
    assert yard.file_path(digests.blake3).samefile(original)
    assert stat.S_IMODE(original.stat().st_mode) == 0o444
    assert list((store.root / "tmp").iterdir()) == []
    store.verify_file(digests.blake3)


def test_a_linked_import_follows_a_link_to_its_file(tmp_path: Path, store: LocalStore) -> None:
    """A hub cache's files are symbolic links: the blob behind them is what gets the second name."""
    (tmp_path / "blob").write_bytes(b"y" * (BIG + 1))
    (tmp_path / "link").symlink_to("blob")
    digests = store.import_file(tmp_path / "link", link=True)
    assert store.file_path(digests.blake3).samefile(tmp_path / "blob")
    assert not store.file_path(digests.blake3).is_symlink()


def test_a_linked_import_of_stored_bytes_leaves_the_original_alone(tmp_path: Path, store: LocalStore) -> None:
    """Bytes that are stored already are neither linked nor made read-only."""
    original = tmp_path / "original"
    original.write_bytes(b"z" * (BIG + 1))
    store.put_file([b"z" * (BIG + 1)])
    digests = store.import_file(original, link=True)
    assert not store.file_path(digests.blake3).samefile(original)
    assert original.stat().st_nlink == 1
    assert stat.S_IMODE(original.stat().st_mode) != 0o444


def test_an_original_that_is_in_use_is_copied(tmp_path: Path, store: LocalStore) -> None:
    """An original that somebody has locked is copied instead of linked."""
    original = tmp_path / "original"
    original.write_bytes(b"w" * (BIG + 1))
    with original.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        digests = store.import_file(original, link=True)
    assert not store.file_path(digests.blake3).samefile(original)
    store.verify_file(digests.blake3)


def test_where_no_link_can_be_made_a_copy_is(tmp_path: Path) -> None:
    """Another disk, or one without hard links: the import copies, and the original keeps its mode."""

    class NoLinks(FileSystem):
        def adopt(self, folder: Path, path: Path, source: int) -> TmpFile | None:
            return None

    original = tmp_path / "original"
    original.write_bytes(b"v" * (BIG + 1))
    store = LocalStore(LocalStore(tmp_path / "yard").init().root, NoLinks())
    digests = store.import_file(original, link=True)
    assert not store.file_path(digests.blake3).samefile(original)
    assert original.stat().st_nlink == 1


@pytest.mark.parametrize("change", ["write", "grow"])
def test_an_original_that_changes_while_it_is_linked_is_refused(tmp_path: Path, change: str) -> None:
    """A writer that had the original open and writes before it is published: `changed`, nothing stored, the mode given back."""
    original = tmp_path / "original"
    original.write_bytes(b"u" * (BIG + 1))
    original.chmod(0o640)
    os.utime(original, (0, 0))
    with original.open("r+b" if change == "write" else "ab", buffering=0) as writer:

        class Late(FileSystem):
            def fsync(self, file: TmpFile) -> None:
                super().fsync(file)
                if file.mode is not None:
                    writer.write(b"!")

        LocalStore(tmp_path / "yard").init()
        store = LocalStore(tmp_path / "yard", Late())
        with pytest.raises(InputError, match="changed while it was read"):
            store.import_file(original, link=True)
    assert list(store.digests("files")) == []
    assert list((store.root / "tmp").iterdir()) == []
    assert stat.S_IMODE(original.stat().st_mode) == 0o640
    assert original.stat().st_nlink == 1


# -- imports of what looks stored --------------------------------------------------------------------------------------


def test_a_file_that_agrees_with_a_stored_one_at_every_probe_is_still_told_apart(
    tmp_path: Path, store: LocalStore
) -> None:
    """One byte between two probes makes another file; one that differs at the last byte too."""
    data = bytearray(b"t" * (BIG + 5))
    first = store.put_file([bytes(data)]).blake3
    for place in (BIG // 62, BIG + 4, 0):
        data[place] ^= 1
        (tmp_path / "original").write_bytes(data)
        found = store.import_file(tmp_path / "original").blake3
        assert found == digest_bytes(bytes(data)) != first
        store.verify_file(found)


def test_a_stored_file_that_is_damaged_as_the_original_is_does_not_pass(tmp_path: Path, store: LocalStore) -> None:
    """Equal to bytes under a digest that they do not have is not stored: the import stores them under their own."""
    digest = store.put_file([b"s" * (BIG + 5)]).blake3
    path = store.file_path(digest)
    path.chmod(0o600)
    path.write_bytes(b"r" * (BIG + 5))
    (tmp_path / "original").write_bytes(b"r" * (BIG + 5))
    found = store.import_file(tmp_path / "original", sha256_of=lambda _: "00" * 32)
    assert found.blake3 == digest_bytes(b"r" * (BIG + 5)) != digest
    assert found.sha256 == hashlib.sha256(b"r" * (BIG + 5)).hexdigest()
    store.verify_file(found.blake3)


def test_an_original_that_changes_between_two_passes_is_refused(tmp_path: Path) -> None:
    """The bytes that were observed are those of the digest that is given back, or it is an error: even where the clock hides the change."""
    original = tmp_path / "original"
    store = LocalStore(tmp_path / "yard").init()
    store.put_file([b"q" * (BIG + 5)])
    data = bytearray(b"q" * (BIG + 5))
    data[BIG // 62] ^= 1
    original.write_bytes(data)
    before = original.stat()

    class Sly(FileSystem):
        def create_tmp(self, folder: Path) -> TmpFile:
            with original.open("r+b") as stream:
                stream.write(b"!")
            os.utime(original, ns=(before.st_atime_ns, before.st_mtime_ns))
            return super().create_tmp(folder)

    with pytest.raises(InputError, match="changed while it was read"):
        LocalStore(tmp_path / "yard", Sly()).import_file(original, observe=lambda chunk: None)
