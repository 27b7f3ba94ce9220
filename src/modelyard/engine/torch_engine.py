"""The default engine: continuous batching over a model of transformers, on CPU or one GPU.

One thread owns the model. Between two steps, requests that were cancelled leave, waiting ones join, and the next step
gives every running request its next token and every new one its first. Requests are checked and tokenized in the
caller's thread, so a wrong one is refused before anything is queued.

A prompt is computed in one piece, so a long one delays the others by its own prefill. Every row of a batch is exact in
float32; `docs/design/generation.md` says what holds in bfloat16.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from typing import TYPE_CHECKING

from modelyard.engine.base import Capabilities, EngineRequest, Event, Failed, Finished, Stats, Token, Usage
from modelyard.engine.scheduler import Scheduler
from modelyard.errors import BusyError, InternalError, ModelError, YardError
from modelyard.weights.generation.chat import has_template
from modelyard.weights.generation.loop import Generation, GenerationParams, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.model import Model

__all__ = ["TorchAnswer", "TorchEngine"]


class TorchAnswer:
    """A request that the torch engine took; iterate it once for its events."""

    def __init__(self, engine: TorchEngine, request: str, generation: Generation) -> None:
        self.id = request
        self.prompt_tokens = len(generation.prompt_ids)
        self.generation = generation
        self._engine = engine
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Event]:
        """The events as they come; leaving early cancels the request."""
        event: Event | None = None
        try:
            while not isinstance(event, Finished | Failed):
                event = self._events.get()
                yield event
        finally:
            if not isinstance(event, Finished | Failed):
                self._engine.cancel(self.id)

    def cancel(self) -> None:
        """End it within one step."""
        self._engine.cancel(self.id)

    def put(self, event: Event) -> None:
        """Add an event; called by the engine."""
        self._events.put(event)


class TorchEngine:
    """Answers requests with `model`; see `base.Engine` for the methods' contracts.

    Args:
        model: A loaded text-generation model. The engine is its only user while it lives.
        max_running: Most requests in one step.
        max_waiting: Most requests that wait; one more is a `BusyError`.
        max_prefill: Most prompt tokens that join in one step (a longer prompt joins alone).
        max_cells: Most cells of cache, rows times the widest row's tokens; None for no bound.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_running: int = 16,
        max_waiting: int = 64,
        max_prefill: int = 2048,
        max_cells: int | None = None,
    ) -> None:
        self._model = model
        self._decoder = model.decoder()
        self._scheduler = Scheduler(
            max_running=max_running, max_waiting=max_waiting, max_prefill=max_prefill, max_cells=max_cells
        )
        self._answers: dict[str, TorchAnswer] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._draining = False
        self._steps = self._prompted = self._completed = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return Capabilities(
            engine="torch",
            chat=has_template(self._model.processor),
            context=self._model.defaults.context,
            slots=self._scheduler.max_running,
            queue=self._scheduler.max_waiting,
            params=tuple(item.name for item in dataclasses.fields(GenerationParams)),
        )

    def submit(self, request: EngineRequest) -> TorchAnswer:
        """Check, tokenize and queue a request."""
        if request.prompt is not None:
            ids = self._model.tokenize_text(request.prompt)
            generation = self._model.prepare(None, request.params, ids=ids)
        elif request.token_ids is not None:
            generation = self._model.prepare(None, request.params, ids=request.token_ids)
        else:
            generation = self._model.prepare(request.messages, request.params)
        answer = TorchAnswer(self, request.id, generation)
        with self._wake:
            if self._closing:
                raise BusyError("the engine is closing", hint="send the request to another replica")
            self._scheduler.submit(request.id, answer.prompt_tokens, generation.limit)
            self._answers[request.id] = answer
            self._wake.notify_all()
        return answer

    def cancel(self, request: str) -> bool:
        """End a request within one step."""
        with self._wake:
            waited = self._scheduler.cancel(request)
            if waited:
                self._end(request, self._answers[request].generation)
        return waited is not None

    def stats(self) -> Stats:
        """What it is doing."""
        with self._wake:
            return Stats(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                steps=self._steps,
                prompt_tokens=self._prompted,
                completion_tokens=self._completed,
            )

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, cancel what runs or finish it, and stop the thread."""
        with self._wake:
            self._closing = True
            self._draining = drain
            self._wake.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._set_threads()
            while self._prepare_step():
                self._step()
        except Exception as error:
            # Whatever ended the thread, nobody may be left waiting for an event that never comes.
            self._fail_all(error)
            raise
        finally:
            self._decoder.clear()

    def _set_threads(self) -> None:
        if self._model.threads is not None:
            import torch

            torch.set_num_threads(self._model.threads)  # OpenMP keeps it per thread

    def _prepare_step(self) -> bool:
        """Wait for work, then let requests go and join; False when the engine is to stop."""
        with self._wake:
            while self._scheduler.idle and not self._closing:
                self._wake.wait()
            if self._closing and (self._scheduler.idle or not self._draining):
                for request in self._scheduler.clear():
                    self._end(request, self._answers[request].generation)
                return False
            plan = self._scheduler.plan()
            for request in plan.drop:
                generation = self._answers[request].generation
                self._decoder.remove(generation)
                self._end(request, generation)
            self._decoder.add([self._answers[request].generation for request in plan.admit])
            self._prompted += sum(self._answers[request].prompt_tokens for request in plan.admit)
            return True

    def _step(self) -> None:
        if not len(self._decoder):
            return
        try:
            progress = self._decoder.step()
        except Exception as error:  # noqa: BLE001 - torch raises anything, and the thread must outlive it
            # A step is one computation for all rows: when it fails, so does everything in it. The queue goes on.
            self._decoder.clear()
            with self._wake:
                for request in self._scheduler.running:
                    self._scheduler.finish(request)
                    self._fail(request, error)
            return
        with self._wake:
            self._steps += 1
            owners = {id(answer.generation): answer for answer in self._answers.values()}
            for item in progress:
                self._deliver(owners[id(item.generation)], item)

    def _deliver(self, answer: TorchAnswer, item: Progress) -> None:
        self._completed += len(item.token_ids)
        if item.token_ids or item.text:
            answer.put(Token(item.text, item.token_ids))
        if item.generation.over:
            self._scheduler.finish(answer.id)
            if item.generation.error is not None:
                self._fail(answer.id, ModelError(item.generation.error))
            else:
                self._end(answer.id, item.generation)

    def _end(self, request: str, generation: Generation) -> None:
        """Tell a request's reader that it is over; `cancelled` unless it came to its own end."""
        answer = self._answers.pop(request)
        if generation.finish_reason is None:
            text = generation.cancel().text
            if text:
                answer.put(Token(text, ()))
        usage = Usage(len(generation.prompt_ids), len(generation.output_ids))
        answer.put(Finished(generation.finish_reason or "cancelled", usage))

    def _fail(self, request: str, error: Exception) -> None:
        known = error if isinstance(error, YardError) else InternalError(f"{type(error).__name__}: {error}")
        self._answers.pop(request).put(Failed(known.code, known.message))

    def _fail_all(self, error: Exception) -> None:
        with self._wake:
            self._closing = True
            for request in self._scheduler.clear():
                self._fail(request, error)
