"""Sounds: every kind of WAV, FLAC and OGG is read as it was written, resampled without aliases; hostile files are refused."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from modelyard.errors import RequestError
from modelyard.weights.media import Audio, read_audio
from modelyard.weights.media import audio as limits

if TYPE_CHECKING:
    from pathlib import Path


def tone(frequency: float = 440.0, rate: int = 16_000, seconds: float = 0.25) -> np.ndarray:
    """A float32 sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """`samples` as a file, by libsndfile."""
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, samples, rate, format=kind, subtype=subtype)
    return held.getvalue()


def wav_header(claimed: int, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """The header of a 16-bit WAV that claims `claimed` bytes of sound."""
    return (
        struct.pack("<4sI4s4sI", b"RIFF", min(claimed + 36, 0xFFFFFFFF), b"WAVE", b"fmt ", 16)
        + struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
        + struct.pack("<4sI", b"data", claimed)
    )


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 127),
        ("WAV", "PCM_16", 1 / 32_767),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "DOUBLE", 0.0),
        ("WAVEX", "PCM_16", 1 / 32_767),
        ("WAVEX", "PCM_24", 1e-6),
        ("RF64", "PCM_16", 1 / 32_767),
        ("FLAC", "PCM_16", 1 / 32_767),
        ("FLAC", "PCM_24", 1e-6),
        ("OGG", "VORBIS", 0.05),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_kind_is_read_as_it_was_written(kind: str, subtype: str, tolerance: float, channels: int) -> None:
    """8 to 32 bit, float, WAVE_FORMAT_EXTENSIBLE, FLAC and OGG, mono and stereo, come back within their own rounding."""
    given = tone()
    samples = given if channels == 1 else np.stack([given, given * 0.5], axis=1)
    read = read_audio(encoded(samples, kind=kind, subtype=subtype))
    wanted = given if channels == 1 else given * 0.75
    assert read.rate == 16_000
    assert read.samples.dtype == np.float32
    np.testing.assert_allclose(read.samples[: len(wanted)], wanted, atol=tolerance + 1e-7)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    """FLAC in a file called .wav is read as FLAC."""
    path = tmp_path / "sound.wav"
    path.write_bytes(encoded(tone(), kind="FLAC"))
    np.testing.assert_allclose(read_audio(path).samples, tone(), atol=1e-4)
    np.testing.assert_array_equal(read_audio(str(path)).samples, read_audio(path.read_bytes()).samples)


def test_resampling_equals_what_transformers_does(tmp_path: Path) -> None:
    """44.1 kHz stereo at 16 kHz is bit for bit what transformers' own reader makes of it."""
    from transformers.audio_utils import load_audio

    path = tmp_path / "sound.wav"
    path.write_bytes(encoded(np.stack([tone(rate=44_100), tone(900, rate=44_100)], axis=1), 44_100, subtype="FLOAT"))
    np.testing.assert_array_equal(read_audio(path).samples, load_audio(str(path), sampling_rate=16_000))


def test_a_tone_survives_resampling_and_an_alias_does_not() -> None:
    """A tone below half the new rate keeps its level, one above it is gone (more than 60 dB down), as with scipy's filter."""
    from scipy import signal

    rate = 48_000
    for frequency, kept in ((1_000.0, True), (11_000.0, False)):
        given = tone(frequency, rate, 0.5)
        ours = read_audio(Audio(given, rate)).samples
        theirs = signal.resample_poly(given, 1, 3, window=("kaiser", 14.0))
        middle = slice(1_000, -1_000)  # filters ring at the ends
        level = float(np.sqrt(np.mean(ours[middle] ** 2)))
        if kept:
            assert level == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)
            np.testing.assert_allclose(ours[middle], theirs[middle], atol=2e-3)
        else:
            assert level < 0.5 / np.sqrt(2) / 1_000


def test_arrays_of_every_width_are_the_same_sound() -> None:
    """int16, int32, uint8, float64, (n, channels) and (channels, n) mean what they mean in audio programs."""
    given = tone()
    for array, tolerance in (
        (np.round(given * 32_767).astype(np.int16), 1e-4),
        (np.round(given * 2_147_483_647.0).astype(np.int32), 1e-4),
        (np.round(given * 127 + 128).astype(np.uint8), 0.01),
        (given.astype(np.float64), 1e-7),
        (np.stack([given, given], axis=1), 1e-7),
        (np.stack([given, given]), 1e-7),
    ):
        read = read_audio({"array": array, "sampling_rate": 16_000})
        np.testing.assert_allclose(read.samples, given, atol=tolerance)
    assert read_audio(Audio(given, 8_000), rate=None).rate == 8_000


def refused(source: Any, *words: str) -> None:
    """`source` is refused with code `bad_audio`, a message with all `words`, and less than 8 MB of memory."""
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            read_audio(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == "bad_audio"
    for word in words:
        assert word in caught.value.message
    assert peak < 8 << 20


def test_hostile_content_is_refused_by_name(tmp_path: Path) -> None:
    """Empty, truncated, mislabelled, lying and damaged files are refused, each with its own cause, before memory is used."""
    whole = encoded(tone(), subtype="PCM_16")
    refused(b"", "empty")
    refused(whole[: len(whole) // 2], "cut off", "claims")
    refused(wav_header(0x7FFFFFF0), "cut off", "2147483632")
    refused(wav_header(8, channels=64) + bytes(1280), "64 channels")
    refused(whole[:36], "no `data` chunk")
    refused(wav_header(0) + b"", "no sound")
    flac = encoded(tone(seconds=2.0), kind="FLAC")
    refused(flac[: len(flac) // 2], "bytes of audio")
    ogg = encoded(tone(seconds=2.0), kind="OGG")
    refused(ogg[: len(ogg) // 2], "cut off", "last page")
    refused(b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG")
    refused(b"<!DOCTYPE html><html></html>", "HTML")
    refused(b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer")
    refused(b"ID3\x04" + bytes(100), "MP3")
    path = tmp_path / "picture.wav"
    path.write_bytes(b"\xff\xd8\xff" + bytes(100))
    refused(path, "picture.wav", "JPEG")


def test_a_header_that_claims_too_much_is_refused_before_decoding() -> None:
    """A FLAC of a few bytes whose header claims 2**35 samples takes no memory."""
    flac = bytearray(encoded(tone(), kind="FLAC"))
    flac[21:26] = bytes([flac[21] & 0xF0 | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # total samples: 36 bits behind the rate
    refused(bytes(flac), "claims", str(limits.MOST_SAMPLES))


def test_sources_that_are_no_files_are_refused(tmp_path: Path) -> None:
    """A URL, a folder, a missing path, a FIFO (without waiting for a writer) and other objects are named."""
    refused("https://example.org/sound.wav", "URL", "nothing is fetched")
    refused(tmp_path, str(tmp_path))
    refused(tmp_path / "absent.wav", "absent.wav", "No such file")
    fifo = tmp_path / "fifo.wav"
    os.mkfifo(fifo)
    refused(fifo, "no plain file")
    refused(object(), "object")
    refused("with\0nul", "cannot be read")


def test_arrays_that_are_no_sounds_are_refused() -> None:
    """An array without rate, of a wrong shape, kind or rate, or with values that are not finite."""
    refused(tone(), "does not say its rate")
    for array, rate, word in (
        (np.zeros((2, 2, 2), np.float32), 16_000, "shape"),
        (np.zeros(0, np.float32), 16_000, "shape"),
        (np.array(["a"]), 16_000, "holds"),
        (np.array([0.0, np.nan], np.float32), 16_000, "not finite"),
        (tone(), 0, "rate"),
        (tone(), 10**9, "rate"),
    ):
        refused({"array": array, "sampling_rate": rate}, word)
    refused({"array": tone()}, "sampling_rate")


def test_a_float_wav_with_nan_is_refused() -> None:
    """NaN would silently become a transcript of nothing."""
    refused(encoded(np.array([0.0, np.nan, 0.5], np.float32), subtype="FLOAT"), "not finite")


def test_a_wav_written_to_a_pipe_is_read() -> None:
    """A header that does not know its length (0xFFFFFFFF), as programs write to a pipe, is no lie."""
    samples = np.round(tone() * 32_767).astype("<i2")
    piped = wav_header(0xFFFFFFFF) + samples.tobytes()
    np.testing.assert_allclose(read_audio(piped).samples, tone(), atol=1e-4)
