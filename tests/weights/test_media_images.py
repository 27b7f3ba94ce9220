"""Pictures: every kind comes out as RGB as a person sees it; hostile files are refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from modelyard.errors import RequestError
from modelyard.weights.media import images, read_image

if TYPE_CHECKING:
    from pathlib import Path


def picture() -> np.ndarray:
    """A uint8 (20, 30, 3) picture whose corners differ."""
    y, x = np.mgrid[0:20, 0:30]
    return np.stack([x * 8, y * 12, (x + y) * 5], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """`image` as a file."""
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose header claims a size, with `body` in place of its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "PPM"])
def test_every_format_is_read(kind: str, tmp_path: Path) -> None:
    """From bytes and from a path, whatever the path's name, within the format's own loss."""
    content = encoded(Image.fromarray(picture()), kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "picture.bin"
    path.write_bytes(content)
    loss = {"GIF": 20, "JPEG": 30}.get(kind, 0)
    for source in (content, path, str(path)):
        read = np.asarray(read_image(source)).astype(int)
        assert np.abs(read - picture()).mean() <= loss
        assert read.shape == (20, 30, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int) -> None:
    """All eight orientations come out upright: the judge is how the picture was turned before."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(picture())
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(read_image(encoded(stored, "PNG", exif=exif))), picture())


def test_transparent_pixels_are_white() -> None:
    """Alpha of RGBA, LA and palettes is laid over white, half of it half."""
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 10:20], alpha[:, 20:] = 128, 255
    read = np.asarray(read_image(encoded(Image.fromarray(np.dstack([picture(), alpha])))))
    assert (read[:, :10] == 255).all()
    np.testing.assert_array_equal(read[:, 20:], picture()[:, 20:])
    np.testing.assert_allclose(read[:, 10:20], 0.5 * picture()[:, 10:20] + 127.5, atol=2)
    palette = Image.fromarray(picture()).quantize(4)
    read = np.asarray(read_image(encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))))
    assert (read[0, 0] == 255).all()
    grey = Image.fromarray(np.dstack([picture()[..., 0], alpha]), "LA")
    assert (np.asarray(read_image(encoded(grey)))[:, :10] == 255).all()


def test_sixteen_bit_levels_are_scaled_and_not_clipped() -> None:
    """A 16-bit grey picture keeps its shades: Pillow's own `convert` makes all but the darkest white."""
    levels = (np.mgrid[0:20, 0:30][1] * 2_000).astype(np.uint16)
    read = np.asarray(read_image(encoded(Image.fromarray(levels))))
    np.testing.assert_array_equal(read[..., 0], levels >> 8)
    np.testing.assert_array_equal(np.asarray(read_image(levels))[..., 0], levels >> 8)


def test_arrays_of_every_kind_are_the_same_picture() -> None:
    """uint8, floats in [0, 1], (H, W), (H, W, 1), (H, W, 4), bool, CMYK files and Pillow images."""
    given = picture()
    np.testing.assert_array_equal(np.asarray(read_image(given)), given)
    np.testing.assert_array_equal(np.asarray(read_image(given / 255.0)), given)
    np.testing.assert_array_equal(np.asarray(read_image(Image.fromarray(given))), given)
    np.testing.assert_array_equal(np.asarray(read_image(given[..., 0]))[..., 2], given[..., 0])
    np.testing.assert_array_equal(np.asarray(read_image(given[..., :1]))[..., 1], given[..., 0])
    assert np.asarray(read_image(given > 100)).max() == 255
    four = np.dstack([given, np.full((20, 30), 255, np.uint8)])
    np.testing.assert_array_equal(np.asarray(read_image(four)), given)
    assert read_image(encoded(Image.fromarray(given).convert("CMYK"), "TIFF")).mode == "RGB"


def test_of_an_animated_picture_the_first_frame_is_taken() -> None:
    """A GIF of three colours gives the first, also when an opened one stands at another frame."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(content).getpixel((0, 0)) == (255, 0, 0)
    opened = Image.open(io.BytesIO(content))
    opened.seek(2)
    assert read_image(opened).getpixel((0, 0)) == (255, 0, 0)


def refused(source: Any, *words: str) -> None:
    """`source` is refused with code `bad_image` and a message with all `words`."""
    with pytest.raises(RequestError) as caught:
        read_image(source)
    assert caught.value.code == "bad_image"
    for word in words:
        assert word in caught.value.message


def test_hostile_pictures_are_refused_by_name(tmp_path: Path) -> None:
    """Empty, cut off, not a picture, of a format that runs programs, missing, or on a network: each with its cause."""
    whole = encoded(Image.fromarray(picture()))
    refused(b"", "empty")
    refused(whole[: len(whole) // 2], "cut off")
    refused(encoded(Image.fromarray(picture()), "JPEG")[:300], "cut off")
    refused(b"RIFF\x00\x00\x00\x00WAVEfmt ", "WAV", "no picture")
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture")
    refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "HTML or XML")
    refused("https://example.org/cat.png", "URL")
    refused(tmp_path / "absent.png", "absent.png")
    refused(tmp_path, "cannot be read")
    refused(whole[:20] + bytes(40), "bytes of image")


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    """A PNG of a hundred bytes that claims 30,000 x 30,000 pixels, or 9,000 x 9,000, is not decoded."""
    refused(png_of(30_000, 30_000), "claims", str(images.MOST_PIXELS))
    refused(png_of(9_500, 9_500), "claims", "pixels")
    refused(png_of(9_000, 9_000), "9000 x 9000")
    refused(_wide(), "81000000 pixels")


def _wide() -> np.ndarray:
    """An array that claims 81 million pixels and has one: strides of zero."""
    return np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (9_000, 9_000, 3), (0, 0, 1))


def test_arrays_that_are_no_pictures_are_refused() -> None:
    """Channels first, floats beyond [0, 1], NaN, signed integers, no pixels."""
    refused(picture().transpose(2, 0, 1), "shape")
    refused(picture().astype(np.float32), "floats from")
    refused(np.full((4, 4, 3), np.nan), "floats from")
    refused(picture().astype(np.int64), "int64")
    refused(np.zeros((0, 4, 3), np.uint8), "shape")


def test_a_mask_has_the_size_of_its_picture() -> None:
    """`read_mask` gives one channel, and refuses another size."""
    assert images.read_mask(np.zeros((20, 30), np.uint8), (30, 20)).mode == "L"
    with pytest.raises(RequestError, match="30 x 20"):
        images.read_mask(np.zeros((20, 30), np.uint8), (20, 30))
