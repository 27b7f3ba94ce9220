"""docs/guides/coming-from.md: both sides of every pair are run, and leave the same in `answer`, or what the page says they leave."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import smolora_double
from modelyard.cli.main import run

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "coming-from.md"
PAIR = re.compile(
    r"^### (?P<title>.+?)\n.*?^```python theirs\n(?P<theirs>.*?)^```.*?^```(?P<language>python|console) ours\n(?P<ours>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
PAIRS = {found["title"]: found for found in PAIR.finditer(PAGE.read_text("utf-8"))}

# Where the two sides are meant to differ, what each must have left.
DIFFERENT: dict[str, Callable[[Any, Any, str], bool]] = {
    "A broken checkpoint": lambda theirs, ours, _: theirs == "loaded" and "module." in ours and "refused" in ours,
    "pipeline: what version 5 removed": lambda theirs, ours, _: theirs == "no such task" and ours is True,
    "Trainer": lambda theirs, _, said: theirs is True and "team/card@v2  accuracy" in said,
    "batch_inference": lambda theirs, ours, _: ours[1] == theirs[1] and ours[0] != theirs[0],
    "ModelRegistry": lambda theirs, ours, _: (
        theirs == ({"card": ["v9", "v10"]}, "./encoder") and ours == (["card/model@v2", "card/model@v1"], "tiny")
    ),
    "debug_model_loading": lambda theirs, ours, _: theirs is False and ours == [],
    "estimate_memory_requirements": lambda theirs, ours, _: ours == exact_bytes() and abs(theirs / ours - 1) > 0.1,
    "optimize_memory_usage": lambda theirs, ours, _: theirs == "collected" and ours is None,
    "train and save": lambda theirs, _, said: (
        "model.safetensors" in theirs and Path(said.split()[-1], "model.safetensors").exists()
    ),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning"),  # torch's bindings, on import
    # PEFT reads an attribute that transformers 5.23 renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def exact_bytes() -> int:
    """The float32 bytes of the tiny model's parameters, counted on the model."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained("./model")
    return int(4 * model.num_parameters())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders and files that the page's blocks name."""
    import soundfile
    from PIL import Image

    from gguf_llama import write_llama
    from task_models import audio, text, vision
    from tiny_models import make_llama, make_tokenizer, save_adapter, save_model

    root = tmp_path_factory.mktemp("coming-from")
    tokenizer = make_tokenizer(None)
    save_model(root / "model", make_llama(), tokenizer)
    save_model(root / "chat-model")
    save_adapter(root / "adapter", root / "model")
    save_adapter(root / "other-adapter", root / "model", seed=7)
    text.MODELS["feature-extraction"](root / "encoder")
    text.MODELS["text-classification"](root / "classifier")
    text.MODELS["question-answering"](root / "reader")
    vision.MODELS["image-classification"](root / "image-classifier")
    audio.MODELS["ctc"](root / "speech")
    write_llama(root / "model.gguf", make_llama(), "F32")
    wrap(root / "model", root / "wrapped")
    Image.fromarray(vision.picture()).save(root / "photo.png")
    soundfile.write(root / "speech.wav", audio.sound(), 16000)
    rows = [{"prompt": "where is my card", "completion": " one two"}, {"prompt": "my card", "completion": " three"}] * 4
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return root


def wrap(source: Path, target: Path) -> None:
    """A copy of a model whose tensor names all begin with `module.`, as DistributedDataParallel leaves them."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    save_file(
        {f"module.{name}": tensor for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )


def same(theirs: Any, ours: Any) -> bool:
    """Equal; tensors within float rounding."""
    import torch

    if isinstance(theirs, torch.Tensor):
        return theirs.shape == ours.shape and bool(torch.allclose(theirs, ours, atol=1e-5))
    if isinstance(theirs, dict) and any(isinstance(value, torch.Tensor) for value in theirs.values()):
        return set(theirs) == set(ours) and all(same(value, ours[name]) for name, value in theirs.items())
    return bool(theirs == ours)


@pytest.mark.parametrize("title", [title for title in PAIRS if title != "The /generate endpoint"])
def test_both_sides_of_the_pair_leave_what_the_page_says(
    title: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Theirs and ours run as written and agree, or differ as the page says."""
    folder = tmp_path / "work"
    shutil.copytree(models, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELYARD_THREADS", "1")
    theirs = run_theirs(PAIRS[title]["theirs"])
    said = ""
    if PAIRS[title]["language"] == "console":
        capsys.readouterr()
        for line in PAIRS[title]["ours"].splitlines():
            assert run(shlex.split(line)[1:]) in (0, 3), capsys.readouterr().err
        ours, said = None, capsys.readouterr().out
    else:
        ours = run_block(PAIRS[title]["ours"], {})
    if title in DIFFERENT:
        assert DIFFERENT[title](theirs, ours, said), (theirs, ours, said)
    else:
        assert same(theirs, ours), (theirs, ours)


def run_theirs(text: str) -> Any:
    """Their block, with SmoLoRA's names at hand; what its libraries warn about is their business."""
    rows = ["where is my card one two", "my card three"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {**vars(smolora_double), "os": os, "json": json, "rows": rows}
        names["trainer"] = smolora_double.SmoLoRA("./model")
        return run_block(text, names)


def run_block(text: str, names: dict[str, Any]) -> Any:
    """What a block leaves in `answer`; ours begins with the page's import."""
    import modelyard

    space = {"modelyard": modelyard, **names}
    exec(compile(text, str(PAGE), "exec"), space)
    return space["answer"]


def test_the_endpoint_answers_what_theirs_answers(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`POST /v1/completions` of a real server gives the continuation that SmoLoRA's `/generate` gives after the prompt."""
    import modelyard
    from modelyard.serving import Server, WorkerOptions

    monkeypatch.chdir(models)
    pair = PAIRS["The /generate endpoint"]

    def theirs_post(path: str, body: dict[str, Any]) -> dict[str, str]:
        assert path == "/generate"
        served = smolora_double.LocalModelServer("./model")
        return {"generated_text": served.generate(body["prompt"], max_new_tokens=body["max_tokens"], do_sample=False)}

    theirs = run_block(pair["theirs"], {"post": theirs_post})
    yard = modelyard.open(tmp_path / "yard", create=True)
    yard.commit(models / "model", to="team/card", kind="base")
    with Server(yard, ["team/card"], port=0, worker=WorkerOptions(threads=1)) as server:

        def our_post(path: str, body: dict[str, Any]) -> Any:
            response = httpx.post(server.url + path, json=body, timeout=60)
            assert response.status_code == 200, response.text
            return response.json()

        ours = run_block(pair["ours"], {"post": our_post})
    assert theirs == "my card" + ours


def test_every_call_that_the_issue_names_has_a_pair() -> None:
    """The page has a pair for each thing that users of both libraries write."""
    text = PAGE.read_text("utf-8")
    named = (
        "from_pretrained from_config save_pretrained num_parameters get_memory_footprint train() eval() pipeline( generate streamer "
        "load_model load_adapter_model LazyModelLoader inference batch_inference streaming_inference ModelRegistry LocalModelServer "
        "optimize_for_inference debug_model_loading estimate_memory_requirements save_model_metadata optimize_memory_usage "
        "load_model_with_memory_optimization /generate Trainer"
    )
    assert [name for name in named.split() if name not in text] == []
    assert len(PAIRS) == text.count("```python theirs")
