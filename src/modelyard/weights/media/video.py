"""Videos as lists of Pillow images: from a list, an array, or an animated GIF, PNG or WebP.

Films (MP4, WebM, AVI) need a decoder that is not here; they are refused with what to give instead.

>>> import numpy as np
>>> [frame.size for frame in read_video(np.zeros((2, 30, 40, 3), np.uint8))]
[(40, 30), (40, 30)]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.weights.media.images import MOST_FILE_BYTES, flatten, open_image, read_image
from modelyard.weights.media.sources import name_content, open_source, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

__all__ = ["FRAMES", "MOST_FRAMES", "MOST_VIDEO_PIXELS", "as_pictures", "pick_frames", "read_video", "takes_videos"]

MOST_FRAMES = 1024
"""The most frames of one video."""

MOST_VIDEO_PIXELS = 400_000_000
"""The most pixels of all frames together: 1.2 GB in RGB."""

FRAMES = 8
"""How many frames of a video a model is given that takes pictures and no videos."""

_FILMS = ("MP4", "Matroska or WebM", "AVI")


def read_video(source: Any) -> list[Image]:
    """The frames of one video in RGB, in order.

    Args:
        source: A list of pictures (as `images.read_image` takes them), an array (frames, H, W, 3), or a path or the
            bytes of an animated GIF, PNG or WebP.

    Raises:
        RequestError: None of these, no frame, frames of different sizes, or beyond the limits (code `bad_video`).
    """
    if isinstance(source, list | tuple):
        return _from_list(source)
    if hasattr(source, "shape"):
        if len(source.shape) != 4 or source.shape[-1] not in (1, 3, 4):
            raise refuse("video", "the array", f"has the shape {tuple(source.shape)}", "(frames, H, W, 3)")
        return _from_list(list(source))
    with open_source(source, "video", MOST_FILE_BYTES) as (file, name, _size, head):
        content = name_content(head)
        if content in _FILMS:
            path = name.strip("`") if name.startswith("`") else "film.mp4"
            raise refuse(
                "video",
                name,
                f"is {content}, and no decoder of films is here",
                f"give its frames as a list of pictures: ffmpeg -i {path} -vf fps=4 frame_%04d.png",
            )
        return _from_file(open_image(file, name, head, "video"), name)


def pick_frames(frames: Sequence[Image], count: int) -> list[Image]:
    """`count` frames spread evenly over a video, its first and last among them; of a shorter one, some twice.

    >>> import numpy as np
    >>> frames = read_video(np.arange(7, dtype=np.uint8).repeat(12).reshape(7, 2, 2, 3))
    >>> [frame.getpixel((0, 0))[0] for frame in pick_frames(frames, 4)]
    [0, 2, 4, 6]
    """
    import numpy as np

    return [frames[int(at)] for at in np.linspace(0, len(frames) - 1, num=count, dtype=np.int64)]


def as_pictures(frames: Sequence[Image], most: int = FRAMES) -> list[Image]:
    """A video as pictures: all frames of a short one, else `most` of them, spread evenly, the first and the last among them."""
    return list(frames) if len(frames) <= most else pick_frames(frames, most)


def takes_videos(processor: Any) -> bool:
    """Whether a processor has a video processor of its own; without torchvision transformers has none that runs.

    >>> takes_videos(object())
    False
    """
    if getattr(processor, "video_processor", None) is None:
        return False
    from transformers.utils.import_utils import is_torchvision_available

    return bool(is_torchvision_available())


def _from_list(source: Sequence[Any]) -> list[Image]:
    if not source:
        raise refuse("video", "a list", "of no frames is no video")
    if len(source) > MOST_FRAMES:
        raise refuse("video", "the video", f"has {len(source)} frames; the limit is {MOST_FRAMES}", "leave some out")
    frames: list[Image] = []
    for frame in source:
        frames.append(read_image(frame))
        if frames[-1].size != frames[0].size:
            raise refuse("video", "the video", f"has frames of {frames[0].size} and of {frames[-1].size} pixels")
        _check_pixels(frames, "the video")
    return frames


def _from_file(image: Image, name: str) -> list[Image]:
    frames: list[Image] = []
    while True:
        try:
            image.seek(len(frames))
        except EOFError:
            return frames  # behind the last
        except Exception as error:
            # A frame's header may be damaged in any way; the frames before it are no whole video.
            raise refuse("video", name, f"is damaged at frame {len(frames)}: {error!s:.200}") from error
        if len(frames) == MOST_FRAMES:
            raise refuse("video", name, f"has more than {MOST_FRAMES} frames", "leave some out")
        frames.append(flatten(image, name, "video"))
        _check_pixels(frames, name)


def _check_pixels(frames: Sequence[Image], name: str) -> None:
    if len(frames) * frames[0].width * frames[0].height > MOST_VIDEO_PIXELS:
        raise refuse("video", name, f"has more than {MOST_VIDEO_PIXELS} pixels in all", "smaller or fewer frames")
