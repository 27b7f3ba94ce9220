"""`yard inspect` and `yard architectures`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.cli import output
from modelyard.cli.options import Home, with_json, with_yard
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.files import Files
    from modelyard.weights.hub.remote import RemoteFiles
    from modelyard.weights.inspect import Inspection

__all__ = ["architectures", "inspect", "source_files"]

_DEPTH = 4
"""Levels of the tree that the text shows without --all."""


@contextlib.contextmanager
def source_files(home: Home, source: str) -> Iterator[Files | Path]:
    """The files of a source: a path as it is, a yard's version, or a hub's model of which only headers are fetched.

    A yard is opened only for a reference, so that a folder costs no more than its headers.
    """
    if source.startswith(("http://", "https://")):
        from modelyard.weights.hub.remote import RemoteFiles

        with RemoteFiles(source) as remote:
            yield remote
    elif source_form(source) == "path":
        yield Path(source).expanduser()
    elif source_form(source) == "reference":
        yard = home.open()
        yield yard.files(yard.resolve(source))
    else:
        with _open_hub(home, source) as remote:
            yield remote


def _open_hub(home: Home, source: str) -> RemoteFiles:
    from modelyard import app
    from modelyard.errors import NotFoundError
    from modelyard.weights import hub

    access = app.hub_access(home.settings)
    if access["offline"]:
        raise NotFoundError(
            f"`{source}` is on a hub, and HF_HUB_OFFLINE is set", code="offline", hint="unset HF_HUB_OFFLINE"
        )
    return hub.open_remote(source, endpoint=access["endpoint"], token=access["token"])


@click.command()
@click.argument("source")
@click.option("--all", "everything", is_flag=True, help="Show the whole tree of modules.")
@with_yard
@with_json
def inspect(source: str, everything: bool, home: Home, as_json: bool) -> None:
    """Describe a model from its headers and small files; nothing is loaded, and of a remote one nothing else is fetched.

    SOURCE is ./folder, ./file.gguf, a version, hf://org/name[@revision], or a URL that file names are put after.

    \b
    Examples:
      yard inspect ./llama
      yard inspect team/intents@production
      yard inspect hf://org/name --json
    """
    from modelyard.weights.inspect import inspect as look

    with source_files(home, source) as files:
        found = look(files)
    if as_json:
        output.json_object({"source": source, **found.to_dict()})
        return
    output.table(["what", "is"], _rows(found))
    if found.modules is not None:
        output.data("")
        output.table(["module", "parameters", "size"], _tree(found, None if everything else _DEPTH))
    for name in found.unknown[:5]:
        output.note(f"`{name}` is packed in a way that is not known; its elements are counted as they are stored")


def _rows(found: Inspection) -> list[tuple[str, str]]:
    trained = "" if found.trainable == found.parameters else f", {found.trainable:,} of them trainable as stored"
    rows = [
        ("kind", found.kind),
        ("architecture", found.architecture),
        ("model type", found.model_type),
        ("task", found.task),
        ("parameters", f"{found.parameters:,}{trained}"),
        ("size", f"{output.human_bytes(found.bytes)} ({found.bytes:,} bytes)"),
        ("dtypes", ", ".join(f"{name}: {count:,}" for name, count in found.dtypes.items())),
        ("quantization", found.quantization),
        ("tied", "; ".join(f"{name} is {other}" for name, other in found.tied_weights)),
        ("base", found.base_model),
        *_adapter_rows(found),
        *_tokenizer_rows(found),
        *_gguf_rows(found),
        ("licence", found.licence or "not said"),
    ]
    return [(what, value) for what, value in rows if value]


def _adapter_rows(found: Inspection) -> list[tuple[str, str | None]]:
    adapter = found.adapter
    if adapter is None:
        return []
    scale = f"rank {adapter.rank}" + (f", alpha {adapter.alpha:g}" if adapter.alpha is not None else "")
    return [
        ("adapter", ", ".join([scale, *adapter.options]) if adapter.rank is not None else None),
        ("on modules", ", ".join(adapter.targets)),
        ("trained whole", ", ".join(adapter.saved)),
    ]


def _tokenizer_rows(found: Inspection) -> list[tuple[str, str | None]]:
    tokenizer = found.tokenizer
    if tokenizer is None:
        return []
    count = f"{tokenizer.vocabulary:,} entries" if tokenizer.vocabulary is not None else "entries not counted"
    longest = f"rows of at most {tokenizer.max_length:,} tokens" if tokenizer.max_length is not None else ""
    special = ", ".join(f"{role.removesuffix('_token')} {text}" for role, text in tokenizer.special.items())
    return [
        ("tokenizer", ", ".join(part for part in (tokenizer.kind or "", count, longest) if part)),
        ("special tokens", special + (" (padding is the end)" if tokenizer.pad_is_eos else "")),
        ("chat template", f"sha256 {tokenizer.template[:16]}" if tokenizer.template else "none"),
    ]


def _gguf_rows(found: Inspection) -> list[tuple[str, str | None]]:
    gguf = found.gguf
    if gguf is None:
        return []
    sizes = {"layers": gguf.layers, "hidden size": gguf.hidden, "context": gguf.context, "vocabulary": gguf.tokens}
    return [
        ("name", gguf.name),
        ("sizes", ", ".join(f"{name} {value:,}" for name, value in sizes.items() if value is not None)),
        ("special tokens", ", ".join(f"{role} {number}" for role, number in gguf.special.items())),
        ("chat template", f"sha256 {gguf.template[:16]}" if gguf.template else "none"),
    ]


def _tree(found: Inspection, depth: int | None) -> list[tuple[str, str, str]]:
    if found.modules is None:
        return []
    return [
        (
            "  " * (level - 1) + module.name + (f"  (x{module.times})" if module.times > 1 else ""),
            f"{module.parameters:,}",
            output.human_bytes(module.bytes),
        )
        for level, module in found.modules.lines()
        if level and (depth is None or level <= depth)
    ]


@click.command()
@click.option("--modality", metavar="MODALITY", help="text, image, video, audio, multimodal or time-series.")
@with_json
def architectures(modality: str | None, as_json: bool) -> None:
    """List each model type that can be loaded: modality, tasks, what serves it here, and whether it can be trained here.

    \b
    Examples:
      yard architectures --modality audio
      yard architectures --json
    """
    from modelyard.weights.architectures import architectures as known

    found = known(modality)
    if as_json:
        output.json_object({"architectures": [item.to_dict() for item in found]})
        return
    rows = [_architecture_row(item) for item in found]
    output.table(["type", "modality", "tasks", "served by", "trained by"], rows)


def _architecture_row(item: Any) -> tuple[str, str, str, str, str]:
    served, trained = ", ".join(item.engines) or "-", item.trainable or "-"
    return item.model_type, item.modality, ", ".join(item.tasks), served, trained
