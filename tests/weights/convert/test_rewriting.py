"""One pass gives another dtype, other shards or both, as planned; interrupted anywhere, it goes on to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modelyard.derivations import apply_cast
from modelyard.digest import Digest, digest_bytes
from modelyard.errors import InputError, ModelError
from modelyard.weights import FolderFiles, check_model
from modelyard.weights import certificate as certificates
from modelyard.weights.convert import plan_rewrite, rewrite, streaming

if TYPE_CHECKING:
    from pathlib import Path

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "model.embed.weight": torch.randn(30, 8, generator=GENERATOR),
    "model.layers.0.norm.weight": torch.randn(8, generator=GENERATOR),
    "model.layers.0.mlp.weight": torch.randn(8, 24, generator=GENERATOR).bfloat16(),
    "model.layers.1.norm.weight": torch.randn(8, generator=GENERATOR).half(),
    "model.layers.1.mlp.weight": torch.randn(8, 24, generator=GENERATOR),
    "model.packed": torch.randn(4, 4, generator=GENERATOR).to(torch.float8_e4m3fn),
    "model.places": torch.arange(5),
    "model.nothing": torch.zeros(0, 3),
    "model.scale": torch.tensor(2.5),
}
CODES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of three files, with a configuration of parts, and what else a model has."""
    made = tmp_path / "model"
    made.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(3):
        part = dict(list(TENSORS.items())[number * 3 : number * 3 + 3])
        save_file(part, made / f"model-0000{number + 1}-of-00003.safetensors", {"format": "pt", "by": "me"})
        weight_map |= dict.fromkeys(part, f"model-0000{number + 1}-of-00003.safetensors")
    index = {"metadata": {"total_size": 1, "by": "me"}, "weight_map": weight_map}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vision_config": {"dtype": "float32", "encoder": {"torch_dtype": "float32"}},
        "text_config": {"hidden_size": 8},
    }
    (made / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE", "certificate.json"):
        (made / name).write_text("{}")
    (made / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (made / "1_Pooling").mkdir()
    (made / "1_Pooling" / "config.json").write_text("{}")
    (made / "optimizer.pt").write_text("no")
    return made


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def order(folder: Path) -> list[str]:
    """The tensors' names as their bytes lie in the files, as the safetensors library says."""
    made: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            made += stored.offset_keys()
    return made


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's memory."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def code_of(tensor: torch.Tensor) -> str:
    """Its dtype, as safetensors calls it."""
    return next(code for code, kind in CODES.items() if kind == tensor.dtype)


def expected(name: str, code: str) -> bytes:
    """The bits that `cast/1` gives for a tensor, computed whole and by another way through the code."""
    tensor = TENSORS[name]
    before = code_of(tensor)
    if before == code:
        return bits(tensor)
    kept = tensor.view(torch.int16).numpy().view(np.uint16) if before == "BF16" else tensor.numpy()
    return apply_cast(kept, before, code).tobytes()


PLANS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "one dtype": ({"dtype": "bfloat16"}, dict.fromkeys(list(TENSORS), "BF16")),
    "patterns": (
        {"dtype": "float16", "dtypes": {"*.norm.weight": "float32", "*.layers.0.*": "keep", "*": "bfloat16"}},
        dict.fromkeys(list(TENSORS), "BF16")
        | {"model.layers.0.norm.weight": "F32", "model.layers.1.norm.weight": "F32"},
    ),
    "patterns alone": ({"dtypes": {"*.mlp.weight": "float16"}}, {name: "F16" for name in TENSORS if ".mlp." in name}),
    "shards": ({"shard_size": "500B"}, {}),
    "all": ({"dtype": "float32", "shard_size": 600, "threads": 1}, dict.fromkeys(list(TENSORS), "F32")),
}


@pytest.mark.parametrize("kind", PLANS)
def test_the_plan_is_what_is_done(folder: Path, tmp_path: Path, kind: str) -> None:
    """Every tensor has the planned dtype, file and exactly the bits of `cast/1`; 8-bit formats and integers stay."""
    asked, wanted = PLANS[kind]
    plan = plan_rewrite(FolderFiles(folder), **{key: value for key, value in asked.items() if key != "threads"})
    out = tmp_path / "out"
    made = rewrite(FolderFiles(folder), out, **asked)
    found = load(out)
    assert sorted(order(folder)) == sorted(TENSORS)
    assert [each.name for each in plan] == order(folder) == order(out)
    for each in plan:
        tensor = TENSORS[each.name]
        code = wanted.get(each.name, code_of(tensor)) if tensor.is_floating_point() else code_of(tensor)
        code = (
            code_of(tensor)
            if code_of(tensor) == "F8_E4M3" or (kind == "patterns" and each.name == "model.layers.0.mlp.weight")
            else code
        )
        assert (each.before, each.after, each.shape) == (code_of(tensor), code, tuple(tensor.shape))
        assert each.operation == ("copy" if each.before == each.after else "cast/1")
        assert found[each.name].dtype == CODES[code]
        assert bits(found[each.name]) == expected(each.name, code)
        assert each.size == len(bits(found[each.name]))
        with safe_open(out / each.file, "pt") as stored:
            assert each.name in set(stored.keys())
    changed = [each.to_dict() for each in plan if each.operation != "copy"]
    assert (made.changes, made.matched["cast"], made.matched["tensors"]) == (changed, len(changed), len(TENSORS))
    check_model(FolderFiles(out))


def test_shards_by_size_or_as_they_were(folder: Path, tmp_path: Path) -> None:
    """Files hold at most the size that was asked for, tensors in their order; without one they are the source's. The index follows."""
    rewrite(FolderFiles(folder), tmp_path / "small", shard_size=600)
    rewrite(FolderFiles(folder), tmp_path / "same", dtype="float32")
    rewrite(FolderFiles(folder), tmp_path / "one", shard_size="1GB")
    assert [path.name for path in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    names = sorted(path.name for path in (tmp_path / "small").glob("*.safetensors"))
    assert names == [f"model-0000{n}-of-0000{len(names)}.safetensors" for n in range(1, len(names) + 1)]
    assert order(tmp_path / "small") == order(folder)
    for name in names:
        part = load_file(tmp_path / "small" / name)
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= 600
    for place in ("small", "same"):
        index = json.loads((tmp_path / place / "model.safetensors.index.json").read_text())
        files = {path.name: load_file(path) for path in (tmp_path / place).glob("*.safetensors")}
        assert index["weight_map"] == {name: file for file, held in files.items() for name in held}
        total = sum(tensor.nbytes for held in files.values() for tensor in held.values())
        assert index["metadata"] == {"total_size": total, "by": "me"}
        with safe_open(tmp_path / place / next(iter(files)), "pt") as stored:
            assert stored.metadata() == {"format": "pt", "by": "me"}
    source = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == source["weight_map"]


def test_what_belongs_to_the_model_comes_along(folder: Path, tmp_path: Path) -> None:
    """Tokenizer, template, generation settings, licence and a sentence encoder's layers do; training state and an older certificate do not.

    The configuration says the new dtype in every part that says one.
    """
    made = rewrite(FolderFiles(folder), tmp_path / "out", dtype="float16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["vision_config"]["dtype"] == "float16"
    assert config["vision_config"]["encoder"]["torch_dtype"] == "float16"
    assert config["text_config"] == {"hidden_size": 8}
    files = FolderFiles(tmp_path / "out")
    carried = {"generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE", "1_Pooling/config.json"}
    assert carried <= set(files.names())
    assert "optimizer.pt" not in files.names()
    assert certificates.read(files) == made
    assert made.outputs == {
        name: digest_bytes(files.read(name)) for name in files.names() if name != "certificate.json"
    }
    source = FolderFiles(folder)
    shards = [name for name in source.names() if name.endswith(".safetensors")]
    assert made.inputs == {"source": {name: digest_bytes(source.read(name)) for name in shards}}
    assert (made.method, made.exactness) == ("cast/1", "everywhere")
    assert made.warnings == ["1 tensors of 8-bit formats stayed as they were"]


def test_configuration_keeps_its_dtype_where_patterns_mix(folder: Path, tmp_path: Path) -> None:
    """Patterns that leave several dtypes say nothing of the model's; patterns that leave one do."""
    rewrite(FolderFiles(folder), tmp_path / "mixed", dtypes={"*.norm.weight": "float16"})
    assert json.loads((tmp_path / "mixed" / "config.json").read_text())["dtype"] == "float32"
    rewrite(FolderFiles(folder), tmp_path / "one", dtypes={"*": "bfloat16"})
    assert json.loads((tmp_path / "one" / "config.json").read_text())["dtype"] == "bfloat16"


def test_threads_and_pieces_change_no_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread or three, pieces of 8 bytes or of megabytes: the same files."""
    first = rewrite(FolderFiles(folder), tmp_path / "first", dtype="bfloat16", shard_size=700, threads=3)
    monkeypatch.setattr(streaming, "_PIECE", 8)
    monkeypatch.setattr(streaming, "_ELEMENTS", 3)
    second = rewrite(FolderFiles(folder), tmp_path / "second", dtype="bfloat16", shard_size=700, threads=1)
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize(("before", "after"), [("F16", "BF16"), ("F16", "F32"), ("BF16", "F16"), ("BF16", "F32")])
def test_every_element_of_16_bits(tmp_path: Path, before: str, after: str) -> None:
    """All 65536 patterns but those that have no finite result give the bits that torch gives; one that has none is refused."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(CODES[before])
    wanted = patterns.to(CODES[after])
    finite = wanted.isfinite() & patterns.isfinite()
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    for values, code in (
        (patterns[finite], None),
        (patterns[patterns.isnan()][:1], "nan_result"),
        (torch.tensor([1.0, -float("inf")]).to(CODES[before]), "infinite_result"),
    ):
        (tmp_path / str(code)).mkdir()
        save_file({"all": values}, tmp_path / str(code) / "model.safetensors")
        if code is None:
            rewrite(FolderFiles(tmp_path / "None"), tmp_path / "out", dtype=names[after])
            assert bits(load(tmp_path / "out")["all"]) == bits(wanted[finite])
        else:
            with pytest.raises(ModelError, match="all") as caught:
                rewrite(FolderFiles(tmp_path / code), tmp_path / "no", dtype=names[after])
            assert caught.value.code == code


# Kills itself once the second file is begun; says which files an earlier run had finished.
PROGRAM = """
import os, sys
from pathlib import Path
from modelyard.weights import FolderFiles
from modelyard.weights.convert import rewrite, rewriting
write, begun = rewriting._Rewriter._write, []
def counted(self, name, *rest):
    begun.append(name)
    write(self, name, *rest)
    if int(sys.argv[3]) and len(begun) == 2:
        os.kill(os.getpid(), int(sys.argv[3]))
rewriting._Rewriter._write = counted
rewrite(FolderFiles(sys.argv[1]), Path(sys.argv[2]), dtype="bfloat16", shard_size=300)
print(*begun)
"""


def test_killed_it_goes_on(folder: Path, tmp_path: Path) -> None:
    """After kill -9 the same command writes only what was not finished, and every file, the certificate too, is that of an uninterrupted run."""

    def run(out: Path, number: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, str(folder), str(out), str(number)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out = tmp_path / "out"
    assert run(out, signal.SIGKILL).returncode == -signal.SIGKILL
    (partial,) = tmp_path.glob(".out.*.partial")
    kept = {path.name: path.stat().st_ino for path in partial.glob("*-0000[12]-of-*.safetensors")}
    assert len(kept) == 2
    again = run(out, 0)
    assert again.returncode == 0, again.stderr
    assert not set(again.stdout.split()) & set(kept)
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    made = rewrite(FolderFiles(folder), tmp_path / "whole", dtype="bfloat16", shard_size=300)
    whole = FolderFiles(tmp_path / "whole")
    assert {name: whole.read(name) for name in whole.names()} == {
        name: FolderFiles(out).read(name) for name in FolderFiles(out).names()
    }
    assert certificates.read(FolderFiles(out)) == made


def test_known_digests_are_not_computed_again(folder: Path, tmp_path: Path) -> None:
    """A source that knows its files' digests, as a yard does, is believed."""

    class Known(FolderFiles):
        """Files with digests."""

        def digest(self, name: str) -> Digest:
            """Of a name, which stands for the content here."""
            return digest_bytes(name.encode())

    made = rewrite(Known(folder), tmp_path / "out", dtype="float16")
    assert made.inputs["source"]["model-00001-of-00003.safetensors"] == digest_bytes(
        b"model-00001-of-00003.safetensors"
    )


def test_progress_reaches_the_end(folder: Path, tmp_path: Path) -> None:
    """Bytes of what is written, never going back."""
    seen: list[tuple[int, int]] = []
    rewrite(FolderFiles(folder), tmp_path / "out", dtype="float16", progress=lambda *at: seen.append(at))
    total = sum(tensor.nbytes for tensor in load(tmp_path / "out").values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"dtype": "flot16"}, "unknown_dtype", "flot16"),
        ({"dtypes": {"*": "int8"}}, "unknown_dtype", "int8"),
        ({"dtype": "keep"}, "unknown_dtype", "keep"),
        ({"dtypes": {"*.mpl.*": "float16"}}, "unmatched_pattern", "mpl"),
        ({"shard_size": "much"}, "bad_size", "much"),
    ],
)
def test_wrong_wishes_are_named(folder: Path, asked: dict[str, Any], code: str, said: str) -> None:
    """Before anything is written, with what was wrong."""
    with pytest.raises(InputError, match=said) as caught:
        plan_rewrite(FolderFiles(folder), **asked)
    assert caught.value.code == code


def test_a_shadowed_pattern_is_no_mistake(folder: Path) -> None:
    """A pattern whose tensors an earlier one has taken already fits them still."""
    plan = plan_rewrite(FolderFiles(folder), dtypes={"*": "float16", "*.norm.weight": "float32"})
    assert "F32" not in {each.after for each in plan if each.operation == "cast/1"}


@pytest.mark.parametrize(
    "asked", [{"dtype": "float32"}, {"dtypes": {"odd": "float32"}}, {"dtypes": {"eight": "float32"}}]
)
def test_what_has_no_operation_is_named(tmp_path: Path, asked: dict[str, Any]) -> None:
    """F64 by any wish, and an 8-bit tensor that a pattern asks for by its name."""
    tensors = {"odd": torch.zeros(1, dtype=torch.float64), "eight": torch.zeros(1).to(torch.float8_e5m2)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=next(iter(asked.get("dtypes", {"odd": 0})))) as caught:
        plan_rewrite(FolderFiles(tmp_path), **asked)
    assert caught.value.code == "unsupported_dtype"


def test_quantized_scales_are_no_weights(folder: Path, tmp_path: Path) -> None:
    """A quantized model is not cast as a whole; its shards may be others, and single tensors may be named."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    for asked in ({"dtype": "bfloat16"}, {"names": "module"}):
        with pytest.raises(ModelError, match="fp8") as caught:
            plan_rewrite(FolderFiles(folder), **asked)  # type: ignore[arg-type]
        assert caught.value.code == "quantized_source"
    rewrite(FolderFiles(folder), tmp_path / "out", dtypes={"*": "float16"}, shard_size=700)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["dtype"], written["quantization_config"]["dtype"]) == ("float16", "float32")


def test_adapter(tmp_path: Path) -> None:
    """An adapter is cast under its own names; it stays one file, which PEFT asks for."""
    source = tmp_path / "adapter"
    source.mkdir()
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file(
        {f"base_model.model.q.lora_{side}.weight": torch.ones(2, 4) for side in "AB"},
        source / "adapter_model.safetensors",
    )
    rewrite(FolderFiles(source), tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in load(tmp_path / "out").values()} == {torch.bfloat16}
    assert (tmp_path / "out" / "adapter_config.json").read_text() == '{"peft_type": "LORA"}'
    with pytest.raises(ModelError) as caught:
        plan_rewrite(FolderFiles(source), shard_size=10)
    assert caught.value.code == "adapter_shards"


MEASURED = """
import re, sys, threading
from pathlib import Path
from modelyard.weights import FolderFiles
from modelyard.weights.convert import rewrite
peak, ended = 0, threading.Event()
def watch():
    global peak
    while not ended.wait(0.002):
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
thread = threading.Thread(target=watch)
thread.start()
rewrite(FolderFiles(sys.argv[1]), Path(sys.argv[2]), dtype="bfloat16", shard_size="50MB")
ended.set()
thread.join()
print(peak)
"""


@pytest.mark.slow
def test_memory_stays_small(tmp_path: Path) -> None:
    """Casting and resharding 400 MB takes less than 120 MB of anonymous memory, Python and numpy included."""
    (tmp_path / "model").mkdir()
    save_file({str(n): torch.zeros(10_000_000) for n in range(10)}, tmp_path / "model" / "model.safetensors")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "model"), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert int(done.stdout.split()[-1]) < 120_000
