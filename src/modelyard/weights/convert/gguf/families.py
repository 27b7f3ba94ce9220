"""The architectures that have a GGUF form here, as data: names, hyperparameters, and what llama.cpp keeps in another form.

Each `Family` is one `general.architecture` of llama.cpp with the model types of transformers that it holds. The facts are llama.cpp's and
transformers'; `tests/weights/convert/gguf` holds the names against the `gguf` package's own map. Reads no file.

>>> FAMILIES["llama"].gguf_name("model.layers.3.self_attn.q_proj.weight")
'blk.3.attn_q.weight'
>>> FAMILIES["bert"].source_name("blk.0.ffn_up.bias")
'bert.encoder.layer.0.intermediate.dense.bias'
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAMILIES", "Family", "Field", "find_family", "supported_types"]


@dataclass(frozen=True, slots=True)
class Field:
    """One hyperparameter: its key in the file behind the architecture's name, its type there, and its key in config.json."""

    key: str
    kind: str
    name: str
    needed: bool = True


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp.

    Attributes:
        arch: As `general.architecture` has it.
        classes: Model type of transformers to the classes that have a GGUF form; the first is what a file without a word about it becomes.
        modules: Module of transformers (`{}` for the layer) to module of the file.
        fields: The hyperparameters.
        changes: Module of the file (`{}` for the layer) to what is done to its weight: `queries` and `keys` (rows in the order of
            interleaved rotation, bias too), `plus one`, `transposed`.
        biases: Modules of the file that llama.cpp reads a bias of.
        fixed: Configuration key to the values that llama.cpp computes with; anything else has no GGUF form.
        left_out: Patterns of tensors that follow from the configuration, or that no program reads.
        dropped: Patterns of tensors of a head that llama.cpp has no place for; a class with one becomes the first of `classes`.
        window: What llama.cpp does with a sliding window: None, it computes without; else the number of layers of which the last is full.
        prefix: What names may lack or have before them: a base model saved alone.
        tied: Whether llama.cpp takes the embedding where there is no head; `always`: it has no place for one.
        rotary: Whether it has rotary embeddings.
    """

    arch: str
    classes: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str]
    fields: tuple[Field, ...]
    changes: Mapping[str, str] = field(default_factory=dict)
    biases: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    window: int | None = None
    prefix: str = "model."
    tied: str = "optional"
    rotary: bool = True

    def gguf_name(self, name: str) -> str | None:
        """The file's name of a tensor of transformers; None where it has none."""
        return _translate(name, self.modules)

    def source_name(self, name: str) -> str | None:
        """The name in transformers of a tensor of the file; None where it has none."""
        return _translate(name, {there: here for here, there in self.modules.items()})

    def change(self, name: str) -> str | None:
        """What is done to a tensor, by its name in the file."""
        module, _, suffix = name.rpartition(".")
        found = self.changes.get(_pattern(module))
        return found if suffix == "weight" or found in {"queries", "keys"} else None

    def takes_bias(self, name: str) -> bool:
        """Whether llama.cpp has a place for a bias, by its name in the file."""
        return _pattern(name.rpartition(".")[0]) in self.biases


_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


def _pattern(module: str) -> str:
    return _LAYER.sub(".{}", module, count=1)


def _translate(name: str, modules: Mapping[str, str]) -> str | None:
    module, _, suffix = name.rpartition(".")
    if suffix not in {"weight", "bias"}:
        return None
    there = modules.get(_pattern(module))
    if there is None:
        return None
    layer = _LAYER.search(module)
    return f"{there.format(layer[1]) if layer else there}.{suffix}"


def _layers(prefix: str, blocks: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{{}}.{here}": f"blk.{{}}.{there}" for here, there in blocks.items()}


_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ATTENTION = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
}  # fmt: skip
_GATED = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_SANDWICH = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_DENSE = _OUTSIDE | _layers("model.layers", _ATTENTION | _GATED | _NORMS)
_GEMMA_NORMS = ("output_norm", "blk.{}.attn_norm", "blk.{}.ffn_norm")
_SANDWICH_NORMS = (*_GEMMA_NORMS, "blk.{}.post_attention_norm", "blk.{}.post_ffw_norm")
_ROTATED = {"blk.{}.attn_q": "queries", "blk.{}.attn_k": "keys"}

_SIZES = (
    Field("context_length", "u32", "max_position_embeddings"),
    Field("embedding_length", "u32", "hidden_size"),
    Field("block_count", "u32", "num_hidden_layers"),
    Field("feed_forward_length", "u32", "intermediate_size"),
    Field("attention.head_count", "u32", "num_attention_heads"),
    Field("vocab_size", "u32", "vocab_size", needed=False),
)
_GROUPED = (*_SIZES, Field("attention.head_count_kv", "u32", "num_key_value_heads", needed=False))
_RMS = (*_GROUPED, Field("attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps"))
_HEADS = (
    Field("attention.key_length", "u32", "head_dim", needed=False),
    Field("attention.value_length", "u32", "head_dim", needed=False),
)
_WINDOW = (Field("attention.sliding_window", "u32", "sliding_window", needed=False),)
_CAPPED = (
    Field("final_logit_softcapping", "f32", "final_logit_softcapping"),
    Field("attn_logit_softcapping", "f32", "attn_logit_softcapping"),
)
_CACHED = (r"rotary_emb\.inv_freq$",)
_SILU = {"hidden_act": ("silu", "swish")}
_GEMMA_ACT = {"hidden_activation": ("gelu_pytorch_tanh", None), "attention_bias": (False,)}
_QKV_BIAS = frozenset({"blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"})

_BERT_LAYER = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip
_GPT2_LAYER = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_PHI2_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
_PHI3_LAYER = {
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _blocks(names: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"blk.{{}}.{there}" for there in names.values())


FAMILIES: Mapping[str, Family] = {
    family.arch: family
    for family in (
        Family(
            "llama",
            {"llama": ("LlamaForCausalLM",), "mistral": ("MistralForCausalLM",)},
            _DENSE,
            (*_RMS, *_HEADS, *_WINDOW),
            changes=_ROTATED,
            biases=_QKV_BIAS | _blocks(_GATED) | {"blk.{}.attn_output"},
            fixed=_SILU,
            left_out=_CACHED,
        ),
        Family(
            "qwen2",
            {"qwen2": ("Qwen2ForCausalLM",)},
            _DENSE,
            (*_RMS, *_WINDOW),
            biases=_QKV_BIAS,
            fixed=_SILU,
            left_out=_CACHED,
        ),
        Family(
            "qwen3",
            {"qwen3": ("Qwen3ForCausalLM",)},
            _DENSE | _layers("model.layers", _QK_NORMS),
            (*_RMS, *_HEADS, *_WINDOW),
            fixed=_SILU | {"attention_bias": (False,)},
            left_out=_CACHED,
        ),
        Family(
            "gemma",
            {"gemma": ("GemmaForCausalLM",)},
            _DENSE,
            (*_RMS, *_HEADS),
            changes=dict.fromkeys(_GEMMA_NORMS, "plus one"),
            fixed=_GEMMA_ACT | {"hidden_act": ("gelu_pytorch_tanh", "gelu")},
            left_out=_CACHED,
            tied="always",
        ),
        Family(
            "gemma2",
            {"gemma2": ("Gemma2ForCausalLM",)},
            _OUTSIDE | _layers("model.layers", _ATTENTION | _GATED | _SANDWICH),
            (*_RMS, *_HEADS, *_WINDOW, *_CAPPED),
            changes=dict.fromkeys(_SANDWICH_NORMS, "plus one"),
            fixed=_GEMMA_ACT,
            left_out=_CACHED,
            window=2,
            tied="always",
        ),
        Family(
            "gemma3",
            {"gemma3_text": ("Gemma3ForCausalLM",)},
            _OUTSIDE | _layers("model.layers", _ATTENTION | _GATED | _SANDWICH | _QK_NORMS),
            (*_RMS, *_HEADS, *_WINDOW),
            changes=dict.fromkeys((*_SANDWICH_NORMS, "blk.{}.attn_q_norm", "blk.{}.attn_k_norm"), "plus one"),
            fixed=_GEMMA_ACT | {"attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "use_bidirectional_attention": (False, None)},
            left_out=_CACHED,
            window=6,
        ),
        Family(
            "phi2",
            {"phi": ("PhiForCausalLM",)},
            {"model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output"}
            | _layers("model.layers", _PHI2_LAYER),
            (*_GROUPED, Field("attention.layer_norm_epsilon", "f32", "layer_norm_eps")),
            biases=_blocks(_PHI2_LAYER) | {"output_norm", "output"},
            fixed={"hidden_act": ("gelu_new", "gelu_pytorch_tanh"), "qk_layernorm": (False,)},
            left_out=_CACHED,
            tied="never",
        ),
        Family(
            "phi3",
            {"phi3": ("Phi3ForCausalLM",)},
            _OUTSIDE | _layers("model.layers", _PHI3_LAYER),
            (*_RMS, *_WINDOW),
            fixed=_SILU,
            left_out=_CACHED,
        ),
        Family(
            "gpt2",
            {"gpt2": ("GPT2LMHeadModel",)},
            {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm", "lm_head": "output"}
            | _layers("transformer.h", _GPT2_LAYER),
            (
                Field("context_length", "u32", "n_positions"),
                Field("embedding_length", "u32", "n_embd"),
                Field("block_count", "u32", "n_layer"),
                Field("feed_forward_length", "u32", "n_inner"),
                Field("attention.head_count", "u32", "n_head"),
                Field("attention.layer_norm_epsilon", "f32", "layer_norm_epsilon"),
                Field("vocab_size", "u32", "vocab_size", needed=False),
            ),
            changes=dict.fromkeys((f"blk.{{}}.{name}" for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")), "transposed"),
            biases=_blocks(_GPT2_LAYER) | {"output_norm"},
            fixed={
                "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
            },
            left_out=(r"\.attn\.(masked_)?bias$",),
            prefix="transformer.",
            rotary=False,
        ),
        Family(
            "bert",
            {"bert": ("BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining")},
            {
                "bert.embeddings.word_embeddings": "token_embd", "bert.embeddings.position_embeddings": "position_embd",
                "bert.embeddings.token_type_embeddings": "token_types", "bert.embeddings.LayerNorm": "token_embd_norm",
                "bert.pooler.dense": "cls", "classifier": "cls.output",
            }
            | _layers("bert.encoder.layer", _BERT_LAYER),
            (*_SIZES, Field("attention.layer_norm_epsilon", "f32", "layer_norm_eps")),
            biases=_blocks(_BERT_LAYER) | {"token_embd_norm", "cls", "cls.output"},
            # llama.cpp computes GELU by its tanh form; the difference to the exact one is within a check's tolerance.
            fixed={"hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"), "is_decoder": (False,), "add_cross_attention": (False,)},
            left_out=(r"embeddings\.position_ids$",),
            dropped=(r"^cls\.(predictions|seq_relationship)\.",),
            prefix="bert.",
            tied="headless",
            rotary=False,
        ),
    )
}  # fmt: skip
"""Every architecture, by llama.cpp's name."""


def supported_types() -> list[str]:
    """The model types of transformers that have a GGUF form here, sorted."""
    return sorted(kind for family in FAMILIES.values() for kind in family.classes)


def find_family(label: str, *, model_type: Any = None, arch: Any = None) -> Family:
    """The family of a model type of transformers, or of an architecture of llama.cpp.

    Raises:
        ModelError: `unknown_architecture`, listing what is there.
    """
    for family in FAMILIES.values():
        if (arch is not None and family.arch == arch) or (model_type is not None and model_type in family.classes):
            return family
    known = sorted(FAMILIES) if arch is not None else supported_types()
    named = arch if arch is not None else model_type
    what = "the architecture" if arch is not None else "the model type"
    raise ModelError(
        f"`{label}` is of {what} `{show_name(str(named))}`, which has no GGUF form here",
        code="unknown_architecture",
        hint=f"there are: {', '.join(known)}",
        supported=known,
    )
