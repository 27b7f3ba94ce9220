"""Which conversion takes a source to a form: the one door of `yard convert`. Knows the conversions by name; does none itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError
from modelyard.weights.certificate import Certificate
from modelyard.weights.files import FolderFiles, SingleFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelyard.weights.convert.planning import TensorPlan
    from modelyard.weights.files import Files

    Progress = Callable[[int, int], None]

__all__ = ["convert", "plan_convert"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def convert(
    source: Files,
    out: Path,
    *,
    format: str = "safetensors",  # noqa: A002  the word that every user knows
    dtype: str | None = None,
    dtypes: Mapping[str, str] | None = None,
    shard_size: int | str | None = None,
    names: str | None = None,
    type: str | None = None,  # noqa: A002  GGUF's own word
    progress: Progress | None = None,
) -> Certificate:
    """Write `source` in another form; see `registry.transformation.Transformation.convert` for the options.

    Pickles and a GGUF file become safetensors first, beside `out`, where anything else is asked for.

    Raises:
        InputError: `no_change`: nothing was asked for that is not so already; `bad_options`: two that do not go together.
        ModelError: As the conversions.
    """
    rewriting = {"dtype": dtype, "dtypes": dict(dtypes or {}), "shard_size": shard_size, "names": names}
    asked = {name: value for name, value in rewriting.items() if value}
    _check(format, asked)
    origin = _origin(source)
    if origin == "safetensors":
        return _write(source, out, format, asked, kind=type, progress=progress)
    if format == "safetensors" and not asked.keys() - {"dtype"} and (origin == "gguf" or not asked):
        return _read(source, out, origin, dtype, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as scratch:
        plain = Path(scratch) / "model"
        _read(source, plain, origin, None, progress)
        return _write(FolderFiles(plain), out, format, asked, kind=type, progress=progress)


def plan_convert(
    source: Files,
    *,
    format: str = "safetensors",  # noqa: A002
    type: str | None = None,  # noqa: A002
    **options: Any,
) -> list[TensorPlan]:
    """What `convert` would make of each tensor.

    Raises:
        InputError: `no_plan`: pickles and GGUF files say what they hold when they are converted; the target's tensors of
            GGUF are its own.
    """
    del type
    if format == "gguf" or _origin(source) != "safetensors":
        raise InputError(
            f"`{source.label}`: only what is safetensors before and after has a plan",
            code="no_plan",
            hint="convert it to safetensors first: yard convert SOURCE --to ./FOLDER",
        )
    from modelyard.weights.convert.rewriting import plan_rewrite

    return plan_rewrite(source, **{name: value for name, value in options.items() if value})


def _check(form: str, asked: Mapping[str, Any]) -> None:
    if form not in {"safetensors", "bin", "gguf"}:
        raise InputError(f"no form `{form}`", code="unknown_format", hint="known: safetensors, bin, gguf")
    odd = asked.keys() - {"shard_size"} if form == "bin" else asked.keys() if form == "gguf" else set()
    if odd:
        raise InputError(
            f"`{min(odd)}` does not go with {form}", code="bad_options", hint="cast and rename to safetensors first"
        )


def _origin(source: Files) -> str:
    names = source.names()
    if any(name.endswith(".safetensors") for name in names):
        return "safetensors"
    if any(name.endswith(".gguf") for name in names):
        return "gguf"
    if any(name.endswith(_PICKLES) for name in names):
        return "pickle"
    return "safetensors"  # which says what is missing


def _read(source: Files, out: Path, origin: str, dtype: str | None, progress: Progress | None) -> Certificate:
    """Safetensors from what is none."""
    if origin == "gguf":
        from modelyard.weights.convert.gguf import from_gguf

        return from_gguf(_gguf_file(source), out, dtype=dtype, progress=progress)
    from modelyard.weights.convert.pickles import convert_pickle

    made = convert_pickle(_folder(source), out)
    matched = {"files": made.converted, "isolated": made.isolated}
    left = [f"left behind: {name}" for name in made.left] + [f"dropped: {name}" for name in made.dropped]
    written = Certificate("convert", "pickle", matched=matched, warnings=left)
    written.write(out)
    return written


def _write(
    source: Files, out: Path, form: str, asked: Mapping[str, Any], *, kind: str | None, progress: Progress | None
) -> Certificate:
    if form == "gguf":
        from modelyard.weights.convert.gguf import to_gguf

        return to_gguf(source, out, type=kind or "F16", progress=progress)
    if form == "bin":
        from modelyard.weights.convert.bins import to_bin

        return to_bin(source, out, progress=progress, **asked)
    if not asked:
        raise InputError(
            f"`{source.label}` holds safetensors, and nothing else was asked for",
            code="no_change",
            hint="say what to change, e.g. --dtype bfloat16, --shard-size 5GB, --to-format gguf",
        )
    from modelyard.weights.convert.rewriting import rewrite

    return rewrite(source, out, progress=progress, **asked)


def _gguf_file(source: Files) -> Path:
    found = [name for name in source.names() if name.endswith(".gguf")]
    if len(found) > 1:
        raise InputError(f"`{source.label}` holds {len(found)} GGUF files", hint="name one: ./FOLDER/FILE.gguf")
    return source.path(found[0])


def _folder(source: Files) -> Path:
    """The folder that files lie in: an isolated process reads it by itself."""
    name = source.names()[0]
    path = source.path(name)
    return path if isinstance(source, SingleFile) else path.parents[name.count("/")]
