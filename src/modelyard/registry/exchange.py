"""The part of `Yard` by which versions enter and leave in other forms: bundles, caches, other registries, statements.

Each method is a line here and a function in the module of its noun.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modelyard.registry.deferred import deferred
from modelyard.registry.reference import repo_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelyard.registry import bundle as _bundle
    from modelyard.registry import hfcache as _hfcache
    from modelyard.registry import imports as _imports
    from modelyard.registry import layout_reading as _reading
    from modelyard.registry import layout_writing as _writing
    from modelyard.registry import mlflow as _mlflow
    from modelyard.registry import provenance as _provenance
    from modelyard.registry import signing as _signing
    from modelyard.registry.adoption import Adopted
    from modelyard.registry.bundle import Packed
    from modelyard.registry.context import Context
    from modelyard.registry.imports import Imported
    from modelyard.registry.layout_writing import WrittenLayout
    from modelyard.registry.model import Version
    from modelyard.registry.signing import Signed
    from modelyard.registry.yard import Yard
else:
    _bundle = deferred("bundle")
    _hfcache = deferred("hfcache")
    _imports = deferred("imports")
    _reading = deferred("layout_reading")
    _writing = deferred("layout_writing")
    _mlflow = deferred("mlflow")
    _provenance = deferred("provenance")
    _signing = deferred("signing")


__all__ = ["Exchange"]


class Exchange:
    """What `Yard` inherits for its exchange with others; not used alone."""

    _context: Context

    @property
    def _yard(self) -> Yard:
        """This very object: a mixin of `Yard` that is only ever used as one."""
        return cast("Yard", self)

    def pack(
        self,
        version: str | Version,
        path: Path | str,
        *,
        with_lineage: bool = False,
        signatures: Sequence[bytes] = (),
    ) -> Packed:
        """Write a version into one new file (`modelyard/bundle/1`, a tar), verified on the way; whole or not at all.

        Args:
            version: What is packed.
            path: The file, which must not exist.
            with_lineage: Also every version that it was made from: an adapter is of no use without its base.
            signatures: Signature files of this version that travel with it.

        Raises:
            ConflictError: `path` is there already.
            IntegrityError: A stored file is damaged, or a signature is about other files; nothing is left behind.
            NoSpaceError: The disk is full; nothing is left behind.
        """
        found = self._yard.resolve(version)
        for data in signatures:
            _signing.check_signature(data, found.files, "given")
        return _bundle.pack(self._context, found, Path(path), with_lineage=with_lineage, signatures=signatures)

    def unpack(
        self, path: Path | str, *, to: str | None = None, branch: str = "main", with_reports: bool = True
    ) -> Adopted:
        """Take the versions of a bundle in, with their ids, all or none; everything is verified first.

        Args:
            path: The bundle: a regular file.
            to: Another repo than the one that the version comes from.
            branch: Which of its branches moves to the version.
            with_reports: Take its reports too. A gate believes them, as it does those that were made here.

        Raises:
            IntegrityError: The bundle is hostile, truncated or damaged; no version was made.
            ModelError, PickleError: Weights that a commit would refuse.
            ConflictError: The branch is elsewhere.
        """
        target = repo_of(to) if to is not None else None
        return _bundle.unpack(self._context, Path(path), to=target, branch=branch, with_reports=with_reports)

    def import_version(
        self,
        other: Yard,
        version: str | Version,
        *,
        with_lineage: bool = True,
        to: str | None = None,
        branch: str = "main",
    ) -> Adopted:
        """Take a version of another yard in, with its id, and what it was made from; as `unpack`, without a file between.

        Args:
            other: The other yard, opened.
            version: What is taken.
            with_lineage: Also every version that it was made from.
            to: Another repo than the one that the version comes from.
            branch: Which of its branches moves to the version.
        """
        context = cast("Exchange", other)._context  # noqa: SLF001  # two yards of one class
        target = repo_of(to) if to is not None else None
        return _imports.from_yard(self._context, context, version, with_lineage=with_lineage, to=target, branch=branch)

    def import_hf_cache(
        self, cache: Path | str, repo: str | None = None, *, to: str | None = None, message: str = ""
    ) -> Imported:
        """Commit what a Hugging Face cache holds, linked and not copied where the file systems allow it.

        Args:
            cache: The cache's folder, which holds `models--org--name`.
            repo: `[datasets/]org/name[@REV]`; None takes every repo that is whole.
            to: The repo to commit to; the one of the same name by default.
            message: For people.

        Raises:
            NotFoundError: The cache has no such repo or revision.
            PickleError: Its weights are pickles only.
            ModelError: A link leads out of the repo's folder, or the model is not whole.
        """
        return _hfcache.import_cache(self._yard, self._context, Path(cache), repo, to=to, message=message)

    def import_mlflow(self, folder: Path | str, to: str, *, message: str = "") -> Imported:
        """Commit the model in an MLflow model folder, its `MLmodel`'s facts as metadata.

        Raises:
            PickleError: Its flavors are pickles; the message names them.
            ModelError: It holds no weights, or `MLmodel` cannot be read.
            ConflictError: The model and its tokenizer disagree about a file, or there are several models.
        """
        return _mlflow.import_folder(self._yard, Path(folder), to, message=message)

    def import_layout(
        self, folder: Path | str, to: str, *, base: str | Version | None = None, convert: bool = False
    ) -> Imported:
        """Commit the versions of a folder in SmoLoRA's layout: `NAME/v1.0/{adapter_checkpoint,final_merged}/`.

        Args:
            folder: One name's folder, or the folder of several.
            to: `NAMESPACE`, or for one name `NAMESPACE/NAME`.
            base: The version that the adapters were fine-tuned on, if it is in this yard.
            convert: Convert weights that are pickles only, in an isolated process, instead of leaving them out.

        Raises:
            ConflictError: A label is taken by other bytes; nothing was committed.
        """
        return _reading.import_layout(self._yard, Path(folder), to, base=base, convert=convert)

    def import_registry(
        self,
        file: Path | str,
        to: str,
        *,
        root: Path | str | None = None,
        base: str | Version | None = None,
        convert: bool = False,
    ) -> Imported:
        """Commit the versions that a `model_registry.json` names; dead paths are among what was skipped.

        Args:
            file: The registry.
            to: The namespace.
            root: What its paths are relative to, and may not leave; the file's folder by default.
            base: See `import_layout`.
            convert: See `import_layout`.

        Raises:
            ConflictError: A label is there twice, or taken by other bytes; nothing was committed.
        """
        return _reading.import_registry(
            self._yard, Path(file), to, root=Path(root) if root is not None else None, base=base, convert=convert
        )

    def checkout_layout(self, repo: str, out: Path | str, *, bins: bool = True) -> WrittenLayout:
        """Write a repo in SmoLoRA's layout into `out`; versions that are there already are left as they are.

        Args:
            repo: The repo, without a REV.
            out: The folder that gets `NAME/v1.0/` and `NAME/latest`.
            bins: Also write the weights as `.bin`, which its guide names; loaders read the safetensors files.

        Raises:
            ConflictError: Two versions have one label, or a folder of this name is another version's.
            NotFoundError: The repo holds no model.
        """
        return _writing.write_layout(self._yard, repo, Path(out), bins=bins)

    def provenance(self, version: str | Version) -> dict[str, Any]:
        """What this yard recorded of how a version came to be, as an in-toto Statement v1; unsigned."""
        return _provenance.statement(self._yard, version)

    def sign(
        self, version: str | Version, signature: Path | str, *, key: Path | str, password: str | None = None
    ) -> Signed:
        """Sign a version's files by key into a new file that the `model_signing` command verifies.

        Raises:
            NotFoundError: There is no key.
            InputError: It is not a key that can sign, or `model-signing` is not installed.
            ConflictError: `signature` is there already.
            IntegrityError: A stored file is damaged.
        """
        with self._laid_out(version) as folder:
            return _signing.sign_folder(folder, Path(signature), Path(key), password=password)

    def verify(self, version: str | Version, signature: Path | str, *, key: Path | str) -> Signed:
        """Check that a signature is by this key and covers exactly a version's files, every byte read now.

        Raises:
            NotFoundError: There is no signature, or no key.
            IntegrityError: The signature does not hold, or a stored file is damaged.
        """
        with self._laid_out(version) as folder:
            return _signing.verify_folder(folder, Path(signature), Path(key))

    @contextmanager
    def _laid_out(self, version: str | Version) -> Iterator[Path]:
        """A folder with a version's files, verified; linked where this yard links, else a copy that goes away again."""
        if self._context.links is not None:
            with self._yard.lease("signature"):
                yield self._yard.folder(version)
            return
        with tempfile.TemporaryDirectory(prefix="yard-signature-") as folder:
            self._yard.checkout(version, Path(folder) / "files")
            yield Path(folder) / "files"
