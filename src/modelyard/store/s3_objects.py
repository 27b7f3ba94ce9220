"""Objects by digest in a bucket: their names, whether they are there, and the errors that name them.

Knows areas and digests; does not know the cache, nor how bytes are moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.digest import Digest
from modelyard.errors import IntegrityError
from modelyard.store.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.digest import FileDigests
    from modelyard.store.base import ObjectArea
    from modelyard.store.s3_bucket import Bucket, Head

__all__ = ["S3Objects"]

_HINT = "commit the file again, or copy it from a backup of the yard"


class S3Objects:
    """The objects of the four areas under a prefix; safe to share between threads."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._layout = Layout(Path())

    def name(self, area: ObjectArea, digest: Digest) -> str:
        """An object's name under the prefix; `InternalError` for a text that is no digest."""
        return self._layout.object(area, digest).as_posix()

    def shown(self, area: ObjectArea, digest: Digest) -> str:
        """What an error calls an object."""
        location = self._bucket.location
        return f"s3://{location.bucket}/{location.key(self.name(area, digest))}"

    def head(self, area: ObjectArea, digest: Digest) -> Head | None:
        """What the endpoint says of an object, or None."""
        return self._bucket.head(self.name(area, digest))

    def found(self, area: ObjectArea, digest: Digest) -> Head:
        """As `head`; `IntegrityError` (code ``missing``) when there is none."""
        head = self.head(area, digest)
        if head is None:
            raise self.missing(area, digest)
        return head

    def holds(self, area: ObjectArea, digests: FileDigests) -> Head | None:
        """What is stored under the digest, if the request that stored it was ours: its bytes were verified on their way."""
        head = self.head(area, digests.blake3)
        return head if head is not None and (head.size, head.digest) == (digests.size, digests.blake3) else None

    def listed(self, area: ObjectArea) -> Iterator[Digest]:
        """Every digest that the endpoint lists in an area, ascending; other names are not objects."""
        found = set()
        for name in self._bucket.names(f"{area}/"):
            try:
                digest = Digest(name.rpartition("/")[2])
            except ValueError:
                continue
            if name == self.name(area, digest):
                found.add(digest)
        yield from sorted(found)

    def compare(self, area: ObjectArea, digest: Digest, found: str) -> None:
        """`IntegrityError` unless the bytes that were read have the digest that names them."""
        if found != digest:
            raise IntegrityError(
                f"`{self.shown(area, digest)}` is damaged: its bytes have the digest {found[:12]}, not {digest[:12]}",
                hint=_HINT,
                found=found,
            )

    def missing(self, area: ObjectArea, digest: Digest) -> IntegrityError:
        """The error for an object that is not there."""
        return IntegrityError(
            f"`{digest[:12]}` is not in the store: there is no `{self.shown(area, digest)}`", hint=_HINT, code="missing"
        )
