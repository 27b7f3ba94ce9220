"""What SmoLoRA's guide calls things, and how its versions are ordered: shared by writing and reading its layouts.

Facts only, from its document on model management; see `docs/design/exchange.md`. Knows no files.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from modelyard.digest import digest_bytes
from modelyard.errors import RefError
from modelyard.registry.names import check_path, check_ref_name, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelyard.registry.model import Version

__all__ = [
    "ADAPTER",
    "ADAPTER_BRANCH",
    "FINAL",
    "LABEL",
    "LATEST",
    "METADATA",
    "METADATA_FILE",
    "NOT_RECORDED",
    "REGISTERED_AT",
    "SOURCE_PATH",
    "check_label",
    "kept_metadata",
    "label_key",
    "labels_of",
    "tag_for",
]

ADAPTER = "adapter_checkpoint"
FINAL = "final_merged"
METADATA_FILE = "metadata.json"
LATEST = "latest"

LABEL = "smolora.label"
REGISTERED_AT = "smolora.registered_at"
SOURCE_PATH = "smolora.path"
METADATA = "smolora.metadata."

NOT_RECORDED = "not recorded"
"""What stands in `metadata.json` where nobody wrote a value down; a null would read as one."""

ADAPTER_BRANCH = "adapter"

_LABEL = re.compile(r"v\d+(?:\.\d+)*")
_ESCAPED = re.compile(r"label-(v\d+)")


def label_key(label: str) -> list[tuple[int, int, str]]:
    """What labels are sorted by: numbers as numbers.

    >>> sorted(["v10", "v1.10", "v9", "v1.9", "v1"], key=label_key)
    ['v1', 'v1.9', 'v1.10', 'v9', 'v10']
    """
    parts = re.findall(r"\d+|\D+", label)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def tag_for(label: str) -> str:
    """The tag that a label becomes: itself where a ref may be called so.

    >>> tag_for("v1.0"), tag_for("v9"), tag_for("best one")[:6]
    ('v1.0', 'label-v9', 'label-')
    """
    for name in (label, f"label-{label}"):
        try:
            return check_ref_name(name)
        except RefError:
            continue
    return f"label-{digest_bytes(label.encode())[:12]}"


def labels_of(version: Version, tags: Iterable[str]) -> list[str]:
    """What a version is called in the layout, in order: what it was imported as, its tags like `v1.0`, else its number."""
    found = {tag for tag in tags if _LABEL.fullmatch(tag)}
    found |= {escaped[1] for tag in tags if (escaped := _ESCAPED.fullmatch(tag))}
    if LABEL in version.metadata:
        found.add(version.metadata[LABEL])
    return sorted(found, key=label_key) or [f"v{version.number}.0"]


def check_label(label: str) -> str:
    """Return `label` if it may be a folder's name; else `RefError`. A label is what somebody wrote into metadata."""
    if "/" in label or label == LATEST:
        raise RefError(
            f"the label `{shown(label)}` cannot be the name of a version's folder",
            hint="import the version again under another label",
        )
    return check_path(label)


def kept_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Somebody's metadata as text to text: text as it is, everything else as JSON."""
    return {
        f"{METADATA}{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        for key, value in values.items()
    }
