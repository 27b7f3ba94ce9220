"""llama.cpp itself reads our files: it computes what transformers computes of the source, and cuts texts into the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from modelyard.weights.convert.gguf import from_gguf, to_gguf
from weights.convert.gguf.gguf_families import FAMILIES, TEXTS
from weights.convert.gguf.gguf_forms import Exports, ids, model_class, outputs

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: it is a judge, not a dependency"
)

ENCODERS = {"bert", "bert classifier"}


def opened(file: Path, *, embeds: bool) -> Any:
    """A file in llama.cpp, on one thread."""
    return llama_cpp.Llama(str(file), n_ctx=64, logits_all=not embeds, n_threads=1, verbose=False, embedding=embeds)


def logits(file: Path) -> torch.Tensor:
    """What llama.cpp says of the tokens of `ids`."""
    model = opened(file, embeds=False)
    try:
        model.eval(ids()[0].tolist())
        return torch.from_numpy(np.array(model._scores)[: ids().shape[1]])
    finally:
        model.close()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ENCODERS])
def test_logits_are_those_of_transformers(name: str, exports: Exports) -> None:
    """F32: within what its F16 cache of keys and values costs."""
    made = exports.make(name)
    expected = outputs(model_class(name).from_pretrained(made.source))[0]
    found = logits(made.file)
    assert (found - expected).abs().max() < 8e-3 * expected.abs().max()
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_smaller_types_are_what_we_read_back(name: str, kind: str, exports: Exports, tmp_path: Path) -> None:
    """llama.cpp's logits of a smaller file are those of the folder that `from_gguf` makes of it, but for its own rounding of activations."""
    made = exports.make(name)
    to_gguf(made.source, tmp_path / "out", type=kind)
    from_gguf(tmp_path / "out" / "model.gguf", tmp_path / "back", dtype="float32")
    expected = outputs(model_class(name).from_pretrained(tmp_path / "back"))[0]
    found = logits(tmp_path / "out" / "model.gguf")
    assert (found - expected).abs().mean() < 0.03 * expected.abs().max()


def test_hidden_states_are_those_of_bert(exports: Exports) -> None:
    """Token by token, without pooling; its GELU is the approximate one."""
    made = exports.make("bert")
    tokens = AutoTokenizer.from_pretrained(made.source)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        expected = model_class("bert").from_pretrained(made.source).eval()(**tokens).last_hidden_state[0]
    model = opened(made.file, embeds=True)
    found = torch.tensor(model.embed(TEXTS[0]))
    model.close()
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()


def test_a_classifier_ranks_as_in_transformers(exports: Exports) -> None:
    """BERT's pooler and classifier are llama.cpp's ranking head: the same logits for the labels."""
    made = exports.make("bert classifier")
    tokens = AutoTokenizer.from_pretrained(made.source)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        expected = model_class("bert classifier").from_pretrained(made.source).eval()(**tokens).logits[0]
    model = opened(made.file, embeds=True)
    found = torch.tensor(model.embed(TEXTS[0]))[: len(expected)]
    model.close()
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_cut_into_the_same_ids(name: str, exports: Exports) -> None:
    """llama.cpp's tokenizer gives our tokenizer's ids, but for the texts that the certificate warns of."""
    made = exports.make(name)
    tokenizer = AutoTokenizer.from_pretrained(made.source)
    model = opened(made.file, embeds=name in ENCODERS)
    warned = any(words in "".join(made.certificate.warnings) for words in ("begins with a blank", "line breaks"))
    texts = [text for text in TEXTS if not (warned and text.startswith(" "))]
    found = [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
    model.close()
    assert found == [tokenizer(text)["input_ids"] for text in texts]
