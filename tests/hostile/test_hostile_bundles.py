"""Hostile bundles: each refused as a whole; nothing is extracted and no version is made."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.digest import canonical_json, digest_bytes
from modelyard.errors import InputError, IntegrityError, ModelError, PickleError, YardError
from modelyard.registry.tar import TarWriter, end_of, header, padding
from registry.registry_helpers import Bench

Members = dict[str, bytes]

PICKLE = b"\x80\x04\x95\x0b" + bytes(7) + b"\x8c\x02os\x94."


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Bench]:
    """An empty yard that receives."""
    folder = tmp_path / "receiver"
    folder.mkdir()
    made = Bench(folder, f"sqlite:///{folder / 'catalog.db'}")
    yield made
    made.close()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A sound bundle of a small model."""
    folder = tmp_path / "sender"
    folder.mkdir()
    sender = Bench(folder, f"sqlite:///{folder / 'catalog.db'}")
    sender.model(1.0, message="m")
    path = sender.yard.pack("team/model", tmp_path / "good.tar").path
    sender.close()
    return path


def members(path: Path) -> Members:
    """A bundle's members in order."""
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            stream = archive.extractfile(member)
            assert stream is not None
            found[member.name] = stream.read()
    return found


def write(path: Path, content: Members) -> Path:
    """A tar in the bundle's form with these members, whatever they are."""
    with path.open("wb") as stream:
        tar = TarWriter(stream)
        for name, data in content.items():
            tar.add(name, len(data), iter([data]))
        tar.close()
    return path


def block(name: str, data: bytes) -> bytes:
    """A member as it stands in a bundle."""
    return header(name, len(data)) + data + bytes(padding(len(data)))


def sealed(path: Path, blocks: list[bytes]) -> Path:
    """A tar of these members."""
    data = b"".join(blocks)
    path.write_bytes(data + bytes(end_of(len(data))))
    return path


def forged(good: Path, files: Members, changes: dict[str, Any] | None = None) -> Path:
    """A consistent bundle of one version with these files by path, as somebody who knows the format would make it."""
    listing = [
        {"path": name, "size": len(data), "blake3": str(digest_bytes(data)), "sha256": _sha256(data)}
        for name, data in sorted(files.items())
    ]
    manifest = canonical_json({"format": "modelyard/manifest/1", "files": listing, "lineage": []})
    index = json.loads(members(good)["bundle.json"])
    described = index["versions"][0] | {"id": str(digest_bytes(manifest)), "reports": []}
    by_digest = dict(sorted((str(digest_bytes(data)), data) for data in files.values()))
    index |= {"version": described["id"], "versions": [described], "context": [], "reports": [], "signatures": []}
    index["manifests"] = [{"digest": described["id"], "size": len(manifest)}]
    index["files"] = [{"digest": digest, "size": len(data)} for digest, data in by_digest.items()]
    index |= changes or {}
    content = {"bundle.json": canonical_json(index), f"manifests/{described['id']}": manifest}
    content |= {f"files/{digest}": data for digest, data in by_digest.items()}
    return write(good.with_name("forged.tar"), content)


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def refused(yard: Bench, path: Path) -> YardError:
    """The error; and proof that nothing came of the bundle: no repo, no journal entry but a lease's, no file outside."""
    around = sorted(entry.name for entry in path.parent.iterdir())
    with pytest.raises(YardError) as caught:
        yard.yard.unpack(path)
    assert yard.yard.repos() == []
    assert list(yard.store.journal()) == []
    assert list(yard.store.digests("manifests")) == []
    assert sorted(entry.name for entry in path.parent.iterdir()) == around
    return caught.value


def no_files(yard: Bench) -> bool:
    """Whether not even bytes were stored."""
    return not list(yard.store.digests("files"))


def _member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = 0o444
    for key, value in fields.items():
        setattr(info, key, value)
    return info


HOSTILE = {
    "dot-dot": (_member("../evil", size=4), "leads out of it"),
    "deep dot-dot": (_member("files/../../evil", size=4), "leads out of it"),
    "absolute": (_member("/tmp/evil", size=4), "leads out of it"),
    "symbolic link": (_member("files/l", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "symbolic link"),
    "hard link": (_member("files/l", type=tarfile.LNKTYPE, linkname="../../out"), "hard link"),
    "device": (_member("files/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "device"),
    "block device": (_member("files/d", type=tarfile.BLKTYPE, devmajor=8, devminor=0), "device"),
    "FIFO": (_member("files/p", type=tarfile.FIFOTYPE), "FIFO"),
    "folder": (_member("files", type=tarfile.DIRTYPE), "folder"),
    "setuid": (_member("files/s", size=4, mode=0o4755), "setuid"),
    "extra": (_member("notes.txt", size=4), "stands where"),
}


@pytest.mark.row(21)
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_hostile_members(yard: Bench, good: Path, case: str, where: str) -> None:
    """A member that leads out, is a link, device, FIFO or folder, is setuid, double or extra: the bundle is refused whole."""
    hostile, says = HOSTILE[case]
    evil = hostile.tobuf(tarfile.USTAR_FORMAT) + (b"evil".ljust(512, b"\0") if hostile.size else b"")
    blocks = [block(name, data) for name, data in members(good).items()]
    blocks.insert({"first": 0, "middle": 2, "last": len(blocks)}[where], evil)
    path = sealed(good.with_name("hostile.tar"), blocks)
    error = refused(yard, path)
    assert isinstance(error, IntegrityError)
    assert says in error.message
    assert no_files(yard)


@pytest.mark.row(21)
def test_a_member_twice(yard: Bench, good: Path) -> None:
    """A member that is there twice, in the tar or in the index, is refused."""
    content = members(good)
    blocks = [block(name, data) for name, data in content.items()]
    path = sealed(good.with_name("twice.tar"), [*blocks[:-1], blocks[-2], blocks[-1]])
    assert "stands where" in refused(yard, path).message
    index = json.loads(content["bundle.json"])
    index["files"] = [index["files"][0], *index["files"]]
    assert "twice" in refused(yard, write(path, content | {"bundle.json": canonical_json(index)})).message
    assert no_files(yard)


@pytest.mark.row(21)
@pytest.mark.parametrize("delta", [-512, -1, 1, 512, 1 << 40])
def test_sizes_that_lie(yard: Bench, good: Path, delta: int) -> None:
    """An index whose sizes are not those of the members is refused before anything is stored."""
    content = members(good)
    index = json.loads(content["bundle.json"])
    index["files"][-1]["size"] = max(0, index["files"][-1]["size"] + delta)
    path = write(good.with_name("lie.tar"), content | {"bundle.json": canonical_json(index)})
    assert isinstance(refused(yard, path), IntegrityError)
    assert no_files(yard)


@pytest.mark.row(21)
def test_truncated_at_any_block(yard: Bench, good: Path) -> None:
    """A bundle cut off anywhere, or with anything behind it, is refused before anything is stored."""
    data = good.read_bytes()
    path = good.with_name("cut.tar")
    for length in [*range(0, len(data), 512), 1, 700, len(data) - 1]:
        path.write_bytes(data[:length])
        assert isinstance(refused(yard, path), IntegrityError)
    for tail in (b"\0", bytes(10240), b"x" * 512, data):
        path.write_bytes(data + tail)
        assert refused(yard, path).code in {"trailing_bytes", "bad_bundle"}
    assert no_files(yard)


@pytest.mark.row(18, 42)
def test_every_flipped_bit_is_found(yard: Bench, good: Path) -> None:
    """One bit flipped in any block of a bundle, header, data or padding, and it is refused."""
    data = bytearray(good.read_bytes())
    path = good.with_name("flipped.tar")
    for at in [*range(0, len(data), 97), *range(0, 512, 3)]:
        data[at] ^= 4
        path.write_bytes(data)
        assert isinstance(refused(yard, path), YardError), at
        data[at] ^= 4


@pytest.mark.row(18)
def test_a_file_of_another_version(yard: Bench, good: Path) -> None:
    """A file's bytes put in place of another's are found by their digest; the message names both."""
    content = members(good)
    name = next(key for key in content if key.startswith("files/"))
    other = bytes(reversed(content[name]))
    error = refused(yard, write(good.with_name("swapped.tar"), content | {name: other}))
    assert (error.details["expected"], error.details["found"]) == (name[6:], str(digest_bytes(other)))
    assert str(digest_bytes(other)) in error.message


@pytest.mark.row(19, 20)
def test_weights_that_a_commit_refuses(yard: Bench, good: Path) -> None:
    """A pickle under any name, broken safetensors, an archive in their place: refused, whatever the bundle says of them."""
    assert isinstance(refused(yard, forged(good, {"model.safetensors": PICKLE})), PickleError)
    assert isinstance(refused(yard, forged(good, {"notes.txt": PICKLE})), PickleError)
    assert isinstance(refused(yard, forged(good, {"model.safetensors": b"\x08" + bytes(15)})), ModelError)
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w:gz") as archive:
        archive.addfile(_member("zeros", size=1 << 20), io.BytesIO(bytes(1 << 20)))
    assert isinstance(refused(yard, forged(good, {"model.safetensors": bomb.getvalue()})), ModelError)


@pytest.mark.row(27, 28)
@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "CON", "a/../b", "x.", "a\\b", "a:b", "-rf", ""])
def test_names_in_a_manifest(yard: Bench, good: Path, name: str) -> None:
    """A manifest with a hostile path is refused, although its digest is right."""
    assert refused(yard, forged(good, {name: b"x"})).code == "bad_manifest"


@pytest.mark.row(27, 28)
def test_two_names_that_are_one(yard: Bench, good: Path) -> None:
    """Two paths that are one file on some systems are refused."""
    assert refused(yard, forged(good, {"Model.txt": b"1", "model.txt": b"2"})).code == "bad_manifest"


@pytest.mark.row(21)
@pytest.mark.parametrize(
    "changes",
    [
        {"format": "modelyard/bundle/2"},
        {"more": "x"},
        {"context": ["ab" * 32]},
        {"files": []},
        {"reports": [{"digest": "ab" * 32, "size": 1}]},
        {"version": "ab" * 32},
        {"versions": []},
        {"manifests": "x"},
        {"signatures": [{"digest": "ab" * 32, "size": -1, "version": "x"}]},
    ],
)
def test_an_index_that_lies(yard: Bench, good: Path, changes: dict[str, Any]) -> None:
    """An index of another format, with other keys, or whose parts disagree, is refused."""
    assert isinstance(refused(yard, forged(good, {"config.json": b"{}"}, changes)), IntegrityError | InputError)
    assert no_files(yard)


@pytest.mark.row(21, 27)
@pytest.mark.parametrize("repo", ["../x", "a", "datasets/x", "a/b/c", "CON/x", "a/b.git"])
def test_a_repo_name_that_is_a_path(yard: Bench, good: Path, repo: str) -> None:
    """The repo that a bundle names follows the rules for names."""
    described = json.loads(members(good)["bundle.json"])["versions"][0]
    manifest = canonical_json(
        {
            "format": "modelyard/manifest/1",
            "files": [{"path": "x", "size": 1, "blake3": str(digest_bytes(b"x")), "sha256": _sha256(b"x")}],
            "lineage": [],
        }
    )
    changed = described | {"id": str(digest_bytes(manifest)), "repo": repo}
    assert refused(yard, forged(good, {"x": b"x"}, {"versions": [changed]})).code == "bad_reference"


@pytest.mark.row(20, 21)
def test_what_is_no_bundle(yard: Bench, good: Path) -> None:
    """An empty file, text, a compressed tar, a folder, a FIFO: refused, and a FIFO does not hang."""
    path = good.with_name("other")
    for data in (b"", b"hello" * 200, bytes(10240)):
        path.write_bytes(data)
        assert isinstance(refused(yard, path), IntegrityError)
    path.unlink()
    os.mkfifo(path)
    assert isinstance(refused(yard, path), InputError)
    path.unlink()
    path.mkdir()
    assert isinstance(refused(yard, path), InputError)


@pytest.mark.row(1, 21)
def test_an_index_that_is_too_large_is_not_read(yard: Bench, good: Path) -> None:
    """An index that says it has gigabytes is refused by its header."""
    data = bytearray(good.read_bytes())
    with tarfile.open(good) as archive:
        info = archive.getmembers()[0]
    data[:512] = header(info.name, 5 << 30)
    path = good.with_name("large.tar")
    path.write_bytes(data)
    assert "bundle.json" in refused(yard, path).message


@pytest.mark.row(21)
def test_a_signature_of_something_else(yard: Bench, good: Path) -> None:
    """A signature that is none, or that is listed for another version, refuses the bundle."""
    content = members(good)
    index = json.loads(content["bundle.json"])
    digest = str(digest_bytes(b"junk"))
    for version in (index["version"], "ab" * 32):
        index["signatures"] = [{"digest": digest, "size": 4, "version": version}]
        changed = {"bundle.json": canonical_json(index)}
        for name, data in content.items():
            if name.startswith("files/"):
                changed.setdefault(f"signatures/{digest}.sig", b"junk")
            changed.setdefault(name, data)
        assert isinstance(refused(yard, write(good.with_name("signed.tar"), changed)), IntegrityError)
        assert no_files(yard)
