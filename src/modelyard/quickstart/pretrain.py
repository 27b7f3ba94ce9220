"""Pretrain the base model that the package ships, from the corpus that the package generates.

Run it as ``python -m modelyard.quickstart.pretrain OUT``: it writes a Hugging Face model folder. Seeds, data order and
thread count are fixed, so that one machine always writes the same bytes; another instruction set may differ in the last
bits of the weights. `recipe.json` beside the weights records every number that went in.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.quickstart import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ("<|pad|>", "<|text|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
MAX_TOKENS = 192


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base's bytes, besides the corpus and library versions."""

    documents: int = corpus.DOCUMENTS
    corpus_seed: int = corpus.SEED
    vocabulary: int = 1536
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 512
    epochs: float = 1.7
    tokens_per_step: int = 4096
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    user_loss_weight: float = 0.1
    seed: int = 0
    threads: int = 1


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the corpus; digits stay single so that numbers copy digit by digit."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (corpus.text_of(doc) for doc in corpus.documents(20_000, seed=recipe.corpus_seed))
    tokenizer.train_from_iterator(texts, trainer)
    made: Any = PreTrainedTokenizerFast  # its constructor has no types
    fast: PreTrainedTokenizerFast = made(
        tokenizer_object=tokenizer,
        bos_token="<|text|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_max_length=1024,
    )
    template = resources.files("modelyard.quickstart").joinpath("chat_template.jinja").read_text("utf-8")
    fast.chat_template = template.strip("\n")
    return fast


def encode(
    tokenizer: PreTrainedTokenizerFast, document: corpus.Document, user_weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of one document and the weight of each token in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for message in document:
        found: Any = tokenizer.convert_tokens_to_ids([f"<|{message['role']}|>", "<|end|>"])
        marker, end = found
        body = [*tokenizer(message["content"], add_special_tokens=False)["input_ids"], end]
        weight = user_weight if message["role"] == "user" else 1.0
        ids += [marker, *body]
        weights += [0.0, *([weight] * len(body))]
    return ids[:MAX_TOKENS], weights[:MAX_TOKENS]


def batches(encoded: list[tuple[list[int], list[float]]], tokens: int, rng: random.Random) -> Iterator[list[int]]:
    """Yield lists of document numbers whose padded size is about `tokens`, shuffled, similar lengths together."""
    order = list(range(len(encoded)))
    rng.shuffle(order)
    made: list[list[int]] = []
    for start in range(0, len(order), 4096):
        chunk = sorted(order[start : start + 4096], key=lambda i: len(encoded[i][0]))
        batch: list[int] = []
        for index in chunk:
            if batch and (len(batch) + 1) * len(encoded[index][0]) > tokens:
                made.append(batch)
                batch = []
            batch.append(index)
        if batch:
            made.append(batch)
    rng.shuffle(made)
    yield from made


def _collate(rows: list[tuple[list[int], list[float]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    weights = torch.zeros((len(rows), width))
    for row, (tokens, weight) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens)] = torch.tensor(weight)
    return ids, weights


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama decoder of the recipe's size."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    defaults: Any = GenerationConfig  # its constructor has no types
    model.generation_config = defaults(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=128,
    )
    return model


def pretrain(out: Path, recipe: Recipe, report: Any = None) -> dict[str, Any]:
    """Train by `recipe` and write the model folder to `out`; return the figures that were measured."""
    import torch

    torch.set_num_threads(recipe.threads)
    tokenizer = train_tokenizer(recipe)
    encoded = [
        encode(tokenizer, document, recipe.user_loss_weight)
        for document in corpus.documents(recipe.documents, seed=recipe.corpus_seed)
    ]
    model: Any = build_model(recipe, tokenizer)  # a module's methods have no types
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    rng = random.Random(recipe.seed)
    once = [list(batches(encoded, recipe.tokens_per_step, rng)) for _ in range(math.ceil(recipe.epochs))]
    plan = [batch for epoch in once for batch in epoch][: round(recipe.epochs * len(once[0]))]

    model.train()
    started, seen, curve = time.monotonic(), 0, []
    for step, members in enumerate(plan):
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        rate = recipe.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / len(plan))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, weights = _collate([encoded[i] for i in members], tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss: Any = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        if step % 100 == 0 or step == len(plan) - 1:
            curve.append((step, round(loss.item(), 4)))
            if report:
                report(
                    f"step {step}/{len(plan)} loss {loss.item():.4f} {seen / (time.monotonic() - started):.0f} tokens/s"
                )
    model.eval()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    figures = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": seen,
        "loss": curve,
    }
    (out / "recipe.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return figures


if __name__ == "__main__":
    pretrain(Path(sys.argv[1]), Recipe(), report=lambda line: sys.stderr.write(f"{line}\n"))
