"""Bundles: a version leaves a yard as one file and enters another with its id."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.catalog import Catalog
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import ConflictError, IntegrityError, NotFoundError
from modelyard.registry import Version, Yard
from modelyard.registry.parcel import parse_manifest
from modelyard.registry.rebuild import rebuild
from modelyard.registry.tar import LARGE, TarWriter, end_of, header, padding
from registry.registry_helpers import DATA, Bench, report


@pytest.fixture
def other(tmp_path: Path) -> Bench:
    """Another yard, empty."""
    folder = tmp_path / "other"
    folder.mkdir()
    return Bench(folder, f"sqlite:///{folder / 'catalog.db'}")


def adapter(bench: Bench) -> tuple[Version, Version, Version]:
    """A base, data and an adapter that was made from both."""
    base = bench.model(1.0, "team/base", kind="base")
    data = bench.data("rows")
    made = bench.model(
        2.0, "team/adapter", kind="adapter", from_=[("finetuned", base), ("trained-on", data)], message="hello"
    )
    return base, data, made


def journal(bench: Bench) -> int:
    """How many changes a yard has seen."""
    return len(list(bench.store.journal()))


def test_a_version_has_the_same_id_on_the_other_side(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """Unpacked, a version has its id, its files, kind, inputs, message and metadata; its parent stays its parent."""
    bench.model(1.0)
    version = bench.model(2.0, message="second", metadata={"license": "mit"}, inputs=digest_bytes(b"run"))
    assert version.parent is not None
    packed = bench.yard.pack("team/model@v2", tmp_path / "b.tar")
    came = other.yard.unpack(packed.path).version
    assert (came.id, came.kind, came.inputs, came.parent) == (version.id, version.kind, version.inputs, version.parent)
    assert (came.message, came.metadata, came.number) == ("second", {"license": "mit"}, 1)
    assert came.files == version.files
    assert other.yard.resolve("team/model").id == version.id
    files = other.yard.files(came)
    assert {name: files.read(name) for name in files.names()} == {
        name: bench.yard.files(version).read(name) for name in files.names()
    }


def test_what_comes_next_goes_on_top(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """A second bundle whose version follows the head moves the branch; a commit goes on top of what was unpacked."""
    first = bench.model(1.0)
    second = bench.model(2.0)
    for version in (first, second):
        bench.yard.pack(version, tmp_path / f"{version.number}.tar")
        assert other.yard.unpack(tmp_path / f"{version.number}.tar").version.number == version.number
    assert other.yard.resolve("team/model@main").id == second.id
    assert other.model(3.0).parent == second.id


def test_packing_twice_gives_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    """A bundle's bytes follow from its content."""
    adapter(bench)
    one = bench.yard.pack("team/adapter", tmp_path / "1.tar", with_lineage=True)
    two = bench.yard.pack("team/adapter", tmp_path / "2.tar", with_lineage=True)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.size == one.path.stat().st_size


def test_any_tar_reads_a_bundle(bench: Bench, tmp_path: Path) -> None:
    """Python's tarfile lists the members of the specification in order, each with the bytes that its name says."""
    adapter(bench)
    path = bench.yard.pack("team/adapter", tmp_path / "b.tar", with_lineage=True).path
    with tarfile.open(path) as archive:
        names = archive.getnames()
        assert names[0] == "bundle.json"
        assert [name.partition("/")[0] for name in names[1:]] == sorted(
            (name.partition("/")[0] for name in names[1:]), key=["manifests", "reports", "signatures", "files"].index
        )
        for member in archive.getmembers()[1:]:
            stream = archive.extractfile(member)
            assert stream is not None
            assert digest_bytes(stream.read()) == member.name.partition("/")[2]
    listed = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == names


def test_lineage_comes_along(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """With its lineage, an adapter brings its base and its data to their own repos; without, what is missing is said."""
    base, data, made = adapter(bench)
    bench.yard.pack(made, tmp_path / "alone.tar")
    alone = other.yard.unpack(tmp_path / "alone.tar")
    assert set(alone.missing) == {base.id, data.id}
    with pytest.raises(NotFoundError):
        other.yard.base_of(alone.version)
    packed = bench.yard.pack(made, tmp_path / "all.tar", with_lineage=True)
    assert set(packed.versions) == {base.id, data.id, made.id}
    came = other.yard.unpack(packed.path)
    assert came.version.id == made.id
    assert came.missing == ()
    assert other.yard.base_of("team/adapter").id == base.id
    assert other.yard.resolve(DATA).id == data.id


def test_reports_come_along(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """A version's reports are the same reports there, in their order."""
    version, data = bench.model(1.0), bench.data()
    for task in ("b", "a"):
        bench.yard.add_report(version, report(version, [True, False], data, task=task))
    bench.yard.pack(version, tmp_path / "b.tar")
    came = other.yard.unpack(tmp_path / "b.tar").version
    assert other.yard.reports(came) == bench.yard.reports(version)
    assert [entry["task"]["name"] for entry in other.yard.reports(came)] == ["b", "a"]


def test_unpacking_again_changes_nothing(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """The same bundle again gives the same version and no new number; a deleted version comes back."""
    adapter(bench)
    bench.yard.pack("team/adapter", tmp_path / "b.tar", with_lineage=True)
    first = other.yard.unpack(tmp_path / "b.tar").version
    before = [entry.seq for entry in other.yard.log("team/adapter")]
    assert other.yard.unpack(tmp_path / "b.tar").version == first
    assert [entry.seq for entry in other.yard.log("team/adapter")] == before
    other.yard.delete(first, force=True)
    assert other.yard.unpack(tmp_path / "b.tar").version.number == first.number
    assert other.yard.resolve("team/adapter").id == first.id


def test_a_branch_that_is_elsewhere_does_not_move(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """A version that does not follow the head is a conflict that names another branch; nothing is made of it."""
    version = bench.model(1.0)
    bench.yard.pack(version, tmp_path / "b.tar")
    mine = other.model(5.0)
    before = journal(other)
    with pytest.raises(ConflictError) as caught:
        other.yard.unpack(tmp_path / "b.tar")
    assert "--branch" in str(caught.value.hint)
    assert [v.id for v in other.yard.versions("team/model")] == [mine.id]
    assert journal(other) == before
    assert other.yard.unpack(tmp_path / "b.tar", branch="theirs").version.id == version.id
    assert other.yard.resolve("team/model").id == mine.id
    assert other.yard.resolve("team/model@theirs").id == version.id


def test_lineage_never_fails_because_of_a_branch(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """A base whose repo has another `main` already comes in on a branch of its own."""
    base, _, made = adapter(bench)
    mine = other.model(7.0, "team/base")
    bench.yard.pack(made, tmp_path / "b.tar", with_lineage=True)
    other.yard.unpack(tmp_path / "b.tar")
    assert other.yard.resolve("team/base").id == mine.id
    assert other.yard.resolve(f"team/base@unpacked-{base.id[:12]}").id == base.id


def test_an_adapter_of_the_same_repo_leaves_the_branch_to_what_was_asked_for(
    bench: Bench, other: Bench, tmp_path: Path
) -> None:
    """An adapter and its merge in one repo, on two branches, enter a yard that has neither: `main` is the merge."""
    base = bench.model(0.0, "team/base", kind="base")
    adapter = bench.model(1.0, "team/model", kind="adapter", from_=[base], branch="adapter")
    made = bench.model(2.0, "team/model", kind="merged", from_=[base, adapter])
    bench.yard.pack(made, tmp_path / "b.tar", with_lineage=True)
    other.yard.unpack(tmp_path / "b.tar")
    assert other.yard.resolve("team/model").id == made.id
    assert other.yard.resolve(f"team/model@unpacked-{adapter.id[:12]}").id == adapter.id
    assert other.yard.resolve("team/base").id == base.id


def test_another_repo(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """`to` names another repo of the same type; one of the other type is refused."""
    version = bench.model(1.0)
    bench.yard.pack(version, tmp_path / "b.tar")
    assert other.yard.unpack(tmp_path / "b.tar", to="mine/copy").version.name == "mine/copy@v1"
    with pytest.raises(Exception, match="is a repo of type dataset"):
        other.yard.unpack(tmp_path / "b.tar", to="datasets/mine/copy")


def test_nothing_is_overwritten(bench: Bench, tmp_path: Path) -> None:
    """A file that is there already is a conflict, and stays."""
    bench.model(1.0)
    (tmp_path / "b.tar").write_text("mine")
    with pytest.raises(ConflictError):
        bench.yard.pack("team/model", tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_text() == "mine"


def test_a_damaged_file_is_not_packed(bench: Bench, tmp_path: Path) -> None:
    """A flipped bit in the store stops the packing, and no file is left behind."""
    version = bench.model(1.0)
    entry = version.file("model.safetensors")
    assert entry is not None
    stored = bench.store.file_path(entry.blake3)
    stored.chmod(0o644)
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IntegrityError):
        bench.yard.pack(version, tmp_path / "b.tar")
    assert sorted(tmp_path.iterdir()) == before


def test_the_header_of_a_large_member_is_pax() -> None:
    """Above 8 GiB the size is in a pax header that Python's tarfile understands."""
    name = "files/" + "a" * 64
    head = header(name, LARGE + 5)
    with tarfile.open(fileobj=io.BytesIO(head + bytes(1024)), mode="r:") as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.mode) == (name, LARGE + 5, 0o444)


def test_a_writer_that_lies_is_stopped() -> None:
    """A member whose bytes are not as many as said is refused, and the end is a multiple of a record."""
    with pytest.raises(IntegrityError):
        TarWriter(io.BytesIO()).add("x", 3, iter([b"ab"]))
    assert {(512 * n + end_of(512 * n)) % 10240 for n in range(45)} == {0}
    assert padding(512) == 0


def test_memory_is_flat(bench: Bench, tmp_path: Path) -> None:
    """Packing and unpacking 128 MiB takes a process no more than 64 MiB above what it takes for a small version."""
    folder = bench.write({"config.json": "{}"})
    with (folder / "data.bin").open("wb") as stream:
        for at in range(128):
            stream.write(bytes([at]) * (1 << 20))
    bench.yard.commit(folder, DATA)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from modelyard.app import open_yard\n"
        "from modelyard.settings import Settings\n"
        "root = Path(sys.argv[1])\n"
        "small = open_yard(Settings(root / 'small'), create=True)\n"
        "(root / 'f').mkdir(); (root / 'f' / 'x').write_text('x')\n"
        "small.commit(root / 'f', 'datasets/a/b')\n"
        "small.pack('datasets/a/b', root / 's.tar')\n"
        "open_yard(Settings(root / 'two'), create=True).unpack(root / 's.tar')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "open_yard(Settings(Path(sys.argv[2]), catalog_url=sys.argv[3])).pack('datasets/team/data', root / 'b.tar')\n"
        "open_yard(Settings(root / 'three'), create=True).unpack(root / 'b.tar')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = tmp_path / "flat"
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), str(bench.root), bench.url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 64 * 1024


def test_a_manifest_is_read_strictly(bench: Bench) -> None:
    """A manifest of our own is read back whole; one with another key, order, path or form is refused."""
    version = bench.model(1.0)
    data = bench.store.get("manifests", version.id)
    parsed = parse_manifest(data)
    assert (parsed.id, parsed.kind, parsed.parent) == (version.id, version.kind, version.parent)
    assert [entry.path for entry in parsed.files] == [entry.path for entry in version.files]
    for old, new in (
        (b'"lineage":[]', b'"lineage":[],"more":"x"'),
        (b'"format"', b' "format"'),
        (b'"config.json"', b'"../config"'),
        (b'"config.json"', b'"zz.json"'),
        (b'"kind":"', b'"kind":"x'),
        (b'"lineage":[]', b'"lineage":[{"type":"merged","version":"ab"}]'),
        (b'"lineage":[]', b'"lineage":{}'),
        (b'"size":', b'"size":-'),
    ):
        changed = data.replace(old, new, 1)
        assert changed != data
        with pytest.raises(IntegrityError):
            parse_manifest(changed)
    for junk in (b"", b"null", b"[]", b"{}" * 2, b"[" * 100_000, b'{"format":1.5}'):
        with pytest.raises(IntegrityError):
            parse_manifest(junk)


def test_a_derivation_comes_along(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """What the committer said a version was computed by is known on the other side: compaction there may use it."""
    hint = {"operation": "cast/1", "note": 0.5}
    version = bench.model(1.0, derivation=hint)
    bench.yard.pack(version, tmp_path / "b.tar")
    assert other.yard.unpack(tmp_path / "b.tar").version.derivation == version.derivation == hint


def test_reports_can_be_left_out(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """Who does not trust the sender's measurements takes the version without them."""
    version = bench.model(1.0)
    bench.yard.add_report(version, report(version, [True]))
    bench.yard.pack(version, tmp_path / "b.tar")
    assert other.yard.reports(other.yard.unpack(tmp_path / "b.tar", with_reports=False).version) == []


def test_on_every_catalog(any_bench: Bench, tmp_path: Path) -> None:
    """Packing and unpacking work over each database: a deleted version comes back from its bundle, another repo gets it too."""
    _, _, made = adapter(any_bench)
    any_bench.yard.pack(made, tmp_path / "b.tar", with_lineage=True)
    any_bench.yard.delete(made, force=True)
    assert any_bench.yard.unpack(tmp_path / "b.tar").version.name == made.name
    copy = any_bench.yard.unpack(tmp_path / "b.tar", to="mine/copy").version
    assert (copy.id, copy.name) == (made.id, "mine/copy@v1")


@pytest.mark.row(49)
def test_a_collection_in_between(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """A collection that takes what an unpack stored, before it refers to it, makes the unpack store it again."""
    version = bench.model(1.0)
    bench.yard.pack(version, tmp_path / "b.tar")
    context = other.yard._context
    taken: list[Digest] = []
    original = other.store.put

    def put(area: Any, data: bytes) -> Digest:
        # After the files, before the transaction: what the last step of a collection does.
        if not taken:
            taken.extend(entry.blake3 for entry in version.files)
            with context.catalog.write(author="gc", at=context.clock()) as tx:
                for digest in taken:
                    other.store.remove("files", digest)
                tx.next("collections")
        return original(area, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other.store, "put", put)
        came = other.yard.unpack(tmp_path / "b.tar").version
    assert taken
    for entry in came.files:
        other.store.verify_file(entry.blake3)


KILL = """
import os, signal, sys
from pathlib import Path
from modelyard.catalog import refs
from modelyard.catalog import Catalog
from modelyard.registry import Yard
from modelyard.store import LocalStore
root, url, bundle, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
store = LocalStore(root).open()
yard = Yard(store, Catalog(url)).open()
if what == "files":
    put_file = store.put_file
    store.put_file = lambda *a, **k: (put_file(*a, **k), die())
elif what == "manifest":
    put = store.put
    store.put = lambda *a, **k: (put(*a, **k), die())
elif what == "transaction":
    refs.point = die
elif what == "committed":
    store.publish_journal = lambda seq, data: die() if b"commit" in data else None
yard.unpack(bundle)
"""


@pytest.mark.row(37)
@pytest.mark.parametrize("what", ["files", "manifest", "transaction", "committed"])
def test_killed_while_unpacking(bench: Bench, other: Bench, tmp_path: Path, what: str) -> None:
    """`kill -9` at any step leaves the old state or the new one; unpacking again ends in the version, once."""
    version = bench.model(1.0)
    bench.yard.pack(version, tmp_path / "b.tar")
    killed = subprocess.run(
        [sys.executable, "-c", KILL, str(other.root), other.url, str(tmp_path / "b.tar"), what],
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    again = other.open()
    found = [entry.id for repo in again.repos() for entry in again.versions(repo.name)]
    assert found == ([version.id] if what == "committed" else [])
    assert again.unpack(tmp_path / "b.tar").version.id == version.id
    assert [entry.number for entry in again.versions("team/model")] == [1]
    again.files("team/model").path("model.safetensors")


def test_files_that_are_not_whole_are_packed(bench: Bench, tmp_path: Path) -> None:
    """A version that compaction keeps in other forms is packed into the same bundle as before."""
    folder = bench.model_folder()
    for value in (1.0, 2.0):
        save_file({"weight": np.full((64, 1024), value, np.float32)}, folder / "model.safetensors")
        bench.yard.commit(folder, "team/model")
    before = bench.yard.pack("team/model@v1", tmp_path / "before.tar")
    bench.yard.compact(idle_days=0)
    bench.yard.collect(now=True, force=True)
    weights = bench.yard.resolve("team/model@v1").file("model.safetensors")
    assert weights is not None
    assert not bench.store.has_file(weights.blake3)
    after = bench.yard.pack("team/model@v1", tmp_path / "after.tar")
    assert before.path.read_bytes() == after.path.read_bytes()


def test_several_unpack_at_once(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """Four processes' worth of yards unpacking the same bundle at once make one version of each."""
    _, _, made = adapter(bench)
    bench.yard.pack(made, tmp_path / "b.tar", with_lineage=True)
    yards = [other.open() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        came = list(pool.map(lambda yard: yard.unpack(tmp_path / "b.tar").version, yards))
    assert {version.id for version in came} == {made.id}
    for repo in other.yard.repos():
        assert len(other.yard.versions(repo.name, repo.repo_type)) == 1


def test_what_came_in_is_sound_and_rebuilt(bench: Bench, other: Bench, tmp_path: Path) -> None:
    """`check` finds nothing wrong with a yard whose versions came in bundles, and a lost catalog gets them back."""
    bench.model(1.0)
    version = bench.model(2.0, message="hello", metadata={"a": "b"})
    bench.yard.pack(version, tmp_path / "b.tar")
    other.yard.unpack(tmp_path / "b.tar")
    assert other.yard.check(read_data=True).findings == ()
    catalog = Catalog(f"sqlite:///{tmp_path / 'rebuilt.db'}")
    rebuild(other.store, catalog)
    found = Yard(other.store, catalog).open().resolve("team/model")
    assert (found.id, found.parent, found.message, found.metadata) == (version.id, version.parent, "hello", {"a": "b"})
    catalog.close()
