"""A worker whose engine is a few lines of Python: what the router does is tested without torch.

Its answer is the word in the version's `word.txt`, once per token. Words in the prompt make it misbehave.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import ModelError, RequestError
from modelyard.serving.protocol import Accepted, Chunk, Finished, Generate, Load, Message
from modelyard.serving.worker import main

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = 64


class FakeEngine:
    """Counts words as tokens; takes 10 ms a token."""

    context: int | None = CONTEXT
    name = "fake"
    chat = True
    slots: int | None = 4

    def __init__(self, folder: Path) -> None:
        self.word = (folder / "word.txt").read_text("utf-8").strip()
        if self.word == "sluggish":
            time.sleep(1)
        if self.word == "broken":
            raise ModelError("the weights are broken")
        self._cancelled: dict[int, threading.Event] = {}

    def run(self, request: Generate) -> Iterator[Message]:
        prompt = " ".join(m["content"] for m in request.messages) if request.messages else str(request.prompt)
        tokens = len(prompt.split())
        if "crash" in prompt:
            os._exit(9)
        if self.word == "mute":
            raise ModelError("nothing but NaN comes out")
        if "surprise" in prompt:
            raise ValueError("secret path /etc/shadow")
        if tokens >= CONTEXT:
            raise RequestError(f"the prompt has {tokens} tokens and the model's context is {CONTEXT}", field="prompt")
        cancelled = self._cancelled.setdefault(request.id, threading.Event())
        limit = request.sampling.max_tokens or CONTEXT - tokens
        yield Accepted(id=request.id, prompt_tokens=tokens)
        for done in range(limit):
            if cancelled.is_set():
                yield Finished(id=request.id, reason="cancelled", prompt_tokens=tokens, completion_tokens=done)
                return
            if "halfway" in prompt and done == 3:
                os._exit(9)
            time.sleep(0.2 if "slow" in prompt else 0.01)
            yield Chunk(id=request.id, text=("" if done == 0 else " ") + self.word)
        yield Finished(id=request.id, reason="length", prompt_tokens=tokens, completion_tokens=limit)

    def cancel(self, number: int) -> None:
        self._cancelled.setdefault(number, threading.Event()).set()


def load(request: Load) -> FakeEngine:
    return FakeEngine(Path(request.folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], load))
