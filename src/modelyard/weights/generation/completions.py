"""Prompts in, whole answers or pieces of one out: what is behind `Model.generate`, `complete` and `stream`.

Everything about a call is checked before anything is computed. Our own loop decodes many rows at a time (`decoder`);
what it does not do goes to transformers' own, prompt by prompt (`library_loop`). Either way a row's answer is the one it
gets alone. Knows a loaded model; knows no requests over a wire and no references.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from modelyard.errors import InternalError, ModelError, RequestError
from modelyard.weights.generation import library_loop
from modelyard.weights.generation.decoder import Decoder
from modelyard.weights.generation.loop import FinishReason, Generation, Progress, check_context, decode
from modelyard.weights.generation.prompts import Given, Prompt, read_prompt
from modelyard.weights.generation.strategies import Loop, Request, read_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from modelyard.weights.model import Model

__all__ = ["Completion", "check_ids", "complete", "explained", "stream"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer.

    Attributes:
        text: The answer, without control tokens and without the stop string that ended it; behind the prompt where
            `return_full_text` was asked for.
        token_ids: Every token that was generated, an ending one included; never those of the prompt.
        finish_reason: `stop` or `length`.
        prompt_tokens: Tokens of the prompt.
        by: Which loop answered: `modelyard`, or `transformers` for what only its `generate` does.
        seed: Where its draws started; with it, the same answer is drawn again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    by: Loop = "modelyard"
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One prompt and its answers."""

    given: Given
    generations: tuple[Generation, ...]
    request: Request


def complete(
    model: Model,
    prompts: Sequence[Prompt],
    params: Mapping[str, Any],
    *,
    batch_size: int,
    computing: Callable[[], AbstractContextManager[Any]],
) -> list[Completion]:
    """The answers to `prompts`, in their order; several answers to one prompt follow one another.

    Args:
        model: A loaded model that generates.
        prompts: What is asked.
        params: What `Model.generate` takes.
        batch_size: Most rows that our own loop decodes at a time.
        computing: Gives the context to compute in: the adapter of this call.

    Raises:
        RequestError: A wrong parameter or prompt; a strategy that transformers refuses or does not have.
        ModelError: The model fails, or memory runs out (`out_of_memory`).
    """
    request = read_request(params, model.defaults)
    rows = [_prepare(model, prompt, request) for prompt in prompts]
    core = model.core
    with computing(), explained(core, batch=min(batch_size, len(rows))):
        own = [generation for row in rows if row.request.by == "modelyard" for generation in row.generations]
        if own:
            for progress in decode(Decoder(core), own, max_rows=batch_size):
                _raise_error(progress.generation)
        for row in rows:
            if row.request.by == "transformers":
                _run(core, row)
    return [_completed(row, generation) for row in rows for generation in row.generations]


def stream(
    model: Model,
    prompt: Prompt,
    params: Mapping[str, Any],
    *,
    computing: Callable[[], AbstractContextManager[Any]],
) -> Iterator[str]:
    """The answer to one prompt in pieces; the arguments are those of `complete`, checked when this is called.

    Beams and assisted decoding know their answer only at its end, so it comes in one piece.
    """
    request = read_request(params, model.defaults)
    if request.answers > 1:
        raise RequestError(
            "a stream is one answer, and `num_return_sequences` asks for several",
            hint="use `complete`",
            field="num_return_sequences",
        )
    row = _prepare(model, prompt, request)
    return _stream(model, row, computing)


def _stream(model: Model, row: _Row, computing: Callable[[], AbstractContextManager[Any]]) -> Iterator[str]:
    core, generation = model.core, row.generations[0]
    progress: Iterator[Progress]
    if row.request.by == "modelyard":
        progress = decode(Decoder(core), [generation])
    elif library_loop.steps(core, row.request):
        progress = library_loop.run_steps(core, _tensors(row.given), generation, row.request)
    else:
        progress = _whole(core, row)
    led = not row.request.full_text
    # The context is entered for each step, never while the reader has the control.
    for item in _stepping(progress, computing, core):
        _raise_error(item.generation)
        text = item.text
        if not led and (text or generation.over):
            led, text = True, _lead(row, generation) + text
        if text:
            yield text


def _lead(row: _Row, generation: Generation) -> str:
    """What stands before an answer in its full text: the prompt, and the space that a word token alone does not show."""
    tokenizer, ids, answer = generation.tokenizer, list(row.given.ids), generation.text
    before = tokenizer.decode(ids, skip_special_tokens=True)
    tail = tokenizer.decode(ids + generation.output_ids, skip_special_tokens=True)[len(before) :]
    gap = " " if answer and tail.startswith(" ") and not answer.startswith(" ") else ""
    written = row.given.text
    return (tokenizer.decode(ids, skip_special_tokens=False) if written is None else written) + gap


def _whole(core: Any, row: _Row) -> Iterator[Progress]:
    """A whole answer as one step."""
    _run(core, row)
    generation = row.generations[0]
    yield Progress(generation, tuple(generation.output_ids), generation.text)


def _stepping(items: Iterator[Item], computing: Callable[[], AbstractContextManager[Any]], core: Any) -> Iterator[Item]:
    while True:
        with computing(), explained(core):
            item = next(items, None)
        if item is None:
            return
        yield item


def _prepare(model: Model, prompt: Prompt, request: Request) -> _Row:
    """One prompt, read and checked; nothing is computed."""
    defaults, core = model.defaults, model.core
    given = read_prompt(model.processor, model.tokenizer, prompt)
    if request.full_text:
        _check_full_text(model)
    if not given.tensors:
        check_ids(given.ids, core)
    _check_rule_ids(request, core)
    tokens = len(given.ids) if given.ids or not given.tensors else 1  # a caption begins from the picture alone
    params = request.params
    if params.max_new_tokens is None and request.max_length is not None:
        room = request.max_length - (1 if defaults.encoded else tokens)
        if room < 1:
            raise RequestError(
                f"the prompt has {tokens} tokens and `max_length` is {request.max_length}: no room for an answer",
                hint="ask with `max_new_tokens`, which counts the answer alone",
                field="max_length",
            )
        params = replace(params, max_new_tokens=room)
    limit = check_context(tokens, params, defaults)
    _check_least(request, model, limit, before=1 if defaults.encoded else tokens)
    ours = model.task == "text-generation" and not given.tensors and Decoder.decodes(core)
    by = request.by if ours else "transformers"
    request = replace(request, by=by)
    ends = defaults.eos_ids if request.eos_ids is None else request.eos_ids
    many = by == "transformers" and not library_loop.steps(core, request)
    generations = []
    for at in range(request.answers):
        seeded = params if params.seed is None or many else replace(params, seed=params.seed + at)
        generations.append(Generation(given.ids, seeded, limit, ends, model.tokenizer))
    return _Row(given, tuple(generations), request)


def _run(core: Any, row: _Row) -> None:
    """All answers to one prompt by transformers' loop."""
    if not library_loop.steps(core, row.request):
        library_loop.run_whole(core, _tensors(row.given), row.generations, row.request)
        return
    for generation in row.generations:
        for _ in library_loop.run_steps(core, _tensors(row.given), generation, row.request):
            pass


def _tensors(given: Given) -> Mapping[str, Any]:
    if given.tensors:
        return given.tensors
    import torch

    ids = torch.tensor([given.ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _completed(row: _Row, generation: Generation) -> Completion:
    if generation.finish_reason is None:
        raise InternalError("an answer left the decoding loop unfinished")
    text = generation.text
    if row.request.full_text:
        text = _lead(row, generation) + text
    return Completion(
        text=text,
        token_ids=tuple(generation.output_ids),
        finish_reason=generation.finish_reason,
        prompt_tokens=len(row.given.ids),
        by=row.request.by,
        seed=None if row.request.params.greedy else generation.seed,
    )


def _check_full_text(model: Model) -> None:
    if model.defaults.encoded:
        raise RequestError(
            "the answer of this model does not continue its prompt, which an encoder reads",
            hint="leave `return_full_text` out",
            field="return_full_text",
        )


def check_ids(ids: Sequence[object], model: Any, field: str = "prompt") -> None:
    """Refuse a token id outside the vocabulary of `model`.

    Raises:
        RequestError: It names the id, where it stands (`field`) and the vocabulary's size.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    words = "the prompt holds" if field == "prompt" else f"`{field}` holds"
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise RequestError(
                f"{words} the token id {token!r}, and the model's vocabulary has {size}",
                hint=f"0 to {size - 1}",
                field=field,
                vocabulary=size,
            )


def _check_least(request: Request, model: Model, limit: int, *, before: int) -> None:
    """Refuse a least length of the caller's that is more than the most; a checkpoint's own gives way."""
    for name, most in (("min_new_tokens", limit), ("min_length", before + limit)):
        value = request.rules.get(name)
        if isinstance(value, int) and value > most and value != model.defaults.strategy.get(name):
            raise RequestError(
                f"`{name}` is {value}, and at most {most} tokens are possible",
                hint=f"ask for {most}, or for a larger `max_new_tokens`",
                field=name,
            )


_ID_RULES = (
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
)


def _check_rule_ids(request: Request, core: Any) -> None:
    for name in _ID_RULES:
        value = request.rules.get(name)
        if value is None:
            continue
        if name == "sequence_bias":
            value = list(value) if not isinstance(value, list) else [pair[0] for pair in value]
        check_ids(list(_flat(value)), core, name)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _flat(item)
    else:
        yield value


@contextmanager
def explained(core: Any, *, batch: int | None = None) -> Iterator[None]:
    """Memory that ran out, as a `ModelError` that says what fits here."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from modelyard.weights.loading.memory import explain_oom, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise explain_oom(error, core, batch=batch) from error


def _raise_error(generation: Generation) -> None:
    if generation.error is not None:
        raise ModelError(generation.error, hint="the weights or the dtype are at fault; run `yard doctor`")
