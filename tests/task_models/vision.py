"""Tiny model folders for every image and video task: random weights, hidden size 16 to 32, images of 32 pixels.

`ARCHITECTURES[task][model type]` writes a folder as users have it; `MODELS[task]` is the first of them, `SAMPLES[task]` an
input of `predict` for it, and `REASONS[task]` why a task has none here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 32
LABELS = {0: "cat", 1: "dog", 2: "bird"}
HEADS = {"id2label": LABELS, "label2id": {name: at for at, name in LABELS.items()}}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 8,
}
SWIN = {"image_size": SIZE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """A uint8 RGB picture (height, width, 3): smooth colours with a bright box, another for each seed."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    slopes = generator.uniform(0.5, 3.0, size=(3, 2))
    values = np.stack([80 + a * x + b * y for a, b in slopes], axis=-1)
    values[height // 3 : height // 2, width // 3 : width // 2] = generator.uniform(0, 255, size=3)
    return np.clip(values, 0, 255).astype(np.uint8)


def clip(frames: int = 4, width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """A uint8 video (frames, height, width, 3)."""
    return np.stack([picture(width, height, seed + at) for at in range(frames)])


def save(folder: Path, name: str, config: Any, *preprocessors: Any) -> Path:
    """Write a model of the class `name` with seeded random weights, and its preprocessors, to `folder`."""
    import torch
    import transformers

    torch.manual_seed(0)
    model: Any = getattr(transformers, name)(config)
    with torch.no_grad():  # the usual 0.02 makes every output nearly equal, and wrong code would pass
        for values in model.parameters():
            if values.ndim > 1 and 0 < values.std() < 0.1:
                wide = values.shape[0] > 1  # else a table of positions
                values.mul_((values[0].numel() ** -0.5 if wide else 0.5) / values.std())
    model.eval().save_pretrained(folder)
    for preprocessor in preprocessors:
        preprocessor.save_pretrained(folder)
    return folder


def config(name: str, **values: Any) -> Any:
    """A configuration of transformers, by the name of its class."""
    import transformers

    return getattr(transformers, name)(**values)


def processor(name: str, **values: Any) -> Any:
    """An image processor of the Pillow backend."""
    import transformers

    return getattr(transformers, f"{name}ImageProcessorPil")(**values)


def square(name: str = "ViT", **values: Any) -> Any:
    """An image processor that makes images of `SIZE` x `SIZE`."""
    return processor(name, size={"height": SIZE, "width": SIZE}, **values)


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


def _sapiens(name: str, **extra: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        head = {"upsample_out_channels": [8, 8], "conv_out_channels": [8], **extra}
        values = {**VIT, "num_key_value_heads_per_layer": [2, 2], "num_register_tokens": 2, "num_labels": 3}
        # Its own processor needs torchvision; any that makes `pixel_values` will do.
        return save(folder, name, config("Sapiens2Config", **values, head_config=head), square())

    return write


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
    return save(folder, "SamModel", values, transformers.SamProcessor(images))


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
    "normal-estimation": {"sapiens2": _sapiens("Sapiens2ForNormalEstimation")},
    "pointmap-estimation": {
        "sapiens2": _sapiens(
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


def trimap(width: int = 40, height: int = 30) -> np.ndarray:
    """A uint8 trimap (height, width): 0 background, 255 foreground, 128 unknown."""
    values = np.zeros((height, width), dtype=np.uint8)
    values[height // 4 : -height // 4, width // 4 : -width // 4] = 128
    values[height // 3 : -height // 3, width // 3 : -width // 3] = 255
    return values


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
