"""The most downloaded checkpoints of the hub, by what their files hold: they load without any option, and answer the same."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelyard.cli.main import run
from modelyard.errors import ModelError, PickleError
from modelyard.weights.doctor import diagnose
from modelyard.weights.estimate import estimate
from modelyard.weights.files import FolderFiles
from modelyard.weights.inspect import inspect
from modelyard.weights.load import load, plan_load
from task_models.pictures import SWIN
from tiny_models import make_tokenizer, save_adapter, save_model
from weights.hub_shapes import BERT, GPT2, LLAMA, SHAPES, Shape, adding, adding_masks, renaming, without, write
from weights.hub_shapes_more import MORE

if TYPE_CHECKING:
    from pathlib import Path

ALL = {**SHAPES, **MORE}
LOOKING = {"facebook/wav2vec2-base", "facebook/bart-large-mnli"}
"""Their forward passes look at values, so that none can be estimated without them: an error by name."""
SENTENCES = sorted(repo for repo, shape in ALL.items() if shape.values)


def make_inputs(model: Any) -> dict[str, torch.Tensor]:
    """An input of `forward`, by what the model takes."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (2, 7), generator=generator)
    name = model.main_input_name
    made: dict[str, torch.Tensor] = {name: ids}
    if name == "pixel_values":
        made = {name: torch.randn(2, 3, 32, 32, generator=generator)}
    elif name == "input_features":
        made = {name: torch.randn(2, 8, 40, generator=generator)}
    elif name == "input_values":
        made = {name: torch.randn(2, 8000, generator=generator)}
    if type(model).__name__ == "BartForSequenceClassification":
        ids[:, -1] = model.config.eos_token_id  # its answer is read there
    elif model.config.is_encoder_decoder:
        made["decoder_input_ids"] = ids[:, :4]
    if model.config.model_type == "clip":
        made["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
    return made


def answer(model: Any) -> list[torch.Tensor]:
    """Every tensor of a model's output for `make_inputs`, but for what a pooler makes."""
    torch.manual_seed(0)  # the quantizer of a model in pretraining draws
    with torch.inference_mode():
        output = model(**make_inputs(model))
    return [value for key, value in output.items() if isinstance(value, torch.Tensor) and key != "pooler_output"]


@pytest.mark.parametrize("repo", sorted(ALL))
def test_a_checkpoint_of_the_hub_loads_as_it_is(repo: str, tmp_path: Path) -> None:
    """It answers as what was saved and as transformers' own load, says what it left out, and no command finds a fault."""
    shape = ALL[repo]
    before = write(tmp_path / "model", shape)
    model = load(tmp_path / "model")
    assert set(model.load_report.dropped) == shape.dropped
    assert (model.load_report.added, model.untrained) == (shape.added, None)
    theirs: Any = type(model.model).from_pretrained(tmp_path / "model").eval()
    for reference in (theirs, before):
        wanted = answer(reference)[: len(answer(model.model))]
        for ours, value in zip(answer(model.model), wanted, strict=True):
            torch.testing.assert_close(ours, value, atol=1e-5, rtol=1e-5)
    plan = plan_load(tmp_path / "model")
    assert (plan.task, frozenset(plan.dropped), plan.added) == (model.task, shape.dropped, shape.added)
    assert inspect(tmp_path / "model").parameters
    found = diagnose(FolderFiles(tmp_path / "model"))
    assert [finding for finding in found if finding.level != "info"] == []
    if repo in LOOKING:
        with pytest.raises(ModelError, match="cannot be run without its values"):
            estimate(tmp_path / "model", new_tokens=8)
    else:
        assert estimate(tmp_path / "model", new_tokens=8).peak > 0


@pytest.mark.parametrize("command", ["plan", "inspect", "estimate", "doctor"])
def test_commands_take_a_checkpoint_of_the_hub(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`yard plan`, `inspect`, `estimate` and `doctor` end well on bert-base-uncased's shape."""
    write(tmp_path / "model", ALL["bert-base-uncased"])
    code = run([command, str(tmp_path / "model")])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("repo", SENTENCES)
def test_an_encoder_of_sentences_embeds(repo: str, tmp_path: Path) -> None:
    """What sentence-transformers saved is for features, whichever class config.json names; a task that is asked for wins."""
    shape = ALL[repo]
    write(tmp_path / "model", shape)
    assert load(tmp_path / "model").task == "feature-extraction"
    if shape.named is not None:
        with pytest.raises(ModelError, match="missing"):
            load(tmp_path / "model", model_class=shape.named)


@pytest.mark.parametrize(
    ("kind", "settings", "name", "size"),
    [
        ("BertForMaskedLM", ("Bert", BERT), "bert.encoder.layer.0.attention.self.extra.weight", (16, 16)),
        ("BertForMaskedLM", ("Bert", BERT), "bert.encoder.layer.7.output.dense.weight", (16, 24)),
        ("LlamaForCausalLM", ("Llama", LLAMA), "model.layers.0.self_attn.q_proj.bias", (16,)),
        ("GPT2LMHeadModel", ("GPT2", GPT2), "transformer.h.0.attn.masked_bias", (4,)),
        ("GPT2LMHeadModel", ("GPT2", GPT2), "transformer.h.2.ln_1.weight", (16,)),
    ],
)
def test_any_other_name_is_a_fault(
    kind: str, settings: tuple[str, dict[str, Any]], name: str, size: tuple[int, ...], tmp_path: Path
) -> None:
    """A weight of no class, a layer too many, and a known name of another shape are refused, and the doctor says so."""
    write(tmp_path / "model", Shape(kind, settings, adding(name, shape=size)))
    with pytest.raises(ModelError, match="1 unexpected") as caught:
        load(tmp_path / "model")
    assert caught.value.details["unexpected"] == [name]
    assert load(tmp_path / "model", allow="unexpected").load_report.allowed == {"unexpected": (name,)}
    levels = {finding.code: finding.level for finding in diagnose(FolderFiles(tmp_path / "model"))}
    assert levels.get("unexpected_tensors", levels.get("layer_count")) == "warning"


def test_a_name_that_lacks_stays_a_fault(tmp_path: Path) -> None:
    """Harmless extras do not excuse what is missing: then they are listed with it."""
    shape = ALL["bert-base-uncased"]
    cut = without("query.weight$")
    write(tmp_path / "model", Shape(shape.saved, shape.config, lambda held: cut(shape.edit(held)), shape.named))
    with pytest.raises(ModelError, match="2 missing") as caught:
        load(tmp_path / "model")
    assert "cls.seq_relationship.weight" in caught.value.details["unexpected"]


def test_extras_do_not_hinder_another_task(tmp_path: Path) -> None:
    """GPT-2's old masks and BERT's pretraining heads are left out for every task; the classifier alone is new."""
    write(tmp_path / "gpt2", ALL["gpt2"])
    model = load(tmp_path / "gpt2", task="text-classification", num_labels=3)
    assert model.load_report.added == ("score.weight",)
    assert set(model.load_report.dropped) == ALL["gpt2"].dropped
    write(tmp_path / "bert", ALL["bert-base-uncased"])
    model = load(tmp_path / "bert", task="token-classification", num_labels=3)
    assert model.load_report.added == ("classifier.bias", "classifier.weight")
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} < set(model.load_report.dropped)


def test_a_pooler_that_no_file_holds_is_not_drawn(tmp_path: Path) -> None:
    """A masked language model embeds without a pooler instead of with a random one, and is saved and loaded so again."""
    write(tmp_path / "model", ALL["roberta-base"])
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model" / "model.safetensors")
    model = load(tmp_path / "model", task="feature-extraction")
    assert (model.model.pooler, model.untrained) == (None, None)
    again = load(model.save(tmp_path / "saved"))
    assert again.model.pooler is None
    assert torch.equal(answer(again.model)[0], answer(model.model)[0])


def test_a_pooler_without_weights_is_kept(tmp_path: Path) -> None:
    """Swin's pooler averages: no file holds any of it, and it is there all the same."""
    before = write(tmp_path / "model", Shape("SwinModel", ("Swin", SWIN), beside="image"))
    model = load(tmp_path / "model")
    with torch.inference_mode():
        ours, wanted = (each(**make_inputs(each)).pooler_output for each in (model.model, before))
    torch.testing.assert_close(ours, wanted)


def test_a_head_of_the_same_name_is_taken_over_and_told(tmp_path: Path) -> None:
    """A sequence classifier's layer becomes a token classifier's, as transformers does it; the report says so."""
    write(tmp_path / "model", Shape("BertForSequenceClassification", ("Bert", BERT)))
    held = load_file(tmp_path / "model" / "model.safetensors")
    model = load(tmp_path / "model", task="token-classification")
    assert model.load_report.kept == ("classifier.bias", "classifier.weight")
    assert torch.equal(model.model.classifier.weight, held["classifier.weight"])
    assert load(tmp_path / "model").load_report.kept == ()


def test_weights_in_other_forms_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    """A hub's snapshot with pickles, TensorFlow's, Flax's and ONNX's files loads its safetensors, and lists the others."""
    write(tmp_path / "model", ALL["gpt2"])
    bomb = pickle.dumps(_Bomb(str(tmp_path / "ran")))
    for name, content in {
        "pytorch_model.bin": bomb,
        "training_args.bin": bomb,
        "rust_model.ot": bomb,
        "tf_model.h5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "flax_model.msgpack": b"\x81\xa6params" + bytes(64),
        "onnx/model.onnx": b"\x08\x07\x12\x07pytorch" + bytes(64),
    }.items():
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    model = load(tmp_path / "model")
    assert {"pytorch_model.bin", "training_args.bin", "rust_model.ot"} <= set(model.load_report.unread)
    assert not (tmp_path / "ran").exists()
    plan_load(tmp_path / "model")
    found = {finding.code: finding for finding in diagnose(FolderFiles(tmp_path / "model"))}
    assert found["avoidable_pickle"].level == "warning"
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(PickleError):
        load(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "extra.pkl", "other.safetensors"])
def test_a_pickle_that_a_loader_may_open_is_refused(name: str, tmp_path: Path) -> None:
    """Only the names of weights that safetensors stand in for are left alone."""
    save_model(tmp_path / "model", tokenizer=make_tokenizer(None))
    (tmp_path / "model" / name).write_bytes(pickle.dumps(_Bomb(str(tmp_path / "ran"))))
    with pytest.raises(PickleError):
        load(tmp_path / "model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_with_a_tokenizer_beside_it(tmp_path: Path) -> None:
    """An adapter's repo with its own tokenizer, training leftovers and a card loads onto its base."""
    base = save_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    make_tokenizer(None).save_pretrained(adapter)
    (adapter / "training_args.bin").write_bytes(pickle.dumps(_Bomb(str(tmp_path / "ran"))))
    (adapter / "README.md").write_text("---\nbase_model: base\n---\n")
    model = load(adapter, base=base)
    assert model.load_report.unread == ("training_args.bin",)
    assert model.tokenizer.chat_template is None
    peft: Any = __import__("peft")
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    assert torch.equal(answer(model.model)[0], answer(theirs)[0])
    levels = {
        each.level for each in diagnose(FolderFiles(adapter), base=FolderFiles(base)) if "pickle" not in each.code
    }
    assert levels <= {"info"}


def test_old_masks_on_names_without_a_prefix(tmp_path: Path) -> None:
    """GPT-2's files have no `transformer.`; loaded as its base class they need none."""
    values = Shape(
        "GPT2LMHeadModel", ("GPT2", GPT2), lambda held: adding_masks("h")(renaming(r"^transformer\.", "")(held))
    )
    before = write(tmp_path / "model", values)
    model = load(tmp_path / "model", task="feature-extraction")
    torch.testing.assert_close(answer(model.model)[0], answer(before.transformer)[0])


class _Bomb:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")
