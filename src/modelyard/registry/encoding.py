"""How one segment is best kept: computed from others, as a delta of one like it, packed, or as it is.

`derived` where an operation gives exactly these bytes and computes them fast enough on this machine; else the smaller of `delta`
and `packed`; else `raw`. Large segments are judged by a sample first, so that only the chosen encoding is made of all of
it. Knows codecs and operations; does not know where the offers come from, or whether the choice will be recorded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from modelyard.registry.decoding import Decoder
    from modelyard.registry.sources import Derivation, Offer

__all__ = ["Encoded", "Encoder", "rebuild_rate"]

_SAMPLED_FROM = 2 << 20  # segments below it are encoded in every way, and the smallest wins
_SAMPLE = 512 << 10
_TINY = 256  # bytes; the record of an encoding takes as much
_WORTH = 0.97  # an encoding must save this much over what is simpler, or it is not worth its work at every read
_BASES = 3  # delta bases that are tried
_MISSES = 4  # an operation that never gave the right bytes of a version is not asked again after so many
_RATE_BYTES = 4 << 20


@dataclass(frozen=True)
class Encoded:
    """A segment in the encoding that was chosen, as a pack takes it."""

    segment: str
    size: int
    encoding: str
    payload: bytes = field(repr=False, default=b"")
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    length: int = -1

    def __post_init__(self) -> None:
        """The payload's length stays known when the payload itself is let go."""
        if self.length < 0:
            object.__setattr__(self, "length", len(self.payload))

    def without_payload(self) -> Encoded:
        """The same, without the bytes."""
        return replace(self, payload=b"")


class Encoder:
    """Chooses and makes encodings; safe to use from several threads.

    Args:
        decoder: Reads segments.
        least_rate: What an operation must compute, in bytes a second, for its segments to be derived; see `rebuild_rate`.
    """

    def __init__(self, decoder: Decoder, *, least_rate: float) -> None:
        self._decoder, self._least_rate = decoder, least_rate
        self._record: dict[str, list[int]] = {}
        self._lock = Lock()

    def start_version(self) -> None:
        """Forget which operations failed: another version is another story."""
        with self._lock:
            self._record.clear()

    def encode(self, offer: Offer, *, threads: int = 1) -> Encoded:
        """Read a segment and encode it in the best way that `offer` has for it.

        Raises:
            IntegrityError: The segment is damaged.
        """
        data = self._decoder.segment(offer.segment, threads=threads)
        for derivation in offer.derivations:
            if self._gives(derivation, data, threads):
                return Encoded(offer.segment, offer.size, "derived", b"", derivation.params, derivation.inputs)
        if offer.size < _TINY:
            return Encoded(offer.segment, offer.size, "raw", data)
        return (
            _by_sample(self._decoder, offer, data)
            if offer.size >= _SAMPLED_FROM
            else _smallest(self._decoder, offer, data)
        )

    def _gives(self, derivation: Derivation, data: bytes, threads: int) -> bool:
        """Whether the operation gives exactly these bytes, and does so fast enough."""
        operation = str(derivation.params["operation"])
        with self._lock:
            hits, misses = self._record.get(operation, (0, 0))
        if hits == 0 and misses >= _MISSES:
            return False
        try:
            if self._least_rate and rebuild_rate(derivation.params) < self._least_rate:
                return False
            right = self._decoder.derive(derivation.params, derivation.inputs, len(data), threads=threads) == data
        except YardError:
            # An input that is damaged, a NaN in the result: then it cannot be computed, and the other ways are open.
            right = False
        with self._lock:
            self._record.setdefault(operation, [0, 0])[0 if right else 1] += 1
        return right


def _smallest(decoder: Decoder, offer: Offer, data: bytes) -> Encoded:
    """Every encoding of a small segment, and the shortest of them."""
    best = _packed(offer, data)
    for base in offer.bases[:_BASES]:
        other = _delta(offer, data, base, _base(decoder, base, len(data)))
        if other is not None and len(other.payload) < _WORTH * len(best.payload):
            best = other
    return best if len(best.payload) < _WORTH * len(data) else Encoded(offer.segment, offer.size, "raw", data)


def _by_sample(decoder: Decoder, offer: Offer, data: bytes) -> Encoded:
    """The encoding of a large segment that a part of it says is the shortest."""
    sample = _sample(data)
    least = _length(_packed(offer, sample))
    chosen: str | None = None
    under: bytes | None = None
    for base in offer.bases[:_BASES]:
        found = _base(decoder, base, len(data))
        other = _delta(offer, sample, base, _sample(found)) if found is not None else None
        if other is not None and _length(other) < _WORTH * least:
            chosen, under, least = base, found, _length(other)
    if least >= _WORTH * len(sample):
        return Encoded(offer.segment, offer.size, "raw", data)
    made = _delta(offer, data, chosen, under) if chosen is not None else None
    made = made or _packed(offer, data)
    return made if len(made.payload) < _WORTH * len(data) else Encoded(offer.segment, offer.size, "raw", data)


def _packed(offer: Offer, data: bytes) -> Encoded:
    from modelyard.store.codecs import encode_planes

    params = {"codec": "planes/1", "dtype": offer.dtype}
    return Encoded(offer.segment, offer.size, "packed", encode_planes(data, offer.dtype), params)


def _delta(offer: Offer, data: bytes, base: str, under: bytes | None) -> Encoded | None:
    from modelyard.store.codecs import encode_delta

    if under is None:
        return None
    params = {"codec": "delta/1", "dtype": offer.dtype}
    return Encoded(offer.segment, offer.size, "delta", encode_delta(data, under, offer.dtype), params, (base,))


def _base(decoder: Decoder, base: str, size: int) -> bytes | None:
    """A delta base; None when it cannot be read, or is of another size."""
    try:
        found = decoder.segment(base)
    except YardError:
        return None  # whoever reads the version that it belongs to says so; here it is no base
    return found if len(found) == size else None


def _length(encoded: Encoded) -> int:
    return len(encoded.payload)


def _sample(data: bytes) -> bytes:
    """A part out of the middle, whole elements of any width."""
    start = (len(data) - _SAMPLE) // 2 // 64 * 64
    return data[start : start + _SAMPLE]


# What an operation computes in a second.

_RATES: dict[tuple[Any, ...], float] = {}
_MEASURING = Lock()


def rebuild_rate(params: Mapping[str, Any], *, clock: Callable[[], float] = time.thread_time) -> float:
    """Bytes of result a second that this machine computes of an operation like `params`, on one thread.

    Measured once per process and kind of operation (dtypes, rank, number of inputs), on made-up numbers: the better of two runs.
    By the time that the processor gave this thread, so that what else runs on the machine does not decide how bytes are kept.
    """
    roles = tuple(sorted(params["roles"]))
    kinds = tuple(
        str(params.get(key)) for key in ("a_dtype", "b_dtype", "m_dtype", "from", "base_dtype", "rank", "transposed")
    )
    key = (params["operation"], params["dtype"], roles, kinds)
    with _MEASURING:
        if key not in _RATES:
            _RATES[key] = _measure(params, clock)
        return _RATES[key]


def _measure(params: Mapping[str, Any], clock: Callable[[], float]) -> float:
    from modelyard.derivations import STORAGE
    from modelyard.derivations.replay import replay

    dtype = str(params["dtype"])
    width = STORAGE[dtype].itemsize
    columns = 2048
    rows = _RATE_BYTES // width // columns
    made = {**params, "roles": {}}
    if params["operation"] in {"lora/1", "dora/1"}:
        made |= {"shape": [rows, columns], "row": 0, "rows": rows, "b_first": 0, "b_step": 1}
        rank = int(params["rank"])
        inner, outer = (rows, columns) if params["transposed"] else (columns, rows)
        sizes = {"w": (dtype, rows * columns)}
        sizes |= {"a": (str(params["a_dtype"]), rank * inner), "b": (str(params["b_dtype"]), outer * rank)}
        if "m" in params["roles"]:
            sizes["m"] = (str(params["m_dtype"]), outer)
    else:
        if "element" in made:
            made["element"] = 0
        sizes = {role: (_dtype_of(params, role), rows * columns) for role in params["roles"]}
    buffers = {role: _numbers(*size) for role, size in sizes.items()}
    best = float("inf")
    for _ in range(2):
        start = clock()
        replay(made, buffers, size=rows * columns * width)
        best = min(best, clock() - start)
    return rows * columns * width / max(best, 1e-9)


def _dtype_of(params: Mapping[str, Any], role: str) -> str:
    if role == "base":
        return str(params["base_dtype"])
    from_: str | Sequence[str] = params["from"]
    return from_ if isinstance(from_, str) else from_[int(role[1:])]


def _numbers(dtype: str, count: int) -> bytes:
    """Plain numbers between -1 and 1."""
    import numpy as np

    values = np.linspace(-1, 1, count, dtype=np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if dtype == "F16" else np.float32).tobytes()
