"""What the tests of GGUF share: a family's model and file, made once, and a file without what only our own files carry."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.weights.convert.gguf import to_gguf
from weights.convert.gguf.gguf_families import save_family

if TYPE_CHECKING:
    from modelyard.weights.certificate import Certificate

__all__ = ["Exported", "Exports", "expected_values", "ids", "model_class", "outputs", "strip"]


class Exported:
    """A family's folder, the file made of it, and its certificate."""

    def __init__(self, folder: Path, name: str, kind: str, dtype: str) -> None:
        self.name = name
        self.source = save_family(name, folder / "source", dtype)
        self.certificate: Certificate = to_gguf(self.source, folder / "out", type=kind, name="tiny")
        self.file = folder / "out" / "model.gguf"


class Exports:
    """Each family's file, made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.make = cache(self._make)

    def _make(self, name: str, kind: str = "F32", dtype: str = "float32") -> Exported:
        folder = self.root / f"{name.replace(' ', '-').replace(',', '')}-{kind}-{dtype}"
        return Exported(folder, name, kind, dtype)


def model_class(name: str) -> Any:
    """The class of transformers that loads a family."""
    import transformers

    if "classifier" in name:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModel if name == "bert" else transformers.AutoModelForCausalLM


def ids() -> Any:
    """Forty tokens that every family's embedding has."""
    import torch

    return torch.arange(5, 45)[None]


def outputs(model: Any) -> Any:
    """Logits, or hidden states where there are none."""
    import torch

    with torch.inference_mode():
        found = model.eval()(ids())
    return found.logits if "logits" in found else found.last_hidden_state


def expected_values(name: str, values: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """A tensor as llama.cpp keeps it, from its name in the file: written from llama.cpp's description, not from our tables."""
    kind = config.model_type
    if kind in {"llama", "mistral"} and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        rows = np.arange(values.shape[0]).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)
        return values[rows]
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if kind == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return values.T
    return values


def strip(
    source: Path,
    target: Path,
    *,
    without: tuple[str, ...] = (),
    drop: str = "",
    added: tuple[str, int] | None = None,
    **changed: Any,
) -> Path:
    """The file as llama.cpp's own converter would have written it: none of our keys, no tokenizer.json; written by the `gguf` package."""
    import gguf

    read: Any = gguf.GGUFReader(str(source))
    writer: Any = gguf.GGUFWriter(str(target), read.fields["general.architecture"].contents())
    for key, item in read.fields.items():
        ours = key.startswith(("GGUF.", "modelyard.", *without)) or key in {
            "general.architecture",
            "tokenizer.huggingface.json",
        }
        if not ours:
            value = changed.get(key.rpartition(".")[2], item.contents())
            writer.add_key_value(key, value, item.types[0], item.types[1] if len(item.types) > 1 else None)
    if added is not None:
        writer.add_uint16(*added)
    for tensor in read.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
