"""What every task's prediction shares: the table of tasks, options, batches, one forward pass.

Knows no task's inputs and no result's meaning: a predictor is a function `(model, rows, options) -> results` that is
named in `PREDICTORS`, one result for each row in order.

>>> list(batches([4, 5, 6], 2))
[[4, 5], [6]]
"""

from __future__ import annotations

import dataclasses
import importlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modelyard.errors import ModelError, RequestError, near_match

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from modelyard.weights.model import Model

__all__ = [
    "PREDICTORS",
    "SINGLE",
    "TRUNCATIONS",
    "PredictOptions",
    "batches",
    "forward",
    "predict",
    "refuse_windows",
    "running",
    "to_numpy",
]

Item = TypeVar("Item")
Options = TypeVar("Options")

TRUNCATIONS = ("error", "end", "start", "windows")
"""What may happen to an input that is longer than the model takes: refused, cut at an end, or read in windows."""

PREDICTORS: dict[str, str] = {
    "text-generation": "text_completion:complete",
    "text-classification": "text_classification:classify",
    "token-classification": "text_tokens:tag",
    "question-answering": "text_spans:answer",
    "multiple-choice": "text_choices:choose",
    "next-sentence-prediction": "text_choices:follow",
    "fill-mask": "text_masks:fill",
    "text2text-generation": "seq2seq:transform",
    "table-question-answering": "tables:answer",
    "decision": "decisions:decide",
    "feature-extraction": "multimodal_features:extract",
    "text-encoding": "embeddings:extract",
    "pretraining": "text_raw:run",
    "time-series-forecasting": "timeseries:forecast",
    "time-series-classification": "timeseries:classify",
    "time-series-regression": "timeseries:regress",
    "image-classification": "vision_labels:classify",
    "object-detection": "vision_detection:detect",
    "semantic-segmentation": "vision_segmentation:segment",
    "image-segmentation": "vision_segmentation:segment",
    "instance-segmentation": "vision_segmentation:segment",
    "universal-segmentation": "vision_segmentation:segment",
    "depth-estimation": "vision_dense:estimate_depth",
    "normal-estimation": "vision_dense:estimate_normals",
    "pointmap-estimation": "vision_dense:estimate_points",
    "image-matting": "vision_dense:cut_out",
    "image-to-image": "vision_dense:transform",
    "pose-estimation": "vision_points:find_poses",
    "keypoint-detection": "vision_points:find_keypoints",
    "keypoint-matching": "vision_points:match_keypoints",
    "mask-generation": "vision_prompts:mask",
    "table-recognition": "vision_text:read_tables",
    "text-recognition": "vision_text:read_lines",
    "masked-image-modeling": "vision_features:reconstruct",
    "causal-image-modeling": "vision_features:continue_pictures",
    "image-feature-extraction": "vision_features:extract",
    "backbone": "vision_features:extract_maps",
    "video-classification": "vision_labels:classify_videos",
    "audio-classification": "audio_labels:classify",
    "audio-frame-classification": "audio_labels:label_frames",
    "audio-xvector": "audio_labels:embed_speakers",
    "automatic-speech-recognition": "audio_speech:transcribe",
    "ctc": "audio_speech:transcribe",
    "rnnt": "audio_speech:transcribe",
    "tdt": "audio_speech:transcribe",
    "text-to-audio": "audio_synthesis:speak",
    "text-to-spectrogram": "audio_synthesis:draw",
    "audio-tokenization": "audio_codes:tokenize",
    "visual-question-answering": "multimodal_questions:answer_picture",
    "document-question-answering": "multimodal_questions:answer_document",
    "zero-shot-image-classification": "multimodal_zero_shot:choose",
    "zero-shot-object-detection": "multimodal_zero_shot:find",
    "image-text-to-text": "multimodal_chat:write",
    "any-to-any": "multimodal_chat:write",
    "retrieval": "multimodal_retrieval:embed",
}
"""Task name to `module:function` in this package. The function takes `(model, rows, options)`."""

SINGLE: dict[str, str] = {
    "text-generation": "text_completion:is_single",
    "time-series-forecasting": "timeseries:is_single",
    "time-series-classification": "timeseries:is_single",
    "time-series-regression": "timeseries:is_single",
    "video-classification": "vision_labels:is_one_video",
    "image-text-to-text": "multimodal_chat:is_one_conversation",
    "any-to-any": "multimodal_chat:is_one_conversation",
}
"""Tasks of which one input may itself be a list: `module:function` that says whether `inputs` is one input."""


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How rows are predicted.

    Attributes:
        task: The name in `TASKS` that is predicted.
        batch_size: Rows of one forward pass, at most.
        truncation: One of `TRUNCATIONS`.
        extra: The task's own options, as the caller gave them; `take` checks them.
    """

    task: str
    batch_size: int = 32
    truncation: str = "error"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def take(self, kind: type[Options]) -> Options:
        """The task's own options as the dataclass `kind`, whose fields have defaults.

        Raises:
            RequestError: An option that `kind` has no field for (the hint has the near match), or of another type.
        """
        names = [item.name for item in dataclasses.fields(cast("Any", kind))]
        for name in self.extra:
            if name not in names:
                meant = near_match(name, [*names, "batch_size", "truncation"])
                known = f"it takes {', '.join(names)}" if names else "it takes none of its own"
                raise RequestError(
                    f"{self.task} takes no option `{name}`",
                    hint=f"did you mean `{meant}`?" if meant else known,
                    field=name,
                )
        for item in dataclasses.fields(cast("Any", kind)):
            if item.name in self.extra and not _fits(self.extra[item.name], str(item.type)):
                raise RequestError(
                    f"`{item.name}` is {self.extra[item.name]!r}", hint=f"it is {item.type}", field=item.name
                )
        return kind(**self.extra)

    def take_none(self) -> None:
        """Refuse every option of its own, for a task that has none.

        Raises:
            RequestError: There is one.
        """
        self.take(_NoOptions)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of one of the plain types that a field is annotated with; other annotations take anything."""
    plain: dict[str, tuple[type[Any], ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
        "None": (type(None),),
        "Sequence[str]": (str, list, tuple),
    }
    parts = [part.strip() for part in annotation.split("|")]
    if any(part not in plain for part in parts):
        return True
    if isinstance(value, bool):
        return "bool" in parts
    if isinstance(value, list | tuple) and not all(isinstance(entry, str) for entry in value):
        return False
    return any(isinstance(value, plain[part]) for part in parts)


@dataclass(frozen=True, slots=True)
class _NoOptions:
    pass


def predict(
    model: Model, inputs: Any, *, batch_size: int = 32, truncation: str = "error", adapter: Any = ..., **options: Any
) -> Any:
    """The model's answer to one input, or a list of answers to a list of inputs.

    Args:
        model: A loaded model; its task decides what inputs and results are.
        inputs: One input or a list (or tuple) of inputs; what an input is, by task, stands in
            `docs/guides/predicting.md`.
        batch_size: Rows of one forward pass, at most.
        truncation: `error` refuses an input that is longer than the model takes and names its row and lengths; `end` and
            `start` say where it is cut; `windows` (question answering, token classification) reads it in overlapping pieces.
        adapter: The name of the adapter to answer with, None for the base alone; by default the active one.
        **options: The task's own.

    Returns:
        A result of `modelyard.weights.predict.results`, or a list of them in the order of the inputs.

    Raises:
        RequestError: A wrong option, or an input that is none or too long; the message names the row.
        ModelError: The model was released, its task has no prediction, or memory ran out (code `out_of_memory`).
    """
    check_alive(model)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise RequestError(f"`batch_size` is {batch_size!r}", hint="a whole number, 1 or more", field="batch_size")
    if truncation not in TRUNCATIONS:
        meant = near_match(str(truncation), TRUNCATIONS)
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(TRUNCATIONS)}"
        raise RequestError(f"`truncation` is {truncation!r}", hint=hint, field="truncation")
    predictor = find_predictor(model.task)
    single = _find(SINGLE[model.task]) if model.task in SINGLE else _is_single
    one = bool(single(inputs))
    rows = [inputs] if one else list(inputs)
    model.warn_untrained()
    chosen = PredictOptions(model.task, batch_size, truncation, options)
    with model.computing(adapter):
        results = predictor(model, rows, chosen) if rows else []
    return results[0] if one else results


def find_predictor(task: str) -> Callable[[Model, list[Any], PredictOptions], list[Any]]:
    """The function that predicts `task`.

    Raises:
        ModelError: There is none, and why.
    """
    if task not in PREDICTORS:
        raise ModelError(
            f"there is no prediction for {task}",
            hint="call the model itself (`model.model(...)`); docs/reference/tasks.md says why",
            task=task,
        )
    return _find(PREDICTORS[task])


def _find(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"modelyard.weights.predict.{module}"), name)
    return found


def _is_single(inputs: Any) -> bool:
    return not isinstance(inputs, list | tuple)


def check_alive(model: Model) -> None:
    """Refuse a model that was released.

    Raises:
        ModelError: It was.
    """
    if model.model is None:
        raise ModelError(f"the model of `{model.folder}` was released", hint="load it again")


def batches(rows: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """`rows` in order, `size` at a time."""
    for at in range(0, len(rows), size):
        yield list(rows[at : at + size])


@contextmanager
def running(model: Model, *, batch: int | None = None, length: int | None = None) -> Iterator[None]:
    """Inference mode around whatever runs the model; memory that ran out comes back as an error that says what fits.

    The caller's own mode is the same before and after; nothing computed inside carries a gradient.

    Args:
        model: What runs.
        batch: Rows that run together, for the message.
        length: Tokens of the longest one, for the message.

    Raises:
        ModelError: Memory ran out (code `out_of_memory`).
    """
    import torch

    from modelyard.weights.loading.memory import explain_oom, is_out_of_memory

    try:
        with torch.inference_mode():
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"`{model.folder}`"
        raise explain_oom(error, model.model, what=what, batch=batch, length=length) from error


def forward(model: Model, inputs: Mapping[str, Any], **more: Any) -> Any:
    """One forward pass of `inputs` (tensors by name) on the model's device, in inference mode; its outputs.

    Floating-point tensors (pixels, audio features, series) are cast to the model's own dtype.

    Raises:
        ModelError: Memory ran out (code `out_of_memory`), or the model computed something that is no number.
    """
    shape = getattr(inputs.get("input_ids"), "shape", (None, None))
    with running(model, batch=shape[0], length=shape[-1]):
        outputs = model.model(**to_device(model, inputs), **more)
        check_numbers(model, outputs)
    return outputs


def check_numbers(model: Model, outputs: Any) -> None:
    """Refuse outputs that hold NaN: an answer made of them would look like any other.

    Raises:
        ModelError: The first tensor of the outputs holds NaN.
    """
    import torch

    first = outputs if isinstance(outputs, torch.Tensor) else outputs[0] if len(outputs) else None
    if isinstance(first, torch.Tensor) and first.is_floating_point() and bool(torch.isnan(first).any()):
        raise ModelError(
            f"`{model.folder}` computed values that are no numbers (NaN)",
            hint=f'the weights or the dtype are at fault: load it with dtype="float32", or run `yard doctor {model.folder}`',
        )


def to_device(model: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` where the model is, floating-point tensors in its dtype; what is no tensor stays as it is."""
    import torch

    device, dtype = model.model.device, model.model.dtype
    moved: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            floats = value.is_floating_point() and dtype.is_floating_point
            moved[name] = value.to(device, dtype) if floats else value.to(device)
        else:
            moved[name] = value
    return moved


def to_numpy(tensor: Any) -> Any:
    """A tensor as a plain NumPy array: floats as float32, whole numbers and booleans as they are."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()


def refuse_windows(options: PredictOptions) -> None:
    """Refuse `truncation="windows"` for a task whose answers cannot be put together from pieces.

    Raises:
        RequestError: It was asked for.
    """
    if options.truncation == "windows":
        raise RequestError(
            f"{options.task} cannot read an input in windows", hint="`end`, `start` or `error`", field="truncation"
        )


def sorted_batches(rows: Iterable[Item], size: int, length: Callable[[Item], int]) -> Iterator[list[int]]:
    """Positions of `rows` in batches of at most `size`, long rows first, so that little of a batch is padding."""
    items = list(rows)
    yield from batches(sorted(range(len(items)), key=lambda at: -length(items[at])), size)
