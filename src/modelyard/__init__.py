"""modelyard takes an open-weight model from checkpoint to production and back, and can prove every step.

::

    import modelyard

    yard = modelyard.open()                                   # ~/.modelyard, or a folder
    version = yard.resolve("team/intents@production")         # repo, number, id, kind, lineage
    model = yard.load("team/intents@production")              # .model, .processor, .task, .version
    model.generate("My card has not arrived")                 # and .stream(...), .batch_generate([...])
    yard.commit("./out", to="team/intents", kind="merged", from_=["team/base", "team/adapter"])
    yard.promote("team/intents@v7", to="production")          # refuses, with the reason, when a gate does not pass

A yard in a folder of its own, from nothing:

>>> import modelyard, pathlib, tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> data = pathlib.Path(folder.name, "faq.jsonl")
>>> _ = data.write_text('{"question": "Where is my card?", "answer": "On its way."}')
>>> yard = modelyard.open(pathlib.Path(folder.name, "yard"), create=True)
>>> version = yard.commit(data, to="datasets/team/faq")
>>> version.name
'datasets/team/faq@v1'
>>> yard.resolve("datasets/team/faq").id == version.id
True
>>> folder.cleanup()

Importing this package imports nothing else; every name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.app import open_yard
    from modelyard.digest import Digest
    from modelyard.errors import YardError
    from modelyard.registry import Edge, Reference, Version, Yard
    from modelyard.settings import Settings
    from modelyard.weights.model import Model

__all__ = [
    "Digest",
    "Edge",
    "Model",
    "Reference",
    "Settings",
    "Version",
    "Yard",
    "YardError",
    "load",
    "open",
    "open_yard",
]

_HOMES = {
    "Digest": "modelyard.digest",
    "Edge": "modelyard.registry",
    "Model": "modelyard.weights.model",
    "Reference": "modelyard.registry",
    "Settings": "modelyard.settings",
    "Version": "modelyard.registry",
    "Yard": "modelyard.registry",
    "YardError": "modelyard.errors",
    "open_yard": "modelyard.app",
}


def open(home: Path | str | None = None, *, create: bool = False) -> Yard:  # noqa: A001  # as `gzip.open`: always written modelyard.open
    """The yard in a folder; without one, in `MODELYARD_HOME` or `~/.modelyard`.

    Args:
        home: The yard's folder.
        create: Make the yard when there is none.

    Raises:
        NotFoundError: There is no yard, and `create` is off.
        InputError: `remote_yard`: `home` is a URL; a yard on a server cannot be opened yet.
    """
    import dataclasses
    from pathlib import Path

    from modelyard.app import open_yard
    from modelyard.errors import InputError
    from modelyard.settings import Settings

    if isinstance(home, str) and "://" in home:
        raise InputError(
            f"`{home}` is a URL, and a yard is opened in a folder",
            hint="give the yard's folder, on the machine that holds it",
            code="remote_yard",
        )
    settings = Settings.from_environment()
    if home is not None:
        settings = dataclasses.replace(settings, home=Path(home).expanduser())
    return open_yard(settings, create=create)


def load(source: Path | str, **options: Any) -> Model:
    """Load a folder, a .gguf file or a hub's model, without a yard.

    ::

        modelyard.load("./bert", task="text-classification", num_labels=3)
        modelyard.load("hf://org/name@main", dtype="bfloat16", device_map="auto")

    Args:
        source: `./folder`, `./file.gguf`, or `hf://org/name[@revision]`, which is fetched into the hub cache (HF_ENDPOINT,
            HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and the token of `yard login` are honoured). An adapter from a
            hub brings the base that it names.
        **options: See `modelyard.weights.load.load`; `cache_dir`, `revision`, `token` and `offline` go before the
            surroundings.

    Raises:
        RefError: It is a yard's reference: `modelyard.open().load(...)` resolves those.
        NotFoundError, AuthError: A hub does not give it; `code` says why (see `modelyard.weights.hub.fetch`).
        ModelError: It is no usable model.
        RequestError: An option is wrong.
    """
    from modelyard import app
    from modelyard.settings import Settings

    return app.load(Settings.from_environment(), source, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `modelyard` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
