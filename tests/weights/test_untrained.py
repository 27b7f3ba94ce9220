"""The mark of what nobody trained is true exactly while its tensors are what they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import blake3
import pytest
import torch
import transformers
from safetensors.torch import load_file

from modelyard.errors import ModelError
from modelyard.weights.convert.casting import cast
from modelyard.weights.files import FolderFiles
from modelyard.weights.load import load
from modelyard.weights.untrained import KEY, Untrained, find_untrained, mark
from task_models.text import MODELS

if TYPE_CHECKING:
    from pathlib import Path

HEAD = ("classifier.bias", "classifier.weight")
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier whose head nobody trained."""
    folder = MODELS["feature-extraction"](tmp_path_factory.mktemp("plain") / "model")
    return load(folder, task="text-classification", num_labels=3, seed=5).save(folder.parent / "marked")


def find(folder: Path) -> Untrained | None:
    """The mark of a folder, if it is true."""
    return find_untrained(FolderFiles(folder))


def written(folder: Path) -> Any:
    """What config.json has as its mark."""
    return json.loads((folder / "config.json").read_text()).get(KEY)


def test_the_mark_is_what_the_design_page_says(marked: Path) -> None:
    """Format, kind, seed, names in order, and the digest over names, dtypes, shapes and bytes, computed here from the page."""
    whole = blake3.blake3()
    tensors = load_file(marked / "model.safetensors")
    for name in HEAD:
        tensor = tensors[name]
        shape = ",".join(str(size) for size in tensor.shape)
        data = blake3.blake3(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        whole.update(f"{name}\0{TYPES[tensor.dtype]}\0{shape}\0{data}\n".encode())
    assert written(marked) == {
        "format": 1,
        "kind": "head",
        "seed": 5,
        "tensors": list(HEAD),
        "digest": whole.hexdigest(),
    }
    assert find(marked) == Untrained("head", 5, HEAD)


def test_one_step_of_training_by_anybody_makes_it_false(marked: Path, tmp_path: Path) -> None:
    """A plain loop of torch and transformers, which knows nothing of marks, leaves a folder whose mark is no longer true."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(marked)
    step(model)
    model.save_pretrained(tmp_path)
    assert written(tmp_path) == written(marked)
    assert find(tmp_path) is None


def test_loading_and_saving_by_transformers_keeps_it_true(marked: Path, tmp_path: Path) -> None:
    """Nobody trained meanwhile, so the mark that transformers carries along is true."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(marked)
    model.save_pretrained(tmp_path)
    assert find(tmp_path) == find(marked)


def test_a_loaded_mark_is_in_the_model_and_saved_again(marked: Path, tmp_path: Path) -> None:
    """`Model.untrained` has it, and saving writes it anew for what is written, in another dtype too."""
    for dtype in ("float32", "bfloat16"):
        model = load(marked, dtype=dtype)
        assert (model.untrained.kind, model.untrained.seed, model.untrained.tensors) == ("head", 5, HEAD)
        saved = model.save(tmp_path / dtype)
        assert find(saved) == find(marked)
        assert (written(saved)["digest"] == written(marked)["digest"]) == (dtype == "float32")


def test_a_model_trained_in_memory_is_saved_without_a_mark(marked: Path, tmp_path: Path) -> None:
    """One step on our own model, and its folder has no mark at all."""
    model = load(marked, training=True)
    step(model.model)
    assert written(model.save(tmp_path / "trained")) is None


def test_a_cast_writes_it_anew(marked: Path, tmp_path: Path) -> None:
    """`cast` changes the bytes of untrained tensors and keeps them marked; an untrue mark is left out."""
    cast(FolderFiles(marked), tmp_path / "half", "float16")
    assert find(tmp_path / "half") == find(marked)
    assert written(tmp_path / "half")["digest"] != written(marked)["digest"]
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(marked)
    step(model)
    model.save_pretrained(tmp_path / "trained")
    cast(FolderFiles(tmp_path / "trained"), tmp_path / "trained-half", "float16")
    assert written(tmp_path / "trained-half") is None


@pytest.mark.parametrize("name", ["bnb-8bit", "bnb-4bit", "torchao-int8"])
@pytest.mark.parametrize("kind", ["head", "random"])
def test_quantizing_is_no_training(marked: Path, tmp_path: Path, name: str, kind: str) -> None:
    """What was drawn at random is not trained by being packed: the mark is in the model, and in what it is saved as."""
    source = marked
    if kind == "random":
        source = load(marked, random=True).save(tmp_path / "random")
    model = load(source, quantization=name)
    with torch.inference_mode():
        model.model(**model.tokenizer(["one two"], return_tensors="pt"))  # kernels pack anew at the first call
    assert model.untrained is not None
    saved = find(model.save(tmp_path / "saved"))
    assert saved is not None
    assert saved.kind == kind


def test_another_head_on_a_marked_model_marks_both(marked: Path) -> None:
    """What was untrained in the files stays so, and what the new task adds joins it; what it drops does not."""
    tokens = load(marked, task="question-answering")
    assert tokens.untrained.tensors == ("qa_outputs.bias", "qa_outputs.weight")


def test_a_folder_without_a_mark_has_none(tmp_path: Path) -> None:
    """Ordinary models, and folders without config.json, are not untrained; nothing is read for them."""
    assert find(MODELS["text-classification"](tmp_path / "model")) is None
    (tmp_path / "empty").mkdir()
    assert find(tmp_path / "empty") is None


def test_a_mark_of_tensors_that_are_gone_is_not_true(marked: Path, tmp_path: Path) -> None:
    """A mark that names what the file has not says nothing about it."""
    model: Any = transformers.AutoModel.from_pretrained(marked)
    model.save_pretrained(tmp_path)
    assert written(tmp_path) is not None
    assert find(tmp_path) is None


def test_a_mark_can_be_written_and_removed(tmp_path: Path) -> None:
    """`mark` digests the weights beside it; None takes it away."""
    folder = MODELS["text-classification"](tmp_path / "model")
    mark(folder, Untrained("random", 9, None))
    assert find(folder) == Untrained("random", 9, None)
    mark(folder, None)
    assert (find(folder), written(folder)) == (None, None)


@pytest.mark.parametrize(
    "value", [True, {"format": 2}, {"format": 1, "kind": "odd"}, [], {"format": 1, "kind": "head"}]
)
def test_what_is_no_mark_is_refused(tmp_path: Path, value: object) -> None:
    """Something else under our key is an error that says how to go on, never a guess."""
    folder = MODELS["text-classification"](tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), KEY: value}))
    with pytest.raises(ModelError, match="is no mark") as caught:
        find(folder)
    assert caught.value.code == "bad_mark"


def test_a_mark_is_described_in_words() -> None:
    """What messages call it names the tensors, a few of many."""
    assert Untrained("random", 0, None).describe() == "random weights"
    assert Untrained("head", 0, ("a", "b")).describe() == "untrained head (a, b)"
    assert Untrained("head", 0, tuple("abcdef")).describe() == "untrained head (a, b, c, d, and 2 more)"


def step(model: Any) -> None:
    """One step of gradient descent on a classifier."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([1])).loss
    loss.backward()
    optimizer.step()
