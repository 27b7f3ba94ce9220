"""`yard import`, `commit`, `ls`, `show`, `path` and `card`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from modelyard.cli import output
from modelyard.cli.options import Home, key_values, with_json, with_yard
from modelyard.errors import NotFoundError
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from modelyard.registry import Version, Yard
    from modelyard.weights.files import FolderFiles

__all__ = ["card", "commit", "import_", "ls", "path", "show", "version_json"]

KINDS = ("base", "finetuned", "adapter", "merged", "quantized", "exported")


def version_json(version: Version, **more: Any) -> dict[str, Any]:
    """A version as every command's JSON shows it; listings leave the files out."""
    plain = version.to_dict()
    return {**{key: value for key, value in plain.items() if key not in {"files", "lineage"}}, **more}


@click.command("import")
@click.argument("source", metavar="FOLDER|hf://ORG/NAME[@REV]")
@click.option("--to", required=True, metavar="NAMESPACE/NAME", help="The repo to commit to; made when new.")
@click.option("--kind", type=click.Choice(KINDS), default=None, help="What it is (default: read from its files).")
@click.option("-m", "--message", default="", help="A note for the log.")
@with_yard
@with_json
def import_(source: str, to: str, kind: str | None, message: str, home: Home, as_json: bool) -> None:
    """Bring a model in from a folder, a snapshot in a Hugging Face cache, or a hub.

    \b
    Examples:
      yard import ./my-model --to team/base
      yard import hf://org/name@main --to team/base
    """
    from modelyard.recipes.operations import import_model

    version = import_model(
        home.open(create=True),
        source,
        to=to,
        kind=kind,  # type: ignore[arg-type]  # click checked the choice
        message=message,
        offline=home.settings.offline,
    )
    _committed(version, as_json)


@click.command()
@click.argument("source", metavar="PATH|-", type=click.Path(path_type=Path, exists=True, allow_dash=True))
@click.option("--to", required=True, metavar="[datasets/]NAMESPACE/NAME", help="The repo to commit to; made when new.")
@click.option(
    "--name", metavar="FILE", help="What the file is called whose bytes come from standard input (PATH is `-`)."
)
@click.option("--kind", type=click.Choice(KINDS), default=None, help="What it is (default: as the previous version).")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="[EDGE=]REFERENCE",
    help="What it was made from, e.g. finetuned=team/base.",
)
@click.option("--branch", default="main", show_default=True)
@click.option("-m", "--message", default="", help="A note for the log.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Your own keys, kept with the version.")
@with_yard
@with_json
def commit(
    source: Path,
    to: str,
    name: str | None,
    kind: str | None,
    sources: tuple[str, ...],
    branch: str,
    message: str,
    metadata: tuple[str, ...],
    home: Home,
    as_json: bool,
) -> None:
    """Commit a folder or file as a new version. Committing the same bytes again gives the same version.

    \b
    Examples:
      yard commit ./my-model --to team/intents --kind finetuned --from finetuned=team/base
      zcat rows.jsonl.gz | yard commit - --name rows.jsonl --to datasets/team/support
    """
    piped = str(source) == "-"
    if piped != (name is not None):
        raise click.UsageError("`--name FILE` goes with `-`: it says what the bytes from standard input are called")
    content: Any = {name: sys.stdin.buffer} if piped else source
    version = home.open(create=True).commit(
        content,
        to,
        kind=kind,  # type: ignore[arg-type]  # click checked the choice
        from_=[_edge(source) for source in sources],
        branch=branch,
        message=message,
        metadata=key_values(metadata, "--metadata"),
    )
    _committed(version, as_json)


def _edge(text: str) -> Any:
    from modelyard.registry import LineageType

    edge, equals, reference = text.partition("=")
    if equals and edge in get_args(LineageType):
        return (edge, reference)
    return text


def _committed(version: Version, as_json: bool) -> None:
    if as_json:
        output.json_object(version_json(version))
    else:
        output.data(f"{version.name}  {version.id.short}")
        output.note(
            f"{len(version.files)} files, {output.human_bytes(version.size)}; see it with `yard show {version.name}`"
        )


@click.command()
@click.argument("repo", required=False, metavar="[[datasets/]NAMESPACE/NAME]")
@click.option("--all", "deleted", is_flag=True, help="Deleted versions too.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only versions whose metadata says so; several: all.")
@with_yard
@with_json
def ls(repo: str | None, deleted: bool, where: tuple[str, ...], home: Home, as_json: bool) -> None:
    """List the repos of the yard, or the versions of one REPO with the refs that point at them.

    \b
    Examples:
      yard ls
      yard ls team/intents
      yard ls team/intents --where lr=1e-4 --where seed=1
    """
    yard = home.open()
    if repo is not None:
        _list_versions(yard, repo, deleted, key_values(where, "--where"), as_json)
    elif where:
        raise click.UsageError("`--where` filters the versions of one repo: name it")
    else:
        _list_repos(yard, as_json)


def _list_repos(yard: Yard, as_json: bool) -> None:
    repos = yard.repos()
    if as_json:
        output.json_object(
            {"repos": [{"name": r.name, "repo_type": r.repo_type, "versions": r.versions} for r in repos]}
        )
        return
    if not repos:
        output.note("the yard is empty; try `yard quickstart`, or `yard import ./my-model --to team/base`")
        return
    output.table(
        ("REPO", "TYPE", "VERSIONS"),
        [(("datasets/" if r.repo_type == "dataset" else "") + r.name, r.repo_type, r.versions) for r in repos],
    )


def _list_versions(yard: Yard, repo: str, deleted: bool, where: dict[str, str], as_json: bool) -> None:
    versions = yard.versions(repo, deleted=deleted, where=where)
    names: dict[str, list[str]] = {}
    for ref in yard.refs(repo):
        names.setdefault(str(ref.version), []).append(ref.name)
    if as_json:
        output.json_object({"versions": [version_json(v, refs=names.get(str(v.id), [])) for v in versions]})
        return
    rows = [
        (
            f"v{v.number}",
            v.id.short[:12],
            v.kind or "-",
            output.human_bytes(v.size),
            f"{v.created_at:%Y-%m-%d %H:%M}",
            ", ".join(names.get(str(v.id), [])) or "-",
            v.message or "-",
        )
        for v in versions
    ]
    output.table(("VERSION", "ID", "KIND", "SIZE", "CREATED (UTC)", "REFS", "MESSAGE"), rows)


@click.command()
@click.argument("reference", metavar="REFERENCE|./FOLDER")
@with_yard
@with_json
def show(reference: str, home: Home, as_json: bool) -> None:
    """Show one version: what it is, its files, what it was made from, how and how well, its reports and refs. Of a ./folder,
    how it was made.

    \b
    Examples:
      yard show team/intents@production
      yard show ./merged
    """
    if source_form(reference) == "path":
        _show_folder(Path(reference).expanduser(), as_json)
        return
    yard = home.open()
    version = yard.resolve(reference)
    refs = [ref.name for ref in yard.refs(version.repo_text) if ref.version == version.id]
    reports = yard.reports(version)
    certificates = yard.certificates(version)
    untrained = yard.untrained(version)
    if as_json:
        plain = {**version.to_dict(), "refs": refs, "reports": [_report_json(report) for report in reports]}
        plain["certificates"] = certificates
        marked = {"kind": untrained.kind, "tensors": untrained.tensors, "seed": untrained.seed} if untrained else None
        output.json_object({**plain, "untrained": marked})
        return
    output.data(f"{version.name}  {version.kind or version.repo_type}")
    output.data(f"id        {version.id}")
    output.data(f"created   {version.created_at:%Y-%m-%d %H:%M} UTC by {version.author}")
    if untrained is not None:
        output.data(f"untrained {untrained.describe()}: neither promoted nor served until it is trained")
    if refs:
        output.data(f"refs      {', '.join(refs)}")
    if version.message:
        output.data(f"message   {version.message}")
    names = {node.id: node.names for node in yard.lineage(version, direction="up").nodes}
    for edge in version.lineage:
        known = names.get(edge.version, ())
        output.data(f"{edge.type:<9} {known[0] if known else edge.version.short}")
    for report in reports:
        output.data(f"report    {_report_line(report)}")
    for certificate in certificates:
        _show_certificate(certificate)
    for key, value in sorted(version.metadata.items()):
        output.data(f"metadata  {key}={value}")
    output.data()
    output.table(
        ("FILE", "SIZE", "BLAKE3"), [(f.path, output.human_bytes(f.size), f.blake3.short[:16]) for f in version.files]
    )


def _show_folder(folder: Path, as_json: bool) -> None:
    from modelyard.weights.certificate import read
    from modelyard.weights.files import FolderFiles

    files = FolderFiles(folder) if folder.is_dir() else None
    found = read(files) if files is not None else None
    if found is None or files is None:
        raise NotFoundError(
            f"`{folder}` holds no certificate.json", hint=f"what is in it: yard inspect {folder}, yard doctor {folder}"
        )
    changed = [name for name, digest in found.outputs.items() if _differs(files, name, digest)]
    if as_json:
        output.json_object({"folder": str(folder), "certificates": [found.to_dict()], "changed": changed})
        return
    _show_certificate(found.to_dict())
    output.note(
        f"not as the certificate says: {', '.join(changed)}"
        if changed
        else "the files are those that the certificate names"
    )
    output.note("a folder's certificate is what its maker says; a version's is what this yard did")


def _differs(files: FolderFiles, name: str, digest: str) -> bool:
    from modelyard.weights.output import hash_file

    return name not in files.names() or str(hash_file(files.path(name))) != digest


def _show_certificate(plain: dict[str, Any]) -> None:
    from modelyard.weights.certificate import Certificate
    from modelyard.weights.certificate_text import render

    first, *rest = render(Certificate.from_dict(plain))
    output.data(f"made      {first}")
    for line in rest:
        output.data(f"          {line}")


def _report_json(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "examples"}


def _report_line(report: dict[str, Any]) -> str:
    figures = []
    for name, value in report["metrics"].items():
        interval = report.get("interval", {}).get(name)
        figures.append(f"{name} {value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""))
    return f"{report['task']['name']} on {report.get('file', 'data')}, n={report['n']}: {', '.join(figures)}"


@click.command()
@click.argument("reference", metavar="REFERENCE[:FILE]")
@with_yard
@with_json
def path(reference: str, home: Home, as_json: bool) -> None:
    """Print where a stored file is, or a folder with all of a version's files; read-only, verified now.

    \b
    Examples:
      yard path team/intents@production:model.safetensors
      ls "$(yard path team/intents@production)"
    """
    found = home.open().path(reference)
    if as_json:
        output.json_object({"reference": reference, "path": str(found)})
    else:
        output.data(str(found))


@click.command()
@click.argument("reference")
@click.option("--license", "license_", metavar="SPDX", help="The licence to state, e.g. apache-2.0.")
@with_yard
@with_json
def card(reference: str, license_: str | None, home: Home, as_json: bool) -> None:
    """Write a version's model card: what it was made from, its reports with intervals, how to use it.

    \b
    Example:
      yard card team/intents@production > README.md
    """
    from modelyard.recipes.cards import card as render

    text = render(home.open(), reference, license=license_)
    if as_json:
        output.json_object({"reference": reference, "card": text})
    else:
        output.data(text)
