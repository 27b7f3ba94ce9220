"""A merge in mode `exact`: what it writes, what it proves, what it refuses, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelyard.derivations import apply_lora, lora_scale
from modelyard.errors import ConflictError, ModelError, NoSpaceError, RequestError
from modelyard.weights import output as output_module
from modelyard.weights.certificate import Certificate
from modelyard.weights.certificate import read as read_certificate
from modelyard.weights.files import FolderFiles
from modelyard.weights.headers import read_header
from modelyard.weights.merge import merge as merge_files
from modelyard.weights.merge import merge_lora
from modelyard.weights.merge.exact import engine

LAYER = "model.layers.0."
PREFIX = "base_model.model."


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def make_base(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A base of two linear layers (6 -> 8 -> 6), a norm, an embedding and an output layer."""
    folder.mkdir()
    tensors = tensors or {
        "model.embed_tokens.weight": floats(10, 6, seed=1),
        f"{LAYER}up.weight": floats(8, 6, seed=2),
        f"{LAYER}down.weight": floats(6, 8, seed=3),
        "model.norm.weight": floats(6, seed=4),
        "lm_head.weight": floats(10, 6, seed=5),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, **config}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def factors(module: str, rows: int, columns: int, rank: int = 2, seed: int = 9) -> dict[str, Any]:
    """The two factors of one module, as an adapter's file names them."""
    return {
        f"{PREFIX}{module}.lora_A.weight": floats(rank, columns, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": floats(rows, rank, seed=seed + 1),
    }


def make_adapter(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """An adapter of rank 2 and alpha 3 for both linear layers."""
    folder.mkdir()
    tensors = tensors or factors(f"{LAYER}up", 8, 6) | factors(f"{LAYER}down", 6, 8)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "task_type": "CAUSAL_LM", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def merge(base: Path, adapter: Path, out: str = "out", **how: Any) -> Certificate:
    """Merge into `out` beside the base."""
    return merge_lora(FolderFiles(base), FolderFiles(adapter), base.parent / out, **how)


def refusal(tmp_path: Path, base: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None) -> ModelError:
    """The error of a merge of `make_base(**base)` and `make_adapter(**adapter)`, after which nothing may be left."""
    folders = make_base(tmp_path / "base", **(base or {})), make_adapter(tmp_path / "adapter", **(adapter or {}))
    with pytest.raises(ModelError) as caught:
        merge(*folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    return caught.value


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter that fit."""
    return make_base(tmp_path / "base"), make_adapter(tmp_path / "adapter")


def test_merged_tensors_are_lora_1(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Every adapted weight is lora/1 of its parts, and every other tensor has the base's bytes."""
    merge(*pair)
    before, adapter = load_file(pair[0] / "model.safetensors"), load_file(pair[1] / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in before.items():
        module = f"{PREFIX}{name.removesuffix('.weight')}"
        wanted = value
        if f"{module}.lora_A.weight" in adapter:
            a, b = adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"]
            wanted = apply_lora(value, "F32", a, b, lora_scale(3, 2))
        assert after[name].tobytes() == wanted.tobytes()


def test_header_is_the_bases(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The merged file has the base's header, byte for byte, and its size."""
    merge(*pair)
    before, after = (folder / "model.safetensors" for folder in (pair[0], tmp_path / "out"))
    start = read_header(before).data_start
    assert before.read_bytes()[:start] == after.read_bytes()[:start]
    assert before.stat().st_size == after.stat().st_size


def test_certificate_is_true(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The certificate's digests, counts and scales are those of the files, and it is the same for every run."""
    made = merge(*pair).to_dict()
    before, after = (load_file(folder / "model.safetensors") for folder in (pair[0], tmp_path / "out"))
    matched = made["matched"]
    assert (made["operation"], made["method"], made["exactness"]) == ("merge", "lora/1", "everywhere")
    assert (matched["merged"], matched["replaced"], matched["untouched"], matched["added"]) == (2, 0, 3, 0)
    assert matched["elements_changed"] == sum(int(np.count_nonzero(before[name] != after[name])) for name in before)
    assert matched["elements"] == 96
    assert {change["scale"] for change in made["changes"]} == {(1.5).hex()}
    for folder, digests in ((pair[0], made["inputs"]["base"]), (pair[1], made["inputs"]["adapter"])):
        for name, digest in digests.items():
            assert digest == blake3.blake3((folder / name).read_bytes()).hexdigest()
    written = {path.name: blake3.blake3(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert made["outputs"] == written
    again = merge(*pair, out="again")
    assert json.loads(json.dumps(again.to_dict())) == made


@pytest.mark.parametrize(("threads", "block_elements"), [(1, 1), (2, 17), (3, 1 << 16)])
def test_threads_and_blocks_do_not_show(
    pair: tuple[Path, Path], tmp_path: Path, threads: int, block_elements: int
) -> None:
    """Whatever the threads and blocks, the files are the same."""
    made = merge(*pair, threads=threads, block_elements=block_elements)
    assert made.outputs == merge(*pair, out="other").outputs


def test_progress_ends_at_the_total(pair: tuple[Path, Path]) -> None:
    """Progress counts the base's tensor bytes up to all of them."""
    seen: list[tuple[int, int]] = []
    merge(*pair, progress=lambda done, total: seen.append((done, total)))
    total = sum(value.nbytes for value in load_file(pair[0] / "model.safetensors").values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_shards_keep_their_names_and_index(tmp_path: Path) -> None:
    """A sharded base gives the same shards and the same index."""
    base = make_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(tensors):
        shard = f"model-0000{number % 2 + 1}-of-00002.safetensors"
        weight_map[name] = shard
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, base / shard)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    made = merge(base, make_adapter(tmp_path / "adapter"))
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (base / index).read_bytes()
    assert set(made.inputs["base"]) == set(weight_map.values())
    whole = merge_lora(FolderFiles(make_base(tmp_path / "one")), FolderFiles(tmp_path / "adapter"), tmp_path / "whole")
    found: dict[str, Any] = {}
    for shard in set(weight_map.values()):
        found |= load_file(tmp_path / "out" / shard)
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert np.array_equal(found[name], value)
    assert whole.matched["elements_changed"] == made.matched["elements_changed"]


def test_patterns_decide_rank_and_alpha(tmp_path: Path) -> None:
    """`rank_pattern` and `alpha_pattern` match the end of a module's path, as in PEFT; rsLoRA scales by the root."""
    tensors = factors(f"{LAYER}up", 8, 6, rank=3) | factors(f"{LAYER}down", 6, 8)
    config = {"rank_pattern": {"up": 3}, "alpha_pattern": {r"layers\.\d+\.up": 7}, "use_rslora": True}
    made = merge(make_base(tmp_path / "base"), make_adapter(tmp_path / "adapter", tensors, **config))
    scales = {change["module"]: change["scale"] for change in made.to_dict()["changes"]}
    assert scales == {
        f"{LAYER}up": float(lora_scale(7, 3, rslora=True)).hex(),
        f"{LAYER}down": float(lora_scale(3, 2, rslora=True)).hex(),
    }


def test_pattern_matches_whole_names_only(tmp_path: Path) -> None:
    """A pattern `p` is no match for a module `up`."""
    made = merge(make_base(tmp_path / "base"), make_adapter(tmp_path / "adapter", rank_pattern={"p": 9}))
    assert made.matched["merged"] == 2


@pytest.mark.parametrize("pattern", ["(a*)*b", "(", "a" * 300, ".*.*.*.*x", "(|.)(|..)" * 12])
def test_pattern_that_may_run_away_is_refused(tmp_path: Path, pattern: str) -> None:
    """A regular expression with nested repetition, too long, or broken is refused and not evaluated."""
    assert refusal(tmp_path, adapter={"rank_pattern": {pattern: 1}}).code == "bad_adapter"


def test_tensor_saved_whole_replaces_the_bases(tmp_path: Path) -> None:
    """A module in `modules_to_save` takes the adapter's values in the base's dtype, and counts as replaced."""
    saved = floats(10, 6, seed=77).astype(np.float16)
    tensors = factors(f"{LAYER}up", 8, 6) | {f"{PREFIX}lm_head.weight": saved}
    made = merge(make_base(tmp_path / "base"), make_adapter(tmp_path / "adapter", tensors, modules_to_save=["lm_head"]))
    after = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    assert np.array_equal(after, saved.astype(np.float32))
    assert (made.matched["merged"], made.matched["replaced"]) == (1, 1)


def test_transposed_layer_is_recognised(tmp_path: Path) -> None:
    """GPT-2's Conv1D stores (in, out): by its shape, and where it is square by its architecture."""
    base = {
        "transformer.h.0.attn.c_attn.weight": floats(6, 18),
        "transformer.h.0.attn.c_proj.weight": floats(6, 6),
        "transformer.h.0.odd.weight": floats(6, 6),
    }
    modules = {"c_attn": (18, 6), "c_proj": (6, 6)}
    tensors: dict[str, Any] = {}
    for name, (rows, columns) in modules.items():
        tensors |= factors(f"transformer.h.0.attn.{name}", rows, columns)
    tensors |= factors("transformer.h.0.odd", 6, 6)
    made = merge(
        make_base(tmp_path / "base", base, model_type="gpt2"),
        make_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True),
    )
    turned = {change["module"].rpartition(".")[2]: change["transposed"] for change in made.to_dict()["changes"]}
    assert turned == {"c_attn": "yes", "c_proj": "yes", "odd": "no"}


@pytest.mark.parametrize(("disk", "adapter"), [("h.0.up", "transformer.h.0.up"), ("model.h.0.up", "h.0.up")])
def test_head_prefix_may_differ(tmp_path: Path, disk: str, adapter: str) -> None:
    """A base saved without its head, or an adapter trained without one, matches by the one prefix that differs."""
    base = make_base(tmp_path / "base", {f"{disk}.weight": floats(8, 6)})
    made = merge(base, make_adapter(tmp_path / "adapter", factors(adapter, 8, 6)))
    assert made.changes[0]["tensor"] == f"{disk}.weight"


@pytest.mark.row(25)
def test_no_match_lists_names(tmp_path: Path) -> None:
    """An adapter of another architecture is an error that shows names from both sides."""
    error = refusal(tmp_path, adapter={"tensors": factors("encoder.block.0.q", 8, 6)})
    assert error.code == "no_match"
    assert "encoder.block.0.q.weight" in error.message
    assert "lm_head.weight" in error.message


def test_partial_match_is_no_match(tmp_path: Path) -> None:
    """One module without a tensor stops the whole merge, and is named."""
    tensors = factors(f"{LAYER}up", 8, 6) | factors("model.layers.7.up", 8, 6)
    error = refusal(tmp_path, adapter={"tensors": tensors})
    assert error.code == "no_match"
    assert "only 1 of its 2" in error.message
    assert error.details["missing"] == ["model.layers.7.up.weight"]


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({f"{PREFIX}{LAYER}up.lora_magnitude_vector": floats(8)}, "bad_adapter"),
        ({f"{PREFIX}model.embed_tokens.lora_embedding_A": floats(2, 10)}, "bad_adapter"),
        ({f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": floats(1, 6)}, "bad_adapter"),
        ({f"{PREFIX}{LAYER}up.lora_B.bias": floats(8)}, "bad_adapter"),
        ({f"{PREFIX}{LAYER}up.base_layer.bias": floats(8)}, "bad_adapter"),
        ({f"{PREFIX}{LAYER}odd.weight": floats(10, 6)}, "bad_adapter"),
        ({f"{PREFIX}{LAYER}odd.lora_A.weight": floats(2, 6)}, "bad_adapter"),
        ({f"{PREFIX}{LAYER}up.lora_diag": floats(2)}, "bad_adapter"),
        ({f"{PREFIX}{LAYER}up.base_layer.q.lora_A.weight": floats(2, 6)}, "bad_adapter"),
        (factors(f"{LAYER}up", 8, 6) | {f"{PREFIX}{LAYER}up.lora_A.weight": floats(2, 6, 1, 1)}, "bad_shape"),
    ],
)
def test_unsupported_tensors_are_named(tmp_path: Path, tensors: dict[str, Any], code: str) -> None:
    """A tensor that has no place, or half of what belongs together, stops the merge, with its name and the reason."""
    error = refusal(tmp_path, adapter={"tensors": factors(f"{LAYER}down", 6, 8) | tensors})
    assert error.code == code
    assert any(word in error.message for word in ("up", "embed_tokens", "lm_head", "odd"))


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"peft_type": "IA3"}, "unsupported_adapter"),
        ({"use_qalora": True}, "qalora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"use_bdlora": {"nblocks": 2}}, "bdlora"),
        ({"init_lora_weights": "pissa_niter_4"}, "unsupported_start"),
        ({"init_lora_weights": "pissa"}, "unsupported_start"),
        ({"corda_config": {"corda_method": "kpm"}}, "unsupported_start"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"some_new_option": True}, "unsupported_adapter"),
        ({"peft_type": ["LORA"]}, "unsupported_adapter"),
        ({"rank_pattern": ["up"]}, "bad_adapter"),
        ({"modules_to_save": "lm_head"}, "bad_adapter"),
        ({"trainable_token_indices": ["a"]}, "bad_adapter"),
        ({"r": "2"}, "bad_adapter"),
        ({"r": 3}, "rank_mismatch"),
        ({"lora_alpha": 1e300}, "bad_alpha"),
        ({"lora_alpha": 10**400}, "bad_adapter"),
        ({"use_dora": True}, "bad_adapter"),
    ],
)
def test_unsupported_options_are_refused(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    """An option that changes the arithmetic, or that nobody here knows, stops the merge."""
    assert refusal(tmp_path, adapter=config).code == code


@pytest.mark.parametrize(
    ("tensors", "r", "code"),
    [
        (factors(f"{LAYER}up", 8, 6, rank=0), 0, "bad_rank"),
        (factors(f"{LAYER}up", 8, 6, rank=9), 9, "bad_rank"),
        (factors(f"{LAYER}up", 8, 7), 2, "bad_shape"),
        (factors(f"{LAYER}up", 7, 6), 2, "bad_shape"),
        ({k: v.astype(np.float64) for k, v in factors(f"{LAYER}up", 8, 6).items()}, 2, "unsupported_dtype"),
    ],
)
@pytest.mark.row(25)
def test_factors_that_do_not_fit(tmp_path: Path, tensors: dict[str, Any], r: int, code: str) -> None:
    """A rank of zero, one beyond the layer, another shape or dtype is refused with what was expected and found."""
    assert refusal(tmp_path, adapter={"tensors": tensors, "r": r}).code == code


def test_quantized_base_is_refused(tmp_path: Path) -> None:
    """A quantized base is refused, with what to merge into instead."""
    error = refusal(tmp_path, {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert error.code == "quantized_base"
    assert "--quantized" in str(error.hint)


@pytest.mark.parametrize(
    ("where", "value", "code"), [("base", np.nan, "nan_result"), ("factor", 3e38, "infinite_result")]
)
@pytest.mark.row(26, 15)
def test_result_that_is_no_number(tmp_path: Path, where: str, value: float, code: str) -> None:
    """A NaN, or a sum beyond the dtype, is refused by the tensor's name, and no output is left."""
    base, tensors = floats(8, 6), factors(f"{LAYER}up", 8, 6)
    (base if where == "base" else tensors[f"{PREFIX}{LAYER}up.lora_A.weight"])[1, 2] = value
    error = refusal(tmp_path, {"tensors": {f"{LAYER}up.weight": base}}, {"tensors": tensors})
    assert error.code == code
    assert f"{LAYER}up.weight" in error.message


def test_full_disk_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fills up the error says so, and neither the target nor a partial folder is left."""

    def full(self: Any, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_module.HashingWriter, "write", full)
    with pytest.raises(NoSpaceError):
        merge(*pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_existing_target_is_a_conflict(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A target with something in it is refused and not touched."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConflictError):
        merge(*pair)
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_files_that_come_along(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The base's configuration and licence come along; the adapter's tokenizer replaces the base's whole."""
    base, adapter = pair
    for name in (
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "chat_template.jinja",
    ):
        (base / name).write_text('{"of": "base"}')
    for name in ("LICENSE", "README.md", "tf_model.h5"):
        (base / name).write_text("base")
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        (adapter / name).write_text('{"of": "adapter"}')
    merge(base, adapter)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert "adapter" in (out / "tokenizer.json").read_text()
    assert "base" in (out / "chat_template.jinja").read_text()


def test_adapters_template_wins(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """An adapter that brings a chat template brings the one that is used."""
    base, adapter = pair
    (base / "chat_template.jinja").write_text("base")
    (adapter / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    merge(base, adapter)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert "own" in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_certificate_lies_in_the_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """`merge` leaves in the folder what it gives back; `merge_lora` gives it back only."""
    made = merge_files(FolderFiles(pair[0]), FolderFiles(pair[1]), tmp_path / "out")
    found = read_certificate(FolderFiles(tmp_path / "out"))
    assert found == made
    merge(*pair, out="plain")
    assert read_certificate(FolderFiles(tmp_path / "plain")) is None


def test_unknown_mode_is_a_request_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A mode that there is not is refused with those that there are."""
    with pytest.raises(RequestError, match="fast"):
        merge_files(FolderFiles(pair[0]), FolderFiles(pair[1]), tmp_path / "out", mode="fast")  # type: ignore[arg-type]


def test_interrupted_merge_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C the same merge keeps the shard that was finished, and gives the certificate and bytes of one run."""
    base, adapter = make_base(tmp_path / "base"), make_adapter(tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = list(tensors)
    home = {name: f"model-0000{1 + names.index(name) // 3}-of-00002.safetensors" for name in names}
    for shard in set(home.values()):
        save_file({name: tensors[name] for name in names if home[name] == shard}, base / shard, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    whole = merge(base, adapter, out="whole")
    written: list[str] = []
    write = engine._Merger.write

    def stop_at_second(self: Any, name: str, work: Any) -> Any:
        if written and not resuming:
            raise KeyboardInterrupt
        written.append(name)
        return write(self, name, work)

    monkeypatch.setattr(engine._Merger, "write", stop_at_second)
    resuming = False
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter)
    assert not (tmp_path / "out").exists()
    resuming = True
    made = merge(base, adapter)
    assert len(written) == 2
    assert made == whole
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out", "whole"]


def test_added_tensor_is_in_the_last_shard_and_the_index(tmp_path: Path) -> None:
    """A head that a tied base lacks goes into the last file; the index names it and counts its bytes."""
    base = make_tied(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = list(tensors)
    home = {name: f"model-0000{1 + (at > 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for shard in set(home.values()):
        save_file({name: tensors[name] for name in names if home[name] == shard}, base / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 1, "kept": "yes"}, "weight_map": home}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    merge(base, make_adapter(tmp_path / "adapter", factors("lm_head", 10, 6)))
    out = tmp_path / "out"
    found = json.loads((out / "model.safetensors.index.json").read_text())
    assert found["weight_map"] == home | {"lm_head.weight": "model-00002-of-00002.safetensors"}
    assert found["metadata"] == {"total_size": sum(v.nbytes for v in tensors.values()) + 240, "kept": "yes"}
    after = load_file(out / "model-00002-of-00002.safetensors")
    wanted = apply_lora(
        tensors["model.embed_tokens.weight"], "F32", floats(2, 6, seed=9), floats(10, 2, seed=10), lora_scale(3, 2)
    )
    assert after["lm_head.weight"].tobytes() == wanted.tobytes()
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.row(26)
def test_both_sides_of_tied_embeddings(tmp_path: Path, equal: bool) -> None:
    """A tied pair that was saved whole stays one tensor while both are equal, and becomes two when they are not."""
    new = floats(10, 6, seed=8)
    saved = {f"{PREFIX}model.embed_tokens.weight": new, f"{PREFIX}lm_head.weight": new if equal else new + 1}
    merge(
        make_tied(tmp_path / "base"),
        make_adapter(tmp_path / "adapter", saved, modules_to_save=["lm_head", "embed_tokens"]),
    )
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(after["model.embed_tokens.weight"], new)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is equal
    assert ("lm_head.weight" in after) is not equal
    if not equal:
        assert np.array_equal(after["lm_head.weight"], new + 1)


def test_other_tokens_than_the_bases_are_said(tmp_path: Path) -> None:
    """An output layer of more tokens than the base has is refused with how to make the base that it needs."""
    saved = {f"{PREFIX}lm_head.weight": floats(12, 6)} | factors(f"{LAYER}up", 8, 6)
    error = refusal(tmp_path, adapter={"tensors": saved, "modules_to_save": ["lm_head"]})
    assert error.code == "bad_shape"
    assert "resize_token_embeddings(12)" in str(error.hint)


def make_tied(folder: Path) -> Path:
    """A Llama of one layer whose output layer is its input embedding, as transformers would save it."""
    sizes = {
        "hidden_size": 6,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 10,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (6, 6),
        "self_attn.k_proj": (6, 6),
        "self_attn.v_proj": (6, 6),
        "self_attn.o_proj": (6, 6),
    }
    shapes |= {"mlp.gate_proj": (8, 6), "mlp.up_proj": (8, 6), "mlp.down_proj": (6, 8)}
    shapes |= {"input_layernorm": (6,), "post_attention_layernorm": (6,)}
    tensors = {f"{LAYER}{name}.weight": floats(*shape, seed=at) for at, (name, shape) in enumerate(shapes.items())}
    tensors |= {"model.embed_tokens.weight": floats(10, 6, seed=1), "model.norm.weight": floats(6, seed=4)}
    return make_base(folder, tensors, tie_word_embeddings=True, **sizes)
