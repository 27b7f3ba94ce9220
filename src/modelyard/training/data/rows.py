"""Rows: what training data is once it was read and found sound.

Values only: where rows come from is decided by `files`, what they mean by `formats`, how they become tokens elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import blake3

from modelyard.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Example", "Rows"]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Example:
    """One row: either a conversation, or plain text.

    Attributes:
        messages: Dicts with `role` and `content`; an assistant message with `weight` 0 is context only. None for text.
        prompt: The question as given, where the format has one answer to one question.
        completion: The answer to `prompt`; both are None otherwise.
        text: A document, all of it trained. None for conversations.
        source: `file:row`, for messages; row is the line for text files, and counts from 1 elsewhere.
    """

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    source: str = ""

    def content(self) -> dict[str, Any]:
        """What the example says, without where it stood."""
        if self.text is not None:
            return {"text": self.text}
        plain: dict[str, Any] = {"messages": self.messages}
        if self.prompt is not None:
            plain |= {"prompt": self.prompt, "completion": self.completion}
        return plain


@dataclass(frozen=True)
class Rows:
    """Examples in file order.

    Attributes:
        examples: At least one.
        format: The format that was recognised or given: a key of `formats.FORMATS`.
        files: Names of the files that were read, in order.
        used_columns: The columns that became part of the examples.
        ignored_columns: Columns of the files that did not.
    """

    examples: list[Example]
    format: str = "messages"
    files: tuple[str, ...] = ()
    used_columns: tuple[str, ...] = ()
    ignored_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @cached_property
    def digest(self) -> Digest:
        """The digest of the rows' content and order; the name and format of the file make no difference."""
        hasher = blake3.blake3()
        for example in self.examples:
            line = json.dumps(example.content(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            hasher.update(line.encode() + b"\n")
        return Digest(hasher.hexdigest())

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, messages (assistant messages apart) and characters there are."""
        messages = assistant = characters = 0
        for example in self.examples:
            if example.text is not None:
                characters += len(example.text)
            for message in example.messages or ():
                messages += 1
                assistant += message["role"] == "assistant"
                characters += len(message["content"])
        return {"rows": len(self), "messages": messages, "assistant_messages": assistant, "characters": characters}
