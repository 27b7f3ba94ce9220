"""What is asked of one answer, and the answer while it grows.

`GenerationParams` are checked and complete; `resolve_params` makes them from what a caller gave and what the
checkpoint's generation_config says. A `Generation` is one answer: it takes token ids and gives text, and knows when it
is over. `decode` runs many of them over a `Decoder`: the one loop behind `Model.generate`, evaluation and the engine.

This module knows nothing of tensors (the decoder does), of chat templates (`chat`) or of requests over a wire.

>>> resolve_params({"max_new_tokens": 8}, GenerationDefaults()).temperature
0.0
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import RequestError, near_match
from modelyard.weights.generation.text import StopStrings, TextPieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelyard.weights.generation.decoder import Decoder

__all__ = [
    "DEFAULT_MAX_NEW_TOKENS",
    "FinishReason",
    "Generation",
    "GenerationDefaults",
    "GenerationParams",
    "Progress",
    "check_context",
    "decode",
    "resolve_params",
]

FinishReason = Literal["stop", "length", "cancelled"]

DEFAULT_MAX_NEW_TOKENS = 256
"""New tokens where neither the caller nor the checkpoint says how many."""

_MOST_STOPS = 16
_LONGEST_STOP = 256


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How one answer is chosen, token by token.

    Attributes:
        max_new_tokens: Most tokens of the answer; None means the checkpoint's own number or
            `DEFAULT_MAX_NEW_TOKENS`, and at most what fits the context.
        temperature: 0 takes the likeliest token; above it, logits are divided by it and a token is drawn.
        top_p: Draw from the smallest set of tokens that holds this share of the probability, (0, 1].
        top_k: Draw from the k likeliest; 0 means all.
        min_p: Leave out tokens less likely than this share of the likeliest one's probability, [0, 1].
        repetition_penalty: Divides (or multiplies, if negative) the logit of every token of prompt and answer; > 0.
        presence_penalty: Taken off the logit of every token that the answer holds, [-2, 2].
        frequency_penalty: Taken off for each time the answer holds it, [-2, 2].
        stop: The answer ends before the first of these strings; at most 16 of 256 characters.
        seed: Where the draws start; None takes a fresh one. Equal seeds repeat an answer, whatever is decoded beside it.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every field; `RequestError` names the one that is wrong."""
        if self.max_new_tokens is not None:
            _check_int("max_new_tokens", self.max_new_tokens, 1, 1 << 31)
        _check_float("temperature", self.temperature, 0.0, 100.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_int("top_k", self.top_k, 0, 1 << 31)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _check_int("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        _check_stops(self.stop)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether the tokens so far change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a checkpoint says about its own answers.

    Attributes:
        params: Values for what the caller does not give (`GenerationParams`' own where the checkpoint is silent).
        eos_ids: Token ids that end an answer.
        max_new_tokens: Most new tokens where the caller does not say; fewer when less fits the context.
        context: Most tokens of prompt and answer together (of the answer alone where an encoder reads the prompt);
            None when the architecture has no bound.
        max_length: Most tokens of prompt and answer where the caller does not say how many; None where the checkpoint
            does not say it so.
        strategy: Fields of the checkpoint's generation_config beyond these (beams, banned words, ...).
        ignored: Names of those that change an answer. `Model.generate` does them, by transformers' loop; whoever steps
            a `Decoder` by itself leaves them out.
        encoded: Whether an encoder reads the prompt, so that the answer begins with the decoder's own first token.
        source: Most tokens of a prompt that an encoder reads; None when it has no bound.
    """

    params: GenerationParams = field(default_factory=GenerationParams)
    eos_ids: frozenset[int] = frozenset()
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    context: int | None = None
    ignored: tuple[str, ...] = ()
    max_length: int | None = None
    strategy: Mapping[str, Any] = field(default_factory=dict)
    encoded: bool = False
    source: int | None = None


def resolve_params(given: Mapping[str, Any], defaults: GenerationDefaults) -> GenerationParams:
    """What the caller gave over what the checkpoint says; None counts as not given.

    Raises:
        RequestError: An unknown field (with the near match) or a value out of range; `details["field"]` names it.
    """
    known = [item.name for item in fields(GenerationParams)]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            meant = near_match(name, known)
            raise RequestError(
                f"unknown parameter `{name}`",
                hint=f"did you mean `{meant}`?" if meant else f"known: {', '.join(known)}",
                field=name,
            )
        if value is not None:
            values[name] = (value,) if name == "stop" and isinstance(value, str) else value
    if isinstance(values.get("stop"), list):
        values["stop"] = tuple(values["stop"])
    return replace(defaults.params, **values)


def check_context(prompt_tokens: int, params: GenerationParams, defaults: GenerationDefaults) -> int:
    """The number of new tokens that this prompt may be answered with.

    Raises:
        RequestError: The prompt, or the prompt and the `max_new_tokens` that were asked for, do not fit the context.
    """
    wanted, context = params.max_new_tokens, defaults.context
    if prompt_tokens == 0:
        raise RequestError("the prompt is empty: there is nothing to continue", field="prompt")
    if defaults.encoded:
        if defaults.source is not None and prompt_tokens > defaults.source:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens and the model's encoder reads {defaults.source}",
                hint="shorten the prompt",
                field="prompt",
                prompt_tokens=prompt_tokens,
                context=defaults.source,
            )
        prompt_tokens = 1  # what stands before the answer is the decoder's first token alone
    usual = defaults.max_new_tokens
    if defaults.max_length is not None and defaults.max_length > prompt_tokens:
        usual = defaults.max_length - prompt_tokens
    if context is None:
        return wanted if wanted is not None else usual
    room = context - prompt_tokens
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and the model's context is {context}: no room for an answer",
            hint="shorten the prompt",
            field="prompt",
            prompt_tokens=prompt_tokens,
            context=context,
        )
    if wanted is None:
        return min(usual, room)
    if wanted > room:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and `max_new_tokens` is {wanted}: "
            f"{prompt_tokens + wanted} is more than the model's context of {context}",
            hint=f"ask for at most {room} new tokens, or shorten the prompt",
            field="max_new_tokens",
            prompt_tokens=prompt_tokens,
            max_new_tokens=wanted,
            context=context,
        )
    return wanted


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step added to one answer: its new token ids and the text that is certain since."""

    generation: Generation
    token_ids: tuple[int, ...]
    text: str


@dataclass(eq=False)
class Generation:
    """One answer while it grows. Made by a caller, fed by a `Decoder`, over when `finish_reason` is set.

    Attributes:
        prompt_ids: Token ids of the prompt, at least one.
        params: How tokens are chosen.
        limit: Most new tokens (`check_context` gives it).
        eos_ids: Token ids that end the answer; they add no text.
        tokenizer: Anything with `decode` and `all_special_ids`.
        output_ids: The new token ids so far, the ending one included.
        text: The text so far; once over, the whole answer without stop strings.
        finish_reason: `stop` (an ending token or a stop string), `length`, `cancelled`; None while it grows.
        error: Why this answer could not go on, for one row of a batch; it is over then.
        seed: Where its draws start: the parameters' seed, or a fresh one.
    """

    prompt_ids: tuple[int, ...]
    params: GenerationParams
    limit: int
    eos_ids: frozenset[int]
    tokenizer: Any
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        self._pieces: list[str] = []
        self._text = TextPieces(self.tokenizer)
        self._stops = StopStrings(self.params.stop)
        self._random: Any = None
        self.seed = self.params.seed if self.params.seed is not None else secrets.randbits(63)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None or self.error is not None

    def draw(self) -> float:
        """The next number of this answer's own random sequence, in [0, 1).

        Its own, so that what is decoded beside it, and on which device, changes nothing.
        """
        import torch

        if self._random is None:
            self._random = torch.Generator().manual_seed(self.seed)
        return float(torch.rand((), generator=self._random, dtype=torch.float64))

    def take(self, token: int) -> Progress:
        """Add one token; sets `finish_reason` when the answer is over."""
        self.output_ids.append(token)
        if token in self.eos_ids:
            return self._finish("stop", (token,), "")
        text = self._stops.push(self._text.push(token))
        if self._stops.stopped:
            return self._finish("stop", (token,), text)
        if len(self.output_ids) >= self.limit:
            return self._finish("length", (token,), text)
        return self._add((token,), text)

    def cancel(self) -> Progress:
        """End the answer as `cancelled`, with what text was held back."""
        return self.end("cancelled")

    def end(self, reason: FinishReason) -> Progress:
        """End the answer for a reason that its tokens do not show, with what text was held back."""
        return self._finish(reason, (), "")

    def _finish(self, reason: FinishReason, ids: tuple[int, ...], text: str) -> Progress:
        text += self._stops.close(self._text.flush())
        # The last, held characters may have completed a stop string.
        self.finish_reason = "stop" if reason == "length" and self._stops.stopped else reason
        return self._add(ids, text)

    def _add(self, ids: tuple[int, ...], text: str) -> Progress:
        if text:
            self._pieces.append(text)
        return Progress(self, ids, text)


def decode(decoder: Decoder, generations: Iterable[Generation], *, max_rows: int = 32) -> Iterator[Progress]:
    """Run answers to their end, at most `max_rows` at a time, and yield what each step adds, as it is known.

    A row that is over leaves and the next one takes its place. Closing the iterator drops what is still running.
    """
    waiting = iter(generations)
    exhausted = False
    try:
        while True:
            free = max_rows - len(decoder)
            joining: list[Generation] = []
            while not exhausted and len(joining) < free:
                generation = next(waiting, None)
                if generation is None:
                    exhausted = True
                else:
                    joining.append(generation)
            if joining:
                decoder.add(joining)
            if not len(decoder):
                return
            yield from decoder.step()
    finally:
        decoder.clear()


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"`{name}` is {value!r}", hint=f"a whole number from {least} to {most}", field=name)


def _check_float(name: str, value: Any, least: float, most: float, *, above: bool = False) -> None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not least <= value <= most or (above and value == least):
        bound = f"above {least:g}" if above else f"from {least:g}"
        raise RequestError(f"`{name}` is {value!r}", hint=f"a number {bound} to {most:g}", field=name)


def _check_stops(stops: Sequence[object]) -> None:
    if not isinstance(stops, tuple) or len(stops) > _MOST_STOPS:
        raise RequestError("`stop` is no list of strings", hint=f"at most {_MOST_STOPS} strings", field="stop")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= _LONGEST_STOP:
            raise RequestError(
                f"`stop` holds {stop!r:.60}", hint=f"strings of 1 to {_LONGEST_STOP} characters", field="stop"
            )
