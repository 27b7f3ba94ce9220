"""Which file systems SQLite must not be put on.

SQLite's locks rely on `fcntl` locks that network file systems implement badly or not at all; two hosts that write one database
there lose it (https://sqlite.org/howtocorrupt.html, section 2.1). Knows mount points; knows no database.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

__all__ = ["NETWORK", "network_type"]

NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.cephfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs",
    "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "wekafs",
})  # fmt: skip
"""Types of file systems that several hosts write to, as Linux's mount table calls them."""

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_type(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` lies on; None for a local one, or where nobody can tell.

    `path` need not exist. `mounts` is a text like Linux's `/proc/self/mountinfo`, which is read by default (proc_pid_mountinfo(5)).

    >>> network_type(Path("/home/ana/yard"), "36 35 0:40 / /home rw - nfs4 server:/home rw")
    'nfs4'
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return None  # no Linux, or no /proc
    place = PurePosixPath(path.resolve())
    best: tuple[int, str] | None = None
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if not separator or len(fields) < 5 or not right:
            continue
        point = PurePosixPath(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        # A later mount at the same place hides the earlier one.
        if place.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            best = (len(point.parts), right.split()[0])
    return best[1] if best is not None and best[1] in NETWORK else None
