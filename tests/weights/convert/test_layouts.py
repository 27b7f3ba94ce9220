"""A model's tensors take the names of files or of modules, there and back with the same bits, as transformers itself has them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelyard.errors import InputError, ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.convert import layouts, plan_rewrite, rewrite
from modelyard.weights.untrained import Untrained, find_untrained, mark

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.weights.checkpoint import Checkpoint

TEXT: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16, "patch_size": 8,
}  # fmt: skip
BERT = {key: TEXT[key] for key in TEXT if key not in {"num_key_value_heads", "bos_token_id", "eos_token_id"}}


def mixtral() -> Any:
    """Experts one by one on disk, two stacks in memory."""
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**TEXT, num_local_experts=3))


def qwen3_moe() -> Any:
    """The same under other names."""
    more: dict[str, Any] = {"num_experts": 3, "moe_intermediate_size": 8, "head_dim": 8, "num_experts_per_tok": 2}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**TEXT, **more))


def qwen3_vl_moe() -> Any:
    """Experts that the loader turns unless they are so already, and a vision tower."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    experts = {"num_experts": 3, "moe_intermediate_size": 8, "head_dim": 8, "num_experts_per_tok": 2}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 1,
        "out_hidden_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    }  # fmt: skip
    config = transformers.Qwen3VLMoeConfig(text_config=TEXT | experts | {"rope_parameters": rope}, vision_config=vision)
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def vit() -> Any:
    """Names alone."""
    config = transformers.ViTConfig(**VISION)
    config.num_labels = 3
    return transformers.ViTForImageClassification(config)


def dinov2() -> Any:
    """One fused projection on disk, two in memory."""
    return transformers.Dinov2Model(transformers.Dinov2Config(**VISION, use_swiglu_ffn=True))


def llava() -> Any:
    """Prefixes of parts."""
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=40,
    )
    return transformers.LlavaForConditionalGeneration(config)


def bert() -> Any:
    """Tied embeddings; the same names in both layouts."""
    return transformers.BertForMaskedLM(transformers.BertConfig(**BERT))


MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    # What makes it, and one name on disk to the name of the module that it becomes (a part of).
    "mixtral": (mixtral, {"model.layers.0.block_sparse_moe.experts.0.w1.weight": "model.layers.0.mlp.experts.gate_up_proj"}),
    "qwen3_moe": (qwen3_moe, {"model.layers.0.mlp.experts.0.up_proj.weight": "model.layers.0.mlp.experts.gate_up_proj"}),
    "qwen3_vl_moe": (qwen3_vl_moe, {"model.language_model.layers.0.mlp.experts.down_proj": "model.language_model.layers.0.mlp.experts.down_proj"}),
    "vit": (vit, {"vit.encoder.layer.0.attention.attention.query.weight": "vit.layers.0.attention.q_proj.weight"}),
    "dinov2": (dinov2, {"encoder.layer.0.mlp.weights_in.weight": ""}),
    "llava": (llava, {"language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight"}),
    "bert": (bert, {"bert.embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight"}),
}  # fmt: skip


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same names and bits."""
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(tmp_path: Path, kind: str) -> None:
    """The module's layout is `state_dict()`, transformers loads it as it is, and the way back gives the bits that its own saver wrote."""
    torch.manual_seed(0)
    make, examples = MODELS[kind]
    model = make().eval().to(torch.bfloat16)
    disk, module, back = tmp_path / "disk", tmp_path / "module", tmp_path / "back"
    model.save_pretrained(disk, max_shard_size="9KB")  # experts and their kind lie in several files
    state = model.state_dict()
    made = rewrite(FolderFiles(disk), module, names="module")
    found = load(module)
    assert_same(found, {name: state[name] for name in found})
    assert state.keys() - found.keys() <= model.all_tied_weights_keys.keys()
    assert (sum(spec.startswith("rename") for spec in operations(made)), sum(not spec.startswith("rename") for spec in operations(made))) == (
        made.matched["renamed"], made.matched["rebuilt"],
    )  # fmt: skip
    for old, new in examples.items():
        assert old in load(disk)
        assert not new or new in found
    again = type(model).from_pretrained(module, dtype=torch.bfloat16)
    assert_same(again.state_dict(), state)
    rewrite(FolderFiles(module), back, names="disk")
    assert_same(load(back), load(disk))
    assert rewrite(FolderFiles(disk), tmp_path / "same", names="disk").matched["rebuilt"] == 0


def operations(made: Any) -> list[str]:
    """What the certificate says of each changed tensor."""
    return [change["operation"] for change in made.changes]


def test_plan_is_what_is_done(tmp_path: Path) -> None:
    """Names, dtypes, shapes and files of the plan are those of the result, with joined tensors that are cast as well."""
    mixtral().save_pretrained(tmp_path / "disk")
    asked: dict[str, Any] = {"names": "module", "dtypes": {"*experts*": "float16"}, "shard_size": "12KB"}
    plan = plan_rewrite(FolderFiles(tmp_path / "disk"), **asked)
    made = rewrite(FolderFiles(tmp_path / "disk"), tmp_path / "out", **asked)
    found = {
        name: (path.name, tuple(tensor.shape), tensor.dtype)
        for path in (tmp_path / "out").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    kinds = {"F16": torch.float16, "F32": torch.float32}
    assert found == {each.name: (each.file, each.shape, kinds[each.after]) for each in plan}
    joined = {each.name: each for each in plan}["model.layers.1.mlp.experts.gate_up_proj"]
    assert (joined.operation, joined.before, joined.after, joined.size) == (
        "join + cast/1",
        "F32",
        "F16",
        3 * 48 * 16 * 2,
    )
    assert len(joined.sources) == 6
    assert [change for change in made.changes if change["name"] == joined.name] == [joined.to_dict()]
    expected = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "disk").state_dict()[joined.name]
    assert torch.equal(load(tmp_path / "out")[joined.name], expected.half())


def test_old_names_become_todays(tmp_path: Path) -> None:
    """A checkpoint with `gamma` and `beta`, and without its prefix, takes the names that transformers gives it; what it has no place for stays."""
    model = bert()
    model.save_pretrained(tmp_path / "new")
    new = load(tmp_path / "new")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in new.items()
    }
    old = {name.removeprefix("bert."): tensor for name, tensor in old.items()} | {"stray.weight": torch.ones(3)}
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    (tmp_path / "old" / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    for names in ("module", "disk"):
        made = rewrite(FolderFiles(tmp_path / "old"), tmp_path / names, names=names)
        assert_same(load(tmp_path / names), new | {"stray.weight": torch.ones(3)})
        assert "stray.weight" in made.warnings[0]


def test_prefixes_find_their_way_back(tmp_path: Path) -> None:
    """A prefix that some checkpoints have and others have not is made again only for one that had it."""
    config = transformers.CLIPTextConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "plain")
    plain = load(tmp_path / "plain")
    prefixed = {f"text_model.{name}": tensor for name, tensor in plain.items()}
    (tmp_path / "prefixed").mkdir()
    save_file(prefixed, tmp_path / "prefixed" / "model.safetensors", {"format": "pt"})
    (tmp_path / "prefixed" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    for name, wanted in (("plain", plain), ("prefixed", prefixed)):
        rewrite(FolderFiles(tmp_path / name), tmp_path / f"{name}-module", names="module")
        assert_same(load(tmp_path / f"{name}-module"), plain)
        rewrite(FolderFiles(tmp_path / f"{name}-module"), tmp_path / f"{name}-back", names="disk")
        assert_same(load(tmp_path / f"{name}-back"), wanted)


def test_marks_follow_their_tensors(tmp_path: Path) -> None:
    """The mark of an untrained head names what the head is called now, and is still true."""
    vit().save_pretrained(tmp_path / "disk")
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    mark(tmp_path / "disk", Untrained("head", 0, (name,)))
    rewrite(FolderFiles(tmp_path / "disk"), tmp_path / "module", names="module")
    found = find_untrained(FolderFiles(tmp_path / "module"))
    assert found is not None
    assert found.tensors == ("vit.layers.0.attention.q_proj.weight",)


def test_a_conversion_that_changes_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should transformers' operation do more than move elements, nothing is written."""
    from transformers.core_model_loading import Concatenate

    mixtral().save_pretrained(tmp_path / "disk")
    join = Concatenate.convert
    monkeypatch.setattr(
        Concatenate, "convert", lambda *given, **named: {k: v + 1 for k, v in join(*given, **named).items()}
    )
    with pytest.raises(ModelError, match="more than places") as caught:
        rewrite(FolderFiles(tmp_path / "disk"), tmp_path / "out", names="module")
    assert caught.value.code == "no_layout"
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    """An expert of another dtype, an unknown layout, an architecture that nobody knows, and an adapter: each with its code."""
    mixtral().save_pretrained(tmp_path / "disk")
    files, path = FolderFiles(tmp_path / "disk"), tmp_path / "disk" / "model.safetensors"
    with pytest.raises(InputError) as caught:
        plan_rewrite(files, names="modules")
    assert caught.value.code == "bad_names"
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    tensors = load(tmp_path / "disk")
    save_file(tensors | {name: tensors[name].half()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="several dtypes") as refused:
        plan_rewrite(files, names="module")
    assert refused.value.code == "no_layout"
    config = json.loads((tmp_path / "disk" / "config.json").read_text())
    (tmp_path / "disk" / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(ModelError) as refused:
        plan_rewrite(files, names="disk")
    assert refused.value.code == "unknown_architecture"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError) as refused:
        plan_rewrite(FolderFiles(tmp_path / "adapter"), names="module")
    assert refused.value.code == "adapter_names"


def test_what_would_be_converted_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both layouts have one name for other elements, transformers would convert the module's once more: that is refused."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Transpose, WeightConverter

    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).save_pretrained(tmp_path / "disk")
    turned = [WeightConverter("self_attn.q_proj.weight", "self_attn.q_proj.weight", [Transpose(0, 1)])]
    known = conversion_mapping.get_model_conversion_mapping
    monkeypatch.setattr(
        conversion_mapping, "get_model_conversion_mapping", lambda *given, **named: turned + known(*given, **named)
    )
    with pytest.raises(ModelError, match="once more") as caught:
        plan_rewrite(FolderFiles(tmp_path / "disk"), names="module")
    assert caught.value.code == "no_layout"


def test_groups_are_computed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group is read once, also where a file ends within it, and only while it is written."""
    qwen3_moe().save_pretrained(tmp_path / "disk")
    rewrite(FolderFiles(tmp_path / "disk"), tmp_path / "module", names="module")
    read: list[str] = []
    compute = layouts.Group.compute

    def count(group: layouts.Group, weights: Checkpoint) -> Any:
        read.extend(group.sources)
        return compute(group, weights)

    monkeypatch.setattr(layouts.Group, "compute", count)
    made = rewrite(FolderFiles(tmp_path / "module"), tmp_path / "disk2", names="disk", shard_size=1000)
    assert len(made.outputs) > 20
    assert sorted(read) == sorted(set(read))
    assert_same(load(tmp_path / "disk2"), load(tmp_path / "disk"))
