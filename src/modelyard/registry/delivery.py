"""The part of `Yard` that hands versions out: as files, paths, folders, checkouts and loaded models.

Each method is a line here and a function in the module of its noun. All of it is verified on the way out, held by a lease
while it lasts, and noted as use.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError
from modelyard.registry.contents import StoredFiles
from modelyard.registry.deferred import deferred
from modelyard.registry.resolve import resolve as _resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelyard.registry import checkout as _checkout
    from modelyard.registry import leases as _leases
    from modelyard.registry import lineage as _lineage
    from modelyard.registry import links as _links
    from modelyard.registry import loading as _loading
    from modelyard.registry import recency as _recency
    from modelyard.registry import untrained as _untrained
    from modelyard.registry import verified as _verified
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version
    from modelyard.weights.model import Model
    from modelyard.weights.untrained import Untrained
else:
    _checkout = deferred("checkout")
    _leases = deferred("leases")
    _lineage = deferred("lineage")
    _links = deferred("links")
    _loading = deferred("loading")
    _recency = deferred("recency")
    _untrained = deferred("untrained")
    _verified = deferred("verified")


__all__ = ["Delivery"]


class Delivery:
    """What `Yard` inherits to hand versions out; not used alone."""

    _context: Context

    def files(self, version: str | Version) -> StoredFiles:
        """A version's files as `weights.Files`; each is verified whenever it is read or its path is asked for."""
        return StoredFiles(self._context.store, _resolve(self._context, version))

    def path(self, version: str | Version, file: str | None = None) -> Path:
        """The stored file itself, verified now; read-only, and named by its digest. Without a file, `folder`.

        Args:
            version: The version; as text it may end in `:FILE`.
            file: Which of its files.

        Raises:
            NotFoundError: No such version, or no such file in it.
            IntegrityError: It is damaged.
        """
        if file is None and isinstance(version, str) and ":" in version and "://" not in version:
            version, _, file = version.partition(":")
        if file is None:
            return self.folder(version)
        found = _resolve(self._context, version)
        with self._use("path", found):
            return StoredFiles(self._context.store, found).path(file)

    def folder(self, version: str | Version, *, trust_verified: bool = False) -> Path:
        """A folder with the version's files as hard links into the store, every byte verified now; read-only by contract.

        With `trust_verified`, files that this boot has verified and nothing touched since are not hashed again.

        Raises:
            InputError: This yard was built without a folder for links.
        """
        if self._context.links is None:
            raise InputError("this yard has no folder for links", hint="use checkout, or open it with modelyard.open()")
        found = _resolve(self._context, version)
        with self._use("path", found):
            laid_out = _links.trusted_folder if trust_verified else _links.linked_folder
            return laid_out(self._context.store, self._context.links, found)

    def checkout(
        self, version: str | Version, folder: Path | str, *, link: bool = False, base: bool | None = None
    ) -> list[Path]:
        """Write a version into a new or empty folder, whole or not at all, so that any library loads it from there.

        An adapter comes with its base, in a folder of its own inside, and its `adapter_config.json` names that folder:
        `from_pretrained`, PEFT and vLLM load it offline. Everything else is byte for byte what was committed.

        Args:
            version: What to check out.
            folder: Where to.
            link: Read-only hard links into the store instead of copies, where the file systems can. Files that this boot
                has verified, and that nothing touched since, are not hashed again.
            base: Whether an adapter comes with its base; by default, when its lineage names one in this yard. Without it
                its files are as they were committed.

        Raises:
            ConflictError: The folder is not empty.
            IntegrityError: A stored file is damaged; nothing is left behind.
            NotFoundError: `base` was asked for, and lineage names none.
        """
        found = _resolve(self._context, version)
        beneath = _lineage.base_beside(self._context, found, base)
        with self._use("checkout", found, *([beneath] if beneath else [])):
            return _checkout.checkout(
                self._context.store,
                found,
                Path(folder),
                link=link,
                base=beneath,
                verified=_verified.verified_beside(self._context.links),
            )

    def base_of(self, version: str | Version) -> Version:
        """The model that an adapter was fine-tuned on, by its `finetuned` edge."""
        return _lineage.adapter_base(self._context, _resolve(self._context, version))

    def untrained(self, version: str | Version) -> Untrained | None:
        """What of a version nobody trained, by the mark in its config.json while that is still true; None for nothing.

        Such a version is neither promoted nor served.
        """
        return _untrained.find(self._context, _resolve(self._context, version))

    def load(
        self,
        source: str | Path | Version,
        *,
        trust_verified: bool = False,
        observe: Callable[[str, float, int], object] | None = None,
        **options: Any,
    ) -> Model:
        """Load a version, an adapter together with its base; a folder or a hub's model too. Every byte of a version is verified.

        Args:
            source: A reference (`ns/name@REV`), a path (`./folder`, or a `Path`), or a hub's id (`hf://org/name@revision`).
            trust_verified: Do not hash files again that this boot has verified and that nothing touched since (the same
                inode, size, mtime and ctime); a disk that changed bytes by itself is not noticed then.
            observe: Told of each stage when it ends: its name (`weights.times.STAGES`), seconds, bytes. `verify` goes on
                beside the others, so together they are more than the whole.
            **options: See `modelyard.weights.load.load`. `base` and the values of `adapters` are sources as well:
                `adapters={"fr": "team/fr@v2"}`.

        Raises:
            NotFoundError: No such version, or an adapter whose base is not in this yard.
            IntegrityError: A stored file is damaged.
            ModelError: The version is not a usable model; `other_base`: an adapter that was made on another one.
        """
        return _loading.load(
            self._context, source, options, fetch=self.fetch, trust_verified=trust_verified, observe=observe
        )

    def fetch(self, source: str, **options: Any) -> Path:
        """A hub's model (`hf://org/name[@revision]`) in the hub cache, with what the surroundings say about the hub.

        `options` go before the surroundings; see `weights.hub.fetch` for them and for what is raised.
        """
        from modelyard.weights import hub

        return hub.fetch(source, **{**(self._context.hub() if self._context.hub else {}), **options})

    @contextmanager
    def _use(self, purpose: str, *versions: Version) -> Iterator[None]:
        with _leases.lease(self._context, purpose, versions=[version.id for version in versions]):
            _recency.note_use(self._context, versions)
            yield
