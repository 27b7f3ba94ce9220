"""Safetensors become pickles that torch and transformers read, bit for bit, and come back the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
from modelyard.errors import ModelError
from modelyard.weights import FolderFiles
from modelyard.weights import certificate as certificates
from modelyard.weights.convert import bins, convert_pickle, pickles, to_bin

INDEX = "pytorch_model.bin.index.json"


def tensors() -> dict[str, torch.Tensor]:
    """Every dtype that both formats have, a scalar, an empty one, NaN with a payload and both zeros."""
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
    kinds += [torch.float8_e8m0fnu, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16]
    kinds += [torch.uint32, torch.uint64, torch.bool, torch.complex64]
    generator = torch.Generator().manual_seed(0)
    made = {}
    for kind in kinds:
        raw = torch.randint(0, 2 if kind == torch.bool else 256, (5, 24), dtype=torch.uint8, generator=generator)
        made[f"layer.{str(kind).removeprefix('torch.')}"] = raw.view(kind)
    return made | {"empty": torch.zeros(0, 3), "scalar": torch.tensor(-0.0), "layer.last": torch.ones(7)}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and bits are equal."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of tensors of every kind, in two shards."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}')
    (made / "tokenizer.json").write_text("{}")
    weight_map: dict[str, str] = {}
    for number in range(2):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        part = dict(list(tensors().items())[number::2])
        save_file(part, made / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return made


@pytest.mark.parametrize("size", [None, "700B"])
def test_every_dtype_comes_back(folder: Path, tmp_path: Path, size: str | None) -> None:
    """In the source's shards or in others, with an index: torch reads the same bits, and so does the way back to safetensors."""
    done: list[tuple[int, int]] = []
    made = to_bin(FolderFiles(folder), tmp_path / "bin", shard_size=size, progress=lambda *at: done.append(at))
    files = sorted(path.name for path in (tmp_path / "bin").glob("*.bin"))
    loaded = [torch.load(tmp_path / "bin" / name, weights_only=True, mmap=True) for name in files]
    assert_same({name: tensor for part in loaded for name, tensor in part.items()}, tensors())
    assert (len(files) == 2) is (size is None)
    index = json.loads((tmp_path / "bin" / INDEX).read_text())
    assert index["weight_map"] == {name: files[at] for at, part in enumerate(loaded) for name in part}
    assert done[-1] == (sum(tensor.nbytes for tensor in tensors().values()),) * 2
    assert made.matched == {"tensors": len(tensors()), "files": len(files)}
    assert certificates.read(FolderFiles(tmp_path / "bin")) == made
    assert (tmp_path / "bin" / "tokenizer.json").is_file()
    convert_pickle(tmp_path / "bin", tmp_path / "back")
    back = [load_file(path) for path in sorted((tmp_path / "back").glob("*.safetensors"))]
    assert_same({name: tensor for part in back for name, tensor in part.items()}, tensors())


def test_transformers_loads_it(tmp_path: Path) -> None:
    """Plain `from_pretrained` of a tied model's shards gives its logits, and the way back says the same of ties."""
    from transformers import AutoModelForCausalLM

    model = tiny_models.make_llama(tie_word_embeddings=True)
    tiny_models.save_model(tmp_path / "model", model)
    to_bin(FolderFiles(tmp_path / "model"), tmp_path / "bin", shard_size="40KB")
    assert len(list((tmp_path / "bin").glob("pytorch_model-*.bin"))) > 1
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "bin", use_safetensors=False)
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_adapter(tmp_path: Path) -> None:
    """An adapter becomes `adapter_model.bin`, which PEFT's own loader reads; it has one file or is refused."""
    from peft.utils import load_peft_weights

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    held = {f"base_model.model.q_proj.lora_{side}.weight": torch.randn(4, 8) for side in "AB"}
    save_file(held, adapter / "adapter_model.safetensors")
    to_bin(FolderFiles(adapter), tmp_path / "bin")
    assert_same(load_peft_weights(str(tmp_path / "bin"), device="cpu"), held)
    assert (tmp_path / "bin" / "adapter_config.json").is_file()
    with pytest.raises(ModelError) as caught:
        to_bin(FolderFiles(adapter), tmp_path / "small", shard_size=100)
    assert caught.value.code == "adapter_shards"


def test_what_torch_reads_otherwise_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that does not give back what was written stops the conversion, and nothing is left."""
    write = bins._write

    def spoil(*arguments: Any) -> Any:
        digest = write(*arguments)
        data = bytearray(arguments[2].read_bytes())
        at = data.find(torch.ones(7).numpy().tobytes())
        if at >= 0:
            data[at] ^= 1
            arguments[2].write_bytes(data)
        return digest

    monkeypatch.setattr(bins, "_write", spoil)
    with pytest.raises(ModelError, match=r"layer\.last") as caught:
        to_bin(FolderFiles(folder), tmp_path / "bin")
    assert caught.value.code == "conversion_differs"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_torch_has_not_is_named(tmp_path: Path) -> None:
    """A dtype of safetensors that torch cannot store is refused with the tensor's name."""
    text = b'{"odd":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(3))
    with pytest.raises(ModelError, match="odd") as caught:
        to_bin(FolderFiles(tmp_path / "model"), tmp_path / "bin")
    assert caught.value.code == "unsupported_dtype"


def stop_at_second(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[str]:
    """One file for each isolated process, and Ctrl-C before the second one; the files that were asked for."""
    run, asked = pickles.run_worker, []

    def stop(request: dict[str, Any], *rest: Any) -> dict[str, Any]:
        asked.append(Path(request["jobs"][0][0]).name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run(request, *rest)

    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setattr(module, "run_worker", stop)
    return asked


def test_interrupted_writing_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was written and compared before an interruption is not written again."""
    asked = stop_at_second(monkeypatch, bins)
    with pytest.raises(KeyboardInterrupt):
        to_bin(FolderFiles(folder), tmp_path / "bin")
    to_bin(FolderFiles(folder), tmp_path / "bin")
    first, second = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    assert asked == [first, second, second]


def test_interrupted_reading_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that was converted before an interruption is not opened again."""
    (tmp_path / "model").mkdir()
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, file in zip("ab", files, strict=True):
        torch.save({name: torch.ones(3)}, tmp_path / "model" / file)
    (tmp_path / "model" / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", files, strict=True))}))
    asked = stop_at_second(monkeypatch, pickles)
    with pytest.raises(KeyboardInterrupt):
        convert_pickle(tmp_path / "model", tmp_path / "out")
    assert convert_pickle(tmp_path / "model", tmp_path / "out").converted.keys() == set(files)
    assert asked == [files[0], files[1], files[1]]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_single_file_and_nested_state_dict(tmp_path: Path) -> None:
    """A `.pt` file by itself is enough, also where its state dict lies deep in a training checkpoint."""
    state = {"w": torch.arange(3.0)}
    torch.save({"epoch": 1, "model": {"module": state}}, tmp_path / "last.pt")
    made = convert_pickle(tmp_path / "last.pt", tmp_path / "out")
    assert made.converted == {"last.pt": "model.safetensors"}
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), state)


MEASURED = """
import re, sys, threading
from pathlib import Path
from modelyard.weights import FolderFiles
from modelyard.weights.convert import convert_pickle, to_bin
import torch
peak, ended = 0, threading.Event()
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def watch():
    global peak
    while not ended.wait(0.002):
        peak = max(peak, anonymous())
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
to_bin(FolderFiles(sys.argv[1]), Path(sys.argv[2]))
ended.set()
thread.join()
print(peak - before)
"""


@pytest.mark.slow
def test_memory_stays_small(tmp_path: Path) -> None:
    """200 MB become a pickle with less than 40 MB of memory of our own beside torch's: tensors are mapped, never copied."""
    (tmp_path / "model").mkdir()
    save_file({str(n): torch.zeros(5_000_000) for n in range(10)}, tmp_path / "model" / "model.safetensors")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "model"), str(tmp_path / "bin")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert int(re.findall(r"-?\d+", done.stdout)[-1]) < 40_000
