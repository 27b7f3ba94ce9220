"""Sounds: WAV, FLAC and OGG by libsndfile, resampled by soxr; mixed to one channel of float32.

What a header claims is checked against the file's own length and `MOST_SAMPLES` before memory is filled, and a file that
holds less than it claims is refused: half a sound would be transcribed as if it were whole.

>>> import numpy as np
>>> sound = read_audio(Audio(np.zeros(44_100, np.float32), 44_100), rate=16_000)
>>> sound.samples.shape, sound.rate, sound.seconds
((16000,), 16000, 1.0)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from modelyard.weights.media.sources import name_content, open_source, refuse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MOST_CHANNELS", "MOST_FILE_BYTES", "MOST_SAMPLES", "RATES", "Audio", "read_audio"]

MOST_FILE_BYTES = 2 << 30
"""The longest file that is read."""

MOST_SAMPLES = 200_000_000
"""The most samples of one sound, for each channel: 800 MB; 69 minutes at 48 kHz, 3.4 hours at 16 kHz."""

MOST_CHANNELS = 32
"""The most channels that are mixed to one."""

RATES = (1_000, 768_000)
"""The lowest and the highest rate, in samples per second."""

_BLOCK = 1 << 18  # frames decoded at a time: a long sound of many channels is never in memory with all of them
_PLACEHOLDERS = (0, 0xFFFFFFFF)  # a WAV that was written to a pipe does not know its length

Floats: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """One channel of sound.

    Attributes:
        samples: float32 of shape (n,), usually within [-1, 1].
        rate: Samples per second.
    """

    samples: Floats
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


def read_audio(source: Any, rate: int | None = 16_000) -> Audio:
    """One sound, mixed to one channel and resampled to `rate`.

    Args:
        source: A path or the bytes of a WAV (8 to 32 bit, float), FLAC or OGG file; an `Audio`; or a mapping with
            `array` and `sampling_rate`, as data sets have. Arrays are (n,) or (n, channels), floats or integers of full
            scale.
        rate: Samples per second of the result; None keeps the source's.

    Raises:
        RequestError: No sound, a format that is not read here, cut off, damaged, not finite, or beyond the limits
            (code `bad_audio`); the message names the file and the cause.
    """
    if isinstance(source, Audio):
        audio = Audio(_check_samples(source.samples, "the samples"), _check_rate(source.rate, "the sound"))
    elif isinstance(source, Mapping):
        audio = _from_mapping(source)
    elif hasattr(source, "shape"):
        raise refuse(
            "audio",
            "an array",
            "does not say its rate",
            "`Audio(samples, rate)` or {'array': samples, 'sampling_rate': rate}",
        )
    else:
        with open_source(source, "audio", MOST_FILE_BYTES) as (file, name, size, head):
            audio = _decode(file, name, size, head)
    return audio if rate is None or rate == audio.rate else Audio(_resample(audio, rate), rate)


def _from_mapping(source: Mapping[str, Any]) -> Audio:
    found = [source[key] for key in ("array", "raw", "samples") if source.get(key) is not None]
    rates = [source[key] for key in ("sampling_rate", "rate") if source.get(key) is not None]
    if not found or not rates:
        raise refuse(
            "audio", "a mapping", "lacks `array` or `sampling_rate`", "{'array': samples, 'sampling_rate': rate}"
        )
    return Audio(_check_samples(found[0], "the array"), _check_rate(rates[0], "the array"))


def _check_rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or rate != int(rate) or not RATES[0] <= rate <= RATES[1]:
        raise refuse("audio", name, f"has the rate {rate!r}", f"{RATES[0]} to {RATES[1]} samples per second")
    return int(rate)


def _check_samples(values: Any, name: str) -> Floats:
    import numpy as np

    array = np.asarray(values)
    if array.ndim not in (1, 2) or array.size == 0:
        raise refuse("audio", name, f"has the shape {array.shape}", "(n,) or (n, channels), n > 0")
    if array.ndim == 2 and array.shape[0] <= MOST_CHANNELS < array.shape[1]:
        array = array.T  # (channels, n), as torchaudio has it
    if array.shape[0] > MOST_SAMPLES or (array.ndim == 2 and array.shape[1] > MOST_CHANNELS):
        raise refuse("audio", name, f"has the shape {array.shape}; the limit is ({MOST_SAMPLES}, {MOST_CHANNELS})")
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif np.issubdtype(array.dtype, np.signedinteger):
        array = array.astype(np.float32) / (np.iinfo(array.dtype).max + 1)
    elif not np.issubdtype(array.dtype, np.floating):
        raise refuse("audio", name, f"holds {array.dtype}", "floats in [-1, 1], or signed integers of full scale")
    mono = array.astype(np.float32, copy=False)
    return _check_finite(mono if mono.ndim == 1 else mono.mean(axis=1, dtype=np.float32), name)


def _check_finite(samples: Floats, name: str) -> Floats:
    import numpy as np

    if not np.isfinite(samples).all():
        raise refuse("audio", name, "holds values that are not finite")
    return np.ascontiguousarray(samples)


def _resample(audio: Audio, rate: int) -> Floats:
    import numpy as np
    import soxr

    _check_rate(rate, "the wanted sound")
    if len(audio.samples) * rate / audio.rate > MOST_SAMPLES:
        raise refuse("audio", "the sound", f"would have more than {MOST_SAMPLES} samples at {rate} per second")
    # "HQ" is what librosa and transformers resample with, so results agree with theirs bit for bit.
    made = np.asarray(soxr.resample(audio.samples, audio.rate, rate, quality="HQ"), dtype=np.float32)
    if len(made) == 0:
        raise refuse("audio", "the sound", f"is shorter than one sample at {rate} per second")
    return made


def _decode(file: IO[bytes], name: str, size: int, head: bytes) -> Audio:
    import soundfile

    content = name_content(head)
    if content not in ("WAV", "FLAC", "OGG"):
        raise refuse("audio", name, f"holds {content}", f"WAV, FLAC or OGG: ffmpeg -i {name.strip('`')} sound.wav")
    if content == "WAV":
        _check_wav(file, name, size)
    elif content == "OGG":
        _check_ogg(file, name, size)
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            return _read_frames(sound, name, content, size)
    except soundfile.SoundFileError as error:
        raise refuse("audio", name, f"is damaged, or no {content}: {error}") from error


def _read_frames(sound: Any, name: str, content: str, size: int) -> Audio:
    """Every frame, a block at a time, mixed to one channel."""
    import numpy as np

    rate = _check_rate(sound.samplerate, name)
    claimed, channels = int(sound.frames), int(sound.channels)
    if not 1 <= channels <= MOST_CHANNELS:
        raise refuse("audio", name, f"has {channels} channels; the limit is {MOST_CHANNELS}")
    unknown = claimed < 0 or claimed > 1 << 62  # FLAC and OGG streams that do not say how long they are
    if not unknown and claimed > MOST_SAMPLES:
        raise refuse("audio", name, f"claims {claimed} samples; the limit is {MOST_SAMPLES}", "cut it into pieces")
    blocks, count = [], 0
    while True:
        block = sound.read(_BLOCK, dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        count += len(block)
        if count > MOST_SAMPLES:
            raise refuse("audio", name, f"has more than {MOST_SAMPLES} samples", "cut it into pieces")
        blocks.append(block[:, 0].copy() if channels == 1 else block.mean(axis=1, dtype=np.float32))
    if count == 0:
        raise refuse("audio", name, f"is {content} with no sound in it ({size} bytes)")
    if not unknown and count < claimed:
        raise refuse("audio", name, f"is cut off: {count} of {claimed} samples are there", "fetch the file again")
    return Audio(_check_finite(np.concatenate(blocks), name), rate)


def _check_wav(file: IO[bytes], name: str, size: int) -> None:
    """Refuse a WAV whose sound is longer than the file: libsndfile would read the half that is there."""
    file.seek(0)
    if file.read(4) == b"RF64":
        return  # its lengths are 64 bit and elsewhere; how many frames were claimed is checked after decoding
    at = 12
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            if length not in _PLACEHOLDERS and at + 8 + length > size:
                raise refuse(
                    "audio",
                    name,
                    f"is cut off: its header claims {length} bytes of sound and {size - at - 8} are there",
                    "fetch the file again",
                )
            return
        at += 8 + length + length % 2
    raise refuse("audio", name, "is a WAV without sound in it (no `data` chunk)", "fetch the file again")


def _check_ogg(file: IO[bytes], name: str, size: int) -> None:
    """Refuse an OGG whose last page is not whole or not marked as the last: what is behind it is missing."""
    start = max(0, size - (1 << 17))  # a page has at most 65,307 bytes
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at >= 0 and at + 27 <= len(tail):
        count = tail[at + 26]
        table = tail[at + 27 : at + 27 + count]
        whole = len(table) == count and at + 27 + count + sum(table) <= len(tail)
        if whole and tail[at + 5] & 4:
            return
    raise refuse("audio", name, "is cut off: its last page is not there", "fetch the file again")
