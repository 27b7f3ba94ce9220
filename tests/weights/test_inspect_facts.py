"""The facts of a folder's small files, and the tree of its modules."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from modelyard.weights.inspect import inspect, task_of
from modelyard.weights.loading.lock import loading
from modelyard.weights.tasks import TASKS
from tiny_models import TEMPLATE, make_tokenizer, save_adapter, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer."""
    return save_model(tmp_path_factory.mktemp("facts") / "model")


def test_tokenizer_facts(model: Path) -> None:
    """Vocabulary, special tokens and the template's digest are those of the tokenizer that transformers loads."""
    seen, real = inspect(model).tokenizer, make_tokenizer()
    assert seen is not None
    assert seen.vocabulary == len(real)
    assert seen.special["eos_token"] == real.eos_token
    assert seen.special["pad_token"] == real.pad_token
    assert not seen.pad_is_eos
    assert seen.max_length is None
    assert seen.template == hashlib.sha256(TEMPLATE.encode()).hexdigest()


def test_parameters_by_module(model: Path) -> None:
    """The tree's root holds every parameter that transformers counts; layers that are alike are told once."""
    import transformers

    seen = inspect(model)
    real = transformers.AutoModelForCausalLM.from_pretrained(model)
    assert seen.modules is not None
    assert seen.parameters == seen.trainable == seen.modules.parameters == real.num_parameters()
    layers = next(part for _, part in seen.modules.lines() if part.name == "0-1")
    assert layers.times == 2
    assert layers.parameters == sum(p.numel() for p in real.model.layers.parameters())


def test_adapter_facts(tmp_path: Path, model: Path) -> None:
    """An adapter's rank, alpha, targets and base are those of its configuration."""
    with loading():  # PEFT's own deprecation warnings are not ours to judge
        save_adapter(tmp_path / "adapter", model)
    seen = inspect(tmp_path / "adapter")
    assert seen.adapter is not None
    assert (seen.adapter.rank, seen.adapter.alpha, seen.adapter.targets) == (4, 8.0, ("q_proj", "v_proj"))
    assert seen.adapter.base == str(model)
    assert seen.trainable == seen.parameters > 0


def test_tied_weights(tmp_path: Path) -> None:
    """A tied output layer is named with what it shares."""
    from tiny_models import make_llama

    seen = inspect(save_model(tmp_path / "tied", make_llama(tie_word_embeddings=True)))
    assert seen.tied_weights == (("lm_head.weight", "model.embed_tokens.weight"),)


@pytest.mark.parametrize(
    ("file", "text", "licence"),
    [
        ("README.md", "---\nlicense: mit\n---\n# x\n", "mit"),
        ("README.md", "---\nlicense: other\nlicense_name: my-licence\n---\n", "my-licence"),
        ("README.md", "license: mit", None),
        ("LICENSE", "Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("LICENSE.txt", "do what you want", "LICENSE.txt"),
    ],
)
def test_licence(tmp_path: Path, file: str, text: str, licence: str | None) -> None:
    """The licence is what the card says, else what the licence file's words are, else that file."""
    (tmp_path / file).write_text(text)
    assert inspect(tmp_path).licence == licence


def test_gguf(tmp_path: Path) -> None:
    """A GGUF file's sizes, vocabulary and template come from its header, its blocks count as the numbers they hold."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_token_list(["a", "b", "c"])
    writer.add_eos_token_id(2)
    writer.add_chat_template("x")
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for source in (tmp_path / "m.gguf", tmp_path):
        seen = inspect(source)
        assert seen.gguf is not None
        assert (seen.parameters, seen.dtypes, seen.bytes, seen.trainable) == (256, {"Q8_0": 256}, 4 * 68, 0)
        assert (seen.gguf.layers, seen.gguf.context, seen.gguf.hidden, seen.gguf.tokens) == (2, 128, 64, 3)
        assert (seen.gguf.special, seen.quantization, seen.task) == ({"eos": 2}, "Q8_0", "text-generation")
        assert seen.gguf.template == hashlib.sha256(b"x").hexdigest()


def test_tasks_by_name_are_those_of_transformers() -> None:
    """For every class in transformers' tables, its name alone gives the tag of a table that lists it."""
    tags: dict[str, set[str]] = {}
    for task in TASKS.values():
        for architecture in task.architectures():
            tags.setdefault(architecture, set()).add(task.pipeline)
    wrong = {name: task_of(name) for name, known in tags.items() if task_of(name) not in known}
    assert wrong == {}


def test_nothing_heavy_is_imported(model: Path) -> None:
    """Inspecting and estimating a Llama folder imports neither torch nor transformers."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from modelyard.weights.inspect import inspect\n"
        "from modelyard.weights.estimate import estimate\n"
        "folder = Path(sys.argv[1]); inspect(folder).to_dict(); print(estimate(folder, length=64).method)\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "closed-form\n"), done.stderr


def test_json(model: Path) -> None:
    """The description is plain JSON."""
    assert json.loads(json.dumps(inspect(model).to_dict()))["modules"]["parameters"] > 0
