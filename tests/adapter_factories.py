"""Writing a tiny base and a PEFT adapter of it, made with the real PEFT: what `adapter_kinds.KINDS` is put together from.

Every trained tensor is random and none of them zero, so that an adapter that is not applied shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adapter_bases as bases

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Made:
    """What a factory wrote.

    Attributes:
        base, adapter: The two folders; `original` is the base before it was quantized, where it was.
        model: The class in `transformers` that loads the base.
        task: The task as `modelyard.weights.tasks` calls it.
    """

    base: Path
    adapter: Path
    model: str
    task: str
    original: Path | None = None

    def load(self, folder: Path | None = None, **options: Any) -> Any:
        """The model of `folder` (the base), in the dtype it has on disk."""
        import transformers

        made: Any = getattr(transformers, self.model).from_pretrained(
            folder or self.base, **{"dtype": "auto", **options}
        )
        return made.eval()

    def attach(self, **options: Any) -> Any:
        """The base with its adapter attached by PEFT, not merged."""
        from peft import PeftModel

        return PeftModel.from_pretrained(self.load(), str(self.adapter), **options).eval()

    def inputs(self) -> dict[str, Any]:
        """Tensors for one run of the model, in the dtype of its weights where they are not integers."""
        given = bases.inputs_of(self.model)
        dtype = self.load().dtype
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}

    def run(self, model: Any) -> Any:
        """What `model` answers to `inputs`, as one float32 tensor: its logits, or what it pools."""
        import torch

        with torch.no_grad():
            answer = model(**self.inputs())
        return (answer["logits"] if "logits" in answer else answer["pooler_output"]).float()


@dataclass(frozen=True)
class Kind:
    """A kind of adapter.

    Attributes:
        name: Its key in `KINDS`.
        group: The row of docs/reference/formats.md that it belongs to.
        peft: What PEFT's own merge of it is: "right", "wrong" (another function than the adapter attached), "refused"
            (it raises) or "unloadable" (the adapter cannot even be attached).
        why: For all but "right": the reason.
    """

    name: str
    group: str
    make: Callable[[Path], Made] = field(repr=False)
    peft: str = "right"
    why: str = ""

    def __call__(self, folder: Path) -> Made:
        """Write the base and the adapter below `folder`."""
        return self.make(folder)


_TASKS = {
    "CausalLM": "text-generation",
    "SequenceClassification": "text-classification",
    "ImageClassification": "image-classification",
    "SiglipVisionModel": "image-feature-extraction",
    "T5": "text2text-generation",
    "Wav2Vec2": "automatic-speech-recognition",
    "Qwen2VL": "image-text-to-text",
    "Llava": "image-text-to-text",
    "GPT2": "text-generation",
}
_ADAPTER = "adapter_model.safetensors"


def lora(
    base: Callable[[], Any],
    dtype: str = "float32",
    adapter_dtype: str = "float32",
    *,
    later: dict[str, Callable[[], Any]] | None = None,
    **options: Any,
) -> Callable[[Path], Made]:
    """A factory of a LoRA with `options`, those of `later` made when PEFT is there."""

    def make(folder: Path) -> Made:
        from peft import LoraConfig

        values = {"r": 3, "lora_alpha": 5, **options, **{name: value() for name, value in (later or {}).items()}}
        return _write(folder, base(), dtype, adapter_dtype, lambda: LoraConfig(**values))

    return make


def other(config: str, **options: Any) -> Callable[[Path], Made]:
    """A factory of another kind of PEFT on a Llama."""

    def make(folder: Path) -> Made:
        import peft

        return _write(folder, bases.llama(), "float32", "float32", lambda: getattr(peft, config)(**options))

    return make


def _write(folder: Path, model: Any, dtype: str, adapter_dtype: str, config: Callable[[], Any]) -> Made:
    import torch
    from peft import get_peft_model

    name = type(model).__name__
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    torch.manual_seed(11)
    adapted = get_peft_model(model, config())
    _stir(adapted)
    adapted.save_pretrained(str(folder / "adapter"))
    if adapter_dtype != "float32":
        _cast(folder / "adapter" / _ADAPTER, getattr(torch, adapter_dtype))
    return _made(folder, name)


def _made(folder: Path, model: str, original: Path | None = None) -> Made:
    task = next(task for part, task in _TASKS.items() if part in model)
    return Made(folder / "base", folder / "adapter", model, task, original)


def _stir(adapted: Any) -> None:
    """Move every trained parameter from where it started, so that none of them is zero or the base's."""
    import torch

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.25)


def _cast(path: Path, dtype: Any) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path, {"format": "pt"})


def quantized(method: str) -> Callable[[Path], Made]:
    """A factory of a LoRA on a Llama that was quantized, beside the Llama it was quantized from."""

    def make(folder: Path) -> Made:
        import torch
        import transformers
        from peft import LoraConfig, get_peft_model

        # bitsandbytes packs blocks of 64: wider than the other bases, or nothing would be quantized.
        model = bases.llama(hidden_size=64, intermediate_size=64).to(torch.bfloat16)
        model.save_pretrained(folder / "original")
        bits: Any = transformers.BitsAndBytesConfig
        options: Any = {
            "bnb-4bit": lambda: bits(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
            ),
            "bnb-8bit": lambda: bits(load_in_8bit=True),
            "torchao": _int8_weights,
        }
        quantized: Any = transformers.LlamaForCausalLM.from_pretrained(
            folder / "original", quantization_config=options[method](), dtype=torch.bfloat16, device_map="cpu"
        )
        quantized.save_pretrained(folder / "base")
        torch.manual_seed(11)
        config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(quantized, config)
        _stir(adapted)
        adapted.save_pretrained(str(folder / "adapter"))
        return _made(folder, "LlamaForCausalLM", folder / "original")

    return make


def _int8_weights() -> Any:
    import transformers
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


def renamed(make: Callable[[Path], Made], rename: Callable[[str], str], targets: list[str]) -> Callable[[Path], Made]:
    """A factory whose adapter has its keys renamed, as an older transformers named the modules."""

    def renamed(folder: Path) -> Made:
        from safetensors.torch import load_file, save_file

        made = make(folder)
        path = made.adapter / _ADAPTER
        save_file({rename(name): value for name, value in load_file(path).items()}, path, {"format": "pt"})
        config = json.loads((made.adapter / "adapter_config.json").read_text("utf-8"))
        config["target_modules"] = targets
        (made.adapter / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        return made

    return renamed


def vit_of_4(key: str) -> str:
    key = key.replace(".layers.", ".encoder.layer.")
    for now, then in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
        key = key.replace(f".attention.{now}.", f".attention.{then}.")
    return key


def mixtral_of_4(folder: Path) -> Made:
    """An adapter as transformers 4 wrote it, one pair of factors an expert; PEFT 0.21 translates it as it loads."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    bases.mixtral().to(torch.bfloat16).save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(2):
        for expert in range(4):
            for name, (inside, outside) in {"w1": (16, 24), "w2": (24, 16), "w3": (16, 24)}.items():
                module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(3, inside, generator=generator) * 0.3
                tensors[f"{module}.lora_B.weight"] = torch.randn(outside, 3, generator=generator) * 0.3
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM")
    config.save_pretrained(str(folder / "adapter"))
    save_file(tensors, folder / "adapter" / _ADAPTER, {"format": "pt"})
    return _made(folder, "MixtralForCausalLM")


def loftq(folder: Path) -> Made:
    """A LoRA whose configuration says that it started as LoftQ; PEFT computes that start on a GPU only."""
    made = lora(bases.llama, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")(folder)
    path = made.adapter / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    path.write_text(json.dumps(config), "utf-8")
    return made
