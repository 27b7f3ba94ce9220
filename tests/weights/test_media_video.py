"""Videos: frames from lists, arrays and animated pictures; films are refused with what to give instead."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelyard.errors import RequestError
from modelyard.weights.media import read_video, video


def frames(count: int = 5) -> list[Image.Image]:
    """Frames of different plain colours."""
    return [Image.new("RGB", (12, 8), (25 * at, 255 - 25 * at, 10)) for at in range(count)]


def animated(kind: str, **options: Any) -> bytes:
    """The frames as an animated picture."""
    held = io.BytesIO()
    first, *others = frames()
    first.save(held, kind, save_all=True, append_images=others, duration=100, **options)
    return held.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animated_pictures_are_videos(kind: str, options: dict[str, Any]) -> None:
    """Every frame of a GIF, PNG or WebP comes back, in order and in its colour."""
    read = read_video(animated(kind, **options))
    assert len(read) == 5
    for made, given in zip(read, frames(), strict=True):
        np.testing.assert_allclose(np.asarray(made)[4, 4], np.asarray(given)[4, 4], atol=4)


def test_lists_and_arrays_are_videos() -> None:
    """A list of Pillow images, a list of arrays and an array (frames, H, W, 3) are the same video."""
    stacked = np.stack([np.asarray(frame) for frame in frames()])
    for source in (frames(), list(stacked), stacked, tuple(frames())):
        np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in read_video(source)]), stacked)


def test_a_still_picture_is_a_video_of_one_frame() -> None:
    """A PNG without animation gives one frame."""
    held = io.BytesIO()
    frames(1)[0].save(held, "PNG")
    assert len(read_video(held.getvalue())) == 1


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x00\x00\x00\x20ftypisom" + bytes(64), "MP4"),
        (b"\x1aE\xdf\xa3" + bytes(64), "WebM"),
        (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(64), "AVI"),
    ],
)
def test_films_are_refused_with_what_to_give_instead(content: bytes, name: str) -> None:
    """MP4, WebM and AVI are named, and the hint makes frames of them."""
    with pytest.raises(RequestError, match=name) as caught:
        read_video(content)
    assert caught.value.code == "bad_video"
    assert caught.value.hint is not None
    assert "ffmpeg" in caught.value.hint


def refused(source: Any, words: str) -> None:
    """`source` is refused with a message that has `words`."""
    with pytest.raises(RequestError, match=words):
        read_video(source)


def test_what_is_no_video_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frames, frames of two sizes, wrong shapes, too many frames or pixels, cut off, a URL."""
    refused([], "no frames")
    refused([*frames(), Image.new("RGB", (3, 3))], "frames of")
    refused(np.zeros((4, 8, 12), np.uint8), "shape")
    refused("https://example.org/cat.gif", "URL")
    refused(animated("GIF")[:200], "damaged|cut off")
    refused(b"no video at all", "no picture")
    monkeypatch.setattr(video, "MOST_FRAMES", 3)
    refused(frames(), "5 frames; the limit is 3")
    refused(animated("GIF"), "more than 3 frames")
    monkeypatch.setattr(video, "MOST_FRAMES", 10)
    monkeypatch.setattr(video, "MOST_VIDEO_PIXELS", 200)
    refused(frames(), "more than 200 pixels")
    refused(animated("PNG"), "more than 200 pixels")


def test_frames_are_picked_evenly() -> None:
    """The first and the last are among them; a shorter video gives some twice."""
    nine, two = frames(9), frames(2)
    assert [nine.index(frame) for frame in video.pick_frames(nine, 3)] == [0, 4, 8]
    assert [two.index(frame) for frame in video.pick_frames(two, 4)] == [0, 0, 0, 1]
    assert len(video.pick_frames(frames(1), 2)) == 2
