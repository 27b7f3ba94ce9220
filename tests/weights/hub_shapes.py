"""Tiny checkpoints with the very names, extras and old forms that the most downloaded ones of the hub have on disk.

Each is a model of transformers with random weights, saved, and its file rewritten as the real one is: `SHAPES[repo]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from task_models.pictures import SIZE, square
from task_models.sounds import speech_processor, waves
from tiny_models import VOCABULARY, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors], Tensors]

BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ROBERTA = {**BERT, "pad_token_id": 1}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "bos_token_id": 1}
GPT2["eos_token_id"] = 1
LLAMA = {**BERT, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 1}


@dataclass(frozen=True)
class Shape:
    """How one repo's file differs from what `save_pretrained` writes.

    Attributes:
        saved: The class whose tensors the file holds.
        config: Its configuration: the class's name and the values.
        edit: Turns the saved tensors into those of the file.
        named: The class that config.json names, where it is another than `saved`.
        dropped: What a load must report as dropped: these, and nothing else.
        added: What it must report as added.
        beside: `tokenizer`, `image`, `waves` or `speech`.
        values: Files beside the weights: name to content.
        settings: Keys of config.json that the real one has not (`None`) or has otherwise.
    """

    saved: str
    config: tuple[str, dict[str, Any]]
    edit: Edit = dict
    named: str | None = None
    dropped: frozenset[str] = frozenset()
    added: tuple[str, ...] = ()
    beside: str = "tokenizer"
    values: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, shape: Shape) -> Any:
    """Write the folder; gives the model whose values the file holds, as it was before it was saved."""
    import json

    torch.manual_seed(0)
    kind, values = shape.config
    model: Any = getattr(transformers, shape.saved)(getattr(transformers, f"{kind}Config")(**values))
    with torch.no_grad():  # the usual 0.02 makes every output nearly equal, and a wrong tensor would pass
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1 and 0 < tensor.std() < 0.1:
                tensor.mul_(8)
            elif tensor.ndim == 1 and not name.endswith("logit_scale"):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.eval().save_pretrained(folder)
    tensors = shape.edit(load_file(folder / "model.safetensors"))
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if shape.named is not None:
        config["architectures"] = [shape.named]
    for key, value in shape.settings.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    for preprocessor in _preprocessors(shape.beside):
        preprocessor.save_pretrained(folder)
    for name, content in shape.values.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return model


def _preprocessors(kind: str) -> list[Any]:
    if kind == "image":
        return [square()]
    if kind == "waves":
        return [waves()]
    if kind == "whisper":
        from task_models.speech import whisper_processor

        return [whisper_processor()]
    if kind == "speech":
        return [speech_processor()]
    if kind == "clip":
        return [make_tokenizer(None), square("CLIP", crop_size={"height": SIZE, "width": SIZE})]
    return [make_tokenizer(None)]


def adding(*names: str, shape: tuple[int, ...] = (4,), dtype: torch.dtype = torch.float32) -> Edit:
    """The file holds these tensors too."""
    return lambda held: {**held, **{name: torch.ones(shape, dtype=dtype) for name in names}}


def without(*patterns: str) -> Edit:
    """The file lacks what these patterns find."""
    return lambda held: {name: value for name, value in held.items() if not re.search("|".join(patterns), name)}


def renaming(pattern: str, to: str) -> Edit:
    """The file's names are others."""
    return lambda held: {re.sub(pattern, to, name): value for name, value in held.items()}


def copying(**names: str) -> Edit:
    """The file holds tied tensors twice; `a__b=...` stands for `a.b`."""
    pairs = {new.replace("__", "."): old for new, old in names.items()}
    return lambda held: {**held, **{new: held[old] for new, old in pairs.items()}}


def both(*edits: Edit) -> Edit:
    """One after another."""

    def edit(held: Tensors) -> Tensors:
        for each in edits:
            held = each(held)
        return held

    return edit


def adding_masks(prefix: str, attention: str = "attn") -> Edit:
    """The file holds the causal mask of every layer, and the number that masked scores were set to."""
    made: Tensors = {}
    for layer in range(2):
        made[f"{prefix}.{layer}.{attention}.bias"] = torch.ones(40, 40).tril().to(torch.uint8).view(1, 1, 40, 40)
        made[f"{prefix}.{layer}.{attention}.masked_bias"] = torch.tensor(-1e4)
    return lambda held: {**held, **made}


def masks(prefix: str, *leaves: str, layers: int = 2) -> tuple[str, ...]:
    """Names of buffers of every layer."""
    return tuple(f"{prefix}.{layer}.{leaf}" for layer in range(layers) for leaf in leaves)


def weight_norm(held: Tensors) -> Tensors:
    """The convolution of positions with the names that torch's old weight norm gives its parts."""
    parts = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    made = {}
    for name, value in held.items():
        for new, old in parts.items():
            name = name.replace(new, old)  # noqa: PLW2901
        made[name] = value
    return made


OLD_NORM = both(renaming(r"LayerNorm\.weight$", "LayerNorm.gamma"), renaming(r"LayerNorm\.bias$", "LayerNorm.beta"))
POSITIONS = torch.arange(40).expand(1, -1)


def positions(*names: str) -> Edit:
    """The file holds `position_ids`, int64."""
    return lambda held: {**held, **dict.fromkeys(names, POSITIONS)}


def pooler(prefix: str) -> tuple[str, str]:
    return f"{prefix}pooler.dense.weight", f"{prefix}pooler.dense.bias"


_GPT2_MASKS = masks("h", "attn.bias", "attn.masked_bias")
_ROBERTA_EDIT = both(
    copying(lm_head__decoder__weight="roberta.embeddings.word_embeddings.weight"),
    adding(*pooler("roberta.")),
    positions("roberta.embeddings.position_ids"),
)

SHAPES: dict[str, Shape] = {
    "bert-base-uncased": Shape(
        "BertForPreTraining",
        ("Bert", BERT),
        both(
            copying(cls__predictions__decoder__weight="bert.embeddings.word_embeddings.weight"),
            OLD_NORM,
            positions("bert.embeddings.position_ids"),
        ),
        "BertForMaskedLM",
        frozenset(
            {
                *pooler("bert."),
                "cls.seq_relationship.weight",
                "cls.seq_relationship.bias",
                "bert.embeddings.position_ids",
            }
        ),
    ),
    "dslim/bert-base-NER": Shape(
        "BertForTokenClassification",
        ("Bert", BERT),
        both(adding(*pooler("bert.")), positions("bert.embeddings.position_ids")),
        dropped=frozenset({*pooler("bert."), "bert.embeddings.position_ids"}),
    ),
    "roberta-base": Shape(
        "RobertaForMaskedLM",
        ("Roberta", ROBERTA),
        _ROBERTA_EDIT,
        dropped=frozenset({*pooler("roberta."), "roberta.embeddings.position_ids"}),
    ),
    "cardiffnlp/twitter-roberta-base-sentiment": Shape(
        "RobertaForSequenceClassification",
        ("Roberta", ROBERTA),
        both(adding(*pooler("roberta.")), positions("roberta.embeddings.position_ids")),
        dropped=frozenset({*pooler("roberta."), "roberta.embeddings.position_ids"}),
    ),
    "xlm-roberta-base": Shape(
        "XLMRobertaForMaskedLM",
        ("XLMRoberta", ROBERTA),
        _ROBERTA_EDIT,
        dropped=frozenset({*pooler("roberta."), "roberta.embeddings.position_ids"}),
    ),
    "distilbert-base-uncased": Shape(
        "DistilBertForMaskedLM",
        ("DistilBert", DISTILBERT),
        copying(vocab_projector__weight="distilbert.embeddings.word_embeddings.weight"),
    ),
    "gpt2": Shape(
        "GPT2LMHeadModel",
        ("GPT2", GPT2),
        both(renaming(r"^transformer\.", ""), adding_masks("h")),
        dropped=frozenset(_GPT2_MASKS),
    ),
    "distilgpt2": Shape(
        "GPT2LMHeadModel",
        ("GPT2", GPT2),
        both(
            copying(lm_head__weight="transformer.wte.weight"),
            adding_masks("transformer.h"),
        ),
        dropped=frozenset(masks("transformer.h", "attn.bias", "attn.masked_bias")),
    ),
    "EleutherAI/gpt-neo-125m": Shape(
        "GPTNeoForCausalLM",
        (
            "GPTNeo",
            {
                "vocab_size": VOCABULARY,
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "attention_types": [[["global", "local"], 1]],
                "max_position_embeddings": 40,
                "bos_token_id": 1,
                "eos_token_id": 1,
            },
        ),
        both(
            copying(lm_head__weight="transformer.wte.weight"),
            adding_masks("transformer.h", "attn.attention"),
        ),
        dropped=frozenset(masks("transformer.h", "attn.attention.bias", "attn.attention.masked_bias")),
    ),
    "EleutherAI/gpt-j-6b": Shape(
        "GPTJForCausalLM",
        ("GPTJ", {**GPT2, "rotary_dim": 4, "tie_word_embeddings": False}),
        adding_masks("transformer.h"),
        dropped=frozenset(masks("transformer.h", "attn.bias", "attn.masked_bias")),
    ),
    "EleutherAI/pythia-70m": Shape(
        "GPTNeoXForCausalLM",
        ("GPTNeoX", {**BERT, "bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": False}),
        both(
            adding_masks("gpt_neox.layers", "attention"),
            adding(*masks("gpt_neox.layers", "attention.rotary_emb.inv_freq")),
        ),
        dropped=frozenset(
            masks("gpt_neox.layers", "attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq")
        ),
    ),
    "meta-llama/Llama-2-7b-hf": Shape(
        "LlamaForCausalLM",
        ("Llama", LLAMA),
        adding(*masks("model.layers", "self_attn.rotary_emb.inv_freq")),
        dropped=frozenset(masks("model.layers", "self_attn.rotary_emb.inv_freq")),
    ),
    "facebook/opt-125m": Shape(
        "OPTForCausalLM",
        ("OPT", {**LLAMA, "word_embed_proj_dim": 16, "ffn_dim": 24}),
        both(
            copying(lm_head__weight="model.decoder.embed_tokens.weight"),
        ),
    ),
    "facebook/opt-350m": Shape(
        "OPTForCausalLM",
        ("OPT", {**LLAMA, "word_embed_proj_dim": 8, "ffn_dim": 24, "do_layer_norm_before": False}),
        renaming(r"^model\.", ""),
    ),
    "bigscience/bloom-560m": Shape(
        "BloomForCausalLM",
        (
            "Bloom",
            {
                "vocab_size": VOCABULARY,
                "hidden_size": 16,
                "n_layer": 2,
                "n_head": 2,
                "bos_token_id": 1,
                "eos_token_id": 1,
            },
        ),
        renaming(r"^transformer\.", ""),
    ),
    "Qwen/Qwen2-0.5B": Shape("Qwen2ForCausalLM", ("Qwen2", {**LLAMA, "tie_word_embeddings": True})),
    "google/gemma-2b": Shape("GemmaForCausalLM", ("Gemma", {**LLAMA, "head_dim": 8})),
    "microsoft/phi-2": Shape(
        "PhiForCausalLM",
        ("Phi", {**LLAMA, "num_key_value_heads": 2}),
        adding(*masks("model.layers", "self_attn.rotary_emb.inv_freq")),
        dropped=frozenset(masks("model.layers", "self_attn.rotary_emb.inv_freq")),
    ),
    "tiiuae/falcon-7b": Shape(
        "FalconForCausalLM",
        (
            "Falcon",
            {
                "vocab_size": VOCABULARY,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "multi_query": True,
                "parallel_attn": True,
                "bos_token_id": 1,
                "eos_token_id": 1,
            },
        ),
        both(
            copying(lm_head__weight="transformer.word_embeddings.weight"),
            adding(
                *masks("transformer.h", "self_attention.maybe_rotary.inv_freq", "self_attention.rotary_emb.inv_freq")
            ),
        ),
        dropped=frozenset(
            masks("transformer.h", "self_attention.maybe_rotary.inv_freq", "self_attention.rotary_emb.inv_freq")
        ),
    ),
    "mistralai/Mixtral-8x7B-v0.1": Shape(
        "MixtralForCausalLM", ("Mixtral", {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1})
    ),
}
