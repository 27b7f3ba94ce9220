"""The store: bytes by digest, and a journal.

Knows no models, no names and no SQL: those are the registry's and the catalog's. What it promises is in `base.Store`, how it
keeps its promises on a disk in `docs/design/store-format.md`.

>>> store = MemoryStore()
>>> digests = store.put_file([b"weights"])
>>> store.file_size(digests.blake3)
7
"""

from __future__ import annotations

from modelyard.store.base import Area, ObjectArea, Store
from modelyard.store.local import LocalStore
from modelyard.store.memory import MemoryStore

__all__ = ["Area", "LocalStore", "MemoryStore", "ObjectArea", "Store"]
