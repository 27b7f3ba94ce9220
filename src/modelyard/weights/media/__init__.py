"""Sounds, pictures and videos as models take them: decoded here, bounded in size, never fetched from a network.

Sounds by libsndfile and soxr, pictures by Pillow: no ffmpeg, torchaudio or torchvision. A file is judged by its content,
whatever its name is; what it claims is checked against limits and against its own length before memory is filled.

Knows files and arrays; knows no models.
"""

from __future__ import annotations

from modelyard.weights.media.audio import Audio, read_audio
from modelyard.weights.media.images import read_image
from modelyard.weights.media.video import read_video

__all__ = ["Audio", "read_audio", "read_image", "read_video"]
