"""Every task that transformers has an Auto class for: its name, its mapping, and what its inputs are made with.

A table and look-ups in it, nothing else: it loads nothing, and imports transformers only to ask which class belongs to
which task. Names are the Hub's pipeline tags where the Hub has one, else the Auto class's words. A mapping that
transformers adds and this table lacks fails `tests/weights/test_tasks.py`.

>>> find_task("ner").name, find_task("text-generation").auto
('token-classification', 'AutoModelForCausalLM')
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from modelyard.errors import RequestError, near_match

__all__ = [
    "ADAPTER_TASKS",
    "TASKS",
    "Modality",
    "Preprocessor",
    "TaskInfo",
    "find_task",
    "task_of_architecture",
    "tasks_named",
    "tasks_of_type",
]

Modality = Literal["text", "image", "video", "audio", "multimodal", "time-series"]
Preprocessor = Literal["tokenizer", "image-processor", "feature-extractor", "video-processor", "processor", "none"]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task.

    Attributes:
        name: As `load(task=...)` takes it.
        mapping: The table in `transformers.models.auto.modeling_auto` that lists its classes.
        auto: The Auto class; None where transformers has the table and no class for it.
        modality: Of its inputs.
        preprocessor: What makes tensors of them; a model that has a `processor` of several parts uses that instead.
        head: Whether its class adds layers to an encoder that a checkpoint without them lacks (`untrained head`).
        aliases: Other names that people use for it.
        pipeline: The Hub's tag; several tasks share one (`automatic-speech-recognition`, `image-segmentation`).
    """

    name: str
    mapping: str
    auto: str | None
    modality: Modality
    preprocessor: Preprocessor
    head: bool = False
    aliases: tuple[str, ...] = ()
    pipeline: str = ""

    def architectures(self) -> frozenset[str]:
        """The class names of this task."""
        return _architectures(self.mapping)

    def model_types(self) -> dict[str, str]:
        """Model type to class name (the first where transformers lists several)."""
        return {kind: names[0] for kind, names in _types(self.mapping).items()}


_TABLES = {"": "MODEL_MAPPING_NAMES", "AUDIO_TOKENIZATION": "MODEL_FOR_AUDIO_TOKENIZATION_NAMES"}


def _task(
    name: str,
    mapping: str,
    auto: str | None,
    modality: Modality,
    preprocessor: Preprocessor,
    *aliases: str,
    head: bool = False,
    pipeline: str | None = None,
) -> TaskInfo:
    table = _TABLES.get(mapping, f"MODEL_FOR_{mapping}_MAPPING_NAMES")
    auto_class = None if auto is None else "AutoBackbone" if auto == "Backbone" else f"AutoModel{auto}"
    return TaskInfo(name, table, auto_class, modality, preprocessor, head, aliases, pipeline or name)


# Order decides which task a class has that stands in several tables: what a user would mean comes first, the tables that
# collect classes of every kind (any-to-any, pretraining, feature-extraction) last.
_ROWS = (
    _task("text-generation", "CAUSAL_LM", "ForCausalLM", "text", "tokenizer"),
    _task(
        "text-classification",
        "SEQUENCE_CLASSIFICATION",
        "ForSequenceClassification",
        "text",
        "tokenizer",
        "sequence-classification",
        "sentiment-analysis",
        head=True,
    ),
    _task(
        "token-classification", "TOKEN_CLASSIFICATION", "ForTokenClassification", "text", "tokenizer", "ner", head=True
    ),
    _task("question-answering", "QUESTION_ANSWERING", "ForQuestionAnswering", "text", "tokenizer", head=True),
    _task("multiple-choice", "MULTIPLE_CHOICE", "ForMultipleChoice", "text", "tokenizer", head=True),
    _task(
        "automatic-speech-recognition",
        "SPEECH_SEQ_2_SEQ",
        "ForSpeechSeq2Seq",
        "audio",
        "processor",
        "speech-seq2seq",
        "speech-recognition",
    ),
    _task("ctc", "CTC", "ForCTC", "audio", "processor", pipeline="automatic-speech-recognition", head=True),
    _task("rnnt", "RNNT", "ForRNNT", "audio", "processor", pipeline="automatic-speech-recognition"),
    _task("tdt", "TDT", "ForTDT", "audio", "processor", pipeline="automatic-speech-recognition"),
    _task("image-text-to-text", "IMAGE_TEXT_TO_TEXT", "ForImageTextToText", "multimodal", "processor"),
    _task("any-to-any", "MULTIMODAL_LM", "ForMultimodalLM", "multimodal", "processor"),
    _task(
        "text2text-generation",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "ForSeq2SeqLM",
        "text",
        "tokenizer",
        "seq2seq",
        "summarization",
        "translation",
    ),
    _task("fill-mask", "MASKED_LM", "ForMaskedLM", "text", "tokenizer", "masked-lm"),
    _task(
        "visual-question-answering",
        "VISUAL_QUESTION_ANSWERING",
        "ForVisualQuestionAnswering",
        "multimodal",
        "processor",
        "vqa",
        head=True,
    ),
    _task(
        "document-question-answering",
        "DOCUMENT_QUESTION_ANSWERING",
        "ForDocumentQuestionAnswering",
        "multimodal",
        "processor",
        head=True,
    ),
    _task(
        "table-question-answering",
        "TABLE_QUESTION_ANSWERING",
        "ForTableQuestionAnswering",
        "text",
        "tokenizer",
        head=True,
    ),
    _task(
        "next-sentence-prediction",
        "NEXT_SENTENCE_PREDICTION",
        "ForNextSentencePrediction",
        "text",
        "tokenizer",
        head=True,
    ),
    _task("decision", "DECISION", "ForDecision", "multimodal", "processor"),
    _task(
        "image-classification", "IMAGE_CLASSIFICATION", "ForImageClassification", "image", "image-processor", head=True
    ),
    _task("object-detection", "OBJECT_DETECTION", "ForObjectDetection", "image", "image-processor", head=True),
    _task(
        "semantic-segmentation",
        "SEMANTIC_SEGMENTATION",
        "ForSemanticSegmentation",
        "image",
        "image-processor",
        pipeline="image-segmentation",
        head=True,
    ),
    _task("image-segmentation", "IMAGE_SEGMENTATION", "ForImageSegmentation", "image", "image-processor", head=True),
    _task(
        "instance-segmentation",
        "INSTANCE_SEGMENTATION",
        "ForInstanceSegmentation",
        "image",
        "image-processor",
        pipeline="image-segmentation",
        head=True,
    ),
    _task(
        "universal-segmentation",
        "UNIVERSAL_SEGMENTATION",
        "ForUniversalSegmentation",
        "image",
        "image-processor",
        pipeline="image-segmentation",
        head=True,
    ),
    _task("depth-estimation", "DEPTH_ESTIMATION", "ForDepthEstimation", "image", "image-processor", head=True),
    _task("normal-estimation", "NORMAL_ESTIMATION", "ForNormalEstimation", "image", "image-processor", head=True),
    _task("pointmap-estimation", "POINTMAP_ESTIMATION", "ForPointmapEstimation", "image", "image-processor", head=True),
    _task("pose-estimation", "POSE_ESTIMATION", "ForPoseEstimation", "image", "image-processor", head=True),
    _task("image-matting", "IMAGE_MATTING", "ForImageMatting", "image", "image-processor", head=True),
    _task("image-to-image", "IMAGE_TO_IMAGE", "ForImageToImage", "image", "image-processor"),
    _task("keypoint-detection", "KEYPOINT_DETECTION", "ForKeypointDetection", "image", "image-processor"),
    _task("keypoint-matching", "KEYPOINT_MATCHING", "ForKeypointMatching", "image", "image-processor"),
    _task("table-recognition", "TABLE_RECOGNITION", "ForTableRecognition", "image", "image-processor"),
    _task("text-recognition", "TEXT_RECOGNITION", "ForTextRecognition", "image", "image-processor"),
    _task("masked-image-modeling", "MASKED_IMAGE_MODELING", "ForMaskedImageModeling", "image", "image-processor"),
    _task("causal-image-modeling", "CAUSAL_IMAGE_MODELING", None, "image", "image-processor"),
    _task("mask-generation", "MASK_GENERATION", "ForMaskGeneration", "image", "processor"),
    _task(
        "zero-shot-object-detection", "ZERO_SHOT_OBJECT_DETECTION", "ForZeroShotObjectDetection", "image", "processor"
    ),
    _task(
        "zero-shot-image-classification",
        "ZERO_SHOT_IMAGE_CLASSIFICATION",
        "ForZeroShotImageClassification",
        "image",
        "processor",
    ),
    _task(
        "video-classification", "VIDEO_CLASSIFICATION", "ForVideoClassification", "video", "video-processor", head=True
    ),
    _task(
        "audio-classification",
        "AUDIO_CLASSIFICATION",
        "ForAudioClassification",
        "audio",
        "feature-extractor",
        head=True,
    ),
    _task(
        "audio-frame-classification",
        "AUDIO_FRAME_CLASSIFICATION",
        "ForAudioFrameClassification",
        "audio",
        "feature-extractor",
        head=True,
    ),
    _task("audio-xvector", "AUDIO_XVECTOR", "ForAudioXVector", "audio", "feature-extractor", head=True),
    _task("text-to-audio", "TEXT_TO_WAVEFORM", "ForTextToWaveform", "text", "tokenizer", "text-to-waveform"),
    _task(
        "text-to-spectrogram",
        "TEXT_TO_SPECTROGRAM",
        "ForTextToSpectrogram",
        "text",
        "tokenizer",
        "text-to-speech",
        pipeline="text-to-audio",
    ),
    _task("retrieval", "RETRIEVAL", None, "multimodal", "processor"),
    _task("time-series-forecasting", "TIME_SERIES_PREDICTION", "ForTimeSeriesPrediction", "time-series", "none"),
    _task("time-series-classification", "TIME_SERIES_CLASSIFICATION", None, "time-series", "none", head=True),
    _task("time-series-regression", "TIME_SERIES_REGRESSION", None, "time-series", "none", head=True),
    _task("image-feature-extraction", "IMAGE", "", "image", "image-processor"),
    _task("audio-tokenization", "AUDIO_TOKENIZATION", "ForAudioTokenization", "audio", "feature-extractor"),
    _task("feature-extraction", "", "", "text", "tokenizer", "embeddings"),
    _task("text-encoding", "TEXT_ENCODING", "ForTextEncoding", "text", "tokenizer", pipeline="feature-extraction"),
    _task("backbone", "BACKBONE", "Backbone", "image", "image-processor", pipeline="image-feature-extraction"),
    _task("pretraining", "PRETRAINING", "ForPreTraining", "text", "tokenizer"),
)

TASKS: dict[str, TaskInfo] = {row.name: row for row in _ROWS}
"""Every task by name, in the order that decides for a class that stands in several tables."""

_ALIASES = {alias: row.name for row in _ROWS for alias in row.aliases}


ADAPTER_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""The tasks of PEFT: `task_type` of adapter_config.json to the name of the task here."""


def find_task(name: str) -> TaskInfo:
    """The task called `name`, or by one of its other names.

    Raises:
        RequestError: There is none; the hint has the near match.
    """
    known = TASKS.get(_ALIASES.get(name, name))
    if known is None:
        meant = near_match(name, [*TASKS, *_ALIASES])
        hint = f"did you mean `{meant}`?" if meant else "they are listed in docs/reference/tasks.md"
        raise RequestError(f"no task `{name}`", hint=hint, field="task")
    return known


def tasks_named(name: str) -> list[TaskInfo]:
    """Every task that `name` may mean: the one of that name or alias, then the others of its Hub tag.

    >>> [task.name for task in tasks_named("automatic-speech-recognition")]
    ['automatic-speech-recognition', 'ctc', 'rnnt', 'tdt']
    """
    first = find_task(name)
    return [first, *(row for row in TASKS.values() if row.pipeline == first.name and row is not first)]


def task_of_architecture(architecture: str) -> TaskInfo | None:
    """The task of a class by transformers' own tables; None for a class in none of them."""
    return next((row for row in TASKS.values() if architecture in row.architectures()), None)


def tasks_of_type(model_type: str) -> list[TaskInfo]:
    """Every task that transformers has a class of this model type for, in the order of `TASKS`."""
    return [row for row in TASKS.values() if model_type in _types(row.mapping)]


@cache
def _types(mapping: str) -> dict[str, tuple[str, ...]]:
    from transformers.models.auto import modeling_auto

    table: dict[str, Any] = getattr(modeling_auto, mapping)
    return {kind: (names,) if isinstance(names, str) else tuple(names) for kind, names in table.items()}


@cache
def _architectures(mapping: str) -> frozenset[str]:
    return frozenset(name for names in _types(mapping).values() for name in names)
