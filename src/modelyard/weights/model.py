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
from typing import TYPE_CHECKING, Any

from modelyard.errors import InternalError, ModelError, RequestError
from modelyard.weights import chat
from modelyard.weights.decoder import Decoder
from modelyard.weights.defaults import read_defaults
from modelyard.weights.footprint import measure
from modelyard.weights.generation import (
    FinishReason,
    Generation,
    GenerationDefaults,
    check_context,
    decode,
    resolve_params,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GENERATING", "Completion", "Model", "Prompt", "Task"]

Task = str
"""A name of `weights.tasks.TASKS`."""

GENERATING = frozenset({"text-generation", "text2text-generation", "image-text-to-text", "any-to-any"})
"""The tasks whose models answer with text by `generate`."""

Prompt = str | Sequence[Mapping[str, Any]]
"""Text (one user message where the model has a chat template, else raw text), or a conversation."""


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


class Model:
    """A loaded model.

    Attributes:
        model: The model of transformers (or PEFT, with its adapters in place), in eval mode unless loaded for training.
        processor: Its preprocessor: a tokenizer, image processor, feature extractor or processor of several; or None.
        task: A name of `weights.tasks.TASKS`.
        folder: Where it came from; an adapter's own folder.
        base: The folder of an adapter's base, else None.
        version: The version that a registry loaded it from, else None.
        threads: Compute threads that were asked for, else None.
        plan: The `LoadPlan` it was loaded by, else None.
        load_report: What the load added, dropped and cast (`LoadReport`), else None.
        untrained: Which of its tensors were drawn at random and never trained (`Untrained`), else None.
        adapters: Names of its adapters; `adapter=` of a call takes one of them.
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
        plan: Any = None,
        load_report: Any = None,
        untrained: Any = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.processor = processor
        self.task: Task = task
        self.folder = folder
        self.base = base
        self.version = version
        self.threads = threads
        self.plan = plan
        self.load_report = load_report
        self.untrained = untrained
        self.adapters = tuple(adapters)
        self._defaults = read_defaults(_core(model), self.tokenizer) if task in GENERATING else None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, also where it is one part of the processor; None where the task reads no text."""
        if hasattr(self.processor, "convert_ids_to_tokens"):
            return self.processor
        return getattr(self.processor, "tokenizer", None)

    @property
    def config(self) -> Any:
        """The configuration of transformers."""
        return _core(self._alive()).config

    @property
    def base_model(self) -> Any:
        """The bare encoder or decoder, without its head; the same with an adapter on it or not."""
        return _core(self._alive()).base_model

    @property
    def defaults(self) -> GenerationDefaults:
        """What the checkpoint says about its answers; `ModelError` for a task that generates no text."""
        if self._defaults is None:
            raise ModelError(f"`{self.folder}` is a {self.task} model: it generates no text", hint="use `predict`")
        return self._defaults

    def predict(self, inputs: Any, **options: Any) -> Any:
        """What the model says of one input, or of each of a list, as its task's result (`weights.predict.predict`)."""
        from modelyard.weights.predict import predict

        self._alive()
        return predict(self, inputs, **options)

    def save(self, folder: Path | str) -> Path:
        """Write the model with its preprocessors as a folder that `load` reads (`weights.saving.save`)."""
        from modelyard.weights.saving import save

        self._alive()
        return save(self, folder)

    def to(self, device: str) -> Model:
        """Move the weights to `cpu`, `cuda`, `cuda:1`, `mps` or `xpu`; the same model."""
        self._alive().to(device)
        return self

    def train(self) -> Model:
        """Switch dropout and the like on, for training; the same model."""
        self._alive().train()
        return self

    def eval(self) -> Model:
        """Switch dropout and the like off, as every load does; the same model."""
        self._alive().eval()
        return self

    def num_parameters(self, *, trainable: bool = False) -> int:
        """How many parameters there are, tied ones once and packed ones unpacked; `trainable`: those that train."""
        return int(_core(self._alive()).num_parameters(only_trainable=trainable))

    @property
    def footprint(self) -> int:
        """Bytes of all parameters and buffers as they are in memory, quantized ones and shared ones counted as stored."""
        return measure(self._alive())

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
        self._check_decodes()
        resolved = resolve_params(params, self.defaults)
        prompt_ids = tuple(self.tokenize(prompt) if prompt is not None else _check_ids(ids or (), self.model))
        limit = check_context(len(prompt_ids), resolved, self.defaults)
        return Generation(prompt_ids, resolved, limit, self.defaults.eos_ids, self.processor)

    def decoder(self) -> Decoder:
        """A new decoding loop over this model; it belongs to one thread at a time."""
        self._check_decodes()
        return Decoder(_core(self.model))

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

    def _alive(self) -> Any:
        if self.model is None:
            raise ModelError(f"the model of `{self.folder}` was released", hint="load it again")
        return self.model

    def _check_decodes(self) -> None:
        self._alive()
        if self.task != "text-generation":
            raise ModelError(f"`{self.folder}` is a {self.task} model: it does no text-generation")


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
