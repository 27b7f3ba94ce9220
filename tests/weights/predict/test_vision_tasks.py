"""Every task of pictures and videos: rows of a batch are what they are alone, on every architecture; nothing leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict import PREDICTORS
from modelyard.weights.tasks import TASKS
from task_models import audio, multimodal, vision
from task_models.opened_media import assert_rows_alone, open_media
from task_models.vision import clip, picture, trimap

CASES = [(task, kind) for task, row in vision.ARCHITECTURES.items() for kind in row]
SIZES = [(48, 40), (33, 64), (48, 40), (64, 36)]


def rows_of(task: str) -> list[Any]:
    """Four rows of pictures of three sizes, all different."""
    pictures = [picture(width, height, seed) for seed, (width, height) in enumerate(SIZES)]
    if task == "pose-estimation":
        boxes = [
            [(2.0, 3.0, 30.0, 28.0)],
            [(0.0, 0.0, 20.0, 40.0), (5.0, 5.0, 33.0, 60.0)],
            None,
            [(1.0, 1.0, 60.0, 30.0)],
        ]
        return [{"image": one, "boxes": held} for one, held in zip(pictures, boxes, strict=True)]
    if task == "image-matting":
        return [{"image": one, "trimap": trimap(one.shape[1], one.shape[0])} for one in pictures]
    if task == "keypoint-matching":
        return [{"image": one, "other": picture(60, 44, 7)} for one in pictures]
    if task == "mask-generation":
        return [
            {"image": pictures[0], "points": [(12.0, 9.0)]},
            {
                "image": pictures[1],
                "points": [[(12.0, 9.0), (3.0, 3.0)], [(20.0, 20.0), (1.0, 30.0)]],
                "labels": [[1, 0], [1, 1]],
            },
            {"image": pictures[2], "boxes": [(2.0, 2.0, 20.0, 20.0), (5.0, 5.0, 30.0, 30.0)]},
            {"image": pictures[3], "points": [(40.0, 20.0)]},
        ]
    if task == "video-classification":
        return [clip(4, seed=1), clip(9, 48, 33, seed=2), list(clip(3, seed=3)), clip(4, seed=4)]
    return pictures


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_each_row_of_a_batch_is_what_it_is_alone(task: str, kind: str) -> None:
    """Pictures of different sizes in one call: no row knows of the others, and rows are not all the same."""
    model = open_media(task, kind)
    options = {"threshold": 0.0} if task == "object-detection" or "segmentation" in task else {}
    found = assert_rows_alone(model, rows_of(task), **options)
    assert repr(found[0]) != repr(found[3])


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_the_callers_modes_stay_as_they_were(task: str, kind: str) -> None:
    """Gradients stay on, the random state is untouched, and results hold no tensor."""
    model = open_media(task, kind)
    before = torch.random.get_rng_state()
    found = model.predict(vision.SAMPLES[task])
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not holds_tensor(found)


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_models_in_bfloat16_answer_in_float32(task: str, kind: str) -> None:
    """Processors decode with NumPy, which knows no bfloat16; what comes out is float32 whatever the weights are."""
    import tempfile
    from pathlib import Path

    from modelyard.weights.load import load

    with tempfile.TemporaryDirectory() as folder:
        model = load(vision.ARCHITECTURES[task][kind](Path(folder) / "model"), task=task, dtype="bfloat16")
    assert model.model.dtype == torch.bfloat16
    found = model.predict(vision.SAMPLES[task])
    for name in found.__dataclass_fields__:
        value = getattr(found, name)
        assert not (isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype != np.float32)


def holds_tensor(value: Any) -> bool:
    """Whether a tensor is anywhere in a result."""
    if isinstance(value, torch.Tensor):
        return True
    if hasattr(value, "__dataclass_fields__"):
        return any(holds_tensor(getattr(value, name)) for name in value.__dataclass_fields__)
    if isinstance(value, dict):
        return any(holds_tensor(one) for one in value.values())
    return isinstance(value, list | tuple) and any(holds_tensor(one) for one in value)


def test_every_task_of_pictures_sounds_and_both_is_here() -> None:
    """Each has a predictor, and tiny models with a sample, or the reason why there can be none."""
    modules = (vision, audio, multimodal)
    wanted = {
        task.name
        for task in TASKS.values()
        if task.modality in ("image", "video", "audio", "multimodal") or task.name.startswith("text-to-")
    } - {"decision"}  # its requests are texts: tests/task_models/text.py
    for task in sorted(wanted):
        assert task in PREDICTORS
        made = any(task in module.MODELS and task in module.SAMPLES for module in modules)
        assert made != any(task in module.REASONS for module in modules), task


@pytest.mark.parametrize(
    ("task", "name", "config"),
    [
        ("table-recognition", "SLANetForTableRecognition", "SLANetConfig"),
        ("table-recognition", "SLANeXtForTableRecognition", "SLANeXtConfig"),
        ("text-recognition", "PPOCRV5ServerRecForTextRecognition", "PPOCRV5ServerRecConfig"),
        ("text-recognition", "PPOCRV6SmallRecForTextRecognition", "PPOCRV6SmallRecConfig"),
    ],
)
def test_the_reason_for_a_task_without_models_is_true(task: str, name: str, config: str, tmp_path: Any) -> None:
    """Their image processors, which hold the alphabet, have no form without torchvision; loading one says so."""
    import json

    import transformers
    from transformers.models.auto import image_processing_auto

    from modelyard.weights.loading.preprocessors import load_preprocessor

    values = getattr(transformers, config)()
    assert name in TASKS[task].architectures()
    processors = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"][values.model_type]
    assert "pil" not in processors
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": values.model_type, "architectures": [name]}), "utf-8"
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": processors["torchvision"]}), "utf-8"
    )
    with pytest.raises(ModelError, match="torchvision") as caught:
        load_preprocessor(tmp_path, task)
    assert caught.value.code == "needs_torchvision"


def test_a_processor_that_forgot_the_alphabet_is_named() -> None:
    """An OCR model with another image processor cannot spell; predict says what is missing."""
    from modelyard.weights.model import Model
    from modelyard.weights.predict import predict

    held = open_media("image-classification")
    for task in ("text-recognition", "table-recognition"):
        with pytest.raises(ModelError, match="alphabet") as caught:
            predict(Model(held.model, held.processor, task, held.folder), picture())
        assert caught.value.code == "needs_torchvision"


def test_a_row_that_cannot_be_read_is_named() -> None:
    """The message has the row's number and the cause, for a picture alone and for one of several fields."""
    model = open_media("image-classification")
    with pytest.raises(RequestError, match=r"row 1: .*URL"):
        model.predict([picture(), "https://example.org/cat.png"])
    with pytest.raises(RequestError, match="row 0 has no `other`"):
        open_media("keypoint-matching").predict({"image": picture()})
    with pytest.raises(RequestError, match="row 0: `boxs` means nothing here"):
        open_media("pose-estimation").predict({"image": picture(), "boxs": []})
    with pytest.raises(RequestError, match="takes no option `treshold`") as caught:
        open_media("object-detection").predict(picture(), treshold=0.1)
    assert caught.value.hint == "did you mean `threshold`?"


def test_an_input_that_the_processor_refuses_is_named() -> None:
    """GLPN rounds sides down to multiples of 32: of a lower picture nothing is left."""
    with pytest.raises(RequestError, match="row 0: the model's preprocessor refuses it"):
        open_media("depth-estimation", "glpn").predict(picture(40, 20))


def test_a_preprocessor_that_needs_another_library_is_named() -> None:
    """An ImportError at the first use becomes `needs_<library>` with the command that installs it."""
    from modelyard.weights.predict.vision_inputs import preparing

    model = open_media("image-classification")
    for library in ("torchvision", "torchaudio", "timm"):
        with pytest.raises(ModelError, match=library) as caught, preparing(model, 0):
            raise ImportError(f"this processor requires the {library} library")
        assert caught.value.code == f"needs_{library}"
        assert caught.value.hint == f"pip install {library}"


def test_pictures_of_every_kind_are_one_input(tmp_path: Any) -> None:
    """A path, bytes, a Pillow image and an array of one picture give one answer."""
    import io

    from PIL import Image

    model = open_media("image-classification")
    held = io.BytesIO()
    Image.fromarray(picture()).save(held, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(held.getvalue())
    found = [model.predict(one) for one in (picture(), Image.fromarray(picture()), held.getvalue(), path, str(path))]
    assert all(one == found[0] for one in found)
    assert model.predict([]) == []


def test_one_video_is_told_from_several() -> None:
    """A list of frames and an array are one video; a list of arrays of four axes, of lists or of files are several."""
    from modelyard.weights.predict.vision_labels import is_one_video

    frames = list(clip())
    assert is_one_video(frames)
    assert is_one_video(clip())
    assert is_one_video("a.gif")
    assert not is_one_video([frames, frames])
    assert not is_one_video([clip(), clip()])
    assert not is_one_video(["a.gif", "b.gif"])
    assert not is_one_video([])
    model = open_media("video-classification")
    assert np.isclose(model.predict(frames).score, model.predict([clip()])[0].score)
