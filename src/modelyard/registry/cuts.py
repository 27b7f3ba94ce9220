"""Cuts: how a file is divided into segments, found from its bytes alone.

`docs/design/store-format.md`, "Segments and cuts", says which cut a file has and where its segments end; this module is that
page as code. Whoever cuts the same bytes gets the same segments, so two versions share what they share. A file that is odd in
any way falls through to a cut that asks nothing of it. Knows where tensors lie; not what they are, nor who has them already.

>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
>>> _ = path.write_text("hello")
>>> find_cut(path)
Cut(name='whole/1', sizes=(5,))
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from modelyard.errors import ModelError
from modelyard.weights.gguf import read_gguf
from modelyard.weights.headers import open_regular, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelyard.weights.headers import TensorInfo

__all__ = ["SEGMENT_LIMIT", "SMALL", "Cut", "find_cut"]

SEGMENT_LIMIT = 64 << 20
"""Bytes of the longest segment."""

SMALL = 8 << 20
"""Files up to this size, unless they hold tensors, are one segment."""

_TENSORS_FROM = 64 << 10
_CDC_LEAST, _CDC_AVERAGE, _CDC_MOST = 256 << 10, 1 << 20, 4 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """How a file is divided: the cut's name, and the sizes in bytes of its segments, in order."""

    name: str
    sizes: tuple[int, ...]


def find_cut(path: Path, name_hint: str = "") -> Cut:
    """The cut of the regular file at `path`; its sizes add up to the file's size.

    Args:
        path: The file.
        name_hint: Not looked at: what a file is called decides nothing, so that equal bytes have equal cuts.

    Raises:
        NotFoundError: There is no such file.
        ModelError: It is not a regular file, or cannot be read.
    """
    del name_hint
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        magic = stream.read(4)
    if size >= _TENSORS_FROM:
        # Whatever is not sound is cut by content below: a commit is no place to judge it, `weights.checks` did.
        with suppress(ModelError):
            return _gguf(path, size) if magic == b"GGUF" else _safetensors(path, size)
    if size > SMALL:
        return Cut("cdc/1", tuple(_chunks(path)))
    return Cut("whole/1", (size,) if size else ())


def _safetensors(path: Path, size: int) -> Cut:
    header = read_header(path)
    sizes = list(_pieces(header.data_start))
    for _, info in header.in_file_order():
        sizes.extend(_rows(info))
    if sum(sizes) != size:
        raise ModelError(f"`{path}` changed while it was read", code="changed")
    return Cut("safetensors/1", tuple(sizes))


def _rows(info: TensorInfo) -> Iterator[int]:
    """A tensor's segments: whole rows where it has to be divided and a row fits."""
    size = info.end - info.start
    if size <= SEGMENT_LIMIT:
        return _pieces(size)
    row, rest = divmod(size, info.shape[0])
    # Rows that do not fill whole bytes, or are longer than a segment, cannot be kept together.
    return _pieces(size, SEGMENT_LIMIT // row * row if not rest and row <= SEGMENT_LIMIT else SEGMENT_LIMIT)


def _gguf(path: Path, size: int) -> Cut:
    header = read_gguf(path)
    if not header.tensors:
        raise ModelError(f"`{path}` holds no tensor", code="not_gguf")
    starts = [header.data_start + tensor.start for tensor in header.tensors]
    if starts[-1] >= size:
        raise ModelError(f"`{path}` changed while it was read", code="changed")
    ends = pairwise([0, *starts, size])
    return Cut("gguf/1", tuple(piece for start, end in ends for piece in _pieces(end - start)))


def _pieces(size: int, most: int = SEGMENT_LIMIT) -> Iterator[int]:
    while size:
        yield min(size, most)
        size -= min(size, most)


def _chunks(path: Path) -> Iterator[int]:
    from pyfastcdc import FastCDC

    chunker = FastCDC(_CDC_AVERAGE, min_size=_CDC_LEAST, max_size=_CDC_MOST, normalized_chunking=1)
    # A stream and not a map: a file that shrinks under a map ends the process.
    with open_regular(path) as stream:
        for chunk in chunker.cut_stream(stream):
            yield chunk.length
