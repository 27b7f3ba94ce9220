"""What `predict` promises for every task: one or many, options, modes, marks, memory, adapters."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights import predict as package
from modelyard.weights.load import load
from modelyard.weights.loading.lock import loading
from modelyard.weights.model import Model
from modelyard.weights.predict import PREDICTORS, predict
from modelyard.weights.predict.batching import find_predictor, running
from modelyard.weights.predict.results import to_plain
from modelyard.weights.tasks import TASKS
from modelyard.weights.untrained import Untrained, UntrainedWarning
from task_models import text, timeseries
from task_models.opened import open_tiny

TASK = "text-classification"
SAMPLES = {**text.SAMPLES, **timeseries.SAMPLES}


def copy_of(model: Model, **values: Any) -> Model:
    """The same weights as another `Model`."""
    return Model(model.model, model.processor, model.task, model.folder, **values)


@pytest.mark.parametrize("task", sorted(SAMPLES))
def test_one_input_gives_one_result_and_a_list_a_list(task: str) -> None:
    """A list of one is a list of one, an empty list is empty, and the result is the same."""
    model, sample = open_tiny(task), SAMPLES[task]
    one, many = predict(model, sample), predict(model, [sample])
    assert isinstance(many, list)
    assert len(many) == 1
    assert str(to_plain(one)) == str(to_plain(many[0]))
    assert predict(model, []) == []


@pytest.mark.parametrize("task", sorted(SAMPLES))
@pytest.mark.parametrize("grad", [False, True])
def test_the_callers_modes_are_as_they_were(task: str, grad: bool) -> None:
    """Gradient and inference modes of the caller do not change, and results hold no tensors."""
    model = open_tiny(task)
    with torch.set_grad_enabled(grad):
        result = predict(model, SAMPLES[task])
        assert torch.is_grad_enabled() is grad
        assert not torch.is_inference_mode_enabled()
    assert not list(tensors(result))
    assert not model.model.training


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a result."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from tensors(getattr(value, item.name))
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors(inner)


@pytest.mark.parametrize("task", sorted(SAMPLES))
def test_results_are_written_as_json(task: str) -> None:
    """`to_plain` makes of every result what JSON can hold."""
    import json

    assert json.loads(json.dumps(to_plain(predict(open_tiny(task), SAMPLES[task])))) is not None


@pytest.mark.parametrize("task", sorted(SAMPLES))
def test_unknown_options_are_refused_with_the_near_one(task: str) -> None:
    """An option that the task has not is an error, never ignored."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(task), SAMPLES[task], batchsize=3)
    assert caught.value.details["field"] == "batchsize"


@pytest.mark.parametrize(
    ("options", "field"),
    [({"batch_size": 0}, "batch_size"), ({"batch_size": True}, "batch_size"), ({"truncation": "ends"}, "truncation")],
)
def test_wrong_common_options_are_named(options: dict[str, Any], field: str) -> None:
    """`batch_size` and `truncation` are checked before anything runs."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(TASK), "a text", **options)
    assert caught.value.details["field"] == field


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (TASK, {"top_k": "two"}),
        (TASK, {"top_k": 2.5}),
        (TASK, {"multi_label": "yes"}),
        (TASK, {"candidate_labels": 5}),
        (TASK, {"candidate_labels": ["a", 5]}),
        ("fill-mask", {"top_k": True}),
        ("question-answering", {"impossible": 1}),
        ("text2text-generation", {"temperature": "hot"}),
        ("time-series-forecasting", {"steps": "3"}),
    ],
)
def test_options_of_another_type_are_refused(task: str, options: dict[str, Any]) -> None:
    """A value of another type than the option's is an error that names it, never a failure inside."""
    with pytest.raises(RequestError) as caught:
        predict(open_tiny(task), SAMPLES[task], **options)
    assert caught.value.details["field"] in options


def test_every_predictor_exists_and_belongs_to_a_task() -> None:
    """Each row of the table names a function that is there, for a task that transformers has."""
    assert set(PREDICTORS) <= set(TASKS)
    assert all(callable(find_predictor(task)) for task in PREDICTORS)


def test_a_task_without_prediction_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that the table lacks is a ModelError that names it."""
    monkeypatch.delitem(package.PREDICTORS, TASK)
    with pytest.raises(ModelError, match="no prediction for text-classification"):
        predict(open_tiny(TASK), "a text")


def test_a_released_model_predicts_nothing() -> None:
    """After `release` it is an error that says so."""
    model = copy_of(open_tiny(TASK))
    model.release()
    with pytest.raises(ModelError, match="was released"):
        predict(model, "a text")


@pytest.mark.parametrize("kind", ["random", "head"])
def test_untrained_weights_warn(kind: Any) -> None:
    """Answers of weights that nobody trained come with a warning; others with none."""
    model = copy_of(open_tiny(TASK), untrained=Untrained(kind, 0, None))
    with pytest.warns(UntrainedWarning, match="random"):
        predict(model, "a text")
    assert predict(open_tiny(TASK), "a text") is not None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_says_what_fits(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, on a device or in the system, is a ModelError of code `out_of_memory`; other failures stay what they are."""
    model = copy_of(open_tiny(TASK))

    def fail(*_args: Any, **_values: Any) -> None:
        raise error

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(ModelError) as caught:
        predict(model, "a text")
    assert caught.value.code == "out_of_memory"
    assert caught.value.details["options"]
    with pytest.raises(RuntimeError, match="shapes"), running(model):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_an_adapter_is_used_for_the_call(tmp_path: Path) -> None:
    """`adapter` answers with that adapter or with the base alone, each as PEFT computes it; then all is as before."""
    base = text.MODELS[TASK](tmp_path / "base")
    wanted: dict[str | None, list[float]] = {}
    for name, seed in (("fr", 1), ("de", 2)):
        adapted = make_adapter(base, tmp_path / name, seed)
        batch = open_tiny(TASK).processor(text.TEXTS[0], return_tensors="pt")
        wanted[name] = adapted(**batch).logits[0].softmax(-1).tolist()
        with adapted.disable_adapter():
            wanted[None] = adapted(**batch).logits[0].softmax(-1).tolist()
    model = load(base, task=TASK, adapters={"fr": tmp_path / "fr", "de": tmp_path / "de"})
    found: dict[Any, list[float]] = {}
    asked: tuple[Any, ...] = ("fr", "de", None, ...)
    for adapter in asked:
        scores = {row.label: row.score for row in model.predict(text.TEXTS[0], adapter=adapter).labels}
        found[adapter] = [scores[label] for label in text.LABELS]
    assert found == {...: found["fr"]} | {name: pytest.approx(scores, abs=1e-5) for name, scores in wanted.items()}
    assert found[...] == found["fr"] != found["de"]
    assert found["fr"] != pytest.approx(found[None], abs=1e-3)
    with pytest.raises(RequestError, match="no adapter `es`"):
        predict(model, "a text", adapter="es")


def make_adapter(base: Path, folder: Path, seed: int) -> Any:
    """A LoRA with random factors on the classifier in `base`, saved to `folder`, in eval mode."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    values: dict[str, Any] = {"r": 4, "target_modules": ["query", "value"], "modules_to_save": []}
    plain = AutoModelForSequenceClassification.from_pretrained(base)
    with loading():  # PEFT reads an attribute that transformers has renamed, and warns of it
        adapted = get_peft_model(plain, LoraConfig(**values))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(str(folder))
    return adapted.eval()


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction", "time-series-regression"])
def test_values_that_are_no_numbers_are_an_error(task: str, tmp_path: Path) -> None:
    """A model that overflows is refused by name, instead of answering with NaN as if that were a score."""
    model = load({**text.MODELS, **timeseries.MODELS}[task](tmp_path / "model"), task=task)
    with torch.no_grad():
        for values in model.model.parameters():
            values.fill_(torch.nan)
    with pytest.raises(ModelError, match="no numbers"):
        predict(model, SAMPLES[task])


def test_threads_share_one_model() -> None:
    """Threads that predict with one model, cutting and not, get what each gets alone."""
    model = open_tiny(TASK)
    rows = [text.LONG, *text.TEXTS]
    wanted = [predict(model, row, truncation="start" if at % 2 else "end").score for at, row in enumerate(rows)]
    wrong: list[Any] = []

    def work(at: int) -> None:
        for _ in range(8):
            found = predict(model, rows[at], truncation="start" if at % 2 else "end").score
            if found != pytest.approx(wanted[at], abs=1e-6):
                wrong.append((at, found))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_order_is_kept_whatever_the_batches() -> None:
    """Results stand in the order of the inputs for every batch size, though long rows run first."""
    model = open_tiny(TASK)
    wanted = [predict(model, row).score for row in text.TEXTS]
    for size in (1, 2, 4, 50):
        assert [found.score for found in predict(model, text.TEXTS, batch_size=size)] == pytest.approx(wanted, abs=1e-5)


def test_arrays_are_plain() -> None:
    """An array in a result is NumPy's and float32."""
    found = predict(open_tiny("time-series-forecasting"), timeseries.series())
    assert type(found.mean) is np.ndarray
    assert found.mean.dtype == np.float32


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "fill-mask", "feature-extraction"])
def test_a_lone_surrogate_is_no_text(task: str) -> None:
    """Half a character, as broken JSON holds it, is refused by its row, not by a tokenizer's TypeError."""
    with pytest.raises(RequestError, match="row 1: text holds a lone surrogate"):
        open_tiny(task).predict(["fine", "no\ud800"])
