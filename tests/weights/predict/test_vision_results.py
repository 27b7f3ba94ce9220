"""Predictions of pictures are transformers' own: its pipelines, its processors' decoding, or a reference computed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modelyard.errors import RequestError
from modelyard.weights.media.video import pick_frames
from modelyard.weights.model import Model
from task_models import vision
from task_models.opened_media import open_media, pipeline_of
from task_models.vision import clip, picture, trimap

GIVEN = Image.fromarray(picture(48, 40, seed=3))


@pytest.mark.parametrize("kind", list(vision.ARCHITECTURES["image-classification"]))
def test_labels_are_the_pipelines(kind: str) -> None:
    """Labels and scores of every classifier, all of them and the first two."""
    model = open_media("image-classification", kind)
    theirs = pipeline_of("image-classification", model)(GIVEN, top_k=3)
    ours = model.predict(GIVEN)
    assert [one.label for one in ours.labels] == [one["label"] for one in theirs]
    assert [one.score for one in ours.labels] == pytest.approx([one["score"] for one in theirs], rel=1e-4, abs=1e-5)
    assert model.predict(GIVEN, top_k=2).labels == ours.labels[:2]


def test_functions_make_scores_of_logits() -> None:
    """`sigmoid` and `none` instead of the checkpoint's softmax; another word is refused."""
    model = open_media("image-classification")
    raw = {one.label: one.score for one in model.predict(GIVEN, function="none").labels}
    single = {one.label: one.score for one in model.predict(GIVEN, function="sigmoid").labels}
    for label, value in raw.items():
        assert single[label] == pytest.approx(1 / (1 + np.exp(-value)), rel=1e-4, abs=1e-5)
    with pytest.raises(RequestError, match="function"):
        model.predict(GIVEN, function="argmax")


@pytest.mark.parametrize("kind", list(vision.ARCHITECTURES["object-detection"]))
def test_objects_are_the_pipelines(kind: str) -> None:
    """Labels, scores and boxes in pixels (the pipeline cuts them to whole ones)."""
    model = open_media("object-detection", kind)
    theirs = sorted(pipeline_of("object-detection", model)(GIVEN, threshold=0.2), key=lambda one: -one["score"])
    ours = model.predict(GIVEN, threshold=0.2)
    assert ours.size == (40, 48)
    assert len(ours.objects) == len(theirs) > 0
    for mine, other in zip(ours.objects, theirs, strict=True):
        assert mine.label == other["label"]
        assert mine.score == pytest.approx(other["score"], rel=1e-4, abs=1e-5)
        box = [int(side) for side in (mine.box.left, mine.box.top, mine.box.right, mine.box.bottom)]
        assert box == [other["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]


SEGMENTATIONS = [(task, kind) for task, row in vision.ARCHITECTURES.items() if "segmentation" in task for kind in row]


@pytest.mark.parametrize(("task", "kind"), SEGMENTATIONS)
@pytest.mark.parametrize("wanted", ["semantic", "instance", "panoptic"])
def test_regions_are_the_pipelines(task: str, kind: str, wanted: str) -> None:
    """Labels, scores and masks of each kind that the model does; a kind that it does not do is refused with those it does."""
    model = open_media(task, kind)
    if not hasattr(model.processor, f"post_process_{wanted}_segmentation"):
        with pytest.raises(RequestError, match=f"does no {wanted}"):
            model.predict(GIVEN, kind=wanted)
        return
    theirs = pipeline_of("image-segmentation", model)(
        GIVEN, subtask=wanted, threshold=0.1, mask_threshold=0.1, overlap_mask_area_threshold=0.1
    )
    ours = model.predict(GIVEN, kind=wanted, threshold=0.1, mask_threshold=0.1, overlap_threshold=0.1)
    assert ours.kind == wanted
    assert len(ours.segments) == len(theirs)
    if wanted == "semantic":
        assert ours.segments
        assert sum(one.mask.sum() for one in ours.segments) == 40 * 48
    for other in theirs:
        mask = np.asarray(other["mask"]) > 0
        same = [one for one in ours.segments if one.label == other["label"] and np.array_equal(one.mask, mask)]
        assert all(one.mask.dtype == np.bool_ for one in same)
        wanted_score = None if other["score"] is None else pytest.approx(other["score"], rel=1e-4, abs=1e-5)
        assert any(one.score == wanted_score for one in same)  # two regions may have one mask


@pytest.mark.parametrize(("task", "kind"), [case for case in SEGMENTATIONS if case[0] != "semantic-segmentation"])
def test_regions_are_found_at_all(task: str, kind: str) -> None:
    """The thresholds of the test before let at least one region through, so it compares something."""
    found = open_media(task, kind).predict(GIVEN, threshold=0.1, mask_threshold=0.1, overlap_threshold=0.1)
    assert found.kind in ("panoptic", "instance")
    assert found.segments


@pytest.mark.parametrize("kind", list(vision.ARCHITECTURES["depth-estimation"]))
def test_depth_is_the_pipelines(kind: str) -> None:
    """The depth of every pixel at the picture's own size."""
    model = open_media("depth-estimation", kind)
    theirs = pipeline_of("depth-estimation", model)(GIVEN)["predicted_depth"].numpy()
    ours = model.predict(GIVEN).depth
    assert ours.shape == (40, 48)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert ours.std() > 0.01


def test_normals_are_unit_vectors_of_the_models_output() -> None:
    """As Sapiens2's own processor (which needs torchvision) does it: normalized, then stretched to the picture."""
    model = open_media("normal-estimation")
    raw = model.model(**model.processor(images=GIVEN, return_tensors="pt")).normals.detach()
    unit = raw / raw.norm(dim=1, keepdim=True)
    wanted = torch.nn.functional.interpolate(unit, size=(40, 48), mode="bilinear", align_corners=False)
    ours = model.predict(GIVEN).normals
    np.testing.assert_allclose(ours, wanted[0].permute(1, 2, 0).numpy(), atol=1e-5)
    assert ours.shape == (40, 48, 3)


def test_points_are_divided_by_the_predicted_scale() -> None:
    """As Sapiens2's own processor does it."""
    model = open_media("pointmap-estimation")
    outputs = model.model(**model.processor(images=GIVEN, return_tensors="pt"))
    ours = model.predict(GIVEN)
    assert ours.scale == pytest.approx(outputs.scales.item(), rel=1e-4, abs=1e-5)
    wanted = torch.nn.functional.interpolate(
        outputs.pointmaps.detach() / outputs.scales.item(), size=(40, 48), mode="bilinear"
    )
    np.testing.assert_allclose(ours.points, wanted[0].permute(1, 2, 0).numpy(), rtol=1e-4, atol=1e-4)


def test_poses_are_what_the_models_processor_decodes() -> None:
    """Boxes (left, top, right, bottom) reach it as (left, top, width, height); points come back in the picture."""
    model = open_media("pose-estimation")
    corners = [[2.0, 3.0, 28.0, 25.0], [10.0, 5.0, 30.0, 30.0]]
    with torch.no_grad():
        outputs = model.model(**model.processor(images=GIVEN, boxes=[corners], return_tensors="pt"))
    theirs = model.processor.post_process_pose_estimation(outputs, boxes=[corners])[0]
    ours = model.predict({"image": GIVEN, "boxes": [(2, 3, 30, 28), (10, 5, 40, 35)]})
    assert len(ours.poses) == 2
    for mine, other in zip(ours.poses, theirs, strict=True):
        np.testing.assert_allclose(mine.points, other["keypoints"].numpy(), atol=1e-3)
        np.testing.assert_allclose(mine.scores, other["scores"].numpy(), atol=1e-5)
        assert len(mine.labels) == 3
    with pytest.raises(RequestError, match="is no box"):
        model.predict({"image": GIVEN, "boxes": [(30, 3, 2, 28)]})
    whole = model.predict(GIVEN).poses
    assert (whole[0].box.right, whole[0].box.bottom) == (48, 40)


def test_a_matte_is_the_models_alpha_without_its_padding() -> None:
    """ViTMatte pads to multiples of 32 at the right and below: what is left is the picture's."""
    model = open_media("image-matting")
    held = trimap(48, 40)
    made = model.processor(images=GIVEN, trimaps=Image.fromarray(held), return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**made).alphas[0, 0, :40, :48].numpy()
    ours = model.predict({"image": GIVEN, "trimap": held})
    np.testing.assert_allclose(ours.alpha, wanted, atol=1e-6)
    assert ours.alpha.shape == (40, 48)
    with pytest.raises(RequestError, match="the mask is 30 x 20"):
        model.predict({"image": GIVEN, "trimap": trimap(30, 20)})


def test_a_larger_picture_is_twice_as_large() -> None:
    """Swin2SR's reconstruction without its padding, in whole levels."""
    model = open_media("image-to-image")
    with torch.no_grad():
        made = model.model(**model.processor(GIVEN, return_tensors="pt")).reconstruction[0]
    wanted = np.round(made.clamp(0, 1).numpy()[:, :80, :96].transpose(1, 2, 0) * 255)
    ours = model.predict(GIVEN).pixels
    assert ours.shape == (80, 96, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - wanted).max() <= 1


def test_keypoints_are_what_the_models_processor_decodes() -> None:
    """Points, scores and descriptors in pixels of the picture."""
    model = open_media("keypoint-detection")
    with torch.no_grad():
        outputs = model.model(**model.processor(GIVEN, return_tensors="pt"))
    theirs = model.processor.post_process_keypoint_detection(outputs, [(40, 48)])[0]
    ours = model.predict(GIVEN)
    np.testing.assert_allclose(ours.points, theirs["keypoints"].numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.scores, theirs["scores"].numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.descriptors, theirs["descriptors"].numpy(), atol=1e-5)
    assert len(ours.points) > 3


def test_matches_of_square_pictures_are_the_pipelines() -> None:
    """Points, their partners and scores, the surest first."""
    model = open_media("keypoint-matching")
    pair = [Image.fromarray(picture(48, 48, 1)), Image.fromarray(picture(48, 48, 2))]
    theirs = pipeline_of("keypoint-matching", model)(pair)
    ours = model.predict({"image": pair[0], "other": pair[1]})
    assert len(ours.points) == len(theirs) > 0
    for at, other in enumerate(theirs):
        first, second = other["keypoint_image_0"], other["keypoint_image_1"]
        np.testing.assert_allclose(ours.points[at], (first["x"], first["y"]), atol=1e-3)
        np.testing.assert_allclose(ours.others[at], (second["x"], second["y"]), atol=1e-3)
        assert ours.scores[at] == pytest.approx(other["score"], rel=1e-4, abs=1e-5)


def test_matches_lie_in_the_pictures_where_the_pipelines_do_not() -> None:
    """The pipeline of transformers 5.23 swaps width and height; ours are inside pictures that are wider than high."""
    model = open_media("keypoint-matching")
    first, second = picture(96, 32, 1), picture(64, 32, 2)
    found = model.predict({"image": first, "other": second})
    assert len(found.points) > 0
    assert (found.points[:, 0] < 96).all()
    assert (found.points[:, 1] < 32).all()
    assert (found.others[:, 1] < 32).all()
    theirs = pipeline_of("keypoint-matching", model)([Image.fromarray(first), Image.fromarray(second)])
    assert any(one["keypoint_image_0"]["y"] >= 32 or one["keypoint_image_1"]["y"] >= 32 for one in theirs)


def test_masks_are_what_the_models_processor_decodes() -> None:
    """Masks of points and of boxes, the best candidate first, at the picture's own size."""
    model = open_media("mask-generation")
    for ours_prompt, theirs_prompt in (
        ({"points": [(12, 9)]}, {"input_points": [[[[12.0, 9.0]]]]}),
        ({"boxes": [(2, 2, 20, 20)]}, {"input_boxes": [[[2.0, 2.0, 20.0, 20.0]]]}),
    ):
        made = model.processor(images=GIVEN, return_tensors="pt", **theirs_prompt)
        sizes = made["original_sizes"], made["reshaped_input_sizes"]
        given = {name: value for name, value in made.items() if name not in ("original_sizes", "reshaped_input_sizes")}
        with torch.no_grad():
            outputs = model.model(**given)
        masks = model.processor.image_processor.post_process_masks(outputs.pred_masks, *sizes)[0].numpy()
        scores = outputs.iou_scores[0, 0].numpy()
        ours = model.predict({"image": GIVEN, **ours_prompt})
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_allclose(ours.scores[0], scores[order], atol=1e-5)
        np.testing.assert_array_equal(ours.masks[0], masks[0][order])
        assert ours.masks.shape[-2:] == (40, 48)


def test_prompts_that_are_none_are_refused() -> None:
    """Neither or both of points and boxes, labels that do not fit, points that are none."""
    model = open_media("mask-generation")
    for prompt, words in (
        ({}, "needs `points` or `boxes`"),
        ({"points": [(1, 2)], "boxes": [(0, 0, 2, 2)]}, "not both"),
        ({"points": [(1, 2)], "labels": [1, 0]}, "labels"),
        ({"points": [(1, 2, 3)]}, "no points"),
        ({"points": 3}, "no points"),
    ):
        with pytest.raises(RequestError, match=words):
            model.predict({"image": GIVEN, **prompt})


def test_hidden_patches_are_guessed_by_the_model() -> None:
    """The reconstruction is the model's own for the mask; the same seed hides the same patches; the loss is theirs."""
    model = open_media("masked-image-modeling")
    mask = np.zeros((4, 4), bool)
    mask[1:3, 0:2] = True
    ours = model.predict({"image": GIVEN, "mask": mask})
    given = model.processor(images=GIVEN, return_tensors="pt")
    with torch.no_grad():
        outputs = model.model(**given, bool_masked_pos=torch.from_numpy(mask).flatten()[None])
    np.testing.assert_allclose(ours.pixels, outputs.reconstruction[0].numpy(), atol=1e-5)
    large = mask.repeat(8, 0).repeat(8, 1)
    error = np.abs(ours.pixels - given["pixel_values"][0].numpy())[:, large].mean()
    assert ours.loss == pytest.approx(error, rel=1e-4, abs=1e-5)
    np.testing.assert_array_equal(model.predict(GIVEN).mask, model.predict(GIVEN, seed=0).mask)
    assert (model.predict(GIVEN).mask != model.predict(GIVEN, seed=1).mask).any()
    assert model.predict(GIVEN, share=0.25).mask.sum() == 4
    with pytest.raises(RequestError, match="shape"):
        model.predict({"image": GIVEN, "mask": np.zeros((3, 3), bool)})


def test_a_picture_is_continued_greedily_below_what_is_kept() -> None:
    """The kept rows are the picture's own colours; each pixel behind is the likeliest, computed here one by one."""
    model = open_media("causal-image-modeling")
    ids = model.processor(images=GIVEN, return_tensors="pt")["input_ids"][0].tolist()
    start, colours = model.config.vocab_size - 1, np.asarray(model.processor.clusters)
    written = [start, *ids[:48]]
    with torch.no_grad():
        for _ in range(16):
            logits = model.model(input_ids=torch.tensor([written])).logits[0, -1]
            logits[start:] = -torch.inf
            written.append(int(logits.argmax()))
    wanted = np.rint(127.5 * (colours[written[1:]] + 1)).clip(0, 255).reshape(8, 8, 3)
    np.testing.assert_array_equal(model.predict(GIVEN, keep=0.75).pixels, wanted)
    drawn = model.predict([GIVEN, GIVEN], keep=0.75, sample=True, seed=3)
    np.testing.assert_array_equal(drawn[0].pixels, drawn[1].pixels)
    assert (drawn[0].pixels != model.predict(GIVEN, keep=0.75, sample=True, seed=4).pixels).any()
    assert model.predict(GIVEN, keep=1.0).pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("kind", list(vision.ARCHITECTURES["image-feature-extraction"]))
def test_features_are_the_pipelines(kind: str) -> None:
    """The last hidden states, and the pooled vector."""
    model = open_media("image-feature-extraction", kind)
    ours = model.predict(GIVEN)
    theirs = pipeline_of("image-feature-extraction", model)
    np.testing.assert_allclose(ours.values, np.asarray(theirs(GIVEN))[0], atol=1e-4)
    np.testing.assert_allclose(ours.pooled, np.asarray(theirs(GIVEN, pool=True))[0], atol=1e-4)


def test_features_of_a_model_of_pictures_and_texts_are_those_of_its_eyes() -> None:
    """CLIP asked for the features of a picture: its vision model's; `feature-extraction` of a ViT is the same as of pictures."""
    held = open_media("zero-shot-image-classification")
    ours = Model(held.model, held.processor, "image-feature-extraction", held.folder).predict(GIVEN)
    given = held.processor.image_processor(images=GIVEN, return_tensors="pt")
    with torch.no_grad():
        wanted = held.model.vision_model(**given)
    np.testing.assert_allclose(ours.values, wanted.last_hidden_state[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.pooled, wanted.pooler_output[0].numpy(), atol=1e-5)
    vit = open_media("image-feature-extraction", "vit")
    same = Model(vit.model, vit.processor, "feature-extraction", vit.folder).predict(GIVEN)
    np.testing.assert_array_equal(same.values, vit.predict(GIVEN).values)


@pytest.mark.parametrize("kind", list(vision.ARCHITECTURES["backbone"]))
def test_feature_maps_have_the_names_of_their_stages(kind: str) -> None:
    """Each stage's map is the model's own."""
    model = open_media("backbone", kind)
    with torch.no_grad():
        maps = model.model(**model.processor(images=GIVEN, return_tensors="pt")).feature_maps
    ours = model.predict(GIVEN).maps
    assert list(ours) == ["stage1", "stage2"]
    for mine, other in zip(ours.values(), maps, strict=True):
        np.testing.assert_allclose(mine, other[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", list(vision.ARCHITECTURES["video-classification"]))
def test_a_video_is_read_at_frames_spread_over_all_of_it(kind: str) -> None:
    """The labels are the model's for four of nine frames (the pipeline takes the first four, by a decoder that is not here)."""
    model = open_media("video-classification", kind)
    held: list[Any] = [Image.fromarray(frame) for frame in clip(9)]
    with torch.no_grad():
        logits = model.model(**model.processor([pick_frames(held, 4)], return_tensors="pt")).logits[0]
    ours = model.predict(held)
    assert ours.label == model.config.id2label[int(logits.argmax())]
    assert ours.score == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4, abs=1e-5)
