"""Where a plan finds a base's tensors: the architecture's own mapping, raw names on disk, and names that are nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapter_bases as bases
from adapter_factories import lora
from adapter_kinds import KINDS
from modelyard.errors import ModelError
from modelyard.weights.files import FolderFiles
from modelyard.weights.merge import merge_lora
from modelyard.weights.merge.plan.mapped import Mapped

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def nomic_bert() -> Any:
    """A NomicBert, whose q, k and v are one tensor on disk."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    torch.manual_seed(3)
    model: Any = transformers.NomicBertForSequenceClassification
    return model(transformers.NomicBertConfig(**sizes, vocab_size=bases.VOCABULARY)).eval()


def dinov2() -> Any:
    """A DINOv2 of the gated kind, whose gate and up are one tensor on disk."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Dinov2Model(
        transformers.Dinov2Config(**sizes, use_swiglu_ffn=True, image_size=16, patch_size=8)
    )


def rebuilt(mapped: Mapped, disk: dict[str, torch.Tensor], name: str, like: torch.Tensor) -> torch.Tensor:
    """A model's tensor put together from its pieces on disk."""
    made = torch.full_like(like, float("nan"))
    for piece in mapped.pieces(name):
        stored = disk[piece.tensor].transpose(-1, -2) if piece.turned else disk[piece.tensor]
        target = made if piece.expert is None else made[piece.expert]
        if piece.rows is None:
            target[...] = stored
        else:
            target[list(piece.rows)] = stored[piece.first : piece.first + len(piece.rows)]
    return made


@pytest.mark.parametrize(
    ("make", "cut"),
    [
        (nomic_bert, 3),
        (dinov2, 4),
        (bases.qwen3_moe, 24),
        (bases.mixtral, 24),
        (bases.gpt_oss, 0),
        (bases.llava, 0),
        (bases.vit, 0),
        (bases.qwen2_vl, 0),
    ],
)
def test_pieces_are_what_the_library_loads(make: Any, cut: int, tmp_path: Path) -> None:
    """Every tensor of a model is its pieces on disk, row by row, as transformers saved them."""
    model = make()
    model.save_pretrained(tmp_path)
    disk = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    mapped = Mapped(config, {name: tuple(tensor.shape) for name, tensor in disk.items()})
    state = {name: value for name, value in model.state_dict().items() if name in mapped.names}
    assert len(state) >= len(disk) - cut
    for name, value in state.items():
        assert torch.equal(rebuilt(mapped, disk, name, value), value), name
    assert sum(piece.rows is not None for name in state for piece in mapped.pieces(name)) == cut


def test_permuted_rows_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that loading permutes for rotary embeddings are found where they lie, in a fused tensor too."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Chunk, PermuteForRope, WeightConverter

    parts = [f"self_attn.{each}_proj.weight" for each in "qkv"]
    operations = [Chunk(dim=0), PermuteForRope(permute_layer_names=["q_proj", "k_proj"])]
    converter = WeightConverter("self_attn.qkv.weight", list(parts), operations)
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [converter])
    model = bases.llama(num_key_value_heads=2)
    fused = torch.randn(48, 16)
    wanted: Any = {"self_attn.qkv.weight": fused}
    for operation in operations:
        wanted = operation.convert(
            wanted,
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            config=model.config,
        )
    name = "model.layers.0.self_attn.qkv.weight"
    mapped = Mapped({**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}, {name: (48, 16)})
    for part in parts:
        like = torch.empty(16, 16)
        assert torch.equal(rebuilt(mapped, {name: fused}, f"model.layers.0.{part}", like), wanted[part])
    (piece,) = mapped.pieces(f"model.layers.0.{parts[0]}")
    assert isinstance(piece.rows, tuple)


def test_modules_of_a_fused_tensor_merge_into_their_rows(tmp_path: Path) -> None:
    """A LoRA on q and v of a model that stores q, k and v as one: the attached function, and k's rows as they were."""
    made = lora(nomic_bert, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")(tmp_path)
    certificate = merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    ids = torch.arange(9)[None] + 3
    with torch.no_grad():
        attached, whole = (model(ids).logits for model in (made.attach(), made.load(tmp_path / "out")))
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())
    before, after = (load_file(folder / "model.safetensors") for folder in (made.base, tmp_path / "out"))
    (name,) = [name for name in before if "Wqkv" in name]
    changed = (before[name] != after[name]).any(dim=1)
    assert changed.tolist() == [True] * 16 + [False] * 16 + [True] * 16
    (entry,) = [change for change in certificate.changes if change["tensor"] == name]
    assert entry["parts"] == 2


def test_adapters_of_transformers_4_merge_by_the_names_on_disk(tmp_path: Path) -> None:
    """An adapter with the names of transformers 4, which PEFT no longer loads, gives the bits of the one with those of 5."""
    old = KINDS["linear-vit-of-transformers-4"](tmp_path / "old")
    new = lora(bases.vit, target_modules=["q_proj", "v_proj"])(tmp_path / "new")
    assert [name for name in load_file(old.adapter / "adapter_model.safetensors") if ".encoder.layer." in name]
    for made in (old, new):
        merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), made.base.parent / "out")
    one, other = (tmp_path / kind / "out" / "model.safetensors" for kind in ("old", "new"))
    assert one.read_bytes() == other.read_bytes()


def test_experts_may_lie_in_different_shards(tmp_path: Path) -> None:
    """Experts of one layer spread over shards get the bits that they get in one file."""
    made = KINDS["experts-qwen3-moe-bfloat16"](tmp_path)
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "whole")
    tensors = load_file(made.base / "model.safetensors")
    home = {name: f"model-{1 + at % 3:05}-of-00003.safetensors" for at, name in enumerate(tensors)}
    for shard in set(home.values()):
        save_file({name: tensors[name] for name in tensors if home[name] == shard}, made.base / shard, {"format": "pt"})
    (made.base / "model.safetensors").unlink()
    (made.base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "spread")
    found: dict[str, torch.Tensor] = {}
    for shard in set(home.values()):
        found |= load_file(tmp_path / "spread" / shard)
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(found[name], value), name


def test_one_targeted_parameter_of_two(tmp_path: Path) -> None:
    """Where only `down_proj` of the experts is targeted, the key has no nesting and still means that parameter."""
    options: dict[str, Any] = {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.down_proj"],
        "task_type": "CAUSAL_LM",
    }
    made = lora(bases.qwen3_moe, rank_pattern={"experts.down_proj": 2}, **options)(tmp_path)
    certificate = merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    experts = [change["tensor"] for change in certificate.changes if change["kind"] == "expert"]
    assert len(experts) == 8
    assert all("down_proj" in name for name in experts)
    with torch.no_grad():
        attached, whole = (model(**made.inputs()).logits for model in (made.attach(), made.load(tmp_path / "out")))
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())


@pytest.mark.row(25)
def test_partial_match_names_what_is_near(tmp_path: Path) -> None:
    """A module that the base has not is an error with its name and the nearest that the base has."""
    made = KINDS["rslora"](tmp_path)
    path = made.adapter / "adapter_model.safetensors"
    tensors = {name.replace("layers.1.mlp.up_proj", "layers.1.mlp.upp_proj"): v for name, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert caught.value.code == "no_match"
    assert "only 13 of its 14" in caught.value.message
    assert caught.value.details["near"] == ["model.layers.1.mlp.up_proj.weight"]


def test_plain_names_import_no_library(tmp_path: Path) -> None:
    """Merging an adapter whose names are those on disk imports neither torch nor transformers."""
    import subprocess
    import sys

    made = KINDS["patterns"](tmp_path)
    code = (
        "import sys; from pathlib import Path; from modelyard.weights.files import FolderFiles;"
        "from modelyard.weights.merge import merge; folder = Path(sys.argv[1]);"
        "merge(FolderFiles(folder / 'base'), FolderFiles(folder / 'adapter'), folder / 'out');"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.base.parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
