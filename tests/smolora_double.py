"""A stand-in for SmoLoRA: its documented names and behaviour, written from its documentation; on no package index, so not the real one.

Each function makes the calls of transformers and PEFT that the documentation says it makes, faults included.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class SmoLoRA:
    """Rank 8 on two projections, a fixed recipe, a merge through a second copy of the base."""

    def __init__(
        self, base: str, rows: Sequence[str] = (), output_dir: str = "./fine_tuned_model", steps: int = 2
    ) -> None:
        self.base, self.rows, self.output_dir, self.steps = base, list(rows), Path(output_dir), steps
        self.model, self.tokenizer = self.load_model(base)

    def load_model(self, path: str) -> tuple[Any, Any]:
        """The two objects of a folder."""
        self.model = AutoModelForCausalLM.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        return self.model, self.tokenizer

    def train(self) -> None:
        """A few steps over the rows; leaves `adapter_checkpoint`."""
        config = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(self.model, config)
        optimizer = torch.optim.AdamW(adapted.parameters(), lr=2e-4)
        for _, row in zip(range(self.steps), self.rows, strict=False):
            ids = self.tokenizer(row, return_tensors="pt")["input_ids"]
            adapted(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        adapted.save_pretrained(str(self.output_dir / "adapter_checkpoint"))

    def save(self) -> None:
        """Merge through a fresh base into `final_merged`."""
        base = AutoModelForCausalLM.from_pretrained(self.base)
        merged = PeftModel.from_pretrained(base, str(self.output_dir / "adapter_checkpoint")).merge_and_unload()
        merged.save_pretrained(self.output_dir / "final_merged")
        self.tokenizer.save_pretrained(self.output_dir / "final_merged")

    def inference(self, prompt: str, max_new_tokens: int = 200, **options: Any) -> str:
        """The prompt and its continuation."""
        return self.batch_inference([prompt], max_new_tokens=max_new_tokens, **options)[0]

    def batch_inference(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """All prompts at once, padded as the tokenizer does it by default: on the right."""
        inputs = self.tokenizer(list(prompts), return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            outputs = self.model.generate(**inputs, **options, pad_token_id=self.tokenizer.eos_token_id)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in outputs]

    def streaming_inference(self, prompt: str, max_new_tokens: int = 200, do_sample: bool = True) -> Iterator[str]:
        """One token at a time, the whole text computed anew for each."""
        assert not do_sample
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(max_new_tokens):
            with torch.no_grad():
                token = self.model(input_ids=ids).logits[0, -1].argmax()
            if token.item() == self.tokenizer.eos_token_id:
                return
            yield self.tokenizer.decode(token[None], skip_special_tokens=True)
            ids = torch.cat([ids, token[None, None]], dim=1)


class LazyModelLoader:
    """Loads when `model` is first read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model."""
        self._model = self._model if self._model is not None else AutoModelForCausalLM.from_pretrained(self.path)
        return self._model


class LocalModelServer:
    """A model and its tokenizer behind one method."""

    def __init__(self, path: str) -> None:
        self._trainer = SmoLoRA(path)
        optimize_for_inference(self._trainer.model)

    def generate(self, prompt: str, **options: Any) -> str:
        """The prompt and its continuation."""
        return self._trainer.inference(prompt, **options)


class ModelRegistry:
    """A JSON file of names, versions and paths; the largest text is the latest."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._models = json.loads(self._path.read_text()) if self._path.exists() else {}

    def register_model(self, name: str, version: str, path: str, metadata: dict[str, Any]) -> None:
        """Note a version."""
        self._models.setdefault(name, {})[version] = {"path": path, "metadata": metadata}
        self._path.write_text(json.dumps(self._models))

    def get_model_path(self, name: str, version: str = "latest") -> str:
        """Where a version is."""
        return str(self._models[name][max(self._models[name]) if version == "latest" else version]["path"])

    def list_models(self) -> dict[str, list[str]]:
        """The versions of every name."""
        return {name: list(versions) for name, versions in self._models.items()}


def load_adapter_model(base: str, adapter: str) -> Any:
    """An adapter on its base."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def save_model_metadata(folder: str, values: dict[str, Any]) -> None:
    """Whatever the caller says, as `metadata.json`."""
    Path(folder, "metadata.json").write_text(
        json.dumps({"base_model": values.get("base_model_name"), "lora_config": {"r": values.get("lora_r")}})
    )


def optimize_for_inference(model: Any) -> Any:
    """Eval mode (and `torch.compile`, left out: it changes no number and takes a minute)."""
    return model.eval()


def optimize_memory_usage() -> None:
    """A garbage collection."""
    gc.collect()


def load_model_with_memory_optimization(path: str) -> Any:
    """Half precision, wherever accelerate puts it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16, device_map="auto")


def debug_model_loading(path: str) -> bool:
    """Whether three files with fixed names are there."""
    return all(Path(path, name).exists() for name in ("config.json", "pytorch_model.bin", "tokenizer_config.json"))


def estimate_memory_requirements(path: str) -> float:
    """Gigabytes of float32 by hidden size, layers and vocabulary."""
    config = AutoConfig.from_pretrained(path)
    size, layers, words = config.hidden_size, config.num_hidden_layers, config.vocab_size
    return float((size * size * 4 * layers + words * size) * 4 / 2**30)
