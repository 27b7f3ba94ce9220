"""Pictures as Pillow images in RGB: turned as their EXIF says, on white where they are transparent, 16 bit made 8.

The size that a header claims is checked before any pixel is decoded. Of an animated picture this is the first frame.

>>> import numpy as np
>>> read_image(np.zeros((30, 40, 3), np.uint8)).size
(40, 30)
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from modelyard.weights.media.sources import name_content, open_source, refuse

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "MOST_FILE_BYTES", "MOST_PIXELS", "flatten", "open_image", "read_image", "read_mask"]

MOST_FILE_BYTES = 256 << 20
"""The longest file that is read."""

MOST_PIXELS = 80_000_000
"""The most pixels of one picture: 240 MB in RGB. Below the size at which Pillow itself starts to warn."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is decoded: formats of pixels, none that runs another program (EPS) or names other files."""


def read_image(source: Any) -> Image:
    """One picture in RGB.

    Args:
        source: A path or the bytes of a picture (`FORMATS`); a Pillow image; or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8, uint16 or floats in [0, 1].

    Raises:
        RequestError: No picture, damaged, cut off, or beyond the limits (code `bad_image`); the message names it.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _finish(source, "the picture")
    if hasattr(source, "shape"):
        return _finish(_from_array(source), "the array")
    with open_source(source, "image", MOST_FILE_BYTES) as (file, name, _size, head):
        return _finish(open_image(file, name, head), name)


def read_mask(source: Any, size: tuple[int, int]) -> Image:
    """A picture of one channel (`L`), (width, height) = `size`: a trimap, a prompt mask, a mask of patches.

    Raises:
        RequestError: As `read_image`; or another size.
    """
    mask = read_image(source).convert("L")
    if mask.size != size:
        raise refuse("image", "the mask", f"is {mask.width} x {mask.height}, and its picture {size[0]} x {size[1]}")
    return mask


def open_image(file: IO[bytes], name: str, head: bytes, what: str = "image") -> Image:
    """The picture in an open file, its size checked and nothing decoded yet.

    Raises:
        RequestError: No picture, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise refuse(what, name, f"holds {name_content(head)}, no picture", f"one of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refuse(what, name, f"claims more than {MOST_PIXELS} pixels") from error
    except Exception as error:
        # Pillow's readers raise struct.error, ValueError, SyntaxError, ... for a header that makes no sense.
        raise refuse(what, name, _damage(error), "fetch the file again") from error
    _check_size(image, name, what)
    return image


def flatten(image: Image, name: str = "the picture", what: str = "image") -> Image:
    """The present frame of an open picture in RGB: turned, on white where transparent, 16 bit made 8.

    Raises:
        RequestError: Its pixels are damaged or cut off.
    """
    import PIL.Image
    from PIL import ImageOps

    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:
        # Decoders raise OSError, SyntaxError, EOFError, struct.error, ...: the picture is damaged in any case.
        raise refuse(what, name, _damage(error), "fetch the file again") from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bit(image, name, what)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = PIL.Image.new("RGBA", over.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _damage(error: Exception) -> str:
    cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
    return f"is {'cut off' if cut else 'damaged'}: {error!s:.200}"


def _finish(image: Image, name: str) -> Image:
    _check_size(image, name, "image")
    if getattr(image, "is_animated", False):
        image.seek(0)
    return flatten(image, name)


def _check_size(image: Image, name: str, what: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise refuse(what, name, f"is {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise refuse(what, name, f"claims {width} x {height} pixels; the limit is {MOST_PIXELS}", "make it smaller")


def _to_eight_bit(image: Image, name: str, what: str) -> Image:
    """Levels of 16 bit (or floats in [0, 1]) as 8 bit; Pillow's own `convert` would clip them at 255."""
    import numpy as np
    import PIL.Image

    values = np.asarray(image)
    if image.mode == "F":
        return _from_array(values)
    if values.min() < 0 or values.max() > 65_535:
        raise refuse(what, name, f"has levels from {values.min()} to {values.max()}", "8 or 16 bit for each channel")
    return PIL.Image.fromarray((values >> 8 if values.max() > 255 or image.mode != "I" else values).astype(np.uint8))


def _from_array(source: Any) -> Image:
    import numpy as np
    import PIL.Image

    array = np.asarray(source)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise refuse(
            "image",
            "the array",
            f"has the shape {array.shape}",
            "(H, W), (H, W, 3) or (H, W, 4): `x.transpose(1, 2, 0)`",
        )
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise refuse("image", "the array", f"has {array.shape[0] * array.shape[1]} pixels; the limit is {MOST_PIXELS}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())  # NaN compares false below
        if not (low >= 0 and high <= 1):
            raise refuse("image", "the array", f"holds floats from {low} to {high}", "floats in [0, 1], or uint8")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise refuse("image", "the array", f"holds {array.dtype}", "uint8, uint16, or floats in [0, 1]")
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def is_picture(value: Any) -> bool:
    """Whether `value` is of a kind that `read_image` takes; its content is not looked at."""
    return isinstance(value, str | Path | bytes | bytearray) or hasattr(value, "shape") or hasattr(value, "getexif")
