"""Tied embeddings that are not called `lm_head` and `embed_tokens`, and what else the same flag ties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import adapter_bases as bases
from modelyard.errors import ModelError
from modelyard.weights.files import FolderFiles
from modelyard.weights.merge import merge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
IDS = torch.arange(18).reshape(2, 9) % 80 + 2
SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 1, "initializer_range": 0.2}
ATTENTION: dict[str, Any] = {**SIZES, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}


def mamba() -> Any:
    """A Mamba, whose input embedding is `backbone.embeddings`."""
    return bases._make("MambaForCausalLM", "MambaConfig", **SIZES, state_size=4)


def roberta() -> Any:
    """A RoBERTa with its masked language model's head, whose biases (`lm_head.bias`, `lm_head.decoder.bias`) are one and not zero."""
    made = bases._make("RobertaForMaskedLM", "RobertaConfig", **ATTENTION)
    torch.nn.init.normal_(made.lm_head.bias)
    return made


def write(folder: Path, make: Callable[[], Any], **options: Any) -> torch.Tensor:
    """Write `base` and an adapter of random values; the logits with it attached."""
    from peft import LoraConfig, get_peft_model

    model = make()
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(type(model).from_pretrained(folder / "base"), LoraConfig(r=3, lora_alpha=5, **options))
    torch.manual_seed(11)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder / "adapter"))
    with torch.no_grad():
        return torch.as_tensor(adapted.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("make", "options", "added"),
    [
        (mamba, {"target_modules": ["embeddings", "in_proj"]}, {"lm_head.weight"}),
        (roberta, {"target_modules": ["query", "decoder"]}, {"lm_head.decoder.weight", "lm_head.decoder.bias"}),
        (
            roberta,
            {"target_modules": ["query"], "modules_to_save": ["lm_head"]},
            {"lm_head.decoder.weight", "lm_head.decoder.bias"},
        ),
    ],
)
def test_parted_pairs_compute_what_is_attached(
    make: Callable[[], Any], options: dict[str, Any], added: set[str], tmp_path: Path
) -> None:
    """Whatever the two sides are called, a changed one is a tensor of its own, and so is all that the flag tied beside them."""
    attached = write(tmp_path, make, **options)
    merge(FolderFiles(tmp_path / "base"), FolderFiles(tmp_path / "adapter"), tmp_path / "out")
    names = [load_file(tmp_path / folder / "model.safetensors").keys() for folder in ("out", "base")]
    assert names[0] - names[1] == added
    model, report = type(make()).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS).logits
    assert torch.allclose(logits, attached, rtol=0, atol=1e-4 * float(attached.abs().max()))


def test_peft_mode_refuses_pairs_of_other_names(tmp_path: Path) -> None:
    """PEFT merges a change of RoBERTa's `decoder` into the shared embedding: refused, with the mode that is right."""
    write(tmp_path, roberta, target_modules=["query", "decoder"])
    with pytest.raises(ModelError, match=r"lm_head\.decoder\.weight") as caught:
        merge(FolderFiles(tmp_path / "base"), FolderFiles(tmp_path / "adapter"), tmp_path / "out", mode="peft")
    assert caught.value.code == "tied_embeddings"
    assert "exact" in str(caught.value.hint)
