"""OpenAI's response objects and stream chunks, as plain values.

Each shape is one class with the same three methods, so that the route does not know which API it answers. Nothing
here knows of HTTP or of workers.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.serving.protocol import Finished

__all__ = ["DONE", "Answer", "ChatAnswer", "CompletionAnswer", "event"]

DONE = b"data: [DONE]\n\n"
"""What ends every stream that did not fail."""


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Answer:
    """What the responses to one request have in common.

    Args:
        model: The name that the client asked for.
        fingerprint: The short id of the version that answers.
        usage: Whether a stream ends with the usage; every chunk before then says `usage: null`.
    """

    prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, model: str, fingerprint: str, *, usage: bool = False) -> None:
        self._usage = usage
        self._common = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """The response of a request that does not stream."""
        return {**self._common, "choices": [self._choice(text, end.reason)], "usage": usage_of(end)}

    def first(self) -> list[dict[str, Any]]:
        """The chunks before any text."""
        return []

    def piece(self, text: str) -> dict[str, Any]:
        """The chunk for a piece of text."""
        return self._chunk([self._delta(text, None)])

    def last(self, end: Finished) -> list[dict[str, Any]]:
        """The chunks after all text: how it ended, and what it cost if the client asked."""
        chunks = [self._chunk([self._delta(None, end.reason)])]
        if self._usage:
            chunks.append({**self._chunk([]), "usage": usage_of(end)})
        return chunks

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._common, "object": self.chunk_object, "choices": choices}
        return {**chunk, "usage": None} if self._usage else chunk

    def _choice(self, text: str, reason: str) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}

    def _delta(self, text: str | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": reason}


class CompletionAnswer(Answer):
    """The shapes of `/v1/completions`."""


class ChatAnswer(Answer):
    """The shapes of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first(self) -> list[dict[str, Any]]:
        """The chunk that names the role."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def _choice(self, text: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}

    def _delta(self, text: str | None, reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def usage_of(end: Finished) -> dict[str, int]:
    """Token counts of a request that ended."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }
