"""New versions from old ones: convert, merge, combine, extract, quantize, export.

What is computed is `weights`' business; here its inputs are resolved, held and verified, the work gets a folder of the yard
that survives an interruption, and what comes out is committed with its lineage, its certificate beside it. Each function
takes versions, references, folders and hub ids alike, and writes to a repo or to a folder. Knows no tensor.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError, ModelError, NotFoundError, RefError, RequestError
from modelyard.registry import certificates
from modelyard.registry.commit import commit
from modelyard.registry.contents import StoredFiles
from modelyard.registry.leases import lease
from modelyard.registry.locks import hold
from modelyard.registry.model import Version
from modelyard.registry.names import check_metadata, check_ref_name
from modelyard.registry.recency import note_use
from modelyard.registry.reference import repo_of
from modelyard.registry.resolve import resolve
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.registry.intake import Origin
    from modelyard.registry.model import Kind, LineageType
    from modelyard.weights.certificate import Certificate
    from modelyard.weights.files import Files

    Work = Callable[[Path], Certificate]
    Edges = list[tuple[LineageType, "Operand"]]
    Fetch = Callable[..., Path]

__all__ = ["Operand", "Transformed", "find", "transform"]


@dataclass(frozen=True)
class Transformed:
    """What a transformation made.

    Attributes:
        certificate: What was done and measured.
        version: The version that was committed; None for a folder.
        folder: The folder that was written; None for a version.
        sources: What it was made from, as a person would name it.
    """

    certificate: Certificate
    version: Version | None
    folder: Path | None
    sources: tuple[str, ...]

    @property
    def name(self) -> str:
        """The version's name, or the folder."""
        return self.version.name if self.version is not None else str(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        made = self.version.to_dict() if self.version is not None else {}
        plain = {"to": self.name, "sources": list(self.sources), "certificate": self.certificate.to_dict()}
        return {**made, **plain}


@dataclass(frozen=True)
class Operand:
    """A model, an adapter or a file that something is made from: a version of the yard, or a path.

    Attributes:
        context: The yard; None for a path without one.
        label: How a person names it.
        version: The version; None for a path.
        path: The folder or file; None for a version.
    """

    context: Context | None
    label: str
    version: Version | None = None
    path: Path | None = None

    def files(self) -> Files:
        """Its files; a version's are verified as they are read."""
        from modelyard.weights.files import FolderFiles, SingleFile

        if self.version is not None and self.context is not None:
            return StoredFiles(self.context.store, self.version)
        path = self._path()
        return SingleFile(path) if path.is_file() else FolderFiles(path)

    def _path(self) -> Path:
        if self.path is None:  # pragma: no cover  an operand has one of the two
            raise InputError(f"`{self.label}` is neither a version nor a path")
        return self.path


def find(context: Context | None, source: str | Path | Version, fetch: Fetch) -> Operand:
    """What a version, a reference, a path or a hub's id means.

    Raises:
        NotFoundError: No such version or path.
        RefError: A malformed reference.
    """
    if isinstance(source, Version):
        return Operand(context, source.name, version=source)
    form = source_form(source)
    if form == "reference":
        version = resolve(_yard(context, str(source)), str(source))
        return Operand(context, version.name, version=version)
    path = fetch(str(source)) if form == "hub" else _path(source)
    if not path.exists():
        raise NotFoundError(f"there is no folder or file `{source}`", hint="a version is written `namespace/name@REV`")
    return Operand(context, str(source), path=path)


def _yard(context: Context | None, reference: str) -> Context:
    if context is None:
        raise RefError(
            f"`{reference}` is a version of a yard, and there is none here",
            hint=f"a folder is written ./{reference}; a hub's model hf://{reference}",
        )
    return context


def _path(text: str | Path) -> Path:
    if str(text).startswith("~"):
        raise RequestError(f"`{text}`: the home directory is not known here", hint="write the path in full")
    return Path(text)


def transform(
    context: Context | None,
    operation: str,
    operands: Sequence[Operand],
    to: str | Path,
    work: Work,
    *,
    options: Mapping[str, Any],
    kind: Kind | None,
    edges: Sequence[tuple[LineageType, Operand]],
    branch: str = "main",
    message: str = "",
    inputs: Digest | None = None,
    metadata: Mapping[str, str] | None = None,
    derivation: Mapping[str, Any] | None = None,
) -> Transformed:
    """Do `work` into a folder that survives an interruption, and commit it, or leave it where `to` says.

    Args:
        context: The yard; None where everything is a path.
        operation: What is done, for messages, leases and the work's folder.
        operands: What it reads; versions among it stay stored meanwhile.
        to: A repo, or a new folder (a `Path`, or text written as one).
        work: Writes the folder that it is given, whole or not at all, and returns the certificate.
        options: Everything that decides the outcome besides the operands.
        kind: Of the version.
        edges: The version's lineage; operands that are no versions are left out.
        branch: Which branch moves.
        message: For people.
        inputs: Digest of what decided the outcome; None leaves it out of the version.
        metadata: Text to text, for programs.
        derivation: As in `Yard.commit`.
    """
    sources = tuple(operand.label for operand in operands)
    versions = [operand.version for operand in operands if operand.version is not None]
    with ExitStack() as stack:
        if versions and context is not None:
            stack.enter_context(lease(context, operation, versions=[version.id for version in versions]))
            note_use(context, versions)
        if source_form(to) == "path":
            out = _path(to)
            _check_apart(out, operands)
            return Transformed(work(out), None, out, sources)
        if source_form(to) == "hub":
            raise InputError(f"`{to}` is a hub's model", hint="write to a repo of the yard, or to ./FOLDER")
        yard = _yard(context, str(to))
        repo_of(str(to), None)  # what the commit would refuse is refused before hours of work
        check_ref_name(branch)
        check_metadata(metadata or {}, message)
        key = _key(operation, str(to), operands, options)
        out = stack.enter_context(_workplace(yard, operation, key))
        certificate = _resumed(out) or work(out)
        _check_files(out, sources)
        if (out / _CERTIFICATE).exists():  # it holds measurements, so it is no file of the version
            (out / _CERTIFICATE).replace(out.parent / _CERTIFICATE)
        origins: list[Origin] = [(edge, operand.version) for edge, operand in edges if operand.version is not None]
        version = commit(
            yard,
            out,
            str(to),
            kind=kind,
            from_=origins,
            branch=branch,
            message=message,
            metadata=metadata,
            inputs=inputs,
            derivation=derivation,
        )
        certificates.add(yard, version, certificate.to_dict())
    return Transformed(certificate, version, None, sources)


_CERTIFICATE = "certificate.json"


def _key(operation: str, to: str, operands: Sequence[Operand], options: Mapping[str, Any]) -> str:
    """Names the work's folder: the same command on the same files finds what an interrupted one left."""
    from modelyard.weights.output import key_of

    labels = [str(operand.version.id) if operand.version else str(operand.path) for operand in operands]
    asked = {"to": to, "of": labels, "options": dict(options)}
    return key_of(operation, asked, *(operand.files() for operand in operands))[:40]


def _check_apart(out: Path, operands: Sequence[Operand]) -> None:
    """A folder inside a source would become part of what is read."""
    place = out.expanduser().resolve()
    for operand in operands:
        source = operand.path.resolve() if operand.path is not None else None
        if source is not None and source in place.parents:
            raise InputError(
                f"`{out}` is inside `{operand.label}`, which it would be made from",
                code="target_in_source",
                hint="give a folder beside it",
            )


@contextmanager
def _workplace(context: Context, operation: str, key: str) -> Iterator[Path]:
    """A path to write the new version's folder to; what lies beside it survives an interruption, and `gc` finds it."""
    if context.links is None:
        with tempfile.TemporaryDirectory(prefix=f"modelyard-{operation}-") as scratch:
            yield Path(scratch) / "model"
        return
    runs, label = context.links.parent / "runs", f"{operation}-{key}"
    with hold(runs / "locks" / f"{label}.lock", f"this very {operation}"):
        scratch_folder = runs / "scratch" / label
        scratch_folder.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch_folder / "model"
        except Exception:
            if not (
                scratch_folder / "model"
            ).exists():  # an error of the work, which would come again: nothing to go on with
                shutil.rmtree(scratch_folder, ignore_errors=True)
            raise
        shutil.rmtree(scratch_folder, ignore_errors=True)


def _resumed(out: Path) -> Certificate | None:
    """The certificate of work that was finished and not committed; its folder became visible whole, by one rename."""
    if not out.is_dir():
        return None
    from modelyard.weights import certificate
    from modelyard.weights.files import FolderFiles

    found = certificate.read(FolderFiles(out)) or certificate.read(FolderFiles(out.parent))
    if found is None:
        shutil.rmtree(out)
    return found


def _check_files(out: Path, sources: Sequence[str]) -> None:
    """Refuse, before the commit does so in other words, what a yard never holds."""
    pickles = sorted(path.name for path in out.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
    if pickles and any(name.startswith("pytorch_model") for name in pickles):
        raise ModelError(
            f"{', '.join(sources)} as pickles is not committed: a yard holds none",
            code="pickle_in_yard",
            hint="write it to a folder: --to ./FOLDER",
        )
