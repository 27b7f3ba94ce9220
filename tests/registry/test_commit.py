"""Commit: what it makes, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.digest import Digest, digest_bytes, digest_json
from modelyard.errors import ConflictError, InputError, ModelError, NoSpaceError, NotFoundError, PickleError, RefError
from modelyard.registry import Edge
from registry.registry_helpers import DATA, Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable

    from registry.registry_helpers import Bench


def test_a_commit_is_a_version(any_bench: Bench) -> None:
    """A commit has a number, an id, its files with their hashes, and is what the branch names."""
    bench = any_bench
    folder = bench.write({"b.txt": "two", "a/ü.txt": "one"})
    made = bench.yard.commit(folder, DATA, message="first", metadata={"license": "mit"})
    assert (made.name, made.kind, made.parent, made.author, made.message) == (f"{DATA}@v1", None, None, "ana", "first")
    assert made.metadata == {"license": "mit"}
    assert [(file.path, file.size) for file in made.files] == [("a/ü.txt", 3), ("b.txt", 3)]
    assert made.files[1].blake3 == digest_bytes(b"two")
    assert made.files[1].sha256 == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    assert made.files[1].git_blob == "64c5e5885a4b06010b3a0c20edb7900dd0311025"
    for reference in (
        DATA,
        f"{DATA}@v1",
        f"{DATA}@latest",
        f"{DATA}@{made.id}",
        f"{DATA}@{made.id[:8]}",
        f"{DATA}@{made.id.short}",
    ):
        assert bench.yard.resolve(reference) == made


def test_the_id_is_the_digest_of_the_manifest(bench: Bench) -> None:
    """The version's id is the digest of canonical JSON that holds no clock, host, author, message or number."""
    made = bench.data("two", message="hello", metadata={"a": "b"})
    manifest = {
        "format": "modelyard/manifest/1",
        "files": [{"path": "data.txt", "size": 3, "blake3": str(made.files[0].blake3), "sha256": made.files[0].sha256}],
        "lineage": [],
    }
    assert made.id == digest_json(manifest)
    assert json.loads(bench.store.get("manifests", made.id)) == manifest
    # Pinned: whoever changes this line changes the format of every yard.
    assert made.id == "8f024f063b95adc79fba3d25ab6a6aba6d6800265e91b7ff31fd7629efb79f36"


@pytest.mark.row(36)
def test_a_retried_commit_makes_no_second_version(any_bench: Bench) -> None:
    """The same tree with the same lineage and kind is the head of the branch, whatever its message."""
    bench = any_bench
    first = bench.data("x", message="one")
    again = bench.data("x", message="two")
    assert again == first
    assert len(bench.yard.versions(DATA)) == 1
    assert [entry.action for entry in bench.yard.log(DATA)] == ["commit"]


def test_kind_and_lineage_make_another_version(bench: Bench) -> None:
    """The same files as another kind, or made from something else, are another version."""
    base = bench.model(to="team/base")
    first = bench.model()
    merged = bench.model(kind="merged")
    derived = bench.model(kind="merged", from_=[base])
    assert [version.number for version in (first, merged, derived)] == [1, 2, 3]
    assert bench.model(kind="merged", from_=[base]) == derived


def test_numbers_go_across_branches_and_parents_along_them(any_bench: Bench) -> None:
    """Numbers count in order of commit; a parent is the commit before on the branch and nothing else."""
    bench = any_bench
    one = bench.data("1")
    bench.yard.branch(one, "dev")
    two = bench.data("2", branch="dev")
    three = bench.data("3")
    alone = bench.data("4", branch="other")
    assert [version.number for version in (one, two, three, alone)] == [1, 2, 3, 4]
    assert [version.parent for version in (one, two, three, alone)] == [None, one.id, one.id, None]
    assert [(ref.name, ref.number) for ref in bench.yard.refs(DATA)] == [("dev", 2), ("main", 3), ("other", 4)]


def test_the_same_manifest_on_another_branch_is_the_same_version(bench: Bench) -> None:
    """Two branches without parents that hold the same files hold one version."""
    one = bench.data("x")
    assert bench.data("x", branch="other") == one
    assert [ref.number for ref in bench.yard.refs(DATA)] == [1, 1]


def test_a_kind_is_inherited_or_recognised(bench: Bench) -> None:
    """A first complete model is a base, one made from another is fine-tuned, files alone have no kind; later commits inherit."""
    none = bench.yard.commit(bench.write({"README.md": "soon"}), "team/model")
    base = bench.model()
    again = bench.model(2.0)
    tuned = bench.model(3.0, to="team/tuned", from_=["team/model"])
    merged = bench.model(4.0, to="team/tuned", kind="merged")
    inherited = bench.model(5.0, to="team/tuned")
    assert [version.kind for version in (none, base, again, tuned, merged, inherited)] == [
        None,
        "base",
        "base",
        "finetuned",
        "merged",
        "merged",
    ]


def test_every_form_of_origin_becomes_an_edge(bench: Bench) -> None:
    """References, versions, edges and pairs become edges; a bare one gets the type that follows from kind and repo."""
    data, base, other = bench.data(), bench.model(to="team/base"), bench.model(2.0, to="team/other")
    made = bench.model(
        3.0, kind="adapter", from_=[data, "team/base", ("imported", "team/other@v1"), Edge("converted", other.id), base]
    )
    assert set(made.lineage) == {
        Edge("trained-on", data.id),
        Edge("finetuned", base.id),
        Edge("imported", other.id),
        Edge("converted", other.id),
    }
    assert len(made.lineage) == 4
    assert bench.model(4.0, kind="merged", from_="team/model").lineage == (Edge("merged", made.id),)


@pytest.mark.parametrize(
    ("origin", "error"),
    [
        ("team/nothing", NotFoundError),
        ("./folder", RefError),
        (Edge("merged", Digest("0" * 64)), NotFoundError),
        (("cousin", "team/base"), InputError),
    ],
)
def test_an_unknown_origin_is_refused(bench: Bench, origin: object, error: type[Exception]) -> None:
    """Lineage names versions of this yard, by types that exist; nothing is written otherwise."""
    bench.model(to="team/base")
    stored = len(list(bench.store.digests("files")))
    with pytest.raises(error):
        bench.model(2.0, from_=[origin])
    assert len(list(bench.store.digests("files"))) == stored
    with pytest.raises(NotFoundError):
        bench.yard.resolve("team/model")


def _link(folder: Path) -> None:
    (folder / "link.txt").symlink_to("/etc/passwd")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _socket(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("sock")
    finally:
        os.chdir(here)


def _case(folder: Path) -> None:
    (folder / "DATA.txt").write_text("other")


def _unicode(folder: Path) -> None:
    (folder / "\u00e9").write_text("a")
    (folder / "e\u0301").write_text("b")


def _bytes(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt"))).write_text("x")


def _hash(folder: Path) -> None:
    (folder / "a#b").write_text("x")


def _empty(folder: Path) -> None:
    (folder / "data.txt").unlink()


def _linked_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent, target_is_directory=True)


@pytest.mark.parametrize("spoil", [_link, _fifo, _socket, _case, _unicode, _bytes, _hash, _empty, _linked_folder])
def test_hostile_folders_are_refused(bench: Bench, spoil: Callable[[Path], None]) -> None:
    """Links, special files, hostile and ambiguous names, and no files at all: refused before anything is written."""
    folder = bench.write({"data.txt": "x"})
    spoil(folder)
    with pytest.raises(InputError):
        bench.yard.commit(folder, DATA)
    assert list(bench.store.digests("files")) == []
    assert bench.yard.repos() == []


def test_pickles_are_refused_before_anything_is_written(bench: Bench) -> None:
    """Weights that would run code are refused with the command that converts them; the yard stays empty."""
    folder = bench.write({"config.json": "{}", "pytorch_model.bin": b"\x80\x04cposix\nsystem\n(S'true'\ntR."})
    with pytest.raises(PickleError) as error:
        bench.yard.commit(folder, "team/model")
    assert "yard convert" in (error.value.hint or "")
    assert list(bench.store.digests("files")) == []


@pytest.mark.parametrize("content", [b"", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 100) + b'{"a":'])
def test_broken_weights_are_refused_before_anything_is_written(bench: Bench, content: bytes) -> None:
    """A truncated file or a hostile header is refused by our own reader."""
    folder = bench.write({"config.json": "{}", "model.safetensors": content})
    with pytest.raises(ModelError):
        bench.yard.commit(folder, "team/model")
    assert list(bench.store.digests("files")) == []


def test_a_single_file_is_a_data_set(bench: Bench) -> None:
    """A file is committed under its own name; a link to one is refused."""
    path = bench.write({"rows.jsonl": "{}"}) / "rows.jsonl"
    assert [file.path for file in bench.yard.commit(path, DATA).files] == ["rows.jsonl"]
    (path.parent / "link.jsonl").symlink_to(path)
    with pytest.raises(ModelError):
        bench.yard.commit(path.parent / "link.jsonl", DATA)
    with pytest.raises(InputError, match="nothing at"):
        bench.yard.commit(path.parent / "missing", DATA)


@pytest.mark.parametrize(
    "options", [{"kind": "base"}, {"kind": "cousin"}, {"branch": "v7"}, {"metadata": {"a": 1}}, {"repo_type": "model"}]
)
def test_wrong_options_are_refused(bench: Bench, options: dict[str, Any]) -> None:
    """A data set has no kind, a kind is one of six, a branch is a ref's name, metadata is text."""
    with pytest.raises(InputError):
        bench.data(**options)
    assert bench.yard.repos() == []


def test_expect_parent_refuses_a_moved_branch(any_bench: Bench) -> None:
    """With `expect_parent` a commit goes on top of that version or nowhere."""
    bench = any_bench
    one = bench.data("1")
    two = bench.data("2", expect_parent=one)
    with pytest.raises(ConflictError, match="at v2, not at v1") as error:
        bench.data("3", expect_parent=one)
    assert error.value.details["head"] == two.id
    assert bench.yard.resolve(DATA) == two


def test_a_branch_is_no_tag(bench: Bench) -> None:
    """A commit does not move a tag or an alias."""
    one = bench.data("1")
    bench.yard.tag(one, "stable")
    with pytest.raises(ConflictError, match="is a tag"):
        bench.data("2", branch="stable")


def test_a_full_disk_leaves_the_old_state(bench: Bench) -> None:
    """A promise: a full disk is a typed error, the old state stands, and reads go on."""

    class Full(Wrapper):
        def before(self, what: str) -> None:
            if what == "file":
                raise NoSpaceError("the disk is full")

    one = bench.data("1")
    full = bench.open(store=Full(bench.store))
    with pytest.raises(NoSpaceError):
        full.commit(bench.write({"data.txt": "2"}), DATA)
    assert full.resolve(DATA) == one
    assert full.files(one).read("data.txt") == b"1"
    assert bench.data("2").number == 2


def test_a_commit_holds_a_lease_and_gives_it_back(bench: Bench) -> None:
    """While bytes are stored a lease is there; afterwards, and after a failure, it is gone."""
    from modelyard.catalog import Catalog, leases

    catalog = Catalog(bench.url)
    seen: list[str] = []

    def look() -> list[str]:
        with catalog.read() as connection:
            return [lease.purpose for lease in leases.listing(connection)]

    class Watched(Wrapper):
        def before(self, what: str) -> None:
            if what == "file":
                seen.extend(look())

    bench.open(store=Watched(bench.store)).commit(bench.write({"data.txt": "1"}), DATA)
    assert seen == ["commit"]
    assert look() == []
    catalog.close()


def test_near_matches_help_to_find_a_name(any_bench: Bench) -> None:
    """What is not there is answered with what was probably meant."""
    bench = any_bench
    one = bench.data("1", to="datasets/team/intents")
    bench.yard.tag(one, "stable")
    hints = {}
    for text in ("datasets/team/intnets", "team/intents", "datasets/team/intents@stabel", "datasets/team/intents@v9"):
        with pytest.raises(NotFoundError) as error:
            bench.yard.resolve(text)
        hints[text] = error.value.hint or ""
    assert "`datasets/team/intents`" in hints["datasets/team/intnets"]
    assert "`datasets/team/intents`" in hints["team/intents"]
    assert "@stable`" in hints["datasets/team/intents@stabel"]
    assert "v1" in hints["datasets/team/intents@v9"]


def test_an_ambiguous_digest_lists_its_candidates(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that fits several versions is refused with the candidates."""
    from modelyard.catalog import versions

    one, two = bench.data("1"), bench.data("2")
    monkeypatch.setattr(versions, "by_prefix", lambda *_: [1, 2])
    with pytest.raises(RefError) as error:
        bench.yard.resolve(f"{DATA}@00000000")
    assert error.value.details["candidates"] == [one.id, two.id]
    assert one.id.short in (error.value.hint or "")


@pytest.mark.row(30, 31)
def test_metadata_is_data(any_bench: Bench) -> None:
    """SQL, templates and shell text in messages and metadata come back as they went in."""
    text = "1.0'; DROP TABLE versions;-- {{7*7}} $(id) \u202e é 漢 =cmd()"
    made = any_bench.data(message=text, metadata={text: text})
    assert any_bench.yard.resolve(DATA).metadata == {text: text}
    assert made.message == text
