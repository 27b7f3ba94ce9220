"""Provenance statements and signatures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from modelyard.errors import ConflictError, InputError, IntegrityError, NotFoundError, YardError
from modelyard.registry.provenance import render
from modelyard.registry.signing import sign_folder, verify_folder
from registry.registry_helpers import Bench

KEY = "ab" * 32


def made(bench: Bench) -> Any:
    """A version with a base, data and a run behind it."""
    base = bench.model(0.0, "team/base", kind="base")
    data = bench.data()
    inputs = {
        "step": "train",
        "config": {"train.rank": "8"},
        "inputs": {"base": str(base.id), "data.train": "cd" * 32, "hub": "hf://org/name@123"},
        "packages": {"modelyard": "0.1", "torch": "2.13.0", "Some_Thing": "1"},
    }
    bench.yard.start_run(KEY, step="train", inputs=inputs)
    bench.yard.finish_run(KEY, {"version": "x"})
    adapter = bench.model(1.0, "team/a", kind="adapter", from_=[("finetuned", base), ("trained-on", data)], inputs=KEY)
    return bench.model(2.0, "team/m", kind="merged", from_=[adapter, base], inputs=KEY), adapter, base, data


def test_a_statement_fits_the_published_schemas(bench: Bench) -> None:
    """The statement parses as in-toto's Statement v1 and its predicate as SLSA's Provenance v1, unknown fields refused."""
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    version = made(bench)[0]
    found = json.loads(render(bench.yard.provenance(version)))
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}
    parsed = json_format.ParseDict(found, statement_pb2.Statement(), ignore_unknown_fields=False)
    Statement.copy_from_pb(parsed).validate()
    predicate = json_format.ParseDict(found["predicate"], provenance_pb2.Provenance(), ignore_unknown_fields=False)
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert predicate.build_definition.build_type
    assert predicate.build_definition.external_parameters
    assert predicate.run_details.builder.id == "urn:modelyard:builder"
    for dependency in found["predicate"]["buildDefinition"]["resolvedDependencies"]:
        assert {"uri", "digest", "content"} & set(dependency)


def test_a_statement_says_what_was_recorded(bench: Bench) -> None:
    """Subjects are the files; dependencies are lineage, run inputs and packages; the run is the invocation."""
    version, adapter, base, data = made(bench)
    found = bench.yard.provenance("team/m")
    assert [(s["name"], s["digest"]["blake3"], s["digest"]["sha256"]) for s in found["subject"]] == [
        (entry.path, entry.blake3, entry.sha256) for entry in version.files
    ]
    definition = found["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["version"] == version.id
    assert definition["externalParameters"]["config"] == {"train.rank": "8"}
    dependencies = definition["resolvedDependencies"]
    names = {item["name"]: item for item in dependencies}
    assert {adapter.name, base.name, data.name, "data.train", "hub", "torch"} <= set(names)
    assert names[base.name]["digest"] == {"blake3": str(base.id)}
    assert {"edge": "trained-on", "of": str(adapter.id)} in names[data.name]["annotations"]["lineage"]
    assert names["torch"]["uri"] == "pkg:pypi/torch@2.13.0"
    assert names["Some_Thing"]["uri"] == "pkg:pypi/some-thing@1"
    assert names["hub"]["uri"] == "hf://org/name@123"
    details = found["predicate"]["runDetails"]
    assert details["metadata"]["invocationId"] == KEY
    assert details["builder"] == {"id": "urn:modelyard:builder", "version": {"modelyard": "0.1"}}
    assert "slsa" not in json.dumps(found["predicate"]).lower()


def test_a_statement_is_deterministic(bench: Bench) -> None:
    """The same state of the yard gives the same text, another opening of it too; nothing recorded gives no run."""
    version = made(bench)[0]
    assert render(bench.yard.provenance(version)) == render(bench.open(author="bob").provenance("team/m@v1"))
    plain = bench.yard.provenance(bench.model(9.0, "team/plain"))
    assert plain["predicate"]["runDetails"] == {"builder": {"id": "urn:modelyard:builder"}}
    assert plain["predicate"]["buildDefinition"]["resolvedDependencies"] == []


class Keys:
    """A pair of keys as files."""

    def __init__(self, folder: Path, name: str, curve: ec.EllipticCurve | None = None, password: str = "") -> None:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        how: Any = (
            serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        )
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub"
        pem = serialization.Encoding.PEM
        self.private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
        self.public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """The signer's."""
    return Keys(tmp_path, "signer")


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The unmodified command."""
    words = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def test_a_signature_holds(bench: Bench, keys: Keys, tmp_path: Path) -> None:
    """A version's signature verifies against the yard and against a checkout."""
    version = bench.model(1.0)
    signed = bench.yard.sign(version, tmp_path / "m.sig", key=keys.private)
    found = bench.yard.verify(version, tmp_path / "m.sig", key=keys.public)
    assert (found.files, found.key) == (signed.files, signed.key) == (2, signed.key)
    bench.yard.checkout(version, tmp_path / "out")
    assert verify_folder(tmp_path / "out", tmp_path / "m.sig", keys.public).key == signed.key
    with pytest.raises(ConflictError):
        bench.yard.sign(version, tmp_path / "m.sig", key=keys.private)


def test_the_unmodified_command_verifies_what_we_sign(bench: Bench, keys: Keys, tmp_path: Path) -> None:
    """OpenSSF's own `model_signing` verifies our signature over a checkout, and we verify its."""
    version = bench.model(1.0)
    bench.yard.sign(version, tmp_path / "m.sig", key=keys.private)
    bench.yard.checkout(version, tmp_path / "out")
    theirs = model_signing(
        "verify", "key", tmp_path / "out", "--signature", tmp_path / "m.sig", "--public_key", keys.public
    )
    assert theirs.returncode == 0, theirs.stderr
    assert "succeeded" in theirs.stdout
    made = model_signing(
        "sign", "key", tmp_path / "out", "--signature", tmp_path / "t.sig", "--private_key", keys.private
    )
    assert made.returncode == 0, made.stderr
    assert bench.yard.verify(version, tmp_path / "t.sig", key=keys.public).files == 2


def test_git_files_are_signed_too(bench: Bench, keys: Keys, tmp_path: Path) -> None:
    """A `.gitattributes` of the version is covered; one added afterwards is an unsigned file."""
    folder = bench.model_folder()
    (folder / ".gitattributes").write_text("x")
    version = bench.yard.commit(folder, "team/m")
    bench.yard.sign(version, tmp_path / "m.sig", key=keys.private)
    assert bench.yard.verify(version, tmp_path / "m.sig", key=keys.public).files == 3
    bench.yard.checkout(version, tmp_path / "out")
    command = ("verify", "key", tmp_path / "out", "--signature", tmp_path / "m.sig", "--public_key", keys.public)
    assert model_signing(*command, "--no-ignore-git-paths").returncode == 0
    plain = bench.model(5.0, "team/plain")
    bench.yard.sign(plain, tmp_path / "p.sig", key=keys.private)
    bench.yard.checkout(plain, tmp_path / "plain")
    (tmp_path / "plain" / ".gitattributes").write_text("x")
    with pytest.raises(IntegrityError, match="does not cover"):
        verify_folder(tmp_path / "plain", tmp_path / "p.sig", keys.public)


def _extra(folder: Path) -> None:
    (folder / "extra.txt").write_text("x")


def _changed(folder: Path) -> None:
    (folder / "config.json").write_text("{ }")


def _missing(folder: Path) -> None:
    (folder / "config.json").unlink()


def _renamed(folder: Path) -> None:
    (folder / "config.json").rename(folder / "other.json")


def _linked(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "moved.json")
    (folder / "config.json").symlink_to(folder.parent / "moved.json")


def _linked_folder(folder: Path) -> None:
    (folder.parent / "empty").mkdir()
    (folder / "sub").symlink_to(folder.parent / "empty")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("change", [_extra, _changed, _missing, _renamed, _linked, _linked_folder, _pipe])
def test_other_files_than_those_that_were_signed(
    bench: Bench, keys: Keys, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """An extra, changed, missing, renamed or symlinked file, or a pipe, fails, and never says that anything was verified."""
    version = bench.model(1.0)
    bench.yard.sign(version, tmp_path / "m.sig", key=keys.private)
    bench.yard.checkout(version, tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(IntegrityError) as caught:
        verify_folder(tmp_path / "out", tmp_path / "m.sig", keys.public)
    assert caught.value.code == "bad_signature"
    assert "verified" not in json.dumps(caught.value.to_dict()).lower()


def test_other_keys_and_signatures(bench: Bench, keys: Keys, tmp_path: Path) -> None:
    """Another key, another version's signature, a changed one, junk, none at all: each fails, none in that word."""
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.sign(one, tmp_path / "1.sig", key=keys.private)
    bench.yard.sign(two, tmp_path / "2.sig", key=keys.private)
    good = (tmp_path / "1.sig").read_text()
    envelope = json.loads(good)
    envelope["dsseEnvelope"]["signatures"][0]["sig"] = json.loads((tmp_path / "2.sig").read_text())["dsseEnvelope"][
        "signatures"
    ][0]["sig"]
    for name, text in (("swapped", json.dumps(envelope)), ("junk", "x"), ("empty", ""), ("deep", "[" * 100_000)):
        (tmp_path / f"{name}.sig").write_text(text)
    other = Keys(tmp_path, "other")
    (tmp_path / "no.pub").write_text("no key")
    cases = [
        (tmp_path / "1.sig", other.public, IntegrityError),
        (tmp_path / "2.sig", keys.public, IntegrityError),
        (tmp_path / "swapped.sig", keys.public, IntegrityError),
        (tmp_path / "junk.sig", keys.public, IntegrityError),
        (tmp_path / "empty.sig", keys.public, IntegrityError),
        (tmp_path / "deep.sig", keys.public, IntegrityError),
        (tmp_path / "none.sig", keys.public, NotFoundError),
        (tmp_path / "1.sig", tmp_path / "none.pub", NotFoundError),
        (tmp_path / "1.sig", tmp_path / "no.pub", InputError),
        (tmp_path / "1.sig", keys.private, InputError),
    ]
    for signature, key, kind in cases:
        with pytest.raises(YardError) as caught:
            bench.yard.verify(one, signature, key=key)
        assert type(caught.value) is kind, (signature.name, key.name)
        assert "verified" not in json.dumps(caught.value.to_dict()).lower()


def test_keys_that_cannot_sign(bench: Bench, tmp_path: Path) -> None:
    """An unsupported curve, a public key, junk, a wrong or missing password: refused, and no signature is left behind."""
    version = bench.model(1.0)
    (tmp_path / "junk.pem").write_text("x")
    locked = Keys(tmp_path, "locked", password="secret")
    odd = Keys(tmp_path, "odd", ec.SECP256K1())
    for key, password in (
        (odd.private, None),
        (odd.public, None),
        (tmp_path / "junk.pem", None),
        (locked.private, None),
    ):
        with pytest.raises(InputError):
            bench.yard.sign(version, tmp_path / "m.sig", key=key, password=password)
    with pytest.raises(InputError):
        bench.yard.sign(version, tmp_path / "m.sig", key=locked.private, password="wrong")
    assert not list(tmp_path.glob("*.sig"))
    assert not list(tmp_path.glob(".*"))
    bench.yard.sign(version, tmp_path / "m.sig", key=locked.private, password="secret")
    assert bench.yard.verify(version, tmp_path / "m.sig", key=locked.public).files == 2


def test_a_signature_travels_in_a_bundle(bench: Bench, keys: Keys, tmp_path: Path) -> None:
    """A bundle carries a signature of its version, and comes out with it; one about other files is refused."""
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.sign(one, tmp_path / "1.sig", key=keys.private)
    data = (tmp_path / "1.sig").read_bytes()
    bench.yard.pack(one, tmp_path / "b.tar", signatures=[data])
    folder = tmp_path / "other"
    folder.mkdir()
    other = Bench(folder, f"sqlite:///{folder / 'catalog.db'}")
    came = other.yard.unpack(tmp_path / "b.tar")
    assert came.signatures == (data,)
    (folder / "came.sig").write_bytes(came.signatures[0])
    assert other.yard.verify(came.version, folder / "came.sig", key=keys.public).files == 2
    other.close()
    with pytest.raises(IntegrityError, match="other files"):
        bench.yard.pack(two, tmp_path / "c.tar", signatures=[data])
    assert not (tmp_path / "c.tar").exists()


def test_an_empty_folder_is_not_signed(tmp_path: Path, keys: Keys) -> None:
    """There is nothing to sign in a folder without files."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError):
        sign_folder(tmp_path / "empty", tmp_path / "e.sig", keys.private)
