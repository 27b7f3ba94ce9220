"""What the examinations share: the files, what each of them is, the sound headers, and the small JSON files, read once.

Judges nothing: what a fact means is for the examination that asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import YardError
from modelyard.weights.checkpoint import Checkpoint
from modelyard.weights.checks import read_json
from modelyard.weights.tasks import task_of_architecture

if TYPE_CHECKING:
    from modelyard.weights.content import Content
    from modelyard.weights.files import Files
    from modelyard.weights.headers import Header
    from modelyard.weights.tasks import TaskInfo

__all__ = ["Case"]


@dataclass
class Case:
    """One checkpoint under examination.

    Attributes:
        files: What is examined.
        path: How a command names it: `./folder` or a reference.
        contents: What each file is, by its first bytes.
        headers: The headers of the sound safetensors files.
        broken: Names of files that something is wrong with; nothing is read from them again.
        weights: The set of weights that a loader takes, None where there is none or it cannot be read.
    """

    files: Files
    path: str
    contents: dict[str, Content] = field(default_factory=dict)
    headers: dict[str, Header] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    weights: Checkpoint | None = None

    @cached_property
    def names(self) -> frozenset[str]:
        """Every file's name."""
        return frozenset(self.files.names())

    @property
    def kind(self) -> Literal["adapter", "model"]:
        """What it is meant to be."""
        return "adapter" if "adapter_config.json" in self.names else "model"

    @property
    def stem(self) -> str:
        """What its weight files' names begin with."""
        return "adapter_model" if self.kind == "adapter" else "model"

    def take_all(self) -> None:
        """Make every sound safetensors file the weights, whatever it is called."""
        if self.headers:
            home = {tensor: name for name, header in self.headers.items() for tensor in header.tensors}
            self.weights = Checkpoint(self.files, None, dict(self.headers), home)

    @property
    def mend(self) -> str:
        """The command that writes a mended copy."""
        return f"yard doctor {self.path} --fix --to ./MENDED"

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file, or an empty object where there is none or it is broken (which is a finding of its own)."""
        if name in self.broken or name not in self.names:
            return {}
        try:
            return read_json(self.files, name)
        except YardError:
            self.broken.add(name)
            return {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return self.json("config.json")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """`generation_config.json`."""
        return self.json("generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """`tokenizer_config.json`."""
        return self.json("tokenizer_config.json")

    @cached_property
    def architecture(self) -> str | None:
        """The class that config.json names."""
        listed = self.config.get("architectures")
        first = listed[0] if isinstance(listed, list) and listed else None
        return first if isinstance(first, str) else None

    @cached_property
    def task(self) -> TaskInfo | None:
        """The task of that class."""
        return task_of_architecture(self.architecture) if self.architecture else None

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration that its language model has: `text_config`, or the whole."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def generates(self) -> bool:
        """Whether it answers with text."""
        name = self.task.name if self.task else ""
        return name in {"text-generation", "text2text-generation", "image-text-to-text", "any-to-any"}
