"""The list of architectures is transformers' own, with what is served and trained here."""

from __future__ import annotations

import pytest

from modelyard.errors import RequestError
from modelyard.weights.architectures import architectures
from modelyard.weights.tasks import TASKS, tasks_of_type


def test_every_type_with_a_class_is_listed_once() -> None:
    """Each model type of transformers' task tables stands in the list once, with all of its tasks."""
    listed = {item.model_type: item for item in architectures()}
    assert set(listed) == {kind for task in TASKS.values() for kind in task.model_types()}
    for name in ("bert", "llama", "whisper", "vit"):
        assert listed[name].tasks == tuple(task.name for task in tasks_of_type(name))


def test_only_text_generators_are_served_and_trained() -> None:
    """A type is served and trained exactly where it takes text and has a class that generates text: what there is today."""
    for item in architectures():
        writes = "text-generation" in item.tasks and item.modality in {"text", "multimodal"}
        assert (item.engines, item.trainable) == ((("torch",), "sft") if writes else ((), None))


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("bert", "text"),
        ("llama", "text"),
        ("vit", "image"),
        ("wav2vec2", "audio"),
        ("whisper", "audio"),
        ("clip", "image"),
    ],
)
def test_modality(name: str, modality: str) -> None:
    """A type's modality is that of its inputs."""
    assert next(item for item in architectures() if item.model_type == name).modality == modality


def test_by_modality() -> None:
    """A modality gives its types only; an unknown one is refused with the near match."""
    assert {item.modality for item in architectures("audio")} == {"audio"}
    with pytest.raises(RequestError) as refused:
        architectures("vidoe")
    assert refused.value.hint == "did you mean `video`?"
