"""Heads that an adapter brings and its base has not: the merged folder is of the class that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapter_bases as bases
from adapter_factories import lora
from modelyard.errors import ModelError
from modelyard.weights.files import FolderFiles
from modelyard.weights.merge import merge_lora

if TYPE_CHECKING:
    from adapter_factories import Made

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def classifier(labels: int) -> Any:
    """A Llama that classifies."""
    import transformers

    values: dict[str, Any] = {**bases._TEXT, "intermediate_size": 24, "num_labels": labels}
    torch.manual_seed(3)
    model: Any = transformers.LlamaForSequenceClassification
    return model(transformers.LlamaConfig(**values)).eval()


def without_head(made: Made, architecture: str, *lost: str, **config: Any) -> None:
    """Make the base one of another class: without the tensors that begin with `lost`."""
    path = made.base / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith(lost)}
    save_file(tensors, path, {"format": "pt"})
    settings = json.loads((made.base / "config.json").read_text("utf-8"))
    kept = {key: value for key, value in settings.items() if key not in {"id2label", "label2id"}}
    (made.base / "config.json").write_text(json.dumps({**kept, "architectures": [architecture], **config}), "utf-8")


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_on_a_language_model(labels: int, tmp_path: Path) -> None:
    """An adapter of SEQ_CLS on a base without a head: the folder loads as that class, with that head and as many labels."""
    import transformers

    made = lora(lambda: classifier(labels), target_modules=["q_proj"], task_type="SEQ_CLS")(tmp_path)
    with torch.no_grad():
        attached = made.attach()(**made.inputs()).logits
    without_head(made, "LlamaForCausalLM", "score.", tie_word_embeddings=True)
    certificate = merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert certificate.matched["added"] == 1
    merged: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(merged).__name__ == "LlamaForSequenceClassification"
    assert merged.config.num_labels == labels
    with torch.no_grad():
        whole = merged.eval()(**made.inputs()).logits
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["architectures"] == [type(merged).__name__]


def test_a_head_of_a_picture_model(tmp_path: Path) -> None:
    """Without a task the adapter's own class says it; weights and bias of the head come along, by the names on disk too."""
    made = lora(bases.vit, target_modules=["q_proj"], modules_to_save=["classifier"])(tmp_path)
    with torch.no_grad():
        attached = made.attach()(**made.inputs()).logits
    without_head(made, "ViTModel", "classifier.")
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    with torch.no_grad():
        whole = made.load(tmp_path / "out")(**made.inputs()).logits
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())


def test_a_head_that_needs_more_is_refused(tmp_path: Path) -> None:
    """A class that would start with tensors drawn at random computes another function than the trained one: refused, named."""
    made = lora(bases.bert_classifier, target_modules=["query"], task_type="SEQ_CLS")(tmp_path)
    without_head(made, "BertForMaskedLM", "classifier.", "bert.pooler.")
    with pytest.raises(ModelError) as caught:
        merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert caught.value.code == "incomplete_head"
    assert "bert.pooler.dense.bias" in caught.value.message


def test_a_module_that_no_class_has_is_refused(tmp_path: Path) -> None:
    """A tensor saved whole that neither the base nor the adapter's class has is no match."""
    made = lora(bases.llama, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")(tmp_path)
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.odd.norm.weight": torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert caught.value.code == "no_match"
    assert "odd.norm.weight" in caught.value.message
