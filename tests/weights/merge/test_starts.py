"""Starts that rewrote the base: judged by PEFT's own reload, which repeats them, and refused where nothing can."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from adapter_kinds import KINDS
from modelyard.errors import ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.merge import merge
from modelyard.weights.merge.starts import REPEATED, WHY_NOT, repeat_start

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("name", ["start-pissa", "start-olora", "start-pissa-conv1d"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")
def test_a_repeated_start_computes_what_the_adapter_computes(tmp_path: Path, name: str) -> None:
    """Merged, the model computes what PEFT computes with the adapter attached, and adding it to the plain base would not."""
    made = KINDS[name](tmp_path)
    merge(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out", mode="peft")
    wanted, found = made.run(made.attach()), made.run(made.load(tmp_path / "out"))
    assert float((wanted - found).abs().max()) <= 1e-4 * float(wanted.abs().max())
    path = made.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"init_lora_weights": True}), "utf-8")
    merge(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "plain", mode="peft")
    plain = made.run(made.load(tmp_path / "plain"))
    assert float((wanted - plain).abs().max()) > 0.05 * float(wanted.abs().max())


def test_a_start_is_not_merged_exactly(tmp_path: Path) -> None:
    """Mode `exact` has no decomposition with the same bits everywhere, and names the mode that has it here."""
    made = KINDS["start-pissa"](tmp_path)
    with pytest.raises(ModelError, match="pissa") as caught:
        merge(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert caught.value.code == "unsupported_start"
    assert "--mode peft" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("start", "why", "hint"),
    [
        ("pissa_niter_16", "randomised", "path_initial_model_for_weight_conversion"),
        ("corda", "covariances", "path_initial_model_for_weight_conversion"),
        ("lora_ga", "gradients", "path_initial_model_for_weight_conversion"),
        ("loftq", "GPU", "--base BASE"),
        ("something_new", "not known here", "path_initial_model_for_weight_conversion"),
    ],
)
def test_what_cannot_be_repeated_is_refused(start: str, why: str, hint: str) -> None:
    """A start that is random or needs what the adapter has not is refused with its reason and the way out."""
    with pytest.raises(ModelError, match=why) as caught:
        repeat_start(start, "mine")
    assert caught.value.code == "unsupported_start"
    assert hint in str(caught.value.hint)


def test_a_converted_adapter_merges(tmp_path: Path) -> None:
    """What the hint says to do works: converted by PEFT, a PiSSA adapter with a random start merges exactly into the plain base."""
    from peft import LoraConfig, get_peft_model

    import adapter_bases

    model = adapter_bases.llama()
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    start: Any = "pissa_niter_2"
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], init_lora_weights=start, task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    # Its configuration must say `true` before the start is saved, or loading the start would draw another one.
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(str(tmp_path / "start"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.2)
    ids = adapter_bases.inputs_of("LlamaForCausalLM")
    with torch.no_grad():
        wanted = adapted.eval()(**ids).logits
    adapted.peft_config["default"].init_lora_weights = start
    adapted.save_pretrained(str(tmp_path / "adapter"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").popitem()[1].shape.count(6) == 1
    merge(FolderFiles(tmp_path / "base"), FolderFiles(tmp_path / "adapter"), tmp_path / "out")
    merged = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = merged(**ids).logits
    assert float((wanted - found).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_every_start_of_this_peft_is_known() -> None:
    """Each start that PEFT documents is neutral, repeated or refused by its own reason: a new one would show here."""
    from peft import LoraConfig

    from modelyard.weights.merge.plan.options import _NEUTRAL_START

    described = str(LoraConfig.__dataclass_fields__["init_lora_weights"].metadata["help"])
    named = set(re.findall(r"'([a-z_]+?)(?:_\[[^']*)?'", described)) | {"lora_ga"}
    assert {"pissa", "pissa_niter", "eva", "loftq"} <= named
    assert named <= _NEUTRAL_START | set(REPEATED) | WHY_NOT.keys()
