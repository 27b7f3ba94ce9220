"""Tiny models that find objects and regions in pictures, or give a value for each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from task_models.pictures import HEADS, RESNET, SIZE, SWIN, VIT, config, processor, save, square

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "save_detr",
    "save_detr_segmentation",
    "save_dpt",
    "save_dpt_segmentation",
    "save_glpn",
    "save_mask2former",
    "save_maskformer",
    "save_sapiens",
    "save_segformer",
    "save_vitmatte",
    "save_yolos",
]


def save_yolos(folder: Path) -> Path:
    """YOLOS for object detection."""
    values = {**VIT, "image_size": [SIZE, SIZE], "num_detection_tokens": 6, "use_mid_position_embeddings": False}
    made = processor("Yolos", size={"height": SIZE, "width": SIZE})
    return save(folder, "YolosForObjectDetection", config("YolosConfig", **values, **HEADS), made)


def _detr_config() -> Any:
    backbone = config("ResNetConfig", **RESNET, out_features=["stage2"])
    return config(
        "DetrConfig",
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
        **HEADS,
    )


def save_detr(folder: Path) -> Path:
    """DETR for object detection, on a ResNet of transformers (no timm)."""
    made = processor("Detr", size={"shortest_edge": SIZE, "longest_edge": 48})
    return save(folder, "DetrForObjectDetection", _detr_config(), made)


def save_detr_segmentation(folder: Path) -> Path:
    """DETR with its mask head, on a ResNet of transformers."""
    values = _detr_config()
    values.backbone_config = config(
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    values.d_model, values.encoder_attention_heads, values.decoder_attention_heads = (
        32,
        8,
        8,
    )  # groups of 8 in its mask head
    made = processor("Detr", size={"shortest_edge": 64, "longest_edge": 96})
    return save(folder, "DetrForSegmentation", values, made)


def save_segformer(folder: Path) -> Path:
    """SegFormer for semantic segmentation."""
    values = config(
        "SegformerConfig",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        **HEADS,
    )
    return save(folder, "SegformerForSemanticSegmentation", values, square("Segformer"))


def _mask_former_swin() -> Any:
    return config(
        "SwinConfig",
        **{**SWIN, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2]},
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def save_maskformer(folder: Path) -> Path:
    """MaskFormer for instance segmentation."""
    values = config(
        "MaskFormerConfig",
        backbone_config=_mask_former_swin(),
        decoder_config=config(
            "DetrConfig",
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=5,
        ),
        fpn_feature_size=32,  # normed in 32 groups
        mask_feature_size=32,
        **HEADS,
    )
    made = processor("MaskFormer", size={"shortest_edge": SIZE, "longest_edge": 64}, size_divisor=32, ignore_index=255)
    return save(folder, "MaskFormerForInstanceSegmentation", values, made)


def save_mask2former(folder: Path) -> Path:
    """Mask2Former for universal segmentation."""
    values = config(
        "Mask2FormerConfig",
        backbone_config=_mask_former_swin(),
        feature_size=32,  # normed in 32 groups
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        **HEADS,
    )
    made = processor("Mask2Former", size={"shortest_edge": SIZE, "longest_edge": 64}, size_divisor=32, ignore_index=255)
    return save(folder, "Mask2FormerForUniversalSegmentation", values, made)


def save_glpn(folder: Path) -> Path:
    """GLPN for depth estimation."""
    values = config(
        "GLPNConfig",
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        sr_ratios=[8, 4, 2, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
    )
    return save(folder, "GLPNForDepthEstimation", values, processor("GLPN", size_divisor=32))


def _dpt_config(**values: Any) -> Any:
    return config(
        "DPTConfig",
        **{**VIT, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
        **values,
    )


def save_dpt(folder: Path) -> Path:
    """DPT for depth estimation."""
    return save(folder, "DPTForDepthEstimation", _dpt_config(), square("DPT"))


def save_dpt_segmentation(folder: Path) -> Path:
    """DPT for semantic segmentation."""
    return save(
        folder, "DPTForSemanticSegmentation", _dpt_config(semantic_classifier_dropout=0.0, **HEADS), square("DPT")
    )


def save_sapiens(name: str, **extra: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        head = {"upsample_out_channels": [8, 8], "conv_out_channels": [8], **extra}
        values = {**VIT, "num_key_value_heads_per_layer": [2, 2], "num_register_tokens": 2, "num_labels": 3}
        # Its own processor needs torchvision; any that makes `pixel_values` will do.
        return save(folder, name, config("Sapiens2Config", **values, head_config=head), square())

    return write


def save_vitmatte(folder: Path) -> Path:
    """ViTMatte for image matting."""
    backbone = config(
        "VitDetConfig",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_channels=4,
        image_size=SIZE,
        patch_size=16,
        out_features=["stage1"],
    )
    values = config(
        "VitMatteConfig",
        backbone_config=backbone,
        hidden_size=16,
        convstream_hidden_sizes=[8, 8, 16],
        fusion_hidden_sizes=[16, 8, 8, 8],
    )
    return save(folder, "VitMatteForImageMatting", values, processor("VitMatte", size_divisor=32))
