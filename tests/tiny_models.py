"""Tiny models for tests: random weights, and a byte-level tokenizer trained on the spot, in well under a second."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}{{- raise_exception('no tools here') -}}{%- endif -%}"
    "{{- '<|' ~ message.role ~ '|>' -}}{{- message.content -}}{{- '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 400
TEXT = ["my card has not arrived", "where is my card", "the quick brown fox jumps over the lazy dog", "one two three"]


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` entries at most, with chat tokens; 256 of them are single bytes.

    The caller's own: a processor writes its class into the tokenizer that it is given.
    """
    return deepcopy(_train_tokenizer(template))


@cache
def _train_tokenizer(template: str | None) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = template
    return tokenizer


def make_llama(seed: int = 0, **config: Any) -> Any:
    """A Llama with random float32 weights: hidden size 32, 2 layers, a context of 128 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **config,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**values))
    return model.eval()


def save_model(folder: Path, model: Any = None, tokenizer: Any = None) -> Path:
    """Write a model folder as users have them; by default the tiny Llama with the tiny tokenizer."""
    (model if model is not None else make_llama()).save_pretrained(folder)
    (tokenizer if tokenizer is not None else make_tokenizer()).save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int = 0, **config: Any) -> Path:
    """Write a rank-4 LoRA for the Llama in `base`, with random weights in both factors, as PEFT does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **values))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(str(folder))
    return folder
