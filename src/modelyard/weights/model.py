"""`Model`: a loaded model with its tokenizer, ready to answer.

>>> import modelyard                                      # doctest: +SKIP
>>> model = modelyard.open().load("team/intents@production")  # doctest: +SKIP
>>> model.generate("My card has not arrived", max_new_tokens=40)  # doctest: +SKIP

Knows no references and no stores: `version` is set by whoever loaded it from a registry.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation import chat, completions, vocabulary
from modelyard.weights.generation.completions import Completion
from modelyard.weights.generation.decoder import Decoder
from modelyard.weights.generation.defaults import read_defaults
from modelyard.weights.generation.loop import (
    Generation,
    GenerationDefaults,
    check_context,
    resolve_params,
)
from modelyard.weights.generation.prompts import Given, Prompt, read_prompt

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GENERATING", "Completion", "Model", "Prompt", "Task"]

Task = str
"""A name of `weights.tasks.TASKS`."""

GENERATING = frozenset({"text-generation", "text2text-generation", "image-text-to-text", "any-to-any"})
"""The tasks whose models answer with text by `generate`."""


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
        self._switching = threading.RLock()
        self._warned = False
        self._defaults = read_defaults(_core(model), self.tokenizer) if task in GENERATING else None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, also where it is one part of the processor; None where the task reads no text."""
        if hasattr(self.processor, "convert_ids_to_tokens"):
            return self.processor
        return getattr(self.processor, "tokenizer", None)

    @property
    def core(self) -> Any:
        """The model of transformers itself, whose layers carry the adapters of a PEFT model."""
        return _core(self._alive())

    @property
    def config(self) -> Any:
        """The configuration of transformers."""
        return self.core.config

    @property
    def base_model(self) -> Any:
        """The bare encoder or decoder, without its head; the same with an adapter on it or not."""
        return self.core.base_model

    @property
    def defaults(self) -> GenerationDefaults:
        """What the checkpoint says about its answers; `ModelError` for a task that generates no text."""
        if self._defaults is None:
            raise ModelError(f"`{self.folder}` is a {self.task} model: it generates no text", hint="use `predict`")
        return self._defaults

    def predict(self, inputs: Any, *, adapter: Any = ..., **options: Any) -> Any:
        """What the model says of one input, or of each of a list, as its task's result (`weights.predict.predict`)."""
        from modelyard.weights.predict import predict

        self._alive()
        with self.computing(adapter):
            return predict(self, inputs, **options)

    def save(self, folder: Path | str) -> Path:
        """Write the model with its preprocessors as a folder that `load` reads (`weights.saving.save`)."""
        from modelyard.weights.saving import save

        self._alive()
        return save(self, folder)

    def to(self, device: str) -> Model:
        """Move the weights to `cpu`, `cuda`, `cuda:1`, `mps` or `xpu`; the same model.

        Raises:
            RequestError: The device is not here, or the weights are where a device map put them.
            ModelError: The device has too little memory (`out_of_memory`).
        """
        from modelyard.weights.loading.devices import check_device

        device, core = check_device(device), self.core
        if getattr(core, "hf_device_map", None) and len(set(core.hf_device_map.values())) > 1:
            raise RequestError(
                "a device map placed this model, so it does not move as a whole",
                hint=f'load it again with device="{device}"',
                field="device",
            )
        try:
            with completions.explained(core):
                self.model.to(device)
        except ValueError as error:  # what transformers says of quantized weights that must stay
            raise RequestError(f"the model does not move: {error!s:.300}", field="device") from error
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
        return int(self.core.num_parameters(only_trainable=trainable))

    @property
    def footprint(self) -> int:
        """Bytes of all parameters and buffers as they are in memory, quantized ones and shared ones counted as stored."""
        from modelyard.weights.loading.quantization import footprint

        return int(footprint(self._alive()))

    def generate(self, prompt: Prompt, *, adapter: Any = ..., **params: Any) -> str:
        """The answer to one prompt: new text only.

        Args:
            prompt: Text, a list of messages (with parts of images, sounds and videos where the model takes them), token
                ids, or `{"text": ..., "images": [...]}`. Text is one user message where the model has a chat template.
            adapter: The name of the adapter to answer with, None for the base alone; by default the active one.
            **params: Fields of `GenerationParams`, and whatever transformers' `generate` takes (`strategies`); what is
                not given comes from the checkpoint's generation_config. `return_full_text=True` gives the prompt too.

        Raises:
            RequestError: A wrong parameter, malformed messages, or more tokens than the context holds.
            ModelError: The chat template fails, the logits are not finite, memory ran out or the model was released.
        """
        found = self.complete([prompt], adapter=adapter, **params)
        if len(found) > 1:
            raise RequestError(
                f"`generate` gives one answer, and `num_return_sequences` is {len(found)}",
                hint="use `batch_generate([prompt], ...)` or `complete([prompt], ...)`",
                field="num_return_sequences",
            )
        return found[0].text

    def batch_generate(
        self, prompts: Sequence[Prompt], *, batch_size: int = 32, adapter: Any = ..., **params: Any
    ) -> list[str]:
        """The answers to many prompts, in their order; each is what `generate` gives with the same parameters."""
        found = self.complete(prompts, batch_size=batch_size, adapter=adapter, **params)
        return [completion.text for completion in found]

    def complete(
        self, prompts: Sequence[Prompt], *, batch_size: int = 32, adapter: Any = ..., **params: Any
    ) -> list[Completion]:
        """As `batch_generate`, with token ids, reasons, counts and the loop that answered.

        At most `batch_size` rows are decoded at a time. With `num_return_sequences` the answers to one prompt follow one
        another.
        """
        self._check_generates()
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise RequestError(
                "`prompts` is no list of prompts", hint="pass a list, or use `generate`", field="prompts"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise RequestError(f"`batch_size` is {batch_size!r}", hint="a whole number from 1", field="batch_size")
        self.warn_untrained()
        computing = partial(self.computing, adapter)
        return completions.complete(self, prompts, params, batch_size=batch_size, computing=computing)

    def stream(self, prompt: Prompt, *, adapter: Any = ..., **params: Any) -> Iterator[str]:
        """The answer in pieces as they become certain; joined they are what `generate` gives.

        A piece never ends inside a character. The arguments are checked when it is called, not when it is first read.
        Beams and assisted decoding give their answer in one piece.
        """
        self._check_generates()
        self.warn_untrained()
        return completions.stream(self, prompt, params, computing=partial(self.computing, adapter))

    def warn_untrained(self) -> None:
        """Warn (`UntrainedWarning`), once for this model, where answers come from weights that nobody trained.

        What answers calls this by itself; a loop that is stepped through `decoder` does not.
        """
        if self.untrained is None or self._warned:
            return
        from modelyard.weights.loading.compiled import plain_state
        from modelyard.weights.untrained import UntrainedWarning, is_untrained

        self._warned = True
        if not self.adapters and not is_untrained(self.untrained, plain_state(self.model)):
            return  # it was trained since it was loaded
        what = "a head that was drawn at random" if self.untrained.kind == "head" else "random weights"
        name = self.version.name if self.version is not None else self.folder
        message = f"`{name}` has {what}: train it before its answers mean anything"
        warnings.warn(message, UntrainedWarning, stacklevel=_outside())

    @contextmanager
    def computing(self, adapter: Any = ...) -> Iterator[None]:
        """Compute with an adapter (a name, None for the base, ... for the active one) inside the block.

        The switch belongs to the model: calls for different adapters wait for each other.

        Raises:
            RequestError: The model has no such adapter.
        """
        from modelyard.weights.loading import adapters

        with self._switching if self.adapters else nullcontext():
            if adapter is ...:
                yield
            else:
                with adapters.using(self._alive(), adapter):
                    yield

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """The token ids of a conversation by the model's own chat template, its processor's where that has one.

        Raises:
            RequestError: The messages are malformed or too large, or the template refuses them.
            ModelError: There is no template, or it fails.
        """
        tokenizer = self._tokenizer()
        if self.processor is tokenizer or not chat.has_template(self.processor):
            return chat.render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
        return list(read_prompt(self.processor, tokenizer, messages, add_generation_prompt=add_generation_prompt).ids)

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would start from, placeholders of media included.

        Raises:
            RequestError: As `generate`; ids are checked against the model's vocabulary.
        """
        given = read_prompt(self.processor, self.tokenizer, prompt)
        if not given.tensors and self.model is not None:
            completions.check_ids(given.ids, self.core)
        return list(given.ids)

    def tokenize_text(self, text: str) -> list[int]:
        """The token ids of raw text, without the chat template."""
        return chat.encode_text(self._tokenizer(), text)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of token ids; `RequestError` names an id that the vocabulary does not have."""
        return vocabulary.detokenize(self._tokenizer(), ids, skip_special=skip_special)

    def prepare(
        self, prompt: Prompt | None, params: Mapping[str, Any], *, ids: Sequence[int] | None = None
    ) -> Generation:
        """An answer that is ready to be decoded: everything about it is checked, nothing is computed.

        Args:
            prompt: As `generate` takes it; None when `ids` are given.
            params: Fields of `GenerationParams`; what only transformers' own loop does (`defaults.ignored`) is left out.
            ids: Token ids of the prompt, instead of `prompt`.
        """
        self._check_decodes()
        resolved = resolve_params(params, self.defaults)
        given = Given(tuple(ids or ())) if prompt is None else read_prompt(self.processor, self.tokenizer, prompt)
        if given.has_media:
            raise RequestError(
                "the prompt holds images, sounds or videos, and a decoding loop by itself takes tokens",
                hint="use `generate`, `complete` or `stream`",
                field="messages",
            )
        prompt_ids = given.ids
        completions.check_ids(prompt_ids, self.core)
        limit = check_context(len(prompt_ids), resolved, self.defaults)
        return Generation(prompt_ids, resolved, limit, self.defaults.eos_ids, self.tokenizer)

    def decoder(self) -> Decoder:
        """A new decoding loop over this model; it belongs to one thread at a time."""
        self._check_decodes()
        return Decoder(self.core)

    def release(self) -> None:
        """Let the weights go and give their memory back to the system; the model answers nothing afterwards.

        Of accelerators, only the cache of the one that it was on is emptied.
        """
        from modelyard.weights.loading.memory import give_back

        device = str(self.model.device) if self.model is not None else "cpu"
        self.model = None
        give_back(device)

    def _alive(self) -> Any:
        if self.model is None:
            raise ModelError(f"the model of `{self.folder}` was released", hint="load it again")
        return self.model

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError(f"`{self.folder}` is a {self.task} model: it has no tokenizer")
        return self.tokenizer

    def _check_generates(self) -> None:
        self._alive()
        if self._defaults is None:
            raise ModelError(
                f"`{self.folder}` is a {self.task} model: it does no text-generation", hint="use `predict`"
            )

    def _check_decodes(self) -> None:
        self._alive()
        if self.task != "text-generation":
            raise ModelError(f"`{self.folder}` is a {self.task} model: it does no text-generation")


def _outside() -> int:
    """How many frames above its caller the first one outside of this library is, as `warnings.warn` counts them."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("modelyard"):
        level, frame = level + 1, frame.f_back
    return level


def _core(model: Any) -> Any:
    """The model of transformers inside a PEFT model: its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
