"""`modelyard.store.s3_cache`: a bounded folder of files that several processes share."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelyard.digest import Digest, digest_bytes
from modelyard.store import s3_cache
from modelyard.store.s3_cache import ReadCache

KIB = 1024


def some_bytes(seed: int, size: int = 100 * KIB) -> bytes:
    return random.Random(seed).randbytes(size)


def opened(folder: Path, bound: int) -> ReadCache:
    cache = ReadCache(folder, bound)
    cache.prepare()
    return cache


def fill(cache: ReadCache, seed: int, size: int = 100 * KIB) -> Digest:
    data = some_bytes(seed, size)
    digest = digest_bytes(data)
    with cache.incoming() as file:
        file.write(data)
        cache.keep(file, digest, len(data))
    cache.record(digest, f"etag {seed}")
    return digest


def age(cache: ReadCache, digest: Digest, seconds: int) -> None:
    """As if the entry had been used that long ago."""
    path = cache.root / "seen" / digest
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def filled_by_a_dead_process(folder: Path, seeds: range) -> list[Digest]:
    """Entries that a process kept which is gone, so that nobody's use keeps them; the first is the oldest."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_s3_cache import fill, opened\n"
        "import os, signal\n"
        "cache = opened(Path(sys.argv[1]), 1 << 40)\n"
        f"for seed in range({seeds.start}, {seeds.stop}):\n"
        "    fill(cache, seed)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    cache = ReadCache(folder, 1 << 40)
    digests = [digest_bytes(some_bytes(seed)) for seed in seeds]
    for position, digest in enumerate(digests):
        age(cache, digest, 1000 - position)
    return digests


def there(cache: ReadCache, digests: list[Digest]) -> list[bool]:
    return [(cache.root / "files" / digest[:2] / digest).exists() for digest in digests]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    """A new entry beyond the bound removes as many of the oldest entries as it needs, and no more."""
    digests = filled_by_a_dead_process(tmp_path, range(5))
    cache = opened(tmp_path, 500 * KIB)
    fd = cache.open(digests[0])
    assert fd is not None
    os.close(fd)
    fill(cache, 9, 150 * KIB)
    assert there(cache, digests) == [True, False, False, True, True]
    assert cache.size() <= cache.bound


def test_what_a_living_process_was_given_stays(tmp_path: Path) -> None:
    """An entry whose path a living process holds is not removed, however old; once that process is gone, it is."""
    digests = filled_by_a_dead_process(tmp_path, range(3))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from modelyard.digest import Digest\n"
        "from modelyard.store.s3_cache import ReadCache\n"
        "cache = ReadCache(Path(sys.argv[1]), 1 << 40)\n"
        "print(cache.take(Digest(sys.argv[2])), flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), digests[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        path = Path(holder.stdout.readline().decode().strip())
        for digest, seconds in zip(digests, (9000, 8000, 7000), strict=True):
            age(opened(tmp_path, 1), digest, seconds)
        cache = opened(tmp_path, 200 * KIB)
        fill(cache, 9)
        assert there(cache, digests) == [True, False, False]
        assert digest_bytes(path.read_bytes()) == digests[0]
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    fill(cache, 10)
    assert there(cache, digests) == [False, False, False]


def test_what_is_linked_stays(tmp_path: Path) -> None:
    """An entry with a second hard link is not removed: that would free nothing and cost a fetch."""
    digests = filled_by_a_dead_process(tmp_path / "cache", range(2))
    cache = opened(tmp_path / "cache", 150 * KIB)
    os.link(cache.root / "files" / digests[0][:2] / digests[0], tmp_path / "link")
    fill(cache, 9)
    assert there(cache, digests) == [True, False]


def test_a_path_given_long_ago_is_no_reason_to_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives for days does not keep everything it ever read."""
    cache = opened(tmp_path, 150 * KIB)
    old = fill(cache, 1)
    fill(cache, 2)
    assert there(cache, [old]) == [True]
    monkeypatch.setattr(s3_cache, "_PIN_SECONDS", -1)
    fill(cache, 3)
    assert there(cache, [old]) == [False]


def test_a_file_longer_than_the_bound_is_kept_for_its_user(tmp_path: Path) -> None:
    """A file that does not fit is there all the same for whoever asked for it."""
    cache = opened(tmp_path, 10 * KIB)
    digest = fill(cache, 1)
    path = cache.take(digest)
    assert path is not None
    assert digest_bytes(path.read_bytes()) == digest


def test_an_entry_keeps_its_times(tmp_path: Path) -> None:
    """Using an entry changes neither its inode nor its times: who remembers that it was verified looks at those."""
    cache = opened(tmp_path, 1 << 40)
    digest = fill(cache, 1)
    path = cache.take(digest)
    assert path is not None
    before = path.stat()
    for _ in range(2):
        cache.take(digest)
        fd = cache.open(digest)
        assert fd is not None
        os.close(fd)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_dead_process_leaves_nothing_behind_for_long(tmp_path: Path) -> None:
    """Temporary files and records of use of processes that were killed are gone after the next one prepared the folder."""
    filled_by_a_dead_process(tmp_path, range(1))
    assert len(list((tmp_path / "users").iterdir())) == 1
    opened(tmp_path, 1 << 40)
    assert list((tmp_path / "users").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_many_threads_share_a_full_cache(tmp_path: Path) -> None:
    """Filling and taking at the same time, every path that was given out is whole."""
    filled_by_a_dead_process(tmp_path, range(4))
    caches = [opened(tmp_path, 250 * KIB) for _ in range(3)]

    def work(number: int) -> bool:
        cache = caches[number % 3]
        digest = digest_bytes(some_bytes(number % 6))
        path = cache.take(digest)
        if path is None:
            fill(cache, number % 6)
            path = cache.take(digest)
        return path is not None and digest_bytes(path.read_bytes()) == digest

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(60)))
