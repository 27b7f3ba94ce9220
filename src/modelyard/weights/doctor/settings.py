"""What belongs beside the weights: generation settings, a tokenizer or preprocessor, and whether they fit config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError
from modelyard.weights.doctor.findings import from_error, make, some
from modelyard.weights.doctor.vocabulary import end_ids, has_tokenizer
from modelyard.weights.filenames import PREPROCESSOR_FILES
from modelyard.weights.untrained import KEY, find_untrained

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding
    from modelyard.weights.doctor.vocabulary import Vocabulary

__all__ = ["examine_mark", "examine_settings", "propose_generation"]

_WHAT = {
    "image-processor": "an image processor (preprocessor_config.json)",
    "feature-extractor": "a feature extractor (preprocessor_config.json)",
    "video-processor": "a video processor (video_preprocessor_config.json)",
    "processor": "a processor (preprocessor_config.json or processor_config.json)",
}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def examine_settings(case: Case, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """The files around the weights, by the task of the class that config.json names."""
    if case.task is None:
        return
    if case.generates:
        yield from _generation(case, vocabulary)
    # A base model, or one in pretraining, takes what its kind takes: sound or pictures need no tokenizer.
    other = case.task.name in {"feature-extraction", "pretraining"} and bool(case.names & PREPROCESSOR_FILES)
    if case.task.preprocessor == "tokenizer" and not has_tokenizer(case) and not other:
        what = "there is no tokenizer, so text cannot be given to it"
        yield make("no_tokenizer", what, "copy the tokenizer files of its base beside the weights")
    parts = any(isinstance(case.config.get(part), dict) for part in ("vision_config", "audio_config"))
    wanted = case.task.preprocessor in _WHAT and case.task.modality != "text"
    if case.task.modality == "multimodal" and not parts and has_tokenizer(case):
        wanted = False  # a task of several kinds of input, and a model that reads text
    if wanted and not case.names & PREPROCESSOR_FILES:
        what = f"there is no {_WHAT[case.task.preprocessor].removeprefix('an ').removeprefix('a ')}: no {case.task.modality} can be given to it"
        yield make("no_preprocessor", what, "copy preprocessor_config.json of its base beside the weights")
    yield from _labels(case)
    yield from _picture(case)


def examine_mark(case: Case) -> Iterator[Finding]:
    """Weights that are marked as drawn at random, and still are what was drawn."""
    if KEY not in case.config or case.weights is None:
        return
    try:
        found = find_untrained(case.files)
    except YardError as error:
        if error.code == "bad_mark":
            yield from_error(error)
        return  # anything else is wrong with the weights, and was said
    if found is not None:
        what = (
            "all of its weights" if found.tensors is None else f"{len(found.tensors)} tensors ({some(found.tensors)})"
        )
        hint = f"train it: yard train --base {case.path} --data ./DATA --to NAMESPACE/NAME"
        yield make("random_weights", f"nobody trained {what}: they were drawn from seed {found.seed}", hint)


def propose_generation(case: Case, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The tokens that generation_config.json should hold, by config.json, the tokenizer, and what is there already."""
    made: dict[str, Any] = {}
    for key in _IDS:
        held = [
            config[key] for config in (case.generation, case.text_config, case.config) if config.get(key) is not None
        ]
        if held:
            made[key] = held[0]
    if vocabulary is not None:
        for key in ("bos_token", "eos_token", "pad_token"):
            word = vocabulary.named.get(key)
            if f"{key}_id" not in made and word is not None and word in vocabulary.ids:
                made[f"{key}_id"] = vocabulary.ids[word]
    return made


def _generation(case: Case, vocabulary: Vocabulary | None) -> Iterator[Finding]:
    if "generation_config.json" in case.names:
        return
    known = end_ids(case.config) | end_ids(case.text_config)
    should = propose_generation(case, vocabulary)
    listed = ", ".join(f"{key} {value}" for key, value in should.items()) or "an eos_token_id"
    if known:
        what = f"there is no generation_config.json; generation falls back on config.json ({listed})"
        yield make("no_generation_config", what, case.mend, level="info")
        return
    what = f"there is no generation_config.json, and config.json has no eos_token_id: answers never end ({listed})"
    yield make("no_generation_config", what, case.mend)


def _labels(case: Case) -> Iterator[Finding]:
    names = case.config.get("id2label")
    back = case.config.get("label2id")
    if not isinstance(names, dict) or not names or not (case.task and case.task.head):
        return
    if sorted(str(key) for key in names) != sorted(str(at) for at in range(len(names))):
        what = (
            f"`id2label` in config.json does not number its {len(names)} labels from 0: {sorted(map(str, names))[:5]}"
        )
        yield make("labels_mismatch", what, "number the labels 0, 1, 2, ... in config.json", level="warning")
    elif (
        isinstance(back, dict)
        and back
        and {str(v): k for k, v in back.items()} != {str(k): v for k, v in names.items()}
    ):
        if len(set(names.values())) < len(names):
            return  # two labels of one name, which cannot be told apart the other way round
        what = "`id2label` and `label2id` in config.json are not each other's inverse: results get the wrong names"
        yield make("labels_mismatch", what, "correct `label2id` in config.json", level="warning")


def _picture(case: Case) -> Iterator[Finding]:
    """The size that images are brought to, against the one that the positions were made for."""
    vision = case.config.get("vision_config")
    inner: Mapping[str, Any] = vision if isinstance(vision, dict) else case.config
    wanted = _square(inner.get("image_size"))
    weights = case.weights
    if wanted is None or weights is None or not any("position_embed" in name for name in weights.home):
        return
    settings = case.json("preprocessor_config.json") or case.json("processor_config.json").get("image_processor") or {}
    crops = settings.get("do_center_crop") and settings.get("crop_size")
    resized = settings.get("do_resize", True) and settings.get("size")
    given = _square(crops or resized or None)
    if given is not None and given != wanted:
        what = (
            f"the image processor makes {given[0]} x {given[1]} pixels, and config.json has image_size"
            f" {wanted[0]} x {wanted[1]}, for which there are positions"
        )
        hint = f"set `{'crop_size' if crops else 'size'}` in preprocessor_config.json to {wanted[0]}"
        yield make("image_size", what, hint, level="warning")


def _square(value: Any) -> tuple[int, int] | None:
    """(height, width) of a size as configurations write it; None for one that depends on the image."""
    if type(value) is int:
        return value, value
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value):
        return value[0], value[1]
    if isinstance(value, dict) and type(value.get("height")) is int and type(value.get("width")) is int:
        return value["height"], value["width"]
    return None
