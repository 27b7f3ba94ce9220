"""`yard pack`, `unpack`, `import`, `checkout` in other layouts, `provenance`, `sign` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output, versions
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.errors import RecipeError

if TYPE_CHECKING:
    from modelyard.registry import Version, Yard

__all__ = ["checkout", "import_", "pack", "provenance", "sign", "unpack", "verify"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_NOTHING_DONE = 3


def _default_name(version: Version, suffix: str) -> Path:
    return Path(f"{version.repo.replace('/', '-')}-v{version.number}{suffix}")


@click.command()
@click.argument("reference")
@click.option("-o", "--out", type=_FILE, default=None, help="The file (default: NAMESPACE-NAME-v7.yard.tar).")
@click.option(
    "--with-lineage", is_flag=True, help="Also every version that it was made from, such as an adapter's base."
)
@click.option("--signature", "signatures", type=_FILE, multiple=True, help="A signature of it, to travel with it.")
@with_yard
@with_json
def pack(
    reference: str, out: Path | None, with_lineage: bool, signatures: tuple[Path, ...], home: Home, as_json: bool
) -> None:
    """Write a version to one file, which `yard unpack` takes in with the same id; any tar lists it.

    \b
    Example:
      yard pack team/intents@production -o intents.yard.tar --with-lineage
    """
    yard = home.open()
    version = yard.resolve(reference)
    signed = [_read(path) for path in signatures]
    packed = yard.pack(
        version, out or _default_name(version, ".yard.tar"), with_lineage=with_lineage, signatures=signed
    )
    if as_json:
        plain = {"file": str(packed.path), "size": packed.size, "versions": list(packed.versions)}
        output.json_object(versions.version_json(version, **plain, missing=list(packed.missing)))
        return
    output.data(f"{packed.path}  {output.human_bytes(packed.size)}")
    for digest in packed.missing:
        output.note(f"left out, since this yard does not have it: {digest.short}")
    if version.lineage and not with_lineage:
        output.note(f"what {version.name} was made from is not in it; --with-lineage takes it along")


def _read(path: Path) -> bytes:
    from modelyard.errors import NotFoundError

    if not path.is_file():
        raise NotFoundError(f"there is no signature `{path}`", hint="yard sign NAMESPACE/NAME --key private.pem")
    return path.read_bytes()


@click.command()
@click.argument("file", type=_FILE)
@click.option("--to", default=None, metavar="NAMESPACE/NAME", help="Another repo than the one that it comes from.")
@click.option("--branch", default="main", show_default=True, help="The branch that moves to it.")
@click.option("--signatures", type=_FOLDER, default=None, help="Write the signatures in it to this folder.")
@click.option(
    "--no-reports", is_flag=True, help="Leave its reports out: gates would believe what somebody else measured."
)
@with_yard
@with_json
def unpack(
    file: Path, to: str | None, branch: str, signatures: Path | None, no_reports: bool, home: Home, as_json: bool
) -> None:
    """Take in what `yard pack` wrote. Everything is verified before anything is committed; the ids stay.

    \b
    Example:
      yard unpack intents.yard.tar
    """
    came = home.open(create=True).unpack(file, to=to, branch=branch, with_reports=not no_reports)
    written = []
    if signatures is not None and came.signatures:
        signatures.mkdir(parents=True, exist_ok=True)
        for at, data in enumerate(came.signatures, 1):
            target = signatures / _default_name(came.version, f"-{at}.sig" if len(came.signatures) > 1 else ".sig")
            target.write_bytes(data)
            written.append(str(target))
    if as_json:
        plain = {"lineage": [version.name for version in came.lineage], "missing": list(came.missing)}
        output.json_object(versions.version_json(came.version, **plain, signatures=written))
        return
    for version in (came.version, *came.lineage):
        output.data(f"{version.name}  {version.id.short}")
    for path in written:
        output.note(f"signature: {path}")
    if came.signatures and signatures is None:
        output.note(f"it holds {len(came.signatures)} signatures; --signatures FOLDER writes them out")
    for digest in came.missing:
        output.note(f"not in this yard: {digest.short}, which is named as its parent or origin")


@click.command("import")
@click.argument("source", nargs=-1, required=True, metavar="SOURCE [NAME]")
@click.option("--to", default=None, metavar="NAMESPACE/NAME", help="The repo to commit to; made when new.")
@click.option(
    "--kind", type=click.Choice(versions.KINDS), default=None, help="What it is (default: read from its files)."
)
@click.option("-m", "--message", default="", help="A note for the log.")
@click.option("--cache-dir", type=_FOLDER, default=None, help="hf-cache: the cache (default: the one your tools use).")
@click.option(
    "--layout", type=click.Choice(["versions"]), default=None, help="SOURCE is a folder of NAME/v1.0/ folders."
)
@click.option("--root", type=_FOLDER, default=None, help="model_registry.json: what its paths are relative to.")
@click.option("--base", default=None, metavar="REFERENCE", help="Layouts: what the adapters were fine-tuned on.")
@click.option(
    "--convert", is_flag=True, help="Layouts: convert weights in pickles, isolated, instead of skipping them."
)
@click.option("--branch", default="main", show_default=True, help="Another yard: the branch that moves.")
@with_yard
@with_json
@click.pass_context
def import_(
    context: click.Context,
    /,
    source: tuple[str, ...],
    to: str | None,
    kind: str | None,
    message: str,
    home: Home,
    as_json: bool,
    **options: Any,
) -> None:
    """Bring versions in: from a folder, a hub or its cache, MLflow, SmoLoRA's layouts, or another yard.

    \b
    SOURCE is one of
      FOLDER                   a model folder, or a snapshot in a Hugging Face cache
      hf://ORG/NAME[@REV]      a model of the hub
      hf-cache [ORG/NAME]      what is in the Hugging Face cache, linked and not copied
      mlflow FOLDER            an MLflow model folder
      FOLDER --layout versions a folder of NAME/v1.0/{adapter_checkpoint,final_merged}/
      model_registry.json      SmoLoRA's registry
      YARD_FOLDER REFERENCE    a version of another yard, with what it was made from

    \b
    Examples:
      yard import ./my-model --to team/base
      yard import hf-cache org/name
      yard import ./models --layout versions --to team
    """
    first, rest = source[0], source[1:]
    if first == "hf-cache" and len(rest) <= 1:
        cache = options["cache_dir"] or _hub_cache()
        _imported(context, home.open(create=True).import_hf_cache(cache, *rest, to=to, message=message), as_json)
    elif first == "mlflow" and len(rest) == 1:
        made = home.open(create=True).import_mlflow(Path(rest[0]), _target(to), message=message)
        _imported(context, made, as_json)
    elif options["layout"] is not None and not rest:
        made = home.open(create=True).import_layout(
            Path(first), _target(to), base=options["base"], convert=options["convert"]
        )
        _imported(context, made, as_json)
    elif first.endswith(".json") and not rest:
        made = home.open(create=True).import_registry(
            Path(first), _target(to), root=options["root"], base=options["base"], convert=options["convert"]
        )
        _imported(context, made, as_json)
    elif len(rest) == 1:
        _from_yard(home, Path(first), rest[0], to, options["branch"], as_json)
    elif not rest:
        context.invoke(
            versions.import_, source=first, to=_target(to), kind=kind, message=message, home=home, as_json=as_json
        )
    else:
        raise RecipeError(f"`{' '.join(source)}` is not one source", hint="yard import --help")


def _target(to: str | None) -> str:
    if to is None:
        raise RecipeError("`--to` is missing", hint="say which repo: --to NAMESPACE/NAME")
    return to


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _imported(context: click.Context, made: Any, as_json: bool) -> None:
    """What an import did; exit code 3 when it found nothing to take."""
    if as_json:
        skipped = [{"name": item.name, "reason": item.reason} for item in made.skipped]
        output.json_object({"versions": [versions.version_json(v) for v in made.versions], "skipped": skipped})
    else:
        for version in made.versions:
            output.data(f"{version.name}  {version.id.short}")
        for item in made.skipped:
            output.note(f"skipped {item.name}: {item.reason}")
        if not made.versions:
            output.note("nothing was imported")
    if not made.versions:
        context.exit(_NOTHING_DONE)


def _from_yard(home: Home, folder: Path, reference: str, to: str | None, branch: str, as_json: bool) -> None:
    other = Home(folder).open()
    came = home.open(create=True).import_version(other, reference, to=to, branch=branch)
    if as_json:
        plain = {"lineage": [version.name for version in came.lineage], "missing": list(came.missing)}
        output.json_object(versions.version_json(came.version, **plain))
        return
    for version in (came.version, *came.lineage):
        output.data(f"{version.name}  {version.id.short}")


@click.command()
@click.argument("reference")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The same as FOLDER.")
@click.option("--link", is_flag=True, help="Hard links to the stored, read-only files instead of copies.")
@click.option("--base/--no-base", default=None, help="Whether an adapter comes with its base (default: if it is here).")
@click.option(
    "--layout", type=click.Choice(["versions"]), default=None, help="All versions of a repo, as NAME/v1.0/ folders."
)
@click.option("--no-bin", is_flag=True, help="With --layout: leave out the weights as .bin files.")
@with_yard
@with_json
def checkout(
    reference: str,
    folder: Path | None,
    out: Path | None,
    link: bool,
    base: bool | None,
    layout: str | None,
    no_bin: bool,
    home: Home,
    as_json: bool,
) -> None:
    """Write a version's files to FOLDER, which must be new or empty: any library loads it from there.

    \b
    Examples:
      yard checkout team/intents@production ./model
      yard checkout team/intents --layout versions --out ./models
    """
    target = folder or out
    if target is None or (folder is not None and out is not None):
        raise RecipeError("one FOLDER is needed", hint=f"yard checkout {reference} ./model")
    if layout is None:
        _checkout_one(home.open(), reference, target, link=link, base=base, as_json=as_json)
    else:
        _checkout_all(home.open(), reference, target, bins=not no_bin, as_json=as_json)


def _checkout_one(yard: Yard, reference: str, folder: Path, *, link: bool, base: bool | None, as_json: bool) -> None:
    version = yard.resolve(reference)
    written = yard.checkout(version, folder, link=link, base=base)
    if as_json:
        output.json_object(versions.version_json(version, folder=str(folder), files=[str(path) for path in written]))
    else:
        output.note(f"{version.name}: {len(written)} files in {folder}")


def _checkout_all(yard: Yard, repo: str, out: Path, *, bins: bool, as_json: bool) -> None:
    written = yard.checkout_layout(repo, out, bins=bins)
    if as_json:
        output.json_object(
            {
                "folder": str(written.folder),
                "written": list(written.written),
                "kept": list(written.kept),
                "latest": written.latest,
                "skipped": [{"name": item.name, "reason": item.reason} for item in written.skipped],
            }
        )
        return
    for label in written.written:
        output.data(str(written.folder / label))
    for item in written.skipped:
        output.note(f"skipped {item.name}: {item.reason}")
    output.note(f"{len(written.kept)} were there already; latest is {written.latest}")


@click.command()
@click.argument("reference")
@with_yard
@with_json
def provenance(reference: str, home: Home, as_json: bool) -> None:  # noqa: ARG001  # a statement is JSON either way
    """Print what this yard recorded of how a version came to be: an in-toto statement, unsigned.

    \b
    Example:
      yard provenance team/intents@production > intents.intoto.json
    """
    from modelyard.registry.provenance import render

    click.echo(render(home.open().provenance(reference)))


@click.command()
@click.argument("reference")
@click.option("--key", type=_FILE, required=True, help="An elliptic-curve private key, PEM.")
@click.option("-o", "--out", type=_FILE, default=None, help="The signature (default: NAMESPACE-NAME-v7.sig).")
@click.option("--ask-password", is_flag=True, help="Ask for the password of the key.")
@with_yard
@with_json
def sign(reference: str, key: Path, out: Path | None, ask_password: bool, home: Home, as_json: bool) -> None:
    """Sign a version's files, offline; `yard verify` and OpenSSF's `model_signing` verify it.

    \b
    Example:
      yard sign team/intents@production --key private.pem
    """
    from modelyard.registry.signing import covers_git

    yard: Yard = home.open()
    version = yard.resolve(reference)
    password = click.prompt("password", hide_input=True, err=True) if ask_password else None
    signed = yard.sign(version, out or _default_name(version, ".sig"), key=key, password=password)
    if as_json:
        output.json_object(
            versions.version_json(version, signature=str(signed.signature), signed=signed.files, key=signed.key)
        )
        return
    output.data(f"{signed.signature}  {signed.files} files of {version.name}, key {signed.key}")
    if covers_git(entry.path for entry in version.files):
        output.note("it covers .git* files too: `model_signing` needs --no-ignore-git-paths for it")


@click.command()
@click.argument("what", metavar="REFERENCE|./FOLDER")
@click.option("--key", type=_FILE, required=True, help="The signer's public key, PEM.")
@click.option("--signature", type=_FILE, required=True, help="The signature.")
@with_yard
@with_json
def verify(what: str, key: Path, signature: Path, home: Home, as_json: bool) -> None:
    """Check that a signature is by this key, over exactly these files, a version's or a folder's; reads every byte.

    \b
    Examples:
      yard verify team/intents@production --key public.pem --signature intents.sig
      yard verify ./model --key public.pem --signature intents.sig
    """
    if what.startswith(("./", "../", "/", "~")) or what in {".", ".."}:
        from modelyard.registry.signing import verify_folder

        signed, name = verify_folder(Path(what).expanduser(), signature, key), what
    else:
        yard = home.open()
        version = yard.resolve(what)
        signed, name = yard.verify(version, signature, key=key), version.name
    if as_json:
        output.json_object({"name": name, "verified": True, "signed": signed.files, "key": signed.key})
        return
    output.data(f"verified: all {signed.files} files of {name}, signed by key {signed.key}")
