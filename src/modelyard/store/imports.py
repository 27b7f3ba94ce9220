"""Finding out, without writing, whether a file's bytes are stored already.

Knows open files and paths; does not know areas, nor what it means that a file is stored.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from modelyard.digest import Digest, FileDigests
from modelyard.errors import IntegrityError
from modelyard.store.hashing import Hashing
from modelyard.store.oserrors import explained
from modelyard.store.reading import open_regular, read_exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["compare", "find_alike"]

_PROBES = 32
_PROBE = 4096
"""A fine-tuned model is as long as its base and differs everywhere: a few pages tell them apart, and spare a pass over both."""


def find_alike(stream: BinaryIO, stored: Iterable[Path]) -> Path | None:
    """The first of the stored files, all as long as the open file, that agrees with it in a few places."""
    fd = stream.fileno()
    last = max(os.fstat(fd).st_size - _PROBE, 0)
    places = [last * number // (_PROBES - 1) for number in range(_PROBES)]
    for path in stored:
        try:
            other = open_regular(path)
        except IntegrityError:
            continue  # gone since, or something else in its place
        try:
            with explained(path, "read"):
                if all(os.pread(fd, _PROBE, place) == os.pread(other, _PROBE, place) for place in places):
                    return path
        finally:
            os.close(other)
    return None


def compare(
    stream: BinaryIO,
    path: Path,
    stored: Path,
    sha256_of: Callable[[Digest], str | None] | None,
    observe: Callable[[bytes], object] | None,
) -> tuple[FileDigests, bool]:
    """The hashes of the open file at `path`, and whether the stored file, called by its digest, has these very bytes.

    Where it has not, the SHA-256 in the hashes may be another file's.
    """
    name = Digest(stored.name)
    known = sha256_of(name) if sha256_of is not None else None
    size = os.fstat(stream.fileno()).st_size
    with os.fdopen(open_regular(stored), "rb", buffering=0) as other, Hashing(observe, known) as hashing:
        same = True
        for chunk in read_exactly(stream, path, size):
            hashing.update(chunk)
            # Equal to bytes with the right digest is as good as hashed, at a fraction of the cost.
            if same:
                with explained(stored, "read"):
                    same = other.read(len(chunk)) == chunk
        with explained(stored, "read"):
            same = same and not other.read(1)
        digests = hashing.digests()
    return digests, same and digests.blake3 == name
