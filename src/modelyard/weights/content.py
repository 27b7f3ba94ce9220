"""What a file is by its first bytes, whatever its name says.

Extensions lie: a pickle may be called `model.safetensors`, and a download that failed leaves a web page or a git-lfs
pointer under a model's name. Nothing is decoded here beyond what naming the content takes, and nothing is executed.

>>> identify_bytes(b"version https://git-lfs.github.com/spec/v1")
'lfs-pointer'
>>> identify_bytes(bytes([0x80, 2]) + b"}q.")
'pickle'
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from typing import TYPE_CHECKING, Literal

from modelyard.errors import ModelError, PickleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Content", "identify", "identify_bytes", "refuse_content"]

Content = Literal[
    "empty", "safetensors", "lfs-pointer", "html", "pickle", "archive", "gguf",
    "hdf5", "msgpack", "onnx", "tflite", "other",
]  # fmt: skip
"""What a file can be. The last but `other` are weights of other libraries (`hdf5` and `msgpack`: of TensorFlow and Flax, often)."""

HEAD = 4096
_ARCHIVES = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"7z\xbc\xaf\x27\x1c",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"Rar!",
)
_STARTS: Mapping[Content, tuple[bytes, ...]] = {
    "lfs-pointer": (b"version https://git-lfs",),
    "gguf": (b"GGUF",),
    "hdf5": (b"\x89HDF\r\n\x1a\n",),
    "archive": _ARCHIVES,
}
_PAGES = (b"<!doctype html", b"<html", b"<head")
_TEXT_PICKLE_OPS = 6


def identify(path: Path) -> Content:
    """What the file at `path` is; a zip archive is looked into for a pickle, by its names only."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        content = identify_bytes(stream.read(HEAD))
        if content != "archive" or not zipfile.is_zipfile(stream):
            return content
        try:
            with zipfile.ZipFile(stream) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            return "archive"
    return "pickle" if any(name.endswith((".pkl", ".pickle")) for name in names) else "archive"


def identify_bytes(head: bytes) -> Content:
    """What a file is that begins with `head` (its first 4096 bytes, or all of it)."""
    if not head:
        return "empty"
    # First of all: the length of a safetensors header may begin like a pickle does (640 is 80 02).
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    known = next((content for content, starts in _STARTS.items() if head.startswith(starts)), None)
    if known is not None:
        return known
    if head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "html"
    if head[257:262] == b"ustar":
        return "archive"
    return "pickle" if _is_pickle(head) else _foreign(head)


def refuse_content(content: Content, label: str) -> None:
    """Raise the error that names what `label` is instead of weights; nothing for what is none of these.

    Raises:
        PickleError: It is a pickle, which runs code when it is loaded.
        ModelError: `lfs_pointer`, `html_page` or `archive`.
    """
    if content == "pickle":
        raise PickleError(
            f"`{label}` is a pickle, which can run any code when it is loaded",
            hint="convert it in isolation: yard convert ./FOLDER --to ./OUT",
        )
    if content == "lfs-pointer":
        raise ModelError(
            f"`{label}` is a git-lfs pointer, not the file itself",
            code="lfs_pointer",
            hint="fetch the files: git lfs pull",
        )
    if content == "html":
        raise ModelError(
            f"`{label}` is a web page, not weights: the download answered with an error or a login page",
            code="html_page",
            hint="download it again with a valid token",
        )
    if content == "archive":
        raise ModelError(f"`{label}` is an archive; a model is plain files", code="archive", hint="unpack it first")


def _foreign(head: bytes) -> Content:
    if head[4:8] == b"TFL3":
        return "tflite"
    return "msgpack" if _is_msgpack(head) else "onnx" if _is_onnx(head) else "other"


def _is_msgpack(head: bytes) -> bool:
    """Whether it begins as a map whose first key is a word: what Flax writes, and no text begins so."""
    start = 1 if 0x81 <= head[0] <= 0x8F else 3 if head[0] == 0xDE else 0
    if not start or len(head) < start + 2 or not 0xA1 <= head[start] <= 0xBF:
        return False
    key = head[start + 1 : start + 1 + (head[start] & 0x1F)]
    return key.isascii() and key.decode("ascii").isprintable()


def _is_onnx(head: bytes) -> bool:
    """Whether it begins as a `ModelProto`: its version (field 1, a small number), then one of its fields 2 to 8."""
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 64 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42"


def _is_pickle(head: bytes) -> bool:
    """Protocols 2 to 5 announce themselves; 0 and 1 are text, known by a run of valid opcodes."""
    if head[:1] == b"\x80":
        return len(head) > 1 and head[1] <= 5
    if head[:4] == b"\x93NUM":  # numpy's own format, which holds a pickle when its dtype is `object`
        return b"'|O'" in head[:256]
    if head[:1] not in b"()]}clId":
        return False
    names: set[str] = set()
    count = 0
    try:
        for operation, _, _ in pickletools.genops(head):
            names.add(operation.name)
            count += 1
            if count >= 64:
                break
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        pass  # the sample ends in the middle of an opcode, or it never was a pickle: the names decide
    # Words in a text can read as GLOBAL, one after another; calling something, or remembering it, they cannot.
    calls = bool(names & {"GLOBAL", "INST"}) and bool(names & {"REDUCE", "BUILD", "OBJ", "STOP", "PUT"})
    return calls or ("PUT" in names and count >= _TEXT_PICKLE_OPS)
