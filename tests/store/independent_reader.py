"""A reader of a yard's folder, written from `docs/design/store-format.md` and `docs/design/derivations.md` alone.

It imports nothing of the package, so that what the package writes is held to the pages and not to the package's own reader. It knows the encodings
`raw`, `packed`, `delta` and `derived` (`lora/1`, `cast/1`), and finds segments in whole files that are cut by `safetensors/1` or `whole/1`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3

PIECE = 64 * 2**20
BLOCK = 2**20
DEPTH = 4
FEATURES = {"packs"}
CODEC_WIDTHS = (1, 2, 4, 8)
MODES = {"planes/1": 2, "delta/1": 3}
DIGEST = re.compile(r"[0-9a-f]{64}")

Array = np.ndarray[Any, np.dtype[Any]]


class UnreadableError(Exception):
    """The yard is damaged, or of a form this reader does not know."""


def need(condition: object, what: str) -> None:
    """Refuse unless the condition holds."""
    if not condition:
        raise UnreadableError(what)


def digest_of(content: bytes) -> str:
    """BLAKE3-256 as hex."""
    return blake3(content).hexdigest()


def unzstd(frame: bytes, limit: int) -> bytes:
    """Decompress one frame that states its size, which is looked at first."""
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        need(0 <= stated <= limit, "a frame without size, or with too large a one")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False) if stated else b""
    except zstandard.ZstdError as error:
        raise UnreadableError(str(error)) from error
    need(len(content) == stated, "a frame of another size than it states")
    return content


def decode(codec: str, payload: bytes, size: int, base: bytes | None) -> bytes:
    """Undo `planes/1` or, against the delta base, `delta/1`."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        need(at + count <= len(payload), "a payload that ends early")
        at += count
        return payload[at - count : at]

    width = take(1)[0]
    need(width in CODEC_WIDTHS, f"a width of {width}")
    kind = np.dtype(f"<u{width}")
    bits, one = 8 * width, kind.type(1)
    out = []
    for start in range(0, size // width, BLOCK):
        count = min(BLOCK, size // width - start)
        mode = take(1)[0]
        need(mode < MODES[codec], f"mode {mode} of {codec}")
        lanes = np.empty((count, width), np.uint8)
        for plane in range(width):
            how = take(1)[0]
            need(how in (0, 1), f"a plane of kind {how}")
            kept = take(int.from_bytes(take(4), "little"))
            kept = unzstd(kept, count) if how else kept
            need(len(kept) == count, "a plane of another length")
            lanes[:, plane] = np.frombuffer(kept, np.uint8)
        mixed = lanes.reshape(-1).view(kind)
        if base is None:
            out.append(((mixed >> one) | (mixed << kind.type(bits - 1))) if mode else mixed)
            continue
        other = np.frombuffer(base, kind, count, start * width)
        if mode == 0:
            out.append(mixed ^ other)
            continue
        if mode == 2:
            key = (other >> kind.type(bits - 9)) & kind.type(255) if width > 1 else other << one
            back = np.empty_like(mixed)
            back[np.argsort(key, kind="stable")] = mixed
            mixed = back
        out.append(other + ((mixed >> one) ^ (~(mixed & one) + one)))
    result = b"".join(part.astype(kind).tobytes() for part in out) + take(size % width)
    need(at == len(payload), "a payload that goes on after its end")
    return result


def widen(content: bytes, dtype: str) -> Array:
    """The elements as binary32."""
    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    need(dtype in {"F32", "F16"}, f"elements of {dtype}")
    return np.frombuffer(content, "<f4" if dtype == "F32" else "<f2").astype("<f4")


def rounded(values: Array, dtype: str) -> bytes:
    """Round binary32 once to the dtype, to nearest, ties to even."""
    need(not np.isnan(values).any(), "a NaN in a result")
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    need(dtype == "BF16", f"elements of {dtype}")
    bits = values.astype("<f4").view("<u4")
    upper = bits >> np.uint32(16)
    return ((bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)).astype("<u2").tobytes()


def lora(params: dict[str, Any], roles: dict[str, bytes]) -> bytes:
    """`lora/1`: the factors are whole, `shape` and `row` say which part of the tensor is wanted."""
    (rows, columns), row, rank = params["shape"], params["row"], params["rank"]
    weight = widen(roles["w"], params["dtype"]).reshape(rows, columns)
    a, b = widen(roles["a"], params["a_dtype"]), widen(roles["b"], params["b_dtype"])
    scale = np.frombuffer(bytes.fromhex(params["scale"])[::-1], "<f4")[0]
    part = slice(row, row + rows)
    if params["transposed"]:
        a, b = a.reshape(rank, params["rows"])[:, part], b.reshape(columns, rank)
    else:
        a, b = a.reshape(rank, columns), b.reshape(params["rows"], rank)[part]
    acc = np.zeros_like(weight)
    for k in range(rank):
        left, right = (scale * b[:, k]), a[k]
        acc = acc + (right[:, None] * left[None, :] if params["transposed"] else left[:, None] * right[None, :])
    return rounded(weight + acc, params["dtype"])


def derive(params: dict[str, Any], inputs: list[bytes]) -> bytes:
    """The bytes of a derived segment."""
    roles = {
        name: b"".join(inputs[at][start:end] for at, start, end in ranges) for name, ranges in params["roles"].items()
    }
    if params["operation"] == "lora/1":
        return lora(params, roles)
    need(params["operation"] == "cast/1", f"operation {params['operation']}")
    return rounded(widen(roles["x"], params["from"]), params["dtype"])


def pieces(start: int, end: int, step: int) -> list[tuple[int, int]]:
    """A range in steps."""
    return [(at, min(at + step, end)) for at in range(start, end, step)]


def cut(content: bytes) -> list[tuple[int, int]]:
    """The ranges of a safetensors file's segments (`safetensors/1`), else the whole file as one (`whole/1`)."""
    whole = [(0, len(content))]
    head = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 2**16 or head > min(len(content), 25_000_008):
        return whole
    try:
        header = json.loads(content[8:head])
        tensors = sorted(
            (*entry["data_offsets"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return whole
    ranges = pieces(0, head, PIECE)
    for start, end, shape in tensors:
        step, size = PIECE, end - start
        if size > PIECE and shape and size % shape[0] == 0 and size // shape[0] <= PIECE:
            step = PIECE // (size // shape[0]) * (size // shape[0])
        ranges += pieces(head + start, head + end, step)
    return ranges


class Reader:
    """One yard's folder, with everything in it that may hold a segment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: Counter[str] = Counter()
        form = json.loads((root / "format").read_bytes())
        need(form["format"] == "modelyard/store/1" and set(form["features"]) <= FEATURES, f"a yard of format {form}")
        self.records: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        self.cuts: dict[str, list[str]] = {}
        self.ranges: dict[str, tuple[Path, int, int]] = {}
        for path in self._objects("packs"):
            index = self._index(path)
            for record in index["segments"]:
                self.records.setdefault(record["digest"], []).append((path, record))
            for file in index["files"]:
                self.cuts[file["digest"]] = file["segments"]
        for path in self._objects("files"):
            content = path.read_bytes()
            for start, end in cut(content):
                self.ranges[digest_of(content[start:end])] = (path, start, end)

    def _objects(self, area: str) -> list[Path]:
        found = sorted((self.root / area).glob("*/*")) if (self.root / area).is_dir() else []
        return [path for path in found if DIGEST.fullmatch(path.name) and path.parent.name == path.name[:2]]

    @staticmethod
    def _index(path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        need(content[:8] == b"YARDPAK1" and content[-8:] == b"YARDIDX1", f"{path} is no pack")
        need(digest_of(content) == path.name, f"{path} is damaged")
        length = int.from_bytes(content[-16:-8], "little")
        need(length <= len(content) - 56, f"{path} has an index longer than itself")
        frame = content[-48 - length : -48]
        need(blake3(frame).digest() == content[-48:-16], f"the index of {path} is damaged")
        index: dict[str, Any] = json.loads(unzstd(frame, 256 * 2**20))
        need(index["format"] == "modelyard/pack/1", f"{path} has an index of format {index['format']}")
        return index

    def segment(self, digest: str, depth: int = 0) -> bytes:
        """One segment, from a whole file or a pack, verified."""
        need(depth <= DEPTH, f"segment {digest} is more than {DEPTH} edges away")
        if digest in self.ranges:
            path, start, end = self.ranges[digest]
            self.used["range"] += 1
            content = path.read_bytes()[start:end]
        else:
            need(digest in self.records, f"segment {digest} is nowhere")
            path, record = self.records[digest][0]
            content = self._decoded(path, record, depth)
            self.used[record["encoding"]] += 1
            need(len(content) == record["size"], f"segment {digest} has another size")
        need(digest_of(content) == digest, f"segment {digest} is damaged")
        return content

    def _decoded(self, path: Path, record: dict[str, Any], depth: int) -> bytes:
        payload = path.read_bytes()[record["offset"] : record["offset"] + record["length"]]
        need(record["encoding"] == "derived" or len(payload) == record["length"], f"{path} ends early")
        encoding, params = record["encoding"], record.get("params", {})
        if encoding == "raw":
            return payload
        inputs = [self.segment(digest, depth + 1) for digest in record.get("inputs", [])]
        if encoding == "derived":
            return derive(params, inputs)
        codec = {"packed": "planes/1", "delta": "delta/1"}.get(encoding)
        need(codec and params["codec"] == codec, f"encoding {encoding} with {params}")
        base = inputs[0] if encoding == "delta" else None
        need(base is None or len(base) == record["size"], "a delta base of another size")
        return decode(str(codec), payload, record["size"], base)

    def file(self, digest: str) -> bytes:
        """One file, whole or put together, verified."""
        whole = self.root / "files" / digest[:2] / digest
        if whole.is_file():
            content = whole.read_bytes()
            self.used["whole"] += 1
        elif digest in self.cuts:
            content = b"".join(self.segment(one) for one in self.cuts[digest])
        else:
            content = self.segment(digest)
        need(digest_of(content) == digest, f"file {digest} is damaged")
        return content

    def restore(self, manifest_id: str) -> dict[str, bytes]:
        """Every file of a version, by path."""
        content = (self.root / "manifests" / manifest_id).read_bytes()
        need(digest_of(content) == manifest_id, f"manifest {manifest_id} is damaged")
        manifest = json.loads(content)
        need(manifest["format"] == "modelyard/manifest/1", f"a manifest of format {manifest['format']}")
        files = {entry["path"]: self.file(entry["blake3"]) for entry in manifest["files"]}
        need(all(len(files[entry["path"]]) == entry["size"] for entry in manifest["files"]), "a file of another size")
        return files


def restore(root: Path, manifest_id: str) -> dict[str, bytes]:
    """Every file of a version, by path, from the yard's folder alone."""
    return Reader(root).restore(manifest_id)
