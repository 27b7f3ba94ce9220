"""The torch engine in a worker: a folder becomes a loaded model, a `Generate` becomes the engine's events.

Imported by the worker process only; the router never imports it. It knows no socket.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.engine import EngineRequest, Failed, Token, TorchEngine
from modelyard.errors import InternalError, ModelError, RequestError
from modelyard.serving.protocol import Accepted, Chunk, Finished, Generate, Load, Message, error_from
from modelyard.weights.load import load

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TorchHosted"]

_NAMES = {"max_tokens": "max_new_tokens"}
"""Our wire's names that the engine calls otherwise."""


class TorchHosted:
    """A `worker.Hosted` over `TorchEngine`."""

    def __init__(self, engine: TorchEngine) -> None:
        capabilities = engine.capabilities
        self.context = capabilities.context
        self.name = capabilities.engine
        self.chat = capabilities.chat
        self.slots: int | None = capabilities.slots
        self._engine = engine
        self._cancelled: set[int] = set()

    @classmethod
    def load(cls, request: Load) -> TorchHosted:
        """Load the model and start the engine; `ModelError` for what is no text-generation model."""
        base = Path(request.base) if request.base else None
        model = load(
            Path(request.folder), base=base, dtype=request.dtype, device=request.device, threads=request.threads
        )
        if model.task != "text-generation":
            raise ModelError(f"`{request.label}` is a {model.task} model; the server generates text only")
        return cls(TorchEngine(model))

    def run(self, request: Generate) -> Iterator[Message]:
        """The request's messages, as `worker.Hosted` says."""
        try:
            answer = self._engine.submit(_engine_request(request))
        except RequestError as error:
            if request.messages is not None and error.details.get("field") == "prompt":
                error.details["field"] = "messages"
            raise
        try:
            # A cancel that came while the prompt was tokenized found nothing to cancel in the engine.
            if request.id in self._cancelled:
                answer.cancel()
            yield Accepted(id=request.id, prompt_tokens=answer.prompt_tokens)
            for event in answer:
                if isinstance(event, Token):
                    if event.text:
                        yield Chunk(id=request.id, text=event.text)
                elif isinstance(event, Failed):
                    raise error_from({"code": event.code, "message": event.message})
                else:
                    usage = event.usage
                    yield Finished(
                        id=request.id,
                        reason=event.reason,
                        prompt_tokens=usage.prompt_tokens,
                        completion_tokens=usage.completion_tokens,
                    )
                    return
        finally:
            self._cancelled.discard(request.id)
        raise InternalError("the engine's events ended without an end")

    def cancel(self, number: int) -> None:
        """End request `number` within one step."""
        self._cancelled.add(number)
        self._engine.cancel(str(number))


def _engine_request(request: Generate) -> EngineRequest:
    given = {name: value for name, value in dataclasses.asdict(request.sampling).items() if value is not None}
    params: dict[str, Any] = {_NAMES.get(name, name): value for name, value in given.items()}
    if request.messages is not None:
        return EngineRequest(str(request.id), messages=request.messages, params=params)
    if isinstance(request.prompt, list):
        return EngineRequest(str(request.id), token_ids=request.prompt, params=params)
    return EngineRequest(str(request.id), prompt=request.prompt, params=params)
