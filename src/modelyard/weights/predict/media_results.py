"""What predictions about images, sounds and videos are: frozen dataclasses of plain values and NumPy arrays.

Coordinates are pixels of the picture as it was given, x to the right and y down; sizes are (height, width). Knows no
models, as `results`.

>>> Box(1.0, 2.0, 11.0, 7.0).area
50.0
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Alternative",
    "Box",
    "Chunk",
    "Codes",
    "DepthMap",
    "DetectedObject",
    "Detections",
    "DocumentAnswer",
    "FeatureMaps",
    "FrameLabels",
    "ImageFeatures",
    "Keypoints",
    "Masks",
    "Matches",
    "Matte",
    "NormalMap",
    "Picture",
    "PointMap",
    "Pose",
    "Poses",
    "Ranking",
    "Reconstruction",
    "Segment",
    "Segmentation",
    "Span",
    "Spectrogram",
    "Speech",
    "TableStructure",
    "Transcript",
    "Vectors",
]

Floats: TypeAlias = "NDArray[np.float32]"
Bools: TypeAlias = "NDArray[np.bool_]"
Integers: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Square pixels; 0 for a box turned inside out."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)


@dataclass(frozen=True, slots=True)
class DetectedObject:
    """One object in a picture.

    Attributes:
        label: What it is.
        score: Its probability.
        box: Where it is.
    """

    label: str
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects of one picture, the surest first; `size` is the picture's (height, width)."""

    objects: tuple[DetectedObject, ...]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One region of a picture.

    Attributes:
        label: What it is.
        score: Its probability; None for a semantic segmentation, which has none.
        mask: bool of shape (height, width): where it is.
    """

    label: str
    score: float | None
    mask: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The regions of one picture.

    Attributes:
        segments: One for each region, the surest first; of a semantic segmentation one for each label that occurs.
        kind: `semantic`, `instance` or `panoptic`.
        size: The picture's (height, width).
    """

    segments: tuple[Segment, ...]
    kind: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class DepthMap:
    """float32 (height, width): a depth for each pixel, in the unit of the model (metres, or inverse and relative)."""

    depth: Floats


@dataclass(frozen=True, slots=True, eq=False)
class NormalMap:
    """float32 (height, width, 3): the unit normal of the surface at each pixel."""

    normals: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PointMap:
    """float32 (height, width, 3): where each pixel is in space, seen from the camera; `scale` is what it was divided by."""

    points: Floats
    scale: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Matte:
    """How much of each pixel is foreground.

    Attributes:
        alpha: float32 (height, width) in [0, 1].
        foreground: float32 (height, width, 3) in [0, 1]: colours of the foreground alone; None where the model gives none.
    """

    alpha: Floats
    foreground: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """uint8 (height, width, 3): a picture in RGB."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """One person (or animal).

    Attributes:
        points: float32 (keypoints, 2): x and y in pixels.
        scores: float32 (keypoints,).
        labels: Names of the keypoints.
        box: Where it was looked for.
    """

    points: Floats
    scores: Floats
    labels: tuple[str, ...]
    box: Box


@dataclass(frozen=True, slots=True)
class Poses:
    """The poses of one picture, in the order of the boxes that were asked about."""

    poses: tuple[Pose, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Keypoints:
    """Points that can be found again in another picture.

    Attributes:
        points: float32 (n, 2): x and y in pixels.
        scores: float32 (n,).
        descriptors: float32 (n, size).
    """

    points: Floats
    scores: Floats
    descriptors: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Points of one picture and where they are in another, the surest first.

    Attributes:
        points: float32 (n, 2): x and y in the first picture, in pixels.
        others: float32 (n, 2): in the other.
        scores: float32 (n,).
    """

    points: Floats
    others: Floats
    scores: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Masks for prompts (points or boxes).

    Attributes:
        masks: bool (prompts, candidates, height, width), the best candidate of a prompt first.
        scores: float32 (prompts, candidates): the quality that the model expects of each.
    """

    masks: Bools
    scores: Floats


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """Hidden states of one picture.

    Attributes:
        values: float32 (tokens, hidden) of a transformer, (channels, height, width) of a convolutional network.
        pooled: float32 (hidden,): the whole picture; None where the model pools nothing.
    """

    values: Floats
    pooled: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMaps:
    """Stage of a backbone to its float32 (channels, height, width)."""

    maps: dict[str, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """A picture whose hidden patches a model has guessed.

    Attributes:
        pixels: float32 (channels, height, width), normalized as the model's inputs are.
        mask: bool (rows, columns): which patches were hidden.
        loss: Mean absolute error over the hidden patches.
    """

    pixels: Floats
    mask: Bools
    loss: float


@dataclass(frozen=True, slots=True)
class TableStructure:
    """A table in a picture: HTML tags in order, and their mean probability."""

    tags: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a transcript and when it is heard, in seconds; `end` is None where the sound ends first."""

    text: str
    start: float
    end: float | None


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in one sound.

    Attributes:
        text: All of it.
        chunks: Its pieces with times, where `timestamps` asked for them.
        token_ids: What the model wrote (of windows, put together).
    """

    text: str
    chunks: tuple[Chunk, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in seconds, in which a label holds, and its mean score."""

    label: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class FrameLabels:
    """Labels of the frames of one sound.

    Attributes:
        scores: float32 (frames, labels), each in [0, 1]: labels may overlap.
        labels: Their names.
        spans: Stretches in which a score stays at or above the threshold, by start.
    """

    scores: Floats
    labels: tuple[str, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """A sound that was made: float32 (samples,) and how many of them are a second."""

    samples: Floats
    rate: int


@dataclass(frozen=True, slots=True, eq=False)
class Spectrogram:
    """float32 (frames, bins): a log-mel spectrogram, which a vocoder makes a sound of."""

    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """int64 (code books, frames): a sound as tokens; `rate` is the sound's samples per second."""

    values: Integers
    rate: int


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another answer to a question about a document, less likely."""

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DocumentAnswer:
    """An answer that stands in a document.

    Attributes:
        text: Its words, joined by spaces; empty where there is none.
        score: Its probability.
        start: Number of its first word; None where there is no answer.
        end: Number of its last word.
        alternatives: Further answers, the likeliest first.
    """

    text: str
    score: float
    start: int | None
    end: int | None
    alternatives: tuple[Alternative, ...] = field(default=())


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """float32 (tokens, size): a vector of length 1 for each token of a text or patch of a page, for late interaction."""

    values: Floats


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well pages answer a query: a score for each in the order given, and their places, the best first."""

    scores: tuple[float, ...]
    order: tuple[int, ...]
