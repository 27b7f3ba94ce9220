"""Examples: what a model is asked, and what it should answer.

An `Example` is a conversation up to the answer and the expected answer as text. Its id pairs it with itself in another
report, so it is stable: the number of the row in its file. This module knows no file formats (rows come from whoever
read them), no tasks and no models.

>>> row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
>>> example = from_messages(row["messages"], id="1")
>>> example.expected, len(example.messages)
('4', 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modelyard.digest import Digest, canonical_json, digest_bytes
from modelyard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Example", "RowLike", "check_examples", "data_digest", "from_messages", "from_rows", "text_of"]


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Attributes:
        id: Unique in its data set and the same in every evaluation of it.
        messages: The conversation up to the answer: maps with `role` and `content`, both text.
        expected: The answer that counts as right; how it is compared is the task's business.
    """

    id: str
    messages: list[dict[str, Any]]
    expected: str


class RowLike(Protocol):
    """A row as the data readers give it: a conversation, or a prompt with its completion; `source` is `file:row`."""

    @property
    def messages(self) -> Sequence[dict[str, Any]] | None:
        """A whole conversation, or None."""
        ...

    @property
    def prompt(self) -> str | None:
        """A question, or None."""
        ...

    @property
    def completion(self) -> str | None:
        """Its answer, or None."""
        ...

    @property
    def source(self) -> str:
        """Where the row is: `file:row`."""
        ...


def from_messages(messages: Sequence[dict[str, Any]], *, id: str, source: str = "") -> Example:  # noqa: A002  # the field's name
    """The example in a whole conversation: its last message is the expected answer.

    Raises:
        DataError: If the conversation does not end with an assistant's text after at least one other message, or calls
            tools.
    """
    where = source or f"example `{id}`"
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise DataError(
            f"{where}: the conversation does not end with an assistant's answer, so there is nothing to compare with",
            hint="give rows with a question and its answer",
        )
    expected = messages[-1].get("content")
    if not isinstance(expected, str):
        raise DataError(f"{where}: the expected answer is not text")
    for message in messages:
        if message.get("tool_calls"):
            raise DataError(f"{where}: calls of tools cannot be evaluated, only text", hint="leave such rows out")
    # Only what every chat template reads: a training weight, for one, is not part of the question.
    return Example(id, [{"role": m.get("role"), "content": m.get("content")} for m in messages[:-1]], expected)


def from_rows(rows: Iterable[RowLike]) -> list[Example]:
    """Examples from rows in file order; the id of each is its number, counted from 1.

    Raises:
        DataError: If a row holds no question with an answer; the message names its file and row.
    """
    made = []
    for number, row in enumerate(rows, start=1):
        if row.messages:
            made.append(from_messages(row.messages, id=str(number), source=row.source))
        elif row.prompt is not None and row.completion is not None:
            question = [{"role": "user", "content": row.prompt}]
            made.append(Example(str(number), question, row.completion.strip()))
        else:
            raise DataError(
                f"{row.source}: plain text has no question and answer, so there is nothing to evaluate",
                hint="give rows with messages, prompt and completion, or question and answer",
            )
    return made


def check_examples(examples: Sequence[Example]) -> None:
    """Refuse what no honest accuracy can come from.

    Raises:
        DataError: For no examples at all, a duplicate id, no message, or a role or content that is not text.
    """
    if not examples:
        raise DataError("there are no examples to evaluate on", hint="check the data file and `limit`")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"two examples have the id `{example.id}`", hint="ids pair examples across reports; make them unique"
            )
        seen.add(example.id)
        if not example.messages:
            raise DataError(f"example `{example.id}` asks nothing: it has no message")
        for message in example.messages:
            if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
                raise DataError(
                    f"example `{example.id}` has a message whose role or content is not text: {str(message)[:80]}"
                )


def text_of(example: Example) -> str:
    """The whole example as plain text, question and answer, for the contamination check."""
    return "\n".join([*(str(message["content"]) for message in example.messages), example.expected])


def data_digest(examples: Sequence[Example]) -> Digest:
    """The digest of what was asked and expected, in order: two reports with the same one can be paired.

    It covers each example's id, roles, contents and expected answer, and nothing about files or models.
    """
    plain = [
        {
            "id": example.id,
            "messages": [{"role": m["role"], "content": m["content"]} for m in example.messages],
            "expected": example.expected,
        }
        for example in examples
    ]
    return digest_bytes(canonical_json(plain))
