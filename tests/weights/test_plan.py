"""A plan is what the load then does, known from headers: class, bytes, casts, heads, and where everything goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import load
from modelyard.weights.loading.memory import free_bytes
from modelyard.weights.loading.plan import LoadPlan, build_meta, plan_load
from modelyard.weights.loading.quantization import footprint
from task_models import audio, multimodal, text, timeseries, vision
from tiny_models import make_llama, make_tokenizer, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

# PEFT 0.21 reads an attribute that transformers 5.23 renamed, when these tests make adapters.
pytestmark = [pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")]

SAMPLE = {
    "text-generation": text,
    "text-classification": text,
    "question-answering": text,
    "text2text-generation": text,
    "image-classification": vision,
    "semantic-segmentation": vision,
    "ctc": audio,
    "automatic-speech-recognition": audio,
    "image-text-to-text": multimodal,
    "time-series-forecasting": timeseries,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("task", list(SAMPLE))
def test_the_plan_is_what_happens(tmp_path: Path, task: str, dtype: str) -> None:
    """Bytes to the byte, the class, the casts and the heads; and the loaded model carries the same plan."""
    where = SAMPLE[task].MODELS[task](tmp_path / "model")
    plan = plan_load(where, task=task, dtype=dtype)
    model = load(where, task=task, dtype=dtype)
    assert model.plan == plan
    assert plan.total == footprint(model.model)
    assert plan.bytes == {"cpu": plan.total}
    assert plan.model_class == type(model.model).__name__
    assert plan.parameters == sum(tensor.numel() for tensor in model.model.parameters())
    assert {kinds: cast.tensors for kinds, cast in plan.casts.items()} == model.load_report.casts
    assert (plan.added, plan.dropped) == (model.load_report.added, model.load_report.dropped)
    assert plan.attention == model.config._attn_implementation


def test_a_head_that_the_task_adds_and_drops_is_told(folder: Path) -> None:
    """A classifier on a language model's weights: its own head is new, the other one is left out."""
    plan = plan_load(folder, task="text-classification", num_labels=3)
    assert (plan.model_class, plan.task) == ("LlamaForSequenceClassification", "text-classification")
    assert (plan.added, plan.dropped) == (("score.weight",), ("lm_head.weight",))
    assert load(folder, task="text-classification", num_labels=3).plan == plan


def test_casts_are_counted_from_headers(folder: Path) -> None:
    """How many tensors, their bytes on disk and in memory; none where nothing is cast."""
    assert plan_load(folder).casts == {}
    cast = plan_load(folder, dtype="bfloat16").casts["float32 -> bfloat16"]
    size = sum(tensor.numel() * 4 for tensor in make_llama().state_dict().values())
    assert (cast.tensors, cast.bytes_before, cast.bytes_after) == (21, size, size // 2)


def test_tied_weights_count_once(tmp_path: Path) -> None:
    """Parameters and bytes are those of the one tensor that is there."""
    save_model(tmp_path, make_llama(tie_word_embeddings=True))
    plan = plan_load(tmp_path)
    model = load(tmp_path).model
    assert plan.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert plan.total == footprint(model)


def test_bytes_follow_the_device_map(folder: Path) -> None:
    """What is on the disk is told apart from what is in memory, and both are what is there."""
    places = {"": "cpu", "model.layers.1": "disk"}
    plan = plan_load(folder, device_map=places)
    model = load(folder, device_map=places)
    away = sum(tensor.numel() * 4 for tensor in model.model.parameters() if tensor.device.type == "meta")
    assert plan.bytes["disk"] == away
    assert plan.resident == footprint(model.model)
    assert plan.mapped
    assert plan.places["model.layers.1"] == "disk"


def test_adapters_are_part_of_the_plan(folder: Path, tmp_path: Path) -> None:
    """The base's class, and what base and factors take together."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    plan = plan_load(adapter)
    model = load(adapter)
    assert (plan.base, plan.adapters) == (str(folder), {"default": str(adapter)})
    assert plan.total == footprint(model.model)
    assert plan_load(folder, adapters={"fr": adapter}).total == plan.total


def test_a_huge_model_is_planned_without_reading_it(tmp_path: Path) -> None:
    """A 7B Llama of which only the header exists on the disk: every byte is accounted for, and none is allocated."""
    import psutil  # type: ignore[import-untyped]  # publishes no types
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32,
    )  # fmt: skip
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    meta, _ = build_meta(LlamaForCausalLM, config, torch.bfloat16)
    write_header_only(tmp_path / "model.safetensors", meta)
    before = psutil.Process().memory_info().rss
    plan = plan_load(tmp_path, dtype="bfloat16")
    assert plan.parameters == 6_738_415_616
    assert 0 <= plan.total - 2 * plan.parameters < 1 << 20  # and the rotary table
    assert plan.casts == {}
    assert psutil.Process().memory_info().rss - before < 100 << 20
    assert plan_load(tmp_path, dtype="float32").casts["bfloat16 -> float32"].bytes_after == 4 * plan.parameters
    assert plan_load(tmp_path, dtype="bfloat16", quantization="bnb-4bit").total < 0.35 * plan.total
    assert free_bytes("cpu") > 0


def write_header_only(path: Path, model: Any) -> None:
    """A safetensors file of the model's tensors in BF16 that is a header and a hole."""
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    data = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(data).to_bytes(8, "little") + data)
        stream.truncate(8 + len(data) + end)


def test_a_plan_is_plain_values(folder: Path) -> None:
    """`to_dict` goes through JSON unchanged."""
    plan = plan_load(folder, dtype="bfloat16", device_map={"": "cpu", "lm_head": "disk"})
    assert isinstance(plan, LoadPlan)
    assert json.loads(json.dumps(plan.to_dict()))["bytes"] == plan.bytes


def test_names_of_yesterday_are_taken(folder: Path) -> None:
    """The plan takes what the load takes, with the same warning."""
    with pytest.warns(FutureWarning, match="`torch_dtype` is now `dtype`"):
        assert plan_load(folder, torch_dtype="bfloat16").dtype == "bfloat16"


def test_what_the_load_would_refuse_the_plan_refuses(folder: Path, tmp_path: Path) -> None:
    """Wrong options and broken folders fail in the plan already, as they would in the load."""
    with pytest.raises(RequestError, match="no task"):
        plan_load(folder, task="dreaming")
    with pytest.raises(RequestError, match="`max_memory` without"):
        plan_load(folder, max_memory={"cpu": "1GB"})
    with pytest.raises(ModelError, match="no folder"):
        plan_load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="takes no base"):
        plan_load(folder, base=folder)


def test_random_weights_are_planned_without_any_on_disk(tmp_path: Path) -> None:
    """With `random=True` no weight file is needed and nothing is cast."""
    make_llama().config.save_pretrained(tmp_path)
    made: Any = make_llama()
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "config.json").read_text()), "architectures": [type(made).__name__]})
    )
    plan = plan_load(tmp_path, random=True)
    assert plan.total == footprint(made)
    assert plan.casts == {}
