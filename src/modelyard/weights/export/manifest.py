"""`Manifest`: what an exported folder says of itself, the file `modelyard_export.json`.

It names the target, the task and the graphs with their inputs, so that a runner needs no configuration of transformers and can
refuse what a graph does not take. Knows JSON; opens no graph.

>>> Manifest("onnx", "fp32", "fill-mask", "BertForMaskedLM", {"model": Graph("model.onnx", ("input_ids",), ())}).layout
'single'
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE", "Graph", "Manifest"]

FILE = "modelyard_export.json"
_FORMAT = "modelyard/export/1"


@dataclass(frozen=True)
class Graph:
    """One graph of an export.

    Attributes:
        file: Its file in the folder; its weights lie beside it.
        inputs: The names of its inputs, cache included.
        unread: Inputs that the model takes and the graph does not have: the model does not read them, by the check.
    """

    file: str
    inputs: tuple[str, ...]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """An export.

    Attributes:
        target: One of `FORMATS`.
        type: Of its numbers, one of `TYPES[target]`.
        task: A name of `weights.tasks.TASKS`.
        architecture: The class of transformers that it was made of.
        graphs: By role: `model`; `encoder`, `prefill` and `decode` of an encoder-decoder that writes.
        pad: The token that fills shorter rows, where it takes text.
        packages: Versions of what made it.
        layout: `single` graph; `decoder`, one with a cache; `encoder-decoder`; `genai`.
    """

    target: str
    type: str
    task: str
    architecture: str
    graphs: dict[str, Graph]
    pad: int | None = None
    packages: dict[str, str] = field(default_factory=dict)
    layout: str = "single"

    def write(self, folder: Path) -> None:
        """Write the file into `folder`."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """That of `folder`.

        Raises:
            ModelError: `not_an_export`: there is none, or it is not of this form.
        """
        path = folder / FILE
        if not path.is_file():
            raise ModelError(
                f"`{folder}` is no export: it has no {FILE}",
                code="not_an_export",
                hint=f"make one: yard export {folder} --format onnx --to ./OUT",
            )
        try:
            plain: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if plain.pop("format") != _FORMAT:
                raise ValueError("another format")
            graphs = {
                role: Graph(str(each["file"]), tuple(each["inputs"]), tuple(each["unread"]))
                for role, each in plain.pop("graphs").items()
            }
            return cls(graphs=graphs, **plain)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"`{path}` is not what an export has: {error}", code="not_an_export") from error
