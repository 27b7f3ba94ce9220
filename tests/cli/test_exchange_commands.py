"""The commands by which versions enter and leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cli.conftest import Outcome
from modelyard.cli.main import run

Call = Callable[..., Outcome]


@pytest.fixture
def keys(desk: Path) -> tuple[str, str]:
    """A private and a public key in the working folder."""
    pem = serialization.Encoding.PEM
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (desk / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (desk / f"{name}.pub").write_bytes(public)
    return "mine.pem", "mine.pub"


def test_a_version_leaves_and_enters(yard: Call, desk: Path, tmp_path: Path) -> None:
    """`yard pack` and `yard unpack` carry a version to another yard with its id; a second unpack changes nothing."""
    code, packed, error = yard("pack", "team/base")
    assert code == 0, error
    assert packed["file"] == "team-base-v1.yard.tar"
    other = ("--yard", str(tmp_path / "other"))
    code, came, error = yard("unpack", packed["file"], *other)
    assert code == 0, error
    assert (came["id"], came["name"], came["missing"]) == (packed["id"], "team/base@v1", [])
    assert yard("unpack", packed["file"], *other)[1]["number"] == 1
    assert yard("unpack", packed["file"], "--to", "mine/copy", *other)[1]["name"] == "mine/copy@v1"
    assert yard("pack", "team/base")[0] == 6
    Path(packed["file"]).write_bytes(b"junk" * 1000)
    code, _, error = yard("unpack", packed["file"], *other)
    assert (code, error["code"]) == (8, "not_a_bundle")


def test_from_another_yard(yard: Call, tmp_path: Path) -> None:
    """`yard import YARD_FOLDER REF` takes a version of another yard in, with its id."""
    here = yard("show", "team/base")[1]
    code, came, error = yard(
        "import", str(tmp_path / "yard"), "team/base", "--to", "mine/base", "--yard", str(tmp_path / "other")
    )
    assert code == 0, error
    assert (came["id"], came["name"]) == (here["id"], "mine/base@v1")


def test_a_cache_and_its_leftovers(yard: Call, desk: Path) -> None:
    """`yard import hf-cache` imports the cache's repos and lists what it skipped; an empty cache is exit code 3."""
    (desk / "hub").mkdir()
    assert yard("import", "hf-cache", "--cache-dir", "hub")[0] == 3
    snapshot = desk / "hub" / "models--org--name" / "snapshots" / ("a" * 40)
    shutil.copytree(desk / "model", snapshot)
    (snapshot / "extra.py").write_text("x")
    code, made, error = yard("import", "hf-cache", "org/name", "--cache-dir", "hub")
    assert code == 0, error
    assert [version["name"] for version in made["versions"]] == ["org/name@v1"]
    assert made["skipped"] == [{"name": "org/name/extra.py", "reason": "code, which is never run"}]
    assert yard("import", "hf-cache", "org/none", "--cache-dir", "hub")[0] == 5


def test_an_mlflow_folder(yard: Call, desk: Path) -> None:
    """`yard import mlflow FOLDER` commits its model."""
    shutil.copytree(desk / "model", desk / "logged" / "model")
    (desk / "logged" / "MLmodel").write_text("flavors: {transformers: {model_binary: model}}\nrun_id: abc\n")
    code, made, error = yard("import", "mlflow", "logged", "--to", "team/logged")
    assert code == 0, error
    assert made["versions"][0]["metadata"]["mlflow.run_id"] == "abc"
    assert yard("import", "mlflow", "logged")[0] == 2


def test_layouts_both_ways(yard: Call, desk: Path) -> None:
    """`yard checkout --layout versions` writes SmoLoRA's folders; `yard import` reads them and a registry of them."""
    assert yard("commit", "./model", "--to", "team/m", "--kind", "merged")[0] == 0
    code, written, error = yard("checkout", "team/m", "--layout", "versions", "--out", "models", "--no-bin")
    assert code == 0, error
    assert (written["written"], written["latest"]) == (["v1.0"], "v1.0")
    code, made, error = yard("import", "models", "--layout", "versions", "--to", "again")
    assert code == 0, error
    assert made["versions"][0]["metadata"]["smolora.label"] == "v1.0"
    registry = {"m": {"v3.0": {"path": "m/v1.0/final_merged"}, "v2.0": {"path": "gone"}}}
    Path("models/model_registry.json").write_text(json.dumps(registry))
    code, made, error = yard("import", "models/model_registry.json", "--to", "listed")
    assert code == 0, error
    assert [version["name"] for version in made["versions"]] == ["listed/m@v1"]
    assert made["skipped"] == [{"name": "m v2.0", "reason": "dead path: gone"}]


def test_checkout_takes_one_folder(yard: Call) -> None:
    """`yard checkout` writes one version; no folder, or two, is a usage error."""
    assert yard("checkout", "team/base", "out")[0] == 0
    assert (Path("out") / "config.json").is_file()
    assert yard("checkout", "team/base")[0] == 2
    assert yard("checkout", "team/base", "a", "--out", "b")[0] == 2
    assert yard("checkout", "team/base", "--out", "out2")[0] == 0


def test_what_is_not_one_source(yard: Call) -> None:
    """A source of three words, or without `--to`, is a usage error."""
    assert yard("import", "a", "b", "c")[0] == 2
    assert yard("import", "./model")[0] == 2
    assert yard("import", "./models", "--layout", "versions")[0] == 2


def test_provenance_is_a_statement(yard: Call) -> None:
    """`yard provenance` prints an in-toto statement about the version's files."""
    code, found, error = yard("provenance", "team/base")
    assert code == 0, error
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert {subject["name"] for subject in found["subject"]} >= {"config.json", "model.safetensors"}


def test_signing_and_verifying(yard: Call, keys: tuple[str, str], desk: Path) -> None:
    """`yard sign` and `yard verify` agree about a version, a checkout, and a bundle that carried the signature."""
    private, public = keys
    code, signed, error = yard("sign", "team/base", "--key", private)
    assert code == 0, error
    assert signed["signature"] == "team-base-v1.sig"
    assert yard("verify", "team/base", "--key", public, "--signature", "team-base-v1.sig")[1]["verified"] is True
    yard("checkout", "team/base", "out")
    assert yard("verify", "./out", "--key", public, "--signature", "team-base-v1.sig")[0] == 0
    yard("pack", "team/base", "-o", "b.tar", "--signature", "team-base-v1.sig")
    came = yard("unpack", "b.tar", "--signatures", "signatures", "--yard", str(desk / "other"))[1]
    assert Path(came["signatures"][0]).read_bytes() == Path("team-base-v1.sig").read_bytes()


def test_no_failure_says_verified(
    yard: Call, keys: tuple[str, str], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, by another key, over other files, an extra file, a symlinked one: a non-zero exit, and never that word."""
    private, public = keys
    yard("sign", "team/base", "--key", private, "-o", "m.sig")
    yard("commit", "./model", "--to", "team/two", "--kind", "base")
    (desk / "model" / "config.json").write_text("{}")
    for name in ("extra", "linked"):
        yard("checkout", "team/base", name)
    (desk / "extra" / "more.txt").write_text("x")
    (desk / "linked" / "config.json").unlink()
    (desk / "linked" / "config.json").symlink_to("generation_config.json")
    cases: list[tuple[str, str, str, int]] = [
        ("team/base", public, "none.sig", 5),
        ("team/base", "none.pub", "m.sig", 5),
        ("team/base", "other.pub", "m.sig", 8),
        ("./model", public, "m.sig", 8),
        ("./extra", public, "m.sig", 8),
        ("./linked", public, "m.sig", 8),
        ("./none", public, "m.sig", 5),
        ("team/none", public, "m.sig", 5),
    ]
    for what, key, signature, expected in cases:
        for form in ([], ["--json"]):
            arguments: list[Any] = ["verify", what, "--key", key, "--signature", signature, *form]
            assert run(arguments) == expected, what
            captured = capsys.readouterr()
            assert "verified" not in (captured.out + captured.err).lower()
            assert captured.out == ""
