"""Whether the folders of links are what they say: hard links to the stored files of a version, no more and no less.

They are built again whenever one is used that is not, so this is a warning. Knows folders and inodes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.catalog import liveness, versions
from modelyard.errors import IntegrityError, YardError
from modelyard.registry.model import version_of
from modelyard.registry.scratch import link_folders

if TYPE_CHECKING:
    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.registry.findings import Findings
    from modelyard.registry.model import Version

__all__ = ["check_links"]


def check_links(context: Context, findings: Findings) -> None:
    """Note every folder of links of a version that is here and whole, where it does not hold just that."""
    if context.links is None:
        return
    names = link_folders(context.links)
    with context.catalog.read() as connection:
        kept = liveness.needed_links(connection, names)
        known = {record.id: record for record in versions.load(connection, versions.by_digest(connection, kept))}
    findings.count("links", len(kept))
    for name in sorted(kept & known.keys()):
        version = version_of(known[name])
        try:
            problem = _problem(context, context.links / name, version)
        except (OSError, YardError) as error:
            problem = str(error)
        if problem:
            findings.add(
                "warning",
                "links_differ",
                f"links/{name}",
                f"the folder of links of `{version.name}` {problem}",
                holders=[version.name],
                hint="it is built again when the version is loaded next; or remove it",
            )


def _problem(context: Context, folder: Path, version: Version) -> str:
    if folder.is_symlink() or not folder.is_dir():
        return "is no folder"
    found: dict[str, os.stat_result] = {}
    for parent, folders, names in os.walk(folder):
        if any(Path(parent, name).is_symlink() for name in folders):
            return "holds a symbolic link"
        for each in names:
            path = Path(parent, each)
            found[path.relative_to(folder).as_posix()] = path.lstat()
    expected = {entry.path: entry for entry in version.files}
    if found.keys() != expected.keys():
        odd = min(found.keys() ^ expected.keys())
        return f"lacks `{odd}`" if odd in expected else f"holds `{odd}`, which is not the version's"
    for name, entry in expected.items():
        if not stat.S_ISREG(found[name].st_mode) or found[name].st_size != entry.size:
            return f"holds something else as `{name}`"
        if found[name].st_nlink > 1 and not _is_linked(context, entry.blake3, found[name]):
            return f"links `{name}` to another file than the stored one"
    return ""


def _is_linked(context: Context, digest: Digest, found: os.stat_result) -> bool:
    try:
        stored = context.raw.file_path(digest).stat()
    except IntegrityError:
        return True  # that the stored file is missing is another finding
    return (stored.st_dev, stored.st_ino) == (found.st_dev, found.st_ino)
