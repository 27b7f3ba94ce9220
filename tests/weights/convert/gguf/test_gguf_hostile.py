"""A file that says anything at all is a model or an error of ours: never another exception, a hang, or a folder that is half there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from modelyard.errors import ModelError
from modelyard.weights.convert.gguf import from_gguf, reading, to_gguf
from modelyard.weights.gguf import GgufHeader, read_gguf
from tiny_models import make_llama, save_model
from weights.convert.gguf.gguf_forms import Exports, strip

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 40), 1 << 40), st.floats(), st.text(max_size=20), st.binary(max_size=8),
    st.lists(st.integers(-5, 5), max_size=4), st.lists(st.text(max_size=3), max_size=4), st.just("{}"), st.just('{"model": {"vocab": 3}}'),
)  # fmt: skip


@pytest.fixture(scope="module")
def headers(exports: Exports) -> dict[str, tuple[Path, GgufHeader]]:
    """Files and their headers, of a family of each kind of tokenizer."""
    return {
        name: (exports.make(name).file, read_gguf(exports.make(name).file, full=True))
        for name in ("llama 3 rotation", "gemma3", "bert", "llama unigram")
    }


@pytest.mark.parametrize("name", ["llama 3 rotation", "gemma3", "bert", "llama unigram"])
def test_metadata_of_any_kind_is_a_model_or_an_error_of_ours(
    name: str, headers: dict[str, tuple[Path, GgufHeader]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any key may hold anything or be missing: configuration and tokenizer are made, or refused by name."""
    file, header = headers[name]
    keys = sorted(key for key in header.metadata if not key.startswith("general."))

    @settings(
        max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.dictionaries(st.sampled_from(keys), ANYTHING, min_size=1, max_size=3))
    def run(changed: dict[str, Any]) -> None:
        metadata = {key: value for key, value in (header.metadata | changed).items() if value is not None}
        monkeypatch.setattr(reading, "read_gguf", lambda *_, **__: replace(header, metadata=metadata))
        try:
            out = tmp_path / "out"
            from_gguf(file, out)
        except ModelError:
            assert not out.exists()
        else:
            for path in sorted(out.iterdir(), reverse=True):
                if path.is_dir():
                    for inner in path.iterdir():
                        inner.unlink()
                    path.rmdir()
                else:
                    path.unlink()
            out.rmdir()

    run()


def test_layers_without_end_are_refused_at_once(exports: Exports, tmp_path: Path) -> None:
    """A billion layers are more than the file has tensors, and no list of that length is made; neither of a folder's."""
    file = strip(exports.make("gemma3").file, tmp_path / "deep.gguf", block_count=1_000_000_000)
    with pytest.raises(ModelError, match="num_hidden_layers 1000000000") as caught:
        from_gguf(file, tmp_path / "out")
    assert caught.value.code == "bad_metadata"
    folder = save_model(tmp_path / "model", make_llama())
    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"num_hidden_layers": 2', '"num_hidden_layers": 1000000000'))
    with pytest.raises(ModelError, match="num_hidden_layers 1000000000"):
        to_gguf(folder, tmp_path / "out")


def test_an_interrupted_reading_goes_on(exports: Exports, tmp_path: Path) -> None:
    """Ctrl-C after some files of the folder keeps them; the same call finishes the rest, and the tensors are the file's."""
    made = exports.make("gpt2")
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_gguf(made.file, tmp_path / "back", shard_size=40_000, progress=interrupt)
    assert not (tmp_path / "back").exists()
    kept = list(tmp_path.rglob("*.safetensors"))
    stamps = {path.name: path.stat().st_ino for path in kept[:-1]}
    from_gguf(made.file, tmp_path / "back", shard_size=40_000)
    again = {path.name: path.stat().st_ino for path in (tmp_path / "back").glob("*.safetensors")}
    assert sum(again[name] == inode for name, inode in stamps.items()) >= 1
    found = {key: value for path in (tmp_path / "back").glob("*.safetensors") for key, value in load_file(path).items()}
    source = load_file(made.source / "model.safetensors")
    assert all(source[key].equal(found[key]) for key in source)


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1"])
def test_blocks_that_we_do_not_write_are_read(kind: str, exports: Exports, tmp_path: Path) -> None:
    """A file of another type is dequantized as the gguf package does, rows put back in transformers' order."""
    import gguf

    made = exports.make("qwen2")
    read: Any = gguf.GGUFReader(str(made.file))
    types: Any = gguf.GGMLQuantizationType
    writer: Any = gguf.GGUFWriter(str(tmp_path / "other.gguf"), "qwen2")
    for key, item in read.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, item.contents(), item.types[0], item.types[1] if len(item.types) > 1 else None)
    expected = {}
    for tensor in read.tensors:
        values = np.asarray(tensor.data)
        to = types[kind] if values.ndim > 1 else types.F32
        blocks = gguf.quantize(values, to)
        writer.add_tensor(tensor.name, blocks, raw_dtype=to)
        expected[tensor.name] = gguf.dequantize(blocks, to)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    from_gguf(tmp_path / "other.gguf", tmp_path / "back")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert np.array_equal(found["model.layers.1.mlp.up_proj.weight"].numpy(), expected["blk.1.ffn_up.weight"])
    assert np.array_equal(found["model.embed_tokens.weight"].numpy(), expected["token_embd.weight"])
