"""One tiny base and one PEFT adapter for every kind there is: `KINDS[name](folder)` writes `folder/base` and `folder/adapter`.

Tests of plans, merges and algebra go through `KINDS`, and docs/reference/formats.md is generated from it.
"""

from __future__ import annotations

from typing import Any

import adapter_bases as bases
from adapter_factories import Kind, Made, loftq, lora, mixtral_of_4, other, quantized, renamed, vit_of_4

__all__ = ["KINDS", "Kind", "Made"]

_LLM: dict[str, Any] = {"task_type": "CAUSAL_LM"}
_QV: dict[str, Any] = {**_LLM, "target_modules": ["q_proj", "v_proj"]}
_ALL: dict[str, Any] = {**_LLM, "target_modules": "all-linear"}
_CONV1D: dict[str, Any] = {**_LLM, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
_EXPERTS: dict[str, Any] = {
    **_LLM,
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
_BERT: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
_CLASSIFIER: dict[str, Any] = {"modules_to_save": ["classifier"]}
_TOWERS = r".*(language_model.*(q_proj|down_proj)|visual.*(qkv|fc1))"
_LLAVA = r".*(language_model.*(q_proj|down_proj)|vision_tower.*(q_proj|fc1)|multi_modal_projector.linear_1)"
_ONE_TENSOR = "the base's output layer and input embedding are one tensor, and PEFT changes it for both"
_NO_WEIGHT = "it is no change of the weights"


def _tied() -> Any:
    return bases.llama(tie_word_embeddings=True)


def _linear() -> list[Kind]:
    pairs = [(base, adapter) for base in ("float32", "float16", "bfloat16") for adapter in ("float32", "bfloat16")]
    ranks: dict[str, Any] = {
        "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 4},
        "alpha_pattern": {"up_proj": 9},
    }
    conv1d = lora(bases.gpt2, **_CONV1D)
    return [
        *(Kind(f"linear-{b}-{a}", "linear", lora(bases.llama, b, a, **_ALL)) for b, a in pairs),
        Kind(
            "linear-encoder-decoder",
            "linear",
            lora(bases.t5, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM"),
        ),
        Kind("linear-some-layers", "linear", lora(bases.llama, **_QV, layers_to_transform=[1])),
        Kind("linear-llava", "linear", lora(bases.llava, target_modules=_LLAVA)),
        Kind("linear-qwen2-vl", "linear", lora(bases.qwen2_vl, target_modules=_TOWERS)),
        Kind(
            "linear-vit-of-transformers-4",
            "linear",
            renamed(lora(bases.vit, target_modules=["q_proj", "v_proj"]), vit_of_4, ["query", "value"]),
            "unloadable",
            "PEFT looks for the names that transformers 5 gives the modules",
        ),
        Kind("rslora", "rslora", lora(bases.llama, **_ALL, use_rslora=True)),
        Kind("rslora-bfloat16", "rslora", lora(bases.llama, "bfloat16", **_ALL, use_rslora=True)),
        Kind("patterns", "rank and alpha patterns", lora(bases.llama, **_ALL, **ranks)),
        Kind("patterns-rslora", "rank and alpha patterns", lora(bases.llama, **_ALL, **ranks, use_rslora=True)),
        Kind("conv1d", "Conv1D", conv1d),
        Kind("conv1d-bfloat16", "Conv1D", lora(bases.gpt2, "bfloat16", **_CONV1D)),
        Kind("multihead-attention", "MultiheadAttention", lora(bases.siglip, target_modules=["head.attention"])),
        Kind(
            "multihead-attention-bfloat16",
            "MultiheadAttention",
            lora(bases.siglip, "bfloat16", target_modules=["head.attention"]),
        ),
    ]


def _dora() -> list[Kind]:
    dora: dict[str, Any] = {"use_dora": True}
    convolutions: dict[str, Any] = {"target_modules": ["convolution"], "use_dora": True, **_CLASSIFIER}
    return [
        *(Kind(f"dora-{d}", "DoRA", lora(bases.llama, d, **_ALL, **dora)) for d in ("float32", "float16", "bfloat16")),
        Kind("dora-rslora", "DoRA", lora(bases.llama, **_ALL, **dora, use_rslora=True)),
        Kind("dora-conv1d", "DoRA", lora(bases.gpt2, **_CONV1D, **dora)),
        Kind("dora-conv1d-bfloat16", "DoRA", lora(bases.gpt2, "bfloat16", **_CONV1D, **dora)),
        Kind("dora-embedding", "DoRA", lora(bases.llama, **_LLM, target_modules=["embed_tokens"], **dora)),
        Kind(
            "dora-embedding-bfloat16",
            "DoRA",
            lora(bases.llama, "bfloat16", **_LLM, target_modules=["embed_tokens"], **dora),
        ),
        Kind("dora-conv2d", "DoRA", lora(bases.resnet, **convolutions)),
        Kind("dora-conv2d-bfloat16", "DoRA", lora(bases.resnet, "bfloat16", **convolutions)),
    ]


def _convolutions() -> list[Kind]:
    conv2d: dict[str, Any] = {"target_modules": ["convolution"], **_CLASSIFIER}
    return [
        Kind("conv2d", "convolution", lora(bases.resnet, **conv2d)),
        Kind("conv2d-bfloat16", "convolution", lora(bases.resnet, "bfloat16", **conv2d)),
        Kind("conv2d-patches", "convolution", lora(bases.vit, target_modules=["projection"])),
        Kind("conv1d-layers", "convolution", lora(bases.wav2vec2, target_modules=r".*(conv_layers.*conv|q_proj)")),
        Kind("conv3d", "convolution", lora(bases.qwen2_vl, target_modules=["patch_embed.proj"])),
        Kind(
            "conv2d-grouped",
            "convolution",
            lora(bases.convnext, target_modules=["dwconv", "depthwise_conv"], r=24),
            "refused",
            "grouped convolutions are not merged by PEFT",
        ),
    ]


def _embeddings() -> list[Kind]:
    embed: dict[str, Any] = {**_LLM, "target_modules": ["embed_tokens", "q_proj"]}
    head: dict[str, Any] = {**_LLM, "target_modules": ["lm_head", "q_proj"]}
    both: dict[str, Any] = {**_LLM, "target_modules": ["lm_head", "embed_tokens"]}
    saved: dict[str, Any] = {**_QV, "modules_to_save": ["lm_head"]}
    tokens: dict[str, Any] = {**_QV, "trainable_token_indices": [3, 5, 8]}
    one: dict[str, Any] = {"peft": "wrong", "why": _ONE_TENSOR}
    return [
        Kind("embedding", "embedding", lora(bases.llama, **embed)),
        Kind("embedding-bfloat16", "embedding", lora(bases.llama, "bfloat16", **embed)),
        Kind("head", "output layer", lora(bases.llama, **head)),
        Kind("modules-to-save", "modules_to_save", lora(bases.llama, **saved)),
        Kind("modules-to-save-bfloat16", "modules_to_save", lora(bases.llama, "bfloat16", **{**_QV, "modules_to_save": ["lm_head", "embed_tokens"]})),
        Kind("modules-to-save-norms", "modules_to_save", lora(bases.llama, **_QV, modules_to_save=["norm", "input_layernorm"])),
        Kind("classifier", "modules_to_save", lora(bases.bert_classifier, **_BERT)),
        Kind("classifier-picture", "modules_to_save", lora(bases.vit, target_modules=["q_proj"], **_CLASSIFIER)),
        Kind("tokens", "trainable_token_indices", lora(bases.llama, **tokens)),
        Kind("tokens-bfloat16", "trainable_token_indices", lora(bases.llama, "bfloat16", **tokens)),
        Kind("tokens-alone", "trainable_token_indices", other("TrainableTokensConfig", token_indices=[3, 5], target_modules=["embed_tokens"])),
        Kind("tied-linear", "tied embeddings", lora(_tied, **_ALL)),
        Kind("tied-head", "tied embeddings", lora(_tied, **head), **one),
        Kind("tied-embedding", "tied embeddings", lora(_tied, **embed), **one),
        Kind("tied-both", "tied embeddings", lora(_tied, **both), **one),
        Kind("tied-ensured", "tied embeddings", lora(_tied, **{**embed, "ensure_weight_tying": True}), **one),
        Kind("tied-saved-head", "tied embeddings", lora(_tied, **saved)),
        Kind("tied-saved-ensured", "tied embeddings", lora(_tied, **{**_QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True})),
        Kind("tied-tokens", "tied embeddings", lora(_tied, **tokens)),
    ]  # fmt: skip


def _biases() -> list[Kind]:
    return [
        Kind("lora-bias", "lora_bias", lora(bases.qwen2, **_QV, lora_bias=True)),
        Kind("lora-bias-bfloat16", "lora_bias", lora(bases.qwen2, "bfloat16", **_QV, lora_bias=True)),
        Kind("bias-lora-only", "bias", lora(bases.qwen2, **_QV, bias="lora_only")),
        Kind("bias-all", "bias", lora(bases.qwen2, **_QV, bias="all")),
    ]


def _experts() -> list[Kind]:
    return [
        Kind("experts-qwen3-moe", "experts", lora(bases.qwen3_moe, **_EXPERTS)),
        Kind("experts-qwen3-moe-bfloat16", "experts", lora(bases.qwen3_moe, "bfloat16", **_EXPERTS)),
        Kind("experts-gpt-oss", "experts", lora(bases.gpt_oss, **_EXPERTS)),
        Kind("experts-gpt-oss-bfloat16", "experts", lora(bases.gpt_oss, "bfloat16", **_EXPERTS)),
        Kind("experts-mixtral-of-transformers-4", "experts", mixtral_of_4),
    ]


def _starts() -> list[Kind]:
    def start(name: str, value: str, base: Any = bases.llama, dtype: str = "float32", **options: Any) -> Kind:
        wanted: dict[str, Any] = {**_QV, **options, "init_lora_weights": value}
        again = "its start is random, and PEFT draws it again at each load" if "niter" in value else ""
        return Kind(f"start-{name}", "starts", lora(base, dtype, **wanted), "wrong" if again else "right", again)

    return [
        start("gaussian", "gaussian"),
        start("orthogonal", "orthogonal", r=4),
        start("eva", "eva"),
        start("mica", "mica"),
        start("mica-bfloat16", "mica", dtype="bfloat16"),
        start("pissa", "pissa"),
        start("pissa-bfloat16", "pissa", dtype="bfloat16"),
        start("pissa-conv1d", "pissa", bases.gpt2, **_CONV1D),
        start("pissa-niter", "pissa_niter_2"),
        start("olora", "olora"),
        start("olora-bfloat16", "olora", dtype="bfloat16"),
        Kind("start-loftq", "starts", loftq, "unloadable", "PEFT computes this start on a GPU only"),
    ]  # fmt: skip


def _refused() -> list[Kind]:
    def subconfig(name: str, **values: Any) -> Any:
        import peft.tuners.lora.config as configs

        return getattr(configs, name)(**values)

    none: dict[str, Any] = {"peft": "refused", "why": _NO_WEIGHT}
    return [
        Kind("alora", "LoRA variants", lora(bases.llama, **_QV, alora_invocation_tokens=[3, 4]), **none),
        Kind("bd-lora", "LoRA variants", lora(bases.llama, **_QV, later={"use_bdlora": lambda: subconfig("BdLoraConfig", target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)}, r=4)),
        Kind("kasa", "LoRA variants", lora(bases.llama, **_QV, later={"kasa_config": lambda: subconfig("KasaConfig")})),
        Kind("velora", "LoRA variants", lora(bases.llama, **_QV, later={"velora_config": lambda: subconfig("VeloraConfig", num_groups=4)})),
        Kind("monteclora", "LoRA variants", lora(bases.llama, **_QV, later={"monteclora_config": lambda: subconfig("MontecloraConfig")})),
        Kind("layer-replication", "LoRA variants", lora(bases.llama, **_QV, layer_replication=[(0, 2), (1, 2)]), "wrong", "one tensor would have to change differently in each of its layers"),
        Kind("prompt-tuning", "other kinds of PEFT", other("PromptTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=3), **none),
        Kind("prefix-tuning", "other kinds of PEFT", other("PrefixTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=3), **none),
        Kind("ia3", "other kinds of PEFT", other("IA3Config", task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
        Kind("loha", "other kinds of PEFT", other("LoHaConfig", r=3, target_modules=["q_proj"])),
        Kind("lokr", "other kinds of PEFT", other("LoKrConfig", r=3, target_modules=["q_proj"])),
        Kind("vera", "other kinds of PEFT", other("VeraConfig", r=3, target_modules=["q_proj"])),
        Kind("adalora", "other kinds of PEFT", other("AdaLoraConfig", total_step=10, init_r=3, target_r=2, target_modules=["q_proj"])),
        Kind("oft", "other kinds of PEFT", other("OFTConfig", oft_block_size=4, target_modules=["q_proj"])),
    ]  # fmt: skip


def _quantized() -> list[Kind]:
    return [
        Kind(f"quantized-{name}", "quantized bases", quantized(name)) for name in ("bnb-4bit", "bnb-8bit", "torchao")
    ]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kinds in (_linear, _dora, _convolutions, _embeddings, _biases, _experts, _starts, _refused, _quantized)
    for kind in kinds()
}
