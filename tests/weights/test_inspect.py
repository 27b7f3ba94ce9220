"""What `inspect` says of models, adapters and the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.errors import ModelError
from modelyard.weights import FolderFiles
from modelyard.weights.inspect import Inspection, inspect, task_of


def look(folder: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Inspection:
    """Inspect a folder with this config.json and these tensors."""
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if tensors:
        save_file({name.replace("__", "."): value for name, value in tensors.items()}, folder / "model.safetensors")
    return inspect(FolderFiles(folder))


def test_model(tmp_path: Path) -> None:
    """A model's architecture, task, elements, dtypes and bytes come from its config and headers."""
    seen = look(
        tmp_path,
        {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
        a=np.zeros((2, 3), np.float16),
        b=np.zeros(4, np.int64),
    )
    assert (seen.kind, seen.architecture, seen.task) == ("model", "LlamaForCausalLM", "text-generation")
    assert (seen.parameters, seen.dtypes, seen.bytes) == (10, {"F16": 6, "I64": 4}, 44)
    assert not seen.tied
    assert json.loads(json.dumps(seen.to_dict()))["kind"] == "model"


@pytest.mark.parametrize(
    ("said", "head", "tied"), [(True, False, True), (False, False, False), (None, False, True), (None, True, False)]
)
def test_tied_embeddings(tmp_path: Path, said: bool | None, head: bool, tied: bool) -> None:
    """The configuration says whether embeddings are tied; where it does not, a missing output layer does."""
    config: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"]}
    if said is not None:
        config["tie_word_embeddings"] = said
    tensors = {"wte__weight": np.zeros(1)} | ({"lm_head__weight": np.zeros(1)} if head else {})
    assert look(tmp_path, config, **tensors).tied is tied


def test_adapter(tmp_path: Path) -> None:
    """An adapter has its PEFT kind, its task and the base it names; only its own weights count."""
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"})
    )
    assert look(tmp_path).kind == "none"
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "adapter_model.safetensors")
    seen = look(tmp_path)
    assert (seen.kind, seen.architecture, seen.task) == ("adapter", "LORA", "text-generation")
    assert (seen.base_model, seen.parameters) == ("org/base", 3)


def test_tokenizer_alone(tmp_path: Path) -> None:
    """A folder with a tokenizer and nothing else is a tokenizer."""
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    seen = look(tmp_path)
    assert (seen.kind, seen.chat_template) == ("tokenizer", True)


def test_chat_template_in_its_own_file(tmp_path: Path) -> None:
    """A chat template is found beside the tokenizer too."""
    assert not look(tmp_path, {}, a=np.zeros(1)).chat_template
    (tmp_path / "chat_template.jinja").write_text("x")
    assert look(tmp_path).chat_template


def test_quantization(tmp_path: Path) -> None:
    """The method of quantized weights is named."""
    assert look(tmp_path, {"quantization_config": {"quant_method": "gptq"}}, a=np.zeros(1)).quantization == "gptq"


def test_broken_header_is_an_error(tmp_path: Path) -> None:
    """A broken weights file is an error and not a description."""
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError):
        look(tmp_path, {})


def test_tasks() -> None:
    """Tasks follow from the class's name, as the Hub calls them."""
    names = ["BertForSequenceClassification", "T5ForConditionalGeneration", "ViTForImageClassification", "Odd"]
    assert [task_of(name) for name in names] == [
        "text-classification",
        "text2text-generation",
        "image-classification",
        None,
    ]
