"""The options that say how a model is loaded, for every command that loads one.

::

    @click.command()
    @click.argument("source")
    @with_loading                    # --task --dtype --device --device-map --quantization --attention --adapter --trust-verified
    @with_yard
    @with_json
    def generate(source: str, loading: Loading, home: Home, as_json: bool) -> None:
        model = loading.load(home, source)                   # a version, ./folder, ./file.gguf or hf://org/name
        answer = model.generate("Hello", **loading.per_call)     # adapter=... where one was given

`loading.options` are the keywords of `weights.load.load` that were given, for a command that plans or estimates instead;
`loading.folder(home, source)` is the source as a folder here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelyard.errors import RequestError
from modelyard.weights.sources import source_form

if TYPE_CHECKING:
    from modelyard.cli.options import Home
    from modelyard.weights.model import Model

__all__ = ["Loading", "with_loading"]

Command = TypeVar("Command", bound=Callable[..., Any])

_ADAPTER = "adapter"


@dataclass(frozen=True)
class Loading:
    """How a model is to be loaded, as the command line says.

    Attributes:
        options: Keywords of `weights.load.load`, those that were given only.
        adapter: Where an adapter to apply comes from; None for none.
        trust_verified: Whether files that this boot has verified are not hashed again.
    """

    options: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    trust_verified: bool = False

    @property
    def per_call(self) -> dict[str, str]:
        """Keywords for `generate`, `stream` and `predict` of the model."""
        return {"adapter": _ADAPTER} if self.adapter else {}

    def load(self, home: Home, source: str, **more: Any) -> Model:
        """Load a version, a folder, a .gguf file or a hub's model; a yard is opened only where a reference is given."""
        from modelyard import app

        options: dict[str, Any] = {"threads": home.settings.threads, **self.options, **more}
        if self.adapter:
            options["adapters"] = {_ADAPTER: _path_or_text(self.adapter)}
        if "reference" in {source_form(each) for each in (source, self.adapter) if each}:
            return home.open().load(_path_or_text(source), trust_verified=self.trust_verified, **options)
        return app.load(home.settings, source, **options)

    def folder(self, home: Home, source: str) -> Path:
        """The source as a folder (or .gguf file) on this machine: a version's verified links, or what a hub gave."""
        from modelyard import app
        from modelyard.weights import hub

        form = source_form(source)
        if form == "hub":
            return hub.fetch(source, **app.hub_access(home.settings), progress=True)
        return home.open().folder(source) if form == "reference" else Path(source).expanduser()


def with_loading(command: Command) -> Command:
    """Add the options that say how a model is loaded, and pass a `Loading` as `loading`."""

    def gather(**arguments: Any) -> Any:
        names = ("task", "dtype", "device", "device_map", "quantization", "attention")
        chosen = {name: arguments.pop(name) for name in names}
        chosen["device_map"] = _device_map(chosen["device_map"])
        loading = Loading(
            {name: value for name, value in chosen.items() if value is not None},
            arguments.pop("adapter"),
            arguments.pop("trust_verified"),
        )
        return command(loading=loading, **arguments)

    gather.__name__, gather.__doc__ = command.__name__, command.__doc__
    gather.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]  # what click's decorators left
    wrapped: Any = gather
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


_OPTIONS = (
    click.option("--task", metavar="TASK", help="What it is loaded for (default: what its config.json says)."),
    click.option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16 or float16."),
    click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps or xpu."),
    click.option(
        "--device-map", metavar="MAP", help="auto, balanced, sequential, or JSON: module to device, cpu or disk."
    ),
    click.option(
        "--quantization", metavar="NAME", help="bnb-8bit, bnb-4bit, torchao-int8, torchao-int4 or int8-dynamic."
    ),
    click.option("--attention", metavar="NAME", help="eager, sdpa, flex_attention or flash_attention_2."),
    click.option("--adapter", metavar="SOURCE", help="An adapter to apply: a version, ./folder or hf://org/name."),
    click.option(
        "--trust-verified",
        is_flag=True,
        help="Do not hash again what this boot has verified and nothing touched since.",
    ),
)


def _device_map(text: str | None) -> Any:
    """`auto` and its like as they are, a dictionary where it is JSON."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise RequestError(
            f"`--device-map` is no JSON: {error}", hint="""--device-map '{"model": "cpu"}'""", field="device_map"
        ) from error


def _path_or_text(source: str) -> str | Path:
    """A path with the home directory in it as a `Path`; everything else as it is."""
    return Path(source).expanduser() if source_form(source) == "path" else source
