"""Tiny bases for adapters of every kind: one function an architecture, random weights, a few thousand parameters.

Widths are small and unequal where an architecture allows it, so that a transposed or swapped axis shows.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 96
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def _make(name: str, config_name: str, **values: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(3)
    config: Any = getattr(transformers, config_name)(**values)
    return getattr(transformers, name)(config).eval()


def llama(**config: Any) -> Any:
    """A Llama; `tie_word_embeddings=True` makes the tied one."""
    return _make("LlamaForCausalLM", "LlamaConfig", **{**_TEXT, "intermediate_size": 24, **config})


def qwen2(**config: Any) -> Any:
    """A Qwen2, whose q, k and v have biases."""
    return _make("Qwen2ForCausalLM", "Qwen2Config", **{**_TEXT, "intermediate_size": 24, **config})


def gpt2(**config: Any) -> Any:
    """A GPT-2, whose linear layers are stored transposed and whose embeddings are tied."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": VOCABULARY}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.2}
    return _make("GPT2LMHeadModel", "GPT2Config", **{**sizes, **ends, **config})


def bert_classifier() -> Any:
    """A BERT with three labels."""
    values = {key: _TEXT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
    return _make("BertForSequenceClassification", "BertConfig", **values, intermediate_size=24, num_labels=3)


def t5() -> Any:
    """A T5 with its one embedding shared by encoder, decoder and head."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return _make("T5ForConditionalGeneration", "T5Config", **sizes, vocab_size=VOCABULARY, decoder_start_token_id=0)


def resnet() -> Any:
    """A ResNet of bottlenecks, so that it has 1x1 and 3x3 convolutions."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "bottleneck"}
    return _make("ResNetForImageClassification", "ResNetConfig", **sizes, num_channels=3, num_labels=3)


def convnext() -> Any:
    """A ConvNeXt, whose 7x7 convolutions are grouped by channel."""
    sizes = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 16}
    return _make("ConvNextForImageClassification", "ConvNextConfig", **sizes, num_labels=3)


def vit() -> Any:
    """A ViT: its names on disk are those of transformers 4."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return _make("ViTForImageClassification", "ViTConfig", **sizes, image_size=16, patch_size=8, num_labels=3)


def siglip() -> Any:
    """A SigLIP image classifier: its pooling head is a `torch.nn.MultiheadAttention`."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return _make("SiglipVisionModel", "SiglipVisionConfig", **sizes, image_size=16, patch_size=8)


def wav2vec2() -> Any:
    """A wav2vec 2.0 with a CTC head: it begins with 1-D convolutions."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    layers = {"conv_dim": (8, 12), "conv_kernel": (4, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    return _make("Wav2Vec2ForCTC", "Wav2Vec2Config", **sizes, **layers, **places, vocab_size=20)


def qwen3_moe() -> Any:
    """A Qwen3 mixture of 4 experts: one tensor an expert on disk, fused in the model."""
    sizes = {"intermediate_size": 24, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    return _make("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **{**_TEXT, **sizes, "head_dim": 8})


def gpt_oss() -> Any:
    """A gpt-oss of 4 experts: fused on disk, stored (expert, in, out)."""
    sizes = {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return _make("GptOssForCausalLM", "GptOssConfig", **{**_TEXT, **sizes, "sliding_window": 16})


def mixtral() -> Any:
    """A Mixtral of 4 experts: `block_sparse_moe.experts.0.w1` on disk."""
    sizes = {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    return _make("MixtralForCausalLM", "MixtralConfig", **{**_TEXT, **sizes})


def qwen2_vl() -> Any:
    """A Qwen2-VL: a tower for pictures that begins with a 3-D convolution, and a language model below a prefix."""
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    text = {**_TEXT, "intermediate_size": 24, "num_hidden_layers": 1}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    values = {"text_config": text, "vision_config": vision, **ids, "tie_word_embeddings": False}
    return _make("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", **values)


def llava() -> Any:
    """A LLaVA: a CLIP tower, a projector and a Llama, under other names on disk than in the model."""
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tower = {**vision, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 16}
    text = {**_TEXT, "intermediate_size": 24, "model_type": "llama"}
    values = {"text_config": text, "vision_config": tower, "image_token_index": 90, "vision_feature_layer": -1}
    return _make("LlavaForConditionalGeneration", "LlavaConfig", **values, tie_word_embeddings=False)


def inputs_of(model: str) -> dict[str, Any]:
    """Something to run through a model of class `model`: two rows, nothing padded."""
    import torch

    generator = torch.Generator().manual_seed(7)
    ids = torch.arange(2 * 9).reshape(2, 9) % 80 + 2
    if "Wav2Vec2" in model:
        return {"input_values": torch.randn(2, 400, generator=generator)}
    if "T5" in model:
        return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    if any(name in model for name in ("ImageClassification", "SiglipVision")):
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if "Qwen2VL" in model:
        picture = torch.tensor([2, 92, 90, 93, 5, 6])
        patches = torch.randn(2 * 4, 3 * 2 * 4 * 4, generator=generator)
        grid = torch.tensor([[1, 2, 2], [1, 2, 2]])
        both = {"input_ids": torch.stack([picture, picture + (picture < 90)]), "pixel_values": patches}
        return {**both, "image_grid_thw": grid, "mm_token_type_ids": (both["input_ids"] == 90).int()}
    if "Llava" in model:
        row = torch.tensor([2, 3, 90, 90, 90, 90, 4, 5])
        return {"input_ids": row[None].repeat(2, 1), "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    return {"input_ids": ids}
