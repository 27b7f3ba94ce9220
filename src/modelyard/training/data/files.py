"""Data files as records: a row number and its named values, whatever the file's format.

Reads strictly and in bounded memory, and names file, line and byte when something is wrong. Knows nothing of what the
columns mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modelyard.errors import DataError, NotFoundError, near_match

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_ROW_BYTES", "Record", "kind_of", "read_records"]

MAX_ROW_BYTES = 16 << 20
"""A row above this is a mistake (a whole file on one line), and would not fit any context anyway."""

MAX_DOCUMENT_BYTES = 1 << 30
"""A JSON list is parsed whole; above this, JSONL is the right format."""

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file.

    Attributes:
        where: `file:row`.
        values: The row's columns, as the file has them.
    """

    where: str
    values: dict[str, Any]


def kind_of(path: Path) -> str | None:
    """The file format that the name says: `jsonl`, `json`, `csv`, `tsv`, `parquet`, `text`, or None."""
    name = path.name.lower().removesuffix(".gz")
    return _SUFFIXES.get(Path(name).suffix)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of one file, in order.

    Raises:
        NotFoundError: There is no such file.
        DataError: The suffix is unknown, or the bytes are not what the suffix says; file and row are named.
    """
    if not path.is_file():
        raise _missing(path)
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{path.name}: not a known data format",
            hint=f"known: {', '.join(_SUFFIXES)}, each also with .gz except .parquet",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty (0 bytes)")
    reader: Callable[[Path], Iterator[Record]] = _READERS[kind]
    yield from reader(path)


def _missing(path: Path) -> NotFoundError:
    beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    meant = near_match(path.name, beside)
    if meant:
        hint = f"did you mean `{meant}`?"
    elif beside or path.parent.is_dir():
        hint = "the folder holds: " + (", ".join(sorted(beside)[:8]) or "nothing")
    else:
        hint = f"the folder {path.parent} does not exist either"
    return NotFoundError(f"no data file {path}", hint=hint)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; a broken archive is a `DataError`."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as stream:
                yield stream  # type: ignore[misc]  # GzipFile reads like any binary stream
        else:
            with path.open("rb") as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: not a sound gzip file ({error})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end) of a UTF-8 file; a leading byte order mark is dropped."""
    with _opened(path) as stream:
        number = offset = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                raise DataError(
                    f"{path.name}: line {number} is longer than {MAX_ROW_BYTES >> 20} MiB",
                    hint="one row per line; is this a JSON list? then name it .json",
                )
            if number == 1:
                bom = b"\xef\xbb\xbf"
                offset += len(bom) if line.startswith(bom) else 0
                line = line.removeprefix(bom)  # the mark is no part of the first line
            yield number, _decoded(line, path, number, offset)
            offset += len(line)


def _decoded(data: bytes, path: Path, line: int, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {offset + error.start})",
            hint=f"convert it: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from error


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; `DataError` that names the place for anything else, NaN and infinities included."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20].strip()
        raise DataError(f"{where}: not JSON: {error.msg} at character {error.colno}, near {near!r}") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deep") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        yield Record(where, _object(parse_json(line, where), where))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be a JSON object, not {_named(value)}")
    return value


def _named(value: object) -> str:
    names = {list: "a list", str: "text", int: "a number", float: "a number", bool: "a truth value", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _read_json(path: Path) -> Iterator[Record]:
    with _opened(path) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(f"{path.name}: a JSON list over {MAX_DOCUMENT_BYTES >> 30} GiB", hint="write it as JSONL")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start})"
        ) from error
    if text.lstrip().startswith("{"):
        # Many publish JSONL under the name .json.
        first = next(line for line in text.splitlines() if line.strip())
        if first.rstrip().endswith("}"):
            yield from _read_jsonl(path)
            return
        raise DataError(
            f"{path.name}: holds one JSON object, not a list of rows",
            hint="write a list `[{...}, {...}]`, or one object per line",
        )
    rows = parse_json(text, path.name)
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: holds {_named(rows)}, not a list of rows")
    for index, value in enumerate(rows, start=1):
        where = f"{path.name}:{index}"
        yield Record(where, _object(value, where))


@contextmanager
def _field_limit(size: int) -> Iterator[None]:
    """Raise the csv module's limit on one field, which is global to the process, for as long as needed."""
    before = csv.field_size_limit(size)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_delimited(path: Path, delimiter: str) -> Iterator[Record]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header = _next_row(reader, path)
    if header is None:
        raise DataError(f"{path.name} is empty: it has no header line")
    header = [name.strip() for name in header]
    _check_header(header, path, delimiter)
    while True:
        start = reader.line_num + 1
        row = _next_row(reader, path)
        if row is None:
            return
        if not row:
            continue
        where = f"{path.name}:{start}"
        if len(row) != len(header):
            raise DataError(
                f"{where}: {len(row)} fields where the header has {len(header)} ({', '.join(header)})",
                hint="a field that holds the delimiter or a line end must be quoted",
            )
        yield Record(where, dict(zip(header, row, strict=True)))


def _next_row(reader: Any, path: Path) -> list[str] | None:
    start = reader.line_num + 1
    try:
        with _field_limit(MAX_ROW_BYTES):
            row: list[str] | None = next(reader, None)
    except csv.Error as error:
        raise DataError(
            f"{path.name}:{start}: not a sound row: {error}", hint="look for a quote that is not closed"
        ) from error
    return row


def _check_header(header: list[str], path: Path, delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path.name}: the header names a column twice: {', '.join(map(repr, twice))}")
    for other, suffix in ((";", "semicolons"), ("\t", "tabs: name it .tsv"), (",", "commas: name it .csv")):
        if len(header) == 1 and other != delimiter and other in header[0]:
            raise DataError(f"{path.name}: the header is one column, {header[0]!r}; it seems separated by {suffix}")


def _read_csv(path: Path) -> Iterator[Record]:
    yield from _read_delimited(path, ",")


def _read_tsv(path: Path) -> Iterator[Record]:
    yield from _read_delimited(path, "\t")


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.name.lower().endswith(".gz"):
        raise DataError(f"{path.name}: Parquet is compressed inside; a .gz around it is not read", hint="gunzip it")
    try:
        index = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    index += 1
                    yield Record(f"{path.name}:{index}", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not a sound Parquet file: {error}") from error


def _read_text(path: Path) -> Iterator[Record]:
    """Documents are separated by one or more blank lines; a document's row is the line it begins on."""
    document = io.StringIO()
    start = 0
    for number, line in _lines(path):
        if line.strip():
            start = start or number
            document.write(line)
            if document.tell() > MAX_ROW_BYTES:
                raise DataError(
                    f"{path.name}:{start}: a document longer than {MAX_ROW_BYTES >> 20} MiB",
                    hint="separate documents by blank lines",
                )
        elif start:
            yield Record(f"{path.name}:{start}", {"text": document.getvalue().strip("\r\n")})
            document, start = io.StringIO(), 0
    if start:
        yield Record(f"{path.name}:{start}", {"text": document.getvalue().strip("\r\n")})


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "text": _read_text,
}
