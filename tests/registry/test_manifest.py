"""The manifest's bytes are a format: pinned."""

from __future__ import annotations

from modelyard.digest import digest_bytes
from modelyard.registry import Edge, FileEntry
from modelyard.registry.manifest import encode


def test_a_manifest_with_everything_is_pinned() -> None:
    """Files in order of their paths' bytes, edges in order of type and version: the digest never changes."""
    file, x, y = digest_bytes(b"two"), digest_bytes(b"x"), digest_bytes(b"y")
    sha256 = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    data = encode(
        parent=digest_bytes(b"p"),
        kind="merged",
        files=[FileEntry(path, 3, file, sha256) for path in ("b", "a/é", "a")],
        lineage=[Edge("merged", x), Edge("finetuned", y), Edge("merged", x)],
        inputs=digest_bytes(b"i"),
    )
    assert digest_bytes(data) == "c0946305a2b205560f0479a72ef1bbe57c8354ecf46cf242418171dca839da63"


def test_what_is_not_there_is_left_out() -> None:
    """No parent, kind or inputs means no key."""
    assert encode(parent=None, kind=None, files=[], lineage=[], inputs=None) == (
        b'{"files":[],"format":"modelyard/manifest/1","lineage":[]}'
    )
