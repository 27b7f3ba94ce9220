"""An export is held to its source: what it computes is measured, and one that differs too much does not appear."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import ModelError
from modelyard.weights.certificate import read
from modelyard.weights.convert.gguf import TOLERANCES, check_gguf, to_gguf
from modelyard.weights.files import FolderFiles
from weights.convert.gguf.gguf_families import FAMILIES
from weights.convert.gguf.gguf_forms import Exports


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_float_file_computes_the_same(name: str, exports: Exports) -> None:
    """Written, read back and compared on fixed inputs: F32 differs in nothing, greedy tokens included."""
    made = exports.make(name)
    checks = check_gguf(made.source, made.file)
    assert checks
    assert all(check.holds and check.max_difference == 0 for check in checks)
    assert any(check.tokens for check in checks) == (name != "bert")


def test_the_certificate_keeps_what_was_measured(exports: Exports, tmp_path: Path) -> None:
    """A checked export has its differences in certificate.json, each with the tolerance of its type."""
    made = exports.make("qwen2")
    certificate = to_gguf(FolderFiles(made.source), tmp_path / "out", type="Q8_0", check=True, tolerance=0.5)
    kept = read(FolderFiles(tmp_path / "out"))
    assert kept is not None
    assert kept.checks == certificate.checks
    logits = [check for check in kept.checks if check["name"].endswith("logits")]
    assert all(0 < check["max_difference"] <= 0.5 * check["scale"] for check in logits)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["certificate.json", "model.gguf"]


def test_an_export_that_differs_is_not_there(exports: Exports, tmp_path: Path) -> None:
    """Beyond the tolerance it is the error `export_differs`, which names the worst check, and no folder appears."""
    made = exports.make("qwen2")
    with pytest.raises(ModelError, match="differs from it") as caught:
        to_gguf(made.source, tmp_path / "out", type="Q4_0", check=True, tolerance=1e-6)
    assert caught.value.code == "export_differs"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_check_does_not_write_the_file_again(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the file was written keeps it: the same command goes on behind it, and the result is the same file."""
    from modelyard.weights.convert.gguf import checking, writing

    made = exports.make("llama")

    def interrupt(*_: object, **__: object) -> list[object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checking, "check_gguf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            to_gguf(made.source, tmp_path / "out", type="F32", name="tiny", check=True)
    assert not (tmp_path / "out").exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the file is finished")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write", refuse)
        again = to_gguf(made.source, tmp_path / "out", type="F32", name="tiny", check=True)
    assert again.outputs == made.certificate.outputs
    assert again.changes == made.certificate.changes
    assert all(check["holds"] for check in again.checks)


def test_a_wrong_order_of_rows_is_found(exports: Exports, tmp_path: Path) -> None:
    """A file whose queries were not reordered differs by far more than even Q4_0 may."""
    import gguf
    from safetensors.numpy import load_file

    made = exports.make("llama")
    copy = tmp_path / "wrong.gguf"
    copy.write_bytes(made.file.read_bytes())
    reader = gguf.GGUFReader(str(copy), "r+")
    for tensor in reader.tensors:
        if ".attn_q." in tensor.name:
            layer = tensor.name.split(".")[1]
            source = load_file(made.source / "model.safetensors")[f"model.layers.{layer}.self_attn.q_proj.weight"]
            tensor.data[:] = source
    reader.data.flush()
    checks = check_gguf(made.source, copy, tolerance=TOLERANCES["Q4_0"])
    assert not all(check.holds for check in checks)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_every_family_holds_the_tolerance_of_its_type(name: str, kind: str, exports: Exports, tmp_path: Path) -> None:
    """Random weights, which forgive less than trained ones, are within what an export is held to."""
    to_gguf(exports.make(name).source, tmp_path / "out", type=kind, check=True)
    assert (tmp_path / "out" / "model.gguf").exists()


def test_every_type_has_a_tolerance() -> None:
    """What can be written can be checked."""
    from modelyard.weights.convert.gguf import TYPES

    assert set(TYPES) == set(TOLERANCES)
