"""The exact merge against PEFT's own, element by element, within the bound that the design states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modelyard.weights import FolderFiles, MergeCertificate, merge_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
]
ULP = {torch.float32: (24, -126), torch.float16: (11, -14), torch.bfloat16: (8, -126)}


def llama(dtype: torch.dtype) -> Any:
    """A tiny Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    return model.to(dtype)


def gpt2(dtype: torch.dtype) -> Any:
    """A tiny GPT-2, whose linear layers are stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32))
    return model.to(dtype)


def adapt(model: Any, folder: Path, **config: Any) -> None:
    """Write the model to `folder`/base and a random LoRA of it to `folder`/adapter."""
    from peft import LoraConfig, get_peft_model

    model.save_pretrained(folder / "base")
    options = {"r": 5, "lora_alpha": 7, "init_lora_weights": False, "task_type": "CAUSAL_LM", **config}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(str(folder / "adapter"))


def merge(folder: Path) -> MergeCertificate:
    """Our merge of `folder`/base and `folder`/adapter into `folder`/out."""
    return merge_lora(FolderFiles(folder / "base"), FolderFiles(folder / "adapter"), folder / "out")


def peft_merge(folder: Path, kind: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What PEFT's default path makes of it, by the names on disk."""
    from peft import PeftModel

    base = kind.from_pretrained(folder / "base", dtype=dtype)
    PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload().save_pretrained(folder / "peft")
    return dict(load_file(folder / "peft" / "model.safetensors"))


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance between neighbouring numbers of `dtype` at each magnitude, in float64."""
    precision, least = ULP[dtype]
    exponent = torch.frexp(values.double().abs()).exponent.double() - 1
    exponent[values == 0] = least
    return torch.exp2(exponent.clamp(min=least) - (precision - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (llama, {"target_modules": "all-linear"}),
        (llama, {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"up_proj": 3}}),
        (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ],
    ids=["llama", "llama-rslora", "gpt2"],
)
def test_within_the_bound_of_peft(tmp_path: Path, make: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    """|exact - peft| <= ulp(max(|W|, |result|)) + 2 r 2^-24 sum_k |s B A| for every element of every tensor."""
    torch.manual_seed(0)
    model = make(dtype)
    adapt(model, tmp_path, **options)
    certificate = merge(tmp_path)
    theirs, ours = peft_merge(tmp_path, type(model), dtype), load_file(tmp_path / "out" / "model.safetensors")
    before, adapter = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("base", "adapter"))
    assert ours.keys() == theirs.keys() == before.keys()
    sites = {change.tensor: change.site for change in certificate.changes}
    for name, exact in ours.items():
        site = sites.get(name)
        if site is None:
            assert torch.equal(exact, theirs[name])
            continue
        a, b = (adapter[key].double() for key in (site.a, site.b))
        terms = (abs(float(site.scale)) * b.abs()) @ a.abs()
        bound = ulp(torch.maximum(before[name].abs(), exact.abs()), dtype)
        bound += 2 * site.rank * 2.0**-24 * (terms.T if site.transposed else terms)
        assert bool(((exact.double() - theirs[name].double()).abs() <= bound).all())
        assert not torch.equal(exact, before[name])


def test_modules_to_save_as_peft_writes_them(tmp_path: Path) -> None:
    """An output layer saved whole, as PEFT writes it, is in the merged model as PEFT merges it."""
    torch.manual_seed(0)
    model = llama(torch.bfloat16)
    adapt(model, tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    saved = tmp_path / "adapter" / "adapter_model.safetensors"
    key = "base_model.model.lm_head.weight"
    assert key in load_file(saved)
    certificate = merge(tmp_path)
    theirs, ours = peft_merge(tmp_path, type(model), torch.bfloat16), load_file(tmp_path / "out" / "model.safetensors")
    assert certificate.replaced == 1
    assert torch.equal(ours["lm_head.weight"], theirs["lm_head.weight"])


def test_merged_model_answers_like_the_adapted_one(tmp_path: Path) -> None:
    """The merged model's logits are those of the base with its adapter attached."""
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    adapt(gpt2(torch.float32), tmp_path, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    merge(tmp_path)
    tokens = torch.arange(12)[None]
    adapted: Any = PeftModel.from_pretrained(
        GPT2LMHeadModel.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    )
    merged: Any = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        wanted, found = adapted.eval()(tokens).logits, merged.eval()(tokens).logits
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_known_transposed_layers_are_transformers_own() -> None:
    """Every Conv1D in transformers has a name that the merge knows, and its model type is in the table."""
    import transformers

    from modelyard.weights.merge import adapter

    models = Path(transformers.__file__).parent / "models"
    named, types = set(), set()
    for source in models.glob("*/modeling_*.py"):
        if source.parent.name == "convbert":
            continue  # has a Conv1D of its own, which is a convolution
        lines = [line for line in source.read_text("utf-8").splitlines() if " = Conv1D(" in line]
        named |= {line.split("=")[0].strip().removeprefix("self.") for line in lines}
        types |= {source.parent.name} if lines else set()
    assert named <= adapter._CONV1D_NAMES
    folders = {"openai-gpt": "openai", "clvp_decoder": "clvp"}
    assert types == {folders.get(name, name) for name in adapter._CONV1D_TYPES}


def test_config_keys_are_all_known(tmp_path: Path) -> None:
    """Every option that this PEFT writes for a LoRA is known here, by what it does or by why it is refused."""
    from peft import LoraConfig

    from modelyard.weights.merge import adapter

    LoraConfig(task_type="CAUSAL_LM", target_modules=["q"]).save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written.keys() - adapter._NEUTRAL - adapter._WHY_OPTION.keys() == set()
    assert np.isfinite(written["lora_alpha"])
