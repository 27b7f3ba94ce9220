"""What the object `format` of a yard on S3 says; see "`format`" in `docs/design/store-format.md`.

Knows the object's bytes; does not know how they were read.

>>> parse_format(b'{"features":["packs"],"format":"modelyard/store/1"}', "s3://models/yard")["features"]
['packs']
"""

from __future__ import annotations

import json
import re
from typing import Any

from modelyard.errors import InputError, IntegrityError
from modelyard.store.layout import FEATURES, FORMAT, format_bytes

__all__ = ["FORMAT_LIMIT", "parse_format"]

FORMAT_LIMIT = 1 << 16
"""Bytes of the longest `format` that is read."""

_VERSIONED = re.compile(r"modelyard/store/(\d{1,9})")


def parse_format(data: bytes, shown: str) -> dict[str, Any]:
    """The content of `format`, checked.

    Args:
        data: The object's bytes.
        shown: What to call the yard in an error.

    Raises:
        InputError: A newer yard (code ``newer_format``).
        IntegrityError: It does not say what it is.
    """
    try:
        found = json.loads(data) if len(data) <= FORMAT_LIMIT else None
    except (ValueError, RecursionError):
        found = None
    name = found.get("format") if isinstance(found, dict) else None
    features = found.get("features") if isinstance(found, dict) else None
    known = isinstance(name, str) and _VERSIONED.fullmatch(name)
    if not (known and isinstance(features, list) and all(isinstance(item, str) for item in features)):
        raise IntegrityError(
            f"the object `format` of `{shown}` does not say what this is",
            hint=f"if this is a yard, write {format_bytes().decode().strip()} into it; else choose another prefix",
        )
    unknown = sorted(set(features) - FEATURES)
    if name != FORMAT or unknown:
        asks = f"has the format {name}" + (f" with {', '.join(unknown)}" if unknown else "")
        raise InputError(
            f"the yard `{shown}` {asks}; this modelyard reads {FORMAT}",
            hint="upgrade modelyard: `pip install -U modelyard`",
            code="newer_format",
        )
    return {**found, "features": features, "format": name} if isinstance(found, dict) else {}
