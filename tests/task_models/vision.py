"""Tiny model folders for every image and video task: random weights, hidden size 16 to 32, images of 32 pixels.

`ARCHITECTURES[task][model type]` writes a folder as users have it; `MODELS[task]` is the first of them, `SAMPLES[task]` an
input of `predict` for it, and `REASONS[task]` why a task has none here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from task_models.pictures import HEADS, RESNET, SIZE, SWIN, VIT, clip, config, picture, processor, save, square, trimap
from task_models.regions import (
    save_detr,
    save_detr_segmentation,
    save_dpt,
    save_dpt_segmentation,
    save_glpn,
    save_mask2former,
    save_maskformer,
    save_sapiens,
    save_segformer,
    save_vitmatte,
    save_yolos,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "REASONS",
    "SAMPLES",
    "SIZE",
    "VIT",
    "clip",
    "config",
    "picture",
    "processor",
    "save",
    "square",
    "trimap",
]


def _vit(name: str, **values: Any) -> Callable[[Path], Path]:
    return lambda folder: save(folder, name, config("ViTConfig", **VIT, **values), square())


def save_convnext(folder: Path) -> Path:
    """ConvNext for image classification."""
    values = config("ConvNextConfig", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **HEADS)
    made = processor("ConvNext", size={"shortest_edge": SIZE}, crop_pct=0.875)
    return save(folder, "ConvNextForImageClassification", values, made)


def save_resnet(folder: Path) -> Path:
    """ResNet for image classification."""
    made = processor("ConvNext", size={"shortest_edge": SIZE}, crop_pct=0.875)
    return save(folder, "ResNetForImageClassification", config("ResNetConfig", **RESNET, **HEADS), made)


def save_swin(folder: Path) -> Path:
    """Swin for image classification."""
    return save(folder, "SwinForImageClassification", config("SwinConfig", **SWIN, **HEADS), square())


def save_vitpose(folder: Path) -> Path:
    """ViTPose for pose estimation: three keypoints per person."""
    backbone = config(
        "VitPoseBackboneConfig",
        image_size=[SIZE, SIZE],
        patch_size=[8, 8],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        out_features=["stage2"],
    )
    values = config("VitPoseConfig", backbone_config=backbone, scale_factor=4, use_simple_decoder=True, **HEADS)
    return save(folder, "VitPoseForPoseEstimation", values, processor("VitPose", size={"height": SIZE, "width": SIZE}))


def save_swin2sr(folder: Path) -> Path:
    """Swin2SR for image super-resolution, twice the size."""
    values = config(
        "Swin2SRConfig",
        image_size=SIZE,
        patch_size=1,
        embed_dim=16,
        depths=[1],
        num_heads=[2],
        window_size=4,
        upscale=2,
    )
    return save(folder, "Swin2SRForImageSuperResolution", values, processor("Swin2SR", size_divisor=8))


SUPERPOINT = {
    "encoder_hidden_sizes": [8, 8, 16, 16],
    "decoder_hidden_size": 16,
    "descriptor_decoder_dim": 16,
    "keypoint_threshold": 0.001,
    "max_keypoints": 20,
    "border_removal_distance": 2,
}


def save_superpoint(folder: Path) -> Path:
    """SuperPoint for keypoint detection."""
    made = processor("SuperPoint", size={"height": 48, "width": 64})
    return save(folder, "SuperPointForKeypointDetection", config("SuperPointConfig", **SUPERPOINT), made)


def save_superglue(folder: Path) -> Path:
    """SuperGlue on SuperPoint for keypoint matching."""
    values = config(
        "SuperGlueConfig",
        keypoint_detector_config=config("SuperPointConfig", **SUPERPOINT).to_dict(),
        hidden_size=16,
        keypoint_encoder_sizes=[8, 16],
        gnn_layers_types=["self", "cross"],
        num_attention_heads=2,
        sinkhorn_iterations=4,
        matching_threshold=0.0,
    )
    made = processor("SuperGlue", size={"height": 48, "width": 64})
    return save(folder, "SuperGlueForKeypointMatching", values, made)


def save_imagegpt(folder: Path) -> Path:
    """ImageGPT for causal image modelling: 8 x 8 pixels of 16 colours."""
    generator = np.random.default_rng(0)
    clusters = np.round(generator.uniform(-1, 1, size=(16, 3)), 3).tolist()
    made = processor("ImageGPT", clusters=clusters, size={"height": 8, "width": 8})
    values = config("ImageGPTConfig", vocab_size=17, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return save(folder, "ImageGPTForCausalImageModeling", values, made)


def save_sam(folder: Path) -> Path:
    """SAM for mask generation."""
    import transformers

    values = config(
        "SamConfig",
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 32,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
            "iou_head_depth": 2,
        },
    )
    images = processor("Sam", size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    make: Any = transformers.SamProcessor
    return save(folder, "SamModel", values, make(images))


def save_videomae(folder: Path) -> Path:
    """VideoMAE for video classification: four frames."""
    values = {**VIT, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": True}
    made = processor("VideoMAE", size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return save(folder, "VideoMAEForVideoClassification", config("VideoMAEConfig", **values, **HEADS), made)


def save_timesformer(folder: Path) -> Path:
    """TimeSformer for video classification: four frames."""
    values = config("TimesformerConfig", **VIT, num_frames=4, **HEADS)
    made = processor("VideoMAE", size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return save(folder, "TimesformerForVideoClassification", values, made)


def save_dinov2(folder: Path) -> Path:
    """DINOv2 for image features."""
    values = {**VIT, "mlp_ratio": 2}
    del values["intermediate_size"]
    made = processor("Bit", size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return save(folder, "Dinov2Model", config("Dinov2Config", **values), made)


def save_resnet_backbone(folder: Path) -> Path:
    """ResNet as a backbone: feature maps of two stages."""
    made = processor("ConvNext", size={"shortest_edge": SIZE}, crop_pct=0.875)
    values = config("ResNetConfig", **RESNET, out_features=["stage1", "stage2"])
    return save(folder, "ResNetBackbone", values, made)


def save_swin_backbone(folder: Path) -> Path:
    """Swin as a backbone."""
    return save(folder, "SwinBackbone", config("SwinConfig", **SWIN, out_features=["stage1", "stage2"]), square())


ARCHITECTURES: dict[str, dict[str, Callable[[Path], Path]]] = {
    "image-classification": {
        "vit": _vit("ViTForImageClassification", **HEADS),
        "convnext": save_convnext,
        "resnet": save_resnet,
        "swin": save_swin,
    },
    "object-detection": {"yolos": save_yolos, "detr": save_detr},
    "semantic-segmentation": {"segformer": save_segformer, "dpt": save_dpt_segmentation},
    "image-segmentation": {"detr": save_detr_segmentation},
    "instance-segmentation": {"maskformer": save_maskformer},
    "universal-segmentation": {"mask2former": save_mask2former, "maskformer": save_maskformer},
    "depth-estimation": {"dpt": save_dpt, "glpn": save_glpn},
    "normal-estimation": {"sapiens2": save_sapiens("Sapiens2ForNormalEstimation")},
    "pointmap-estimation": {
        "sapiens2": save_sapiens(
            "Sapiens2ForPointmapEstimation", scale_conv_out_channels=[8], scale_final_hidden_sizes=[8, 8]
        )
    },
    "pose-estimation": {"vitpose": save_vitpose},
    "image-matting": {"vitmatte": save_vitmatte},
    "image-to-image": {"swin2sr": save_swin2sr},
    "keypoint-detection": {"superpoint": save_superpoint},
    "keypoint-matching": {"superglue": save_superglue},
    "masked-image-modeling": {"vit": _vit("ViTForMaskedImageModeling", encoder_stride=8)},
    "causal-image-modeling": {"imagegpt": save_imagegpt},
    "mask-generation": {"sam": save_sam},
    "video-classification": {"videomae": save_videomae, "timesformer": save_timesformer},
    "image-feature-extraction": {"dinov2": save_dinov2, "vit": _vit("ViTModel")},
    "backbone": {"resnet": save_resnet_backbone, "swin": save_swin_backbone},
}
"""Task, model type, and what writes its folder."""


MODELS: dict[str, Callable[[Path], Path]] = {task: next(iter(row.values())) for task, row in ARCHITECTURES.items()}
"""Task to what writes a tiny model folder for it."""


SAMPLES: dict[str, Any] = {task: picture() for task in ARCHITECTURES} | {
    "depth-estimation": picture(48, 40),
    "pose-estimation": {"image": picture(), "boxes": [(2.0, 3.0, 30.0, 28.0)]},
    "image-matting": {"image": picture(), "trimap": trimap()},
    "keypoint-matching": {"image": picture(), "other": picture(seed=1)},
    "mask-generation": {"image": picture(), "points": [(12.0, 9.0)]},
    "video-classification": clip(),
}
"""Task to an input of `predict`."""


REASONS: dict[str, str] = {
    "table-recognition": "the image processors of SLANet and SLANeXt, which hold the table's vocabulary, need torchvision",
    "text-recognition": "the image processors of PP-OCR, which hold the alphabet, need torchvision",
}
"""Task to why no model of it can be made here."""
