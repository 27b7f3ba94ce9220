"""SQLite is kept off network file systems, by the machine's own table of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.catalog import Catalog
from modelyard.catalog import catalog as module
from modelyard.catalog.mounts import network_type
from modelyard.errors import InputError

TABLE = r"""22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
37 36 252:1 / /home/ana/scratch rw - xfs /dev/vdb rw
38 22 0:41 / /mnt/my\040share rw shared:3 master:1 - cifs //server/share rw
39 22 0:42 / /mnt/objects rw - fuse.s3fs s3fs rw
40 22 0:43 / /data rw - nfs server:/data rw
41 40 252:2 / /data rw - ext4 /dev/vdc rw
not a line
"""


@pytest.mark.row(47)
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/home/ana/yard/catalog.db", "nfs4"),
        ("/home/ana/scratch/catalog.db", None),
        ("/homework/catalog.db", None),
        ("/mnt/my share/x", "cifs"),
        ("/mnt/objects/x", "fuse.s3fs"),
        ("/data/x", None),
        ("/var/x", None),
    ],
)
def test_the_deepest_and_latest_mount_decides(path: str, found: str | None) -> None:
    """A path's type is that of the mount that hides all others there; spaces in mount points are escaped."""
    assert network_type(Path(path), TABLE) == found


def test_a_table_that_says_nothing_is_local(tmp_path: Path) -> None:
    """An empty or foreign table, and this machine's temporary folder, are no network file system."""
    assert network_type(Path("/x"), "") is None
    assert network_type(tmp_path) is None


@pytest.mark.row(47)
def test_a_catalog_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite there is refused before a file is made, when it is made and when it is opened, with the two ways out."""
    path = tmp_path / "catalog.db"
    catalog = Catalog(f"sqlite:///{path}")
    monkeypatch.setattr(module, "network_type", lambda path: "nfs4")
    with pytest.raises(InputError, match="nfs4") as caught:
        catalog.init()
    assert caught.value.code == "network_file_system"
    assert "PostgreSQL" in (caught.value.hint or "")
    assert not path.exists()
    monkeypatch.undo()
    catalog.init()
    monkeypatch.setattr(module, "network_type", lambda path: "nfs4")
    with pytest.raises(InputError, match="nfs4"):
        catalog.open()
    catalog.close()
