"""A path or bytes, opened for reading: what is no plain file of a bearable size is refused by name.

Knows no formats beyond the first bytes by which a file is recognized; nothing is fetched from a network.

>>> name_content(b"fLaC....")
'FLAC'
"""

from __future__ import annotations

import io
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from modelyard.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["name_content", "open_source", "refuse"]

_SCHEMES = ("http://", "https://", "ftp://", "s3://", "hf://", "gs://", "file://", "data:")
_HEAD = 64


def refuse(what: str, name: str, why: str, hint: str | None = None) -> RequestError:
    """The error for an input that cannot be used: code `bad_audio`, `bad_image` or `bad_video`."""
    return RequestError(f"{name} {why}", code=f"bad_{what}", hint=hint, field="inputs")


@contextmanager
def open_source(source: object, what: str, most_bytes: int) -> Iterator[tuple[IO[bytes], str, int, bytes]]:
    """The file or bytes `source`: the open file, a name for messages, its length in bytes, its first 64 bytes.

    Args:
        source: A path (`str` or `Path`), or the bytes of a file.
        what: `audio`, `image` or `video`, for the error's code.
        most_bytes: The longest that is taken.

    Raises:
        RequestError: A URL, no plain file, empty, or longer than `most_bytes`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
        name = f"{len(content)} bytes of {what}"
        _check_size(what, name, len(content), most_bytes)
        yield io.BytesIO(content), name, len(content), content[:_HEAD]
        return
    if not isinstance(source, str | Path):
        raise refuse(what, f"a {type(source).__name__}", f"is no {what}", "a path, bytes or an array")
    text = str(source)
    if text.lower().startswith(_SCHEMES):
        raise refuse(
            what, f"`{text[:200]}`", "is a URL, and nothing is fetched from a network", "download it, and give its path"
        )
    name = f"`{text[:500]}`"
    try:
        file = open(text, "rb", opener=_open_plain)  # noqa: SIM115 -- Path.open takes no opener; closed below
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise refuse(what, name, f"cannot be read: {cause}", f"give the path of a file that holds {what}") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise refuse(what, name, "is no plain file", f"give the path of a file that holds {what}")
        _check_size(what, name, status.st_size, most_bytes)
        head = file.read(_HEAD)
        file.seek(0)
        yield file, name, status.st_size, head


def name_content(head: bytes) -> str:
    """What a file is, by its first bytes: a name for messages, `unknown content` where nothing fits."""
    for start, name in _MAGIC:
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "HEIC or AVIF" if head[8:12] in (b"heic", b"heix", b"avif", b"mif1") else "MP4"
    if head[:4] in (b"RIFF", b"RF64"):
        kinds = {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI"}
        return kinds.get(head[8:12], "RIFF of an unknown kind")
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer"
    return "unknown content"


def _open_plain(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO waits for a writer before its kind can be looked at.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_size(what: str, name: str, size: int, most_bytes: int) -> None:
    if size == 0:
        raise refuse(what, name, "is empty")
    if size > most_bytes:
        raise refuse(what, name, f"has {size} bytes; the limit is {most_bytes}", "cut it into smaller files")


_MAGIC = (
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"ID3", "MP3"),
    (b"\xff\xfb", "MP3"),
    (b"\xff\xf3", "MP3"),
    (b"\xff\xf2", "MP3"),
    (b"\xff\xf1", "AAC"),
    (b"\xff\xf9", "AAC"),
    (b"FORM", "AIFF"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
