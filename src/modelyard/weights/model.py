"""`Model`: a loaded model with its tokenizer, ready to answer.

>>> import modelyard                                      # doctest: +SKIP
>>> model = modelyard.open().load("team/intents@production")  # doctest: +SKIP
>>> model.generate("My card has not arrived", max_new_tokens=40)  # doctest: +SKIP

Knows no references and no stores: `version` is set by whoever loaded it from a registry.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modelyard.errors import InternalError, ModelError, RequestError
from modelyard.weights import chat
from modelyard.weights.decoder import Decoder
from modelyard.weights.generation import (
    DEFAULT_MAX_NEW_TOKENS,
    FinishReason,
    Generation,
    GenerationDefaults,
    GenerationParams,
    check_context,
    decode,
    resolve_params,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Completion", "Label", "Model", "Prompt", "Task", "read_defaults"]

Task = Literal["text-generation", "text-classification"]
Prompt = str | Sequence[Mapping[str, Any]]
"""Text (one user message where the model has a chat template, else raw text), or a conversation."""

# Fields of a generation_config that change what is generated and that the decoding loop does not do.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
}


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer.

    Attributes:
        text: The answer, without control tokens and without the stop string that ended it.
        token_ids: Every token that was generated, an ending one included.
        finish_reason: `stop` or `length`.
        prompt_tokens: Tokens of the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int


class Label(NamedTuple):
    """What a classifier says of one text."""

    label: str
    score: float


class Model:
    """A loaded model.

    Attributes:
        model: The model of transformers (or PEFT, with the adapter active), in eval mode.
        processor: Its tokenizer.
        task: `text-generation` or `text-classification`.
        folder: Where it came from; an adapter's own folder.
        base: The folder of an adapter's base, else None.
        version: The version that a registry loaded it from, else None.
        threads: Compute threads that were asked for, else None.
        defaults: What the checkpoint says about its answers.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Task,
        folder: Path,
        *,
        base: Path | None = None,
        version: Any = None,
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.task: Task = task
        self.folder = folder
        self.base = base
        self.version = version
        self.threads = threads
        self.defaults = read_defaults(_core(model), processor)

    def generate(self, prompt: Prompt, **params: Any) -> str:
        """The answer to one prompt.

        Args:
            prompt: Text, or a list of messages. Text is one user message where the model has a chat template.
            **params: Fields of `GenerationParams`; what is not given comes from the checkpoint's generation_config.

        Raises:
            RequestError: A wrong parameter, malformed messages, or more tokens than the context holds.
            ModelError: The chat template fails, the logits are not finite, or the model was released.
        """
        return self.complete([prompt], **params)[0].text

    def batch_generate(self, prompts: Sequence[Prompt], *, batch_size: int = 32, **params: Any) -> list[str]:
        """The answers to many prompts, in their order; each is what `generate` gives with the same parameters."""
        return [completion.text for completion in self.complete(prompts, batch_size=batch_size, **params)]

    def complete(self, prompts: Sequence[Prompt], *, batch_size: int = 32, **params: Any) -> list[Completion]:
        """As `batch_generate`, with token ids, reasons and counts. At most `batch_size` rows are decoded at a time."""
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise RequestError(
                "`prompts` is no list of prompts", hint="pass a list, or use `generate`", field="prompts"
            )
        if batch_size < 1:
            raise RequestError(f"`batch_size` is {batch_size}", hint="1 or more", field="batch_size")
        generations = [self.prepare(prompt, params) for prompt in prompts]
        for progress in decode(self.decoder(), generations, max_rows=batch_size):
            _raise_error(progress.generation)
        return [_completed(generation) for generation in generations]

    def stream(self, prompt: Prompt, **params: Any) -> Iterator[str]:
        """The answer in pieces as they become certain; joined they are what `generate` gives.

        A piece never ends inside a character. The arguments are checked when it is called, not when it is first read.
        """
        return self._stream(self.prepare(prompt, params))

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """The token ids of a conversation by the model's own chat template (`chat.render`)."""
        return chat.render(self.processor, messages, add_generation_prompt=add_generation_prompt)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would start from."""
        if not isinstance(prompt, str):
            return self.render(prompt)
        if chat.has_template(self.processor):
            return self.render([{"role": "user", "content": prompt}])
        return self.tokenize_text(prompt)

    def tokenize_text(self, text: str) -> list[int]:
        """The token ids of raw text, without the chat template."""
        return chat.encode_text(self.processor, text)

    def prepare(
        self, prompt: Prompt | None, params: Mapping[str, Any], *, ids: Sequence[int] | None = None
    ) -> Generation:
        """An answer that is ready to be decoded: everything about it is checked, nothing is computed.

        Args:
            prompt: As `generate` takes it; None when `ids` are given.
            params: Fields of `GenerationParams`.
            ids: Token ids of the prompt, instead of `prompt`.
        """
        self._check_alive("text-generation")
        resolved = resolve_params(params, self.defaults)
        prompt_ids = tuple(self.tokenize(prompt) if prompt is not None else _check_ids(ids or (), self.model))
        limit = check_context(len(prompt_ids), resolved, self.defaults)
        return Generation(prompt_ids, resolved, limit, self.defaults.eos_ids, self.processor)

    def decoder(self) -> Decoder:
        """A new decoding loop over this model; it belongs to one thread at a time."""
        self._check_alive("text-generation")
        return Decoder(_core(self.model))

    def predict(self, texts: str | Sequence[str], *, batch_size: int = 32) -> list[Label]:
        """The likeliest label of each text, with its probability; for `text-classification`."""
        self._check_alive("text-classification")
        import torch

        texts = [texts] if isinstance(texts, str) else list(texts)
        names = self.model.config.id2label
        found: list[Label] = []
        for at in range(0, len(texts), batch_size):
            batch = self.processor(texts[at : at + batch_size], padding=True, return_tensors="pt").to(self.model.device)
            self._check_length(batch["input_ids"].shape[1])
            with torch.inference_mode():
                best = self.model(**batch).logits.float().softmax(-1).max(-1)
            pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            found += [Label(str(names[index]), score) for score, index in pairs]
        return found

    def release(self) -> None:
        """Let the weights go and give their memory back to the system; the model answers nothing afterwards."""
        self.model = None
        gc.collect()
        _trim_heap()

    def _stream(self, generation: Generation) -> Iterator[str]:
        for progress in decode(self.decoder(), [generation]):
            _raise_error(progress.generation)
            if progress.text:
                yield progress.text

    def _check_alive(self, task: Task) -> None:
        if self.model is None:
            raise ModelError(f"the model of `{self.folder}` was released", hint="load it again")
        if self.task != task:
            raise ModelError(f"`{self.folder}` is a {self.task} model: it does no {task}")

    def _check_length(self, tokens: int) -> None:
        if self.defaults.context is not None and tokens > self.defaults.context:
            raise RequestError(
                f"a text has {tokens} tokens and the model's context is {self.defaults.context}", field="texts"
            )


def read_defaults(model: Any, tokenizer: Any) -> GenerationDefaults:
    """What a checkpoint says about its answers: sampling, length, ending tokens, context.

    Values are taken from its generation_config only where it sets them, and sampling only where `do_sample` is true.
    An ending token is what the generation_config lists, the tokenizer's EOS, and what the chat template writes behind
    an answer.
    """
    said: Any = getattr(model, "generation_config", None)
    values: dict[str, Any] = {}
    if getattr(said, "do_sample", None):
        values = {"temperature": 1.0}
        for name in ("temperature", "top_p", "top_k", "min_p"):
            if getattr(said, name, None) is not None:
                values[name] = getattr(said, name)
    if getattr(said, "repetition_penalty", None) is not None:
        values["repetition_penalty"] = said.repetition_penalty
    ends = getattr(said, "eos_token_id", None)
    listed = set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    if tokenizer.eos_token_id is not None:
        listed.add(tokenizer.eos_token_id)
    ignored = tuple(name for name, idle in _NOT_DONE.items() if getattr(said, name, None) not in idle)
    return GenerationDefaults(
        params=GenerationParams(**values),
        eos_ids=frozenset(int(item) for item in listed) | chat.turn_end_ids(tokenizer),
        max_new_tokens=getattr(said, "max_new_tokens", None) or DEFAULT_MAX_NEW_TOKENS,
        context=_read_context(model.config),
        ignored=ignored,
    )


def _read_context(config: Any) -> int | None:
    text = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _core(model: Any) -> Any:
    """The model of transformers inside a PEFT model: its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_ids(ids: Sequence[int], model: Any) -> Sequence[int]:
    size = model.get_input_embeddings().weight.shape[0]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise RequestError(f"the prompt holds the token id {token!r}", hint=f"0 to {size - 1}", field="prompt")
    return ids


def _raise_error(generation: Generation) -> None:
    if generation.error is not None:
        raise ModelError(generation.error, hint="the weights or the dtype are at fault; run `yard doctor`")


def _completed(generation: Generation) -> Completion:
    if generation.finish_reason is None:
        raise InternalError("an answer left the decoding loop unfinished")
    return Completion(
        generation.text, tuple(generation.output_ids), generation.finish_reason, len(generation.prompt_ids)
    )


def _trim_heap() -> None:
    """Give freed pages back: glibc keeps them otherwise, and an unloaded model would still fill the memory."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
