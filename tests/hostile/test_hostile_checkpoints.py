"""Rows 1 to 26 of docs/design/faults.md, one by one, on whole folders: named by the doctor, refused by the gate, nothing changed.

Each case makes a folder (or one file), says what the doctor must find and what the gate before every load and commit must
refuse it with, and is held to a bound of memory. What single header rules allow is in `test_hostile_headers`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.errors import ModelError, YardError
from modelyard.weights.checks import check_weights
from modelyard.weights.doctor import SingleFile, diagnose
from modelyard.weights.files import FolderFiles
from modelyard.weights.merge import merge_lora
from tiny_models import make_llama, save_adapter, save_model

MEMORY = 96 << 20
"""Bytes that examining any of these may take."""

Build = Callable[[Path], Any]


def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Build:
    """`model.safetensors` with these bytes as its header."""
    head = (len(header) if length is None else length).to_bytes(8, "little")
    return lambda folder: (folder / "model.safetensors").write_bytes(head + header + data)


def entries(data: bytes = b"", **tensors: tuple[str, Any, Any]) -> Build:
    """`model.safetensors` whose header has these entries: dtype, shape, offsets."""
    held = {name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in tensors.items()}
    return raw(json.dumps(held).encode(), data)


def file(name: str, content: bytes) -> Build:
    """One more file beside sound weights."""

    def build(folder: Path) -> None:
        sound(folder)
        (folder / name).write_bytes(content)

    return build


def sound(folder: Path) -> None:
    """Weights and a configuration that no class of transformers has: nothing else is wrong."""
    save_file({"w": np.ones(4, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["Nothing"]}')


def index(shard: str) -> Build:
    """An index that names `shard`."""

    def build(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))

    return build


def sparse(folder: Path) -> None:
    """A header one byte longer than 25 MB, that is really there."""
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write((25_000_001).to_bytes(8, "little") + b"{")
        stream.truncate(26_000_000)


def pipe(folder: Path) -> None:
    """A named pipe in a shard's place: opening it would wait for ever."""
    index("model-00001-of-00001.safetensors")(folder)
    os.mkfifo(folder / "model-00001-of-00001.safetensors")


def link(folder: Path) -> None:
    """A link out of the folder in a shard's place."""
    index("model-00001-of-00001.safetensors")(folder)
    (folder / "model-00001-of-00001.safetensors").symlink_to("/etc/passwd")


def shards(weight_map: dict[str, str], *, total: int = 8, leave: bool = True) -> Build:
    """Two shards, `a` and `b` with a tensor each, and this index."""

    def build(folder: Path) -> None:
        (folder / "config.json").write_text('{"architectures": ["Nothing"]}')
        for number, name in ((1, "a"), (2, "b")):
            if leave or number == 1:
                save_file({name: np.ones(1, np.float32)}, folder / f"model-0000{number}-of-00002.safetensors")
        named = {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in weight_map.items()}
        held = {"metadata": {"total_size": total}, "weight_map": named}
        (folder / "model.safetensors.index.json").write_text(json.dumps(held))

    return build


def bomb() -> bytes:
    """A zip that says it holds a pickle, and would unpack to a thousand times its size."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    return made.getvalue()


def tar() -> bytes:
    """A tar with a path out of it and a link."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("../escape")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
        hard = tarfile.TarInfo("link")
        hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
        archive.addfile(hard)
    return made.getvalue()


def template(text: str) -> Build:
    """A small adapter with this chat template."""

    def build(folder: Path) -> None:
        lora(4, (4, 8), (8, 4))(folder)
        (folder / "chat_template.jinja").write_text(text)

    return build


def many_templates(folder: Path) -> None:
    """A template for each of a thousand names, each as slow as it may be."""
    lora(4, (4, 8), (8, 4))(folder)
    held = [{"name": f"t{number}", "template": "{{ 1 }}"} for number in range(1000)]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": held}))


def slow_pattern(folder: Path) -> None:
    """A pattern of ranks that takes longer than the universe to match."""
    lora(4, (4, 8), (8, 4))(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"rank_pattern": {"(q+)+x": 4, ".*.*.*.*.*.*.*x": 4}})
    )
    factors = {
        f"base_model.model.{'q' * 4000}.lora_{s}.weight": v
        for s, v in zip("AB", (np.ones((4, 8)), np.ones((8, 4))), strict=True)
    }
    save_file(factors, folder / "adapter_model.safetensors")


def endless(**config: Any) -> Build:
    """A configuration that asks for a model which nobody could build."""

    def build(folder: Path) -> None:
        sound(folder)
        held = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 8,
            "num_attention_heads": 1,
        }
        (folder / "config.json").write_text(json.dumps(held | config))

    return build


def lora(rank: Any, a: tuple[int, int], b: tuple[int, int]) -> Build:
    """An adapter of one module with factors of these shapes."""

    def build(folder: Path) -> None:
        config = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": rank, "target_modules": ["q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = {"lora_A": np.ones(a, np.float32), "lora_B": np.ones(b, np.float32)}
        named = {f"base_model.model.q.{side}.weight": value for side, value in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors")

    return build


def gguf(tensors: int, keys: int, rest: bytes = b"") -> Build:
    """A GGUF file with these counts."""
    return lambda folder: (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest)


def tensor(kind: int, size: int) -> bytes:
    """One tensor as a GGUF file describes it, and no data."""
    return struct.pack("<Q1sIQIQ", 1, b"w", 1, size, kind, 0) + bytes(64)


ONE = ("F32", [1], [0, 4])
CASES = [
    (1, "no byte", raw(b"", length=0), "header_too_small", "header_too_small"),
    (1, "7 bytes", lambda folder: (folder / "model.safetensors").write_bytes(bytes(7)), "header_too_small", "same"),
    (2, "2^63", raw(b"{}", length=1 << 63), "header_too_large", "same"),
    (2, "2^64-1", raw(b"{}", length=(1 << 64) - 1), "header_too_large", "same"),
    (2, "beyond the file", raw(b"{}", length=9999), "truncated", "same"),
    (3, "25 MB and a byte", sparse, "header_too_large", "same"),
    (4, "many tensors", raw(json.dumps({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}).encode()), "too_many_tensors", "same"),
    (5, "deep", raw(b'{"a":' * 100_000 + b"}" * 100_000), "bad_header", "same"),
    (5, "deep configuration", file("tokenizer_config.json", b"[" * 100_000 + b"]" * 100_000), "bad_json unknown_architecture", "same"),
    (6, "byte-order mark", raw(b"\xef\xbb\xbf{}"), "bad_header", "same"),
    (6, "leading space", raw(b" {}"), "bad_header", "same"),
    (6, "no UTF-8", raw(b'{"\xff":1}'), "bad_header", "same"),
    (7, "twice", raw(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"x"), "duplicate_key", "same"),
    (8, "overlap", entries(bytes(6), a=ONE, b=("F32", [1], [2, 6])), "overlap", "same"),
    (8, "hole", entries(bytes(8), a=("F32", [1], [4, 8])), "hole", "same"),
    (8, "backwards", entries(bytes(4), a=("F32", [1], [4, 0])), "bad_offsets", "same"),
    (9, "negative", entries(bytes(4), a=("F32", [-1], [0, 4])), "bad_shape", "same"),
    (9, "wraps", entries(bytes(4), a=("U8", [4194305, 4194305, 211106198978564], [0, 4])), "overflow", "same"),
    (10, "unknown dtype", entries(bytes(4), a=("F33", [1], [0, 4])), "unknown_dtype", "same"),
    (10, "half a byte", entries(bytes(1), a=("F4", [1], [0, 1])), "misaligned", "same"),
    (11, "empty and huge", entries(a=("F32", [0, 1 << 40], [0, 0])), "", None),
    (12, "a byte short", entries(bytes(3), a=ONE), "truncated", "same"),
    (12, "a byte more", entries(bytes(5), a=ONE), "trailing_bytes", "same"),
    (13, "escape", entries(bytes(4), **{"\x1b[31m": ONE}), "bad_name", "same"),
    (13, "a megabyte", entries(bytes(4), **{"x" * (1 << 20): ONE}), "bad_name", "same"),
    (14, "no text", raw(b'{"__metadata__":{"a":1}}'), "bad_metadata", "same"),
    (14, "2 MB", raw(json.dumps({"__metadata__": {"a": "x" * (2 << 20)}}).encode()), "bad_metadata", "same"),
    (15, "NaN", entries(b"\0\0\xc0\x7f", a=ONE), "nonfinite", None),
    (15, "infinity", entries(b"\0\0\x80\xff", a=ONE), "nonfinite", None),
    (16, "up", index("../x.safetensors"), "unsafe_path", "same"),
    (16, "absolute", index("/etc/passwd"), "unsafe_path", "same"),
    (16, "drive", index("C:\\x"), "unsafe_path", "same"),
    (16, "share", index("\\\\host\\share"), "unsafe_path", "same"),
    (16, "pipe", pipe, "not_a_regular_file", "same"),
    (16, "link", link, "not_a_regular_file", "same"),
    (17, "missing shard", shards({"a": "1", "b": "2"}, leave=False), "missing_shard", "incomplete_version"),
    (17, "wrong shard", shards({"a": "2", "b": "1"}), "index_mismatch unknown_architecture", "incomplete_version"),
    (17, "no shard", shards({"a": "1", "b": "2", "c": "2"}), "index_mismatch unknown_architecture", "incomplete_version"),
    (17, "total size", shards({"a": "1", "b": "2"}, total=9), "total_size unknown_architecture", None),
    (19, "pickle as safetensors", file("model.safetensors", pickle.dumps([1])), "pickle", "pickle_refused"),
    (19, "pickle as text", file("vocab.txt", pickle.dumps([1])), "pickle unknown_architecture", "pickle_refused"),
    (19, "safetensors as bin", lambda folder: save_file({"w": np.ones(1)}, folder / "pytorch_model.bin"), "wrong_name", "same"),
    (19, "broken zip", file("model.bin", b"PK\x03\x04" + bytes(50)), "archive unknown_architecture", "archive"),
    (20, "pickle bomb", file("pytorch_model.bin", bomb()), "avoidable_pickle unknown_architecture", "pickle_refused"),
    (20, "7z", file("extra.7z", b"7z\xbc\xaf\x27\x1c" + bytes(50)), "archive unknown_architecture", "archive"),
    (21, "tar", file("extra.tar", tar()), "archive unknown_architecture", "archive"),
    (22, "auto_map", file("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.y", null]}}'), "remote_code unknown_architecture", "remote_code"),
    (22, "kernel from a hub", file("processor_config.json", b'{"a": {"_attn_implementation": "someone/kernel"}}'), "remote_code unknown_architecture", "remote_code"),
    (22, "a billion layers", endless(num_hidden_layers=10**9), "unknown_architecture no_tokenizer no_generation_config", None),
    (22, "layers inside", endless(text_config={"num_hidden_layers": 10**9}), "unknown_architecture no_tokenizer no_generation_config", None),
    (23, "globals", template("{{ lipsum.__globals__ }}"), "template_unsafe", None),
    (23, "subclasses", template("{{ ''|attr('__class__') }}"), "template_unsafe", None),
    (23, "loops", template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), "template_unsafe", None),
    (23, "a gigabyte", template("{{ 'a' * 10**9 }}"), "template_unsafe", None),
    (23, "a width", template("{{ '%1000000000d' % 1 }}"), "template_unsafe", None),
    (23, "a flood", template("{% for a in range(9000) %}{{ 'a' * 1000 }}{% endfor %}"), "template_unsafe", None),
    (23, "many templates", many_templates, "template_unsafe", None),
    (24, "2^62 tensors", gguf(1 << 62, 0), "too_many_tensors", None),
    (24, "2^62 keys", gguf(0, 1 << 62), "too_many_keys", None),
    (24, "type 999", gguf(1, 0, tensor(999, 8)), "unknown_type", None),
    (24, "beyond the file", gguf(1, 0, tensor(0, 1 << 40)), "truncated", None),
    (25, "rank 0", lora(0, (0, 8), (8, 0)), "bad_rank", None),
    (25, "rank above the layer", lora(16, (16, 8), (8, 16)), "bad_rank", None),
    (25, "slow pattern", slow_pattern, "", None),
    (25, "another rank", lora(2, (4, 8), (8, 4)), "rank_mismatch", None),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Imported before memory is looked at: they are not what a file costs."""
    import importlib

    for name in ("torch", "transformers.models.auto.modeling_auto", "transformers.modeling_utils"):
        importlib.import_module(name)


@pytest.mark.parametrize(
    ("build", "found", "refused"),
    [
        pytest.param(
            build,
            set(found.split()),
            found.split()[0] if refused == "same" else refused,
            marks=pytest.mark.row(row),
            id=f"row {row}: {name}",
        )
        for row, name, build, found, refused in CASES
    ],
)
def test_a_row_is_named_and_refused(build: Build, found: set[str], refused: str | None, tmp_path: Path) -> None:
    """The doctor finds exactly what is wrong, the gate refuses with its code, memory is bounded, and no byte changes."""
    build(tmp_path)
    files = FolderFiles(tmp_path)
    if (tmp_path / "model.safetensors").exists() and not (tmp_path / "config.json").exists():
        files = SingleFile(tmp_path / "model.safetensors")  # type: ignore[assignment]  # the file alone is the case
    before = snapshot(tmp_path)
    tracemalloc.start()
    try:
        seen = diagnose(files)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {finding.code for finding in seen} == found, [finding.message for finding in seen]
    assert all(finding.message.isprintable() for finding in seen)
    assert peak < MEMORY
    if refused is None:
        check_weights(files)
    else:
        with pytest.raises(YardError) as caught:
            check_weights(files)
        assert caught.value.code == refused
    assert snapshot(tmp_path) == before


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes; None for what is no regular file."""
    held = {path: path.is_file() and not path.is_symlink() for path in folder.rglob("*")}
    return {str(path): path.read_bytes() if plain else None for path, plain in held.items()}


@pytest.mark.row(18)
def test_a_shard_of_another_version(tmp_path: Path) -> None:
    """Row 18, in a yard: a stored file whose bytes are another's is found by its digest, by the doctor too."""
    from registry.registry_helpers import Bench

    bench = Bench(tmp_path, f"sqlite:///{tmp_path / 'catalog.db'}")
    try:
        one = bench.model(1.0, message="one")
        path = next(entry for entry in one.files if entry.path.endswith(".safetensors"))
        stored = bench.yard.path(one, path.path)
        stored.chmod(0o644)
        data = bytearray(stored.read_bytes())
        data[-1] ^= 1
        stored.write_bytes(data)
        found = diagnose(bench.yard.files(one))
        assert "damaged" in {finding.code for finding in found}
    finally:
        bench.close()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.row(26)
@pytest.mark.parametrize("fault", ["vocabulary", "width", "nan"])
def test_a_merge_of_what_does_not_belong_together(fault: str, tmp_path: Path) -> None:
    """Row 26: a merge that cannot be right stops with a typed error and leaves nothing."""
    base = save_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    llama = make_llama(hidden_size=64) if fault == "width" else make_llama()
    if fault == "nan":
        llama.model.layers[0].self_attn.q_proj.weight.data[0, 0] = float("nan")
    if fault == "vocabulary":
        adapter = save_adapter(tmp_path / "head", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
        llama = make_llama(vocab_size=512)
    other = save_model(tmp_path / "other", llama)
    with pytest.raises(ModelError):
        merge_lora(FolderFiles(other), FolderFiles(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".merged*"))


def test_every_row_has_its_case() -> None:
    """Rows 1 to 26 are all here: in the table, or as the tests of 18 and 26."""
    assert {row for row, *_ in CASES} | {18, 26} == set(range(1, 27))
