"""A Llama as llama.cpp's converter writes it, for tests: by the `gguf` package, with the tiny tokenizer's keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tiny_models import TEMPLATE, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["name_of", "permuted", "write_llama", "write_tokenizer"]

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def name_of(name: str) -> str:
    """A Llama's tensor name as llama.cpp writes it."""
    module, suffix = name.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{_NAMES[rest]}.{suffix}"
    return f"{_NAMES[module]}.{suffix}"


def permuted(weights: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection in the order that llama.cpp's rotary embedding wants."""
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weights.shape)


def write_llama(path: Path, model: Any, kind: str, *, drop: str = "", extra: str = "") -> Path:
    """The model as llama.cpp's own converter writes it, by the `gguf` package: matrices in `kind`, vectors in F32."""
    import gguf

    config = model.config
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    write_tokenizer(writer)
    quantized = getattr(gguf.GGMLQuantizationType, kind)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            values = permuted(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if name_of(name) == drop:
            continue
        wanted = quantized if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name_of(name), gguf.quantize(values, wanted), raw_dtype=wanted)
    if extra:
        writer.add_tensor(extra, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer(writer: Any) -> None:
    """The tiny byte-level tokenizer, in the keys that llama.cpp reads."""
    import gguf

    tokenizer = make_tokenizer()
    saved = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids)
    tokens = sorted(tokenizer.get_vocab(), key=lambda token: tokenizer.get_vocab()[token])
    tokens += [f"[unused{index}]" for index in range(len(tokens), 400)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if index in special else normal for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in saved["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)
