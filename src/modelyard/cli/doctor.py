"""`yard doctor`: this machine and the yard, a checkpoint, or how long one takes to load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.loading import Loading, with_loading
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.errors import ConflictError, NotFoundError, RequestError
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.registry import Version, Yard
    from modelyard.weights.doctor import BaseIds, Finding
    from modelyard.weights.files import Files
    from modelyard.weights.times import LoadTimes

__all__ = ["doctor"]


@click.command()
@click.argument("target", required=False, metavar="[REFERENCE|./FOLDER|./FILE]")
@click.option("--base", metavar="REFERENCE|./FOLDER", help="What it was made from (default: what its lineage says).")
@click.option("--fix", is_flag=True, help="Write a mended copy of what is mechanical to mend; with --to.")
@click.option("--to", "out", metavar="./FOLDER", type=click.Path(path_type=Path), help="The new folder for --fix.")
@click.option("--load", "timed", is_flag=True, help="Load it once, and say which stage is slow and what cures it.")
@with_loading
@with_yard
@with_json
def doctor(
    target: str | None,
    base: str | None,
    fix: bool,
    out: Path | None,
    timed: bool,
    loading: Loading,
    home: Home,
    as_json: bool,
) -> int:
    """Examine this machine and the yard; with a REFERENCE, FOLDER or FILE, that checkpoint. Never changes what it examines.

    Each finding has a code, which docs/guides/diagnosing.md explains, and the command that mends it.

    Exit codes: 0 all well (notes aside), 3 warnings, 1 something is broken. With --fix, those of the mended copy; where
    there is nothing that a copy would mend, none is written, and they are those of the original.

    \b
    Examples:
      yard doctor
      yard doctor ./my-model
      yard doctor ./my-model --fix --to ./mended
      yard doctor team/intents@adapter --base team/base
      yard doctor ./my-model --load
    """
    _check(target, base, out, fix=fix, timed=timed)
    if target is None:
        return _machine(home, as_json=as_json)
    if timed:
        return _timed(loading, home, target, as_json=as_json)
    files, beneath, ids = _open(home, target, base)
    if fix:
        return _mended(files, out or Path(), beneath, target, as_json=as_json)
    from modelyard.weights.doctor import diagnose

    findings = diagnose(files, base=beneath, ids=ids, path=target)
    if as_json:
        output.json_object({"target": target, "findings": [finding.to_dict() for finding in findings]})
    else:
        _show(findings, target)
    return _exit_code(findings)


def _check(target: str | None, base: str | None, out: Path | None, *, fix: bool, timed: bool) -> None:
    if target is None and (base or fix or timed or out):
        raise RequestError(
            "`--base`, `--fix`, `--to` and `--load` are for a checkpoint", hint="yard doctor ./FOLDER ..."
        )
    if fix and timed:
        raise RequestError("`--fix` and `--load` are two commands", hint="run one after the other")
    if fix != (out is not None):
        raise RequestError(
            "`--fix` and `--to` go together", hint=f"yard doctor {target} --fix --to ./MENDED", field="to"
        )


def _open(home: Home, target: str, base: str | None) -> tuple[Files, Files | None, BaseIds | None]:
    """The files to examine, those of the base, and for an adapter of the yard which base it should be."""
    from modelyard.weights.doctor import BaseIds

    yard = home.open() if "reference" in {source_form(each) for each in (target, base) if each} else None
    version = yard.resolve(target) if yard is not None and source_form(target) == "reference" else None
    files = _files(home, target) if yard is None or version is None else yard.files(version)
    recorded = _recorded(yard, version) if yard is not None and version is not None else None
    if base is None:
        if recorded is not None and yard is not None:
            return files, yard.files(recorded), None
        beside = _named_base(files, target)
        return files, beside, None
    if yard is None or source_form(base) != "reference":
        return files, _files(home, base), None
    given = yard.resolve(base)
    ids = (
        BaseIds(str(recorded.id), str(given.id))
        if recorded is not None and version and version.kind == "adapter"
        else None
    )
    return files, yard.files(given), ids


def _files(home: Home, source: str) -> Files:
    from modelyard.weights.files import FolderFiles, SingleFile

    path = Loading().folder(home, source)
    return SingleFile(path) if path.is_file() else FolderFiles(path)


def _recorded(yard: Yard, version: Version) -> Version | None:
    """What the lineage says that a version was made from: an adapter's base, else the only base among its ancestors."""
    try:
        if version.kind == "adapter":
            return yard.base_of(version)
        nodes = yard.lineage(version, direction="up").nodes
        bases = [node for node in nodes if node.kind == "base" and node.id != version.id and node.names]
        return yard.resolve(bases[0].names[0]) if len(bases) == 1 else None
    except (NotFoundError, ConflictError):
        return None  # none or several: then only --base can say


def _named_base(files: Files, target: str) -> Files | None:
    """The folder that an adapter's configuration names as its base, where there is one."""
    from modelyard.errors import YardError
    from modelyard.weights.checks import read_json
    from modelyard.weights.files import FolderFiles

    try:
        named = read_json(files, "adapter_config.json").get("base_model_name_or_path")
    except YardError:
        return None  # no adapter, or a broken one, which the examination says
    if not isinstance(named, str) or not named or source_form(target) != "path":
        return None
    folder = Path(named) if Path(named).is_absolute() else Path(target).expanduser() / named
    found = next((path for path in (folder, Path(named)) if (path / "config.json").is_file()), None)
    return FolderFiles(found) if found is not None else None


def _machine(home: Home, *, as_json: bool) -> int:
    from modelyard.cli.machine import examine

    findings = examine(home.settings)
    if as_json:
        output.json_object({"target": None, "findings": [finding.to_dict() for finding in findings]})
    else:
        for finding in findings:
            output.data(f"{_MARKS[finding.level]} {finding.message}")
            if finding.hint:
                output.data(f"        {finding.hint}")
    return _exit_code(findings)


def _mended(files: Files, out: Path, base: Files | None, target: str, *, as_json: bool) -> int:
    from modelyard.errors import ModelError
    from modelyard.weights.doctor import Mended, diagnose, mend

    try:
        done = mend(files, out.expanduser(), base=base)
    except ModelError as error:
        if error.code != "nothing_to_mend":
            raise
        # No fault of the command's: the answer is what is wrong, if anything is, and that nothing was written.
        findings = diagnose(files, base=base, path=target)
        if as_json:
            output.json_object({"target": target, "to": None, **Mended(before=findings, after=findings).to_dict()})
            return _exit_code(findings)
        output.note(f"nothing to mend: {out} is not written")
        _show(findings, target)
        return _exit_code(findings)
    if as_json:
        output.json_object({"target": target, "to": str(out), **done.to_dict()})
        return _exit_code(done.after)
    output.note(f"written to {out}")
    for line in done.applied:
        output.note(f"  {line}")
    _show(done.after, str(out))
    return _exit_code(done.after)


def _timed(loading: Loading, home: Home, target: str, *, as_json: bool) -> int:
    from modelyard.weights.times import time_load

    def load(source: str, **options: Any) -> Any:
        return loading.load(home, source, **options)

    done = time_load(target, load=load)
    if as_json:
        output.json_object(done.to_dict())
        return 0
    _show_times(done)
    return 0


def _show_times(done: LoadTimes) -> None:
    rows = [
        (
            stage.name,
            f"{stage.seconds:.3f} s",
            output.human_bytes(stage.bytes) if stage.bytes else "",
            f"{stage.rate / 1e6:,.0f} MB/s" if stage.rate else "",
        )
        for stage in done.stages
    ]
    output.table(("STAGE", "TIME", "BYTES", "RATE"), rows)
    output.data(f"{done.seconds:.3f} s from the beginning to the loaded model")
    output.data(f"slowest: {done.slowest}: {done.cause}")
    if done.cure:
        output.data(f"cure:    {done.cure}")


_MARKS = {"info": "ok     ", "warning": "warning", "error": "error  "}
_HEADINGS = {"error": "broken", "warning": "usable, and probably not what is wanted", "info": "good to know"}


def _show(findings: Sequence[Finding], target: str) -> None:
    """Findings under their levels, each with what mends it."""
    if not findings:
        output.data(f"ok      nothing is wrong with {target}")
    for level, heading in _HEADINGS.items():
        found = [finding for finding in findings if finding.level == level]
        if found:
            output.data(f"{level} ({heading})")
        for finding in found:
            output.data(f"  {finding.code}: {finding.message}")
            if finding.hint:
                output.data(f"      {finding.hint}")


def _exit_code(findings: Sequence[Finding]) -> int:
    levels = {finding.level for finding in findings}
    return 1 if "error" in levels else 3 if "warning" in levels else 0
