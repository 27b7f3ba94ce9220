"""transformers' own `generate`, for one prompt at a time: what our loop does not do, and models that it cannot step.

Prompts are never padded here, so that an answer cannot depend on what else was asked: a row of a batch is its solo
result by construction. Where one token follows another (greedy, sampling, any logits processor), `generate` prepares
inputs, cache, processors and stopping criteria, and the loop over them is a Python generator given as its
`custom_generate`: tokens come out one by one, and each is drawn from the answer's own random sequence, as in our own
loop. Beams and assisted decoding run whole, in transformers' code; where they draw, the process-wide random state is
seeded, and put back, under a lock.

Knows tensors and one model; knows no chat template and no other request.
"""

from __future__ import annotations

import copy
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, YardError
from modelyard.weights.generation.sampling import pick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from modelyard.weights.generation.loop import Generation, Progress
    from modelyard.weights.generation.strategies import Request

__all__ = ["run_steps", "run_whole", "steps"]

_RANDOM = threading.Lock()
"""Held while transformers draws from the process-wide random state."""


def steps(model: Any, request: Request) -> bool:
    """Whether `run_steps` can do a request: one token follows another, and the model's class has no loop of its own."""
    from transformers import GenerationMixin

    own = any(getattr(type(model), name) is not getattr(GenerationMixin, name) for name in ("generate", "_sample"))
    return request.stepwise and not own


def run_steps(model: Any, inputs: Mapping[str, Any], generation: Generation, request: Request) -> Iterator[Progress]:
    """One answer, token by token.

    Args:
        model: A model of transformers that generates, in eval mode.
        inputs: What its `generate` takes, a batch of one: `input_ids` (1, tokens), `attention_mask`, `pixel_values`, ...
        generation: The answer; its limit, ending tokens, stop strings and random sequence hold.
        request: What is asked.

    Raises:
        RequestError: transformers refuses what is asked, or the rules forbid every token.
        ModelError: The model's logits are not finite.
    """
    import torch

    def loop(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Iterator[int]:
        return _walk(
            model,
            input_ids,
            choose=_chooser(generation, request, logits_processor),
            stopping_criteria=stopping_criteria,
            config=generation_config,
            state=model_kwargs,
        )

    with _explained(), torch.inference_mode():
        runner, objects = _prepare(model, generation, request)
        tokens = runner.generate(**_placed(inputs, model), **objects, custom_generate=loop)
    while not generation.over:
        with _explained(), torch.inference_mode():
            token = next(tokens, None)
        if token is None:
            yield generation.end("stop")  # a criterion of the caller, or its time
            return
        yield generation.take(token)


def run_whole(model: Any, inputs: Mapping[str, Any], generations: Sequence[Generation], request: Request) -> None:
    """All answers to one prompt in one call of transformers' `generate`; the arguments are those of `run_steps`."""
    import torch

    first = generations[0]
    with _explained(), torch.inference_mode(), _seeded(model, first, request):
        runner, objects = _prepare(model, first, request)
        config = runner.generation_config
        config.num_return_sequences = len(generations)
        if first.params.stop:
            config.stop_strings, objects["tokenizer"] = list(first.params.stop), first.tokenizer
        # A class with a `generate` of its own hands this down to the model inside it, which has other defaults.
        found = runner.generate(**_placed(inputs, model), **objects, generation_config=config)
        rows = getattr(found, "sequences", found).tolist()
    # Beams end by a token or at the limit, unless a criterion of the caller's cuts them: only then is the rest padding.
    pad = config.pad_token_id if "stopping_criteria" in request.objects or config.max_time is not None else None
    for generation, row in zip(generations, rows, strict=True):
        _feed(generation, _new_tokens(model, inputs, row), pad)


def _feed(generation: Generation, tokens: list[int], pad: int | None) -> None:
    """Take tokens in up to the answer's end; padding behind an answer that no token of its own ended is none of it."""
    if pad is not None and not set(tokens) & generation.eos_ids:
        while tokens and tokens[-1] == pad and len(tokens) > 1:
            tokens.pop()
    for token in tokens:
        generation.take(token)
        if generation.over:
            return
    generation.end("stop")


def _new_tokens(model: Any, inputs: Mapping[str, Any], row: list[int]) -> list[int]:
    """A row without what it began with: the decoder's first token, or the prompt where the model repeats it.

    A class with a `generate` of its own may put its first token in the first place and leave the closing one out (BLIP).
    """
    if model.config.is_encoder_decoder:
        return row[1:]
    prompt = inputs["input_ids"][0].tolist() if "input_ids" in inputs else []
    if not prompt:
        return row[1:] if row[:1] == [model.config.get_text_config(decoder=True).bos_token_id] else row
    same = 1
    while same < min(len(prompt), len(row)) and prompt[same] == row[same]:
        same += 1
    repeated = same >= len(prompt) - 1 and (len(prompt) > 1 or row[:1] == prompt)
    return row[same:] if repeated else row


def _walk(
    model: Any,
    ids: Tensor,
    *,
    choose: Callable[[Tensor, Tensor], int],
    stopping_criteria: Any,
    config: Any,
    state: dict[str, Any],
) -> Iterator[int]:
    """The loop: `ids`, (1, tokens), grows by one token a forward pass."""
    import torch

    # The two private methods are what transformers' own examples of a `custom_generate` call.
    outputs = model._prefill(ids, config, state)  # noqa: SLF001
    while True:
        state = model._update_model_kwargs_for_generation(  # noqa: SLF001
            outputs, state, is_encoder_decoder=model.config.is_encoder_decoder
        )
        token = choose(ids, outputs.logits[:, -1].to(dtype=torch.float32, device=ids.device, copy=True))
        del outputs  # logits of a whole prompt are large
        ids = torch.cat([ids, ids.new_tensor([[token]])], dim=-1)
        yield token
        if bool(stopping_criteria(ids, None).all()):
            return
        given = model.prepare_inputs_for_generation(
            ids, next_sequence_length=1 if state["use_cache"] else None, **state
        )
        outputs = model(**given, return_dict=True)


def _chooser(generation: Generation, request: Request, processors: Any) -> Callable[[Tensor, Tensor], int]:
    """From the tokens so far, (1, tokens), and their logits, (1, vocabulary), to the next token."""
    import torch

    def choose(ids: Tensor, logits: Tensor) -> int:
        _check_finite(logits)
        scores = processors(ids, logits)
        if not bool(torch.isfinite(scores.amax())):
            raise RequestError("the rules of this request forbid every token", hint="take one of them back")
        if request.params.greedy:
            return int(scores.argmax(dim=-1))
        return pick(scores, [generation.draw()])[0]

    return choose


def _prepare(model: Any, generation: Generation, request: Request) -> tuple[Any, dict[str, Any]]:
    """The model with a configuration of its own for this call, and what else `generate` is given.

    transformers fills what a call leaves out from `model.generation_config`, so that nothing of it could be switched
    off. A shallow copy of the model shares every layer and has its own.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    runner = copy.copy(model)
    runner.generation_config = _config(model, generation, request)
    objects = dict(request.objects)
    processors = _listed(objects.pop("logits_processor", None))
    penalty = _penalty(generation)
    objects["logits_processor"] = LogitsProcessorList([*([penalty] if penalty else []), *processors, _finite()])
    if "stopping_criteria" in objects:
        objects["stopping_criteria"] = StoppingCriteriaList(_listed(objects["stopping_criteria"]))
    if "assistant_model" in objects:
        objects |= _assistant(objects["assistant_model"], model, generation.tokenizer)
    return runner, objects


def _config(model: Any, generation: Generation, request: Request) -> Any:
    """The checkpoint's GenerationConfig with everything that a request says in it."""
    params = request.params
    config = copy.deepcopy(model.generation_config)
    config.max_length, config.max_new_tokens = None, generation.limit
    config.eos_token_id = sorted(generation.eos_ids) or None
    config.do_sample = not params.greedy
    config.stop_strings, config.num_return_sequences, config.return_dict_in_generate = None, None, None
    config.repetition_penalty = params.repetition_penalty
    config.temperature = config.top_k = config.top_p = config.min_p = None
    if not params.greedy:
        config.temperature, config.top_k, config.top_p = params.temperature, params.top_k, params.top_p
        config.min_p = params.min_p or None
    for name, value in request.rules.items():
        if name != "eos_token_id":
            setattr(config, name, value if value not in ([], {}) else None)
    config.token_healing = None
    if (
        config.min_length and not model.config.is_encoder_decoder
    ):  # what a checkpoint asks for ends where the caller says
        config.min_length = min(config.min_length, len(generation.prompt_ids) + generation.limit)
    elif config.min_length:
        config.min_length = min(config.min_length, 1 + generation.limit)
    if params.greedy:
        config.typical_p = config.epsilon_cutoff = config.eta_cutoff = config.top_h = None
    if isinstance(config.watermarking_config, dict):
        from transformers import WatermarkingConfig

        make: Any = WatermarkingConfig.from_dict
        config.watermarking_config = make(config.watermarking_config)
    config.validate()
    return config


def _assistant(assistant: Any, model: Any, tokenizer: Any) -> dict[str, Any]:
    """A draft model as `generate` takes it: ours or transformers', and both tokenizers where vocabularies differ."""
    from modelyard.weights.model import Model

    inner, its_tokenizer = (assistant.model, assistant.tokenizer) if isinstance(assistant, Model) else (assistant, None)
    if inner is None or not hasattr(inner, "generation_config"):
        raise RequestError("`assistant_model` is no model that generates", field="assistant_model")
    draft = copy.copy(inner)
    draft.generation_config = copy.deepcopy(inner.generation_config)  # transformers writes to it while it drafts
    found = {"assistant_model": draft}
    sizes = [each.config.get_text_config(decoder=True).vocab_size for each in (model, draft)]
    if sizes[0] != sizes[1] and its_tokenizer is not None:
        found |= {"tokenizer": tokenizer, "assistant_tokenizer": its_tokenizer}
    return found


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _penalty(generation: Generation) -> Any:
    """Presence and frequency penalties as a logits processor; None where neither is asked for."""
    import torch
    from transformers import LogitsProcessor

    params = generation.params
    if not (params.presence_penalty or params.frequency_penalty):
        return None

    class Penalty(LogitsProcessor):
        """Takes both off the tokens that an answer holds; what stood at the first call is the prompt."""

        begins: int | None = None

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            """`scores`, (rows, vocabulary), for `input_ids`, (rows, tokens)."""
            if self.begins is None:
                self.begins = input_ids.shape[1]
            new = input_ids[:, self.begins :]
            counts = torch.zeros_like(scores).scatter_add_(1, new, torch.ones_like(new, dtype=scores.dtype))
            return scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)

    return Penalty()


def _finite() -> Any:
    """A logits processor that changes nothing, and raises for logits that no token can be chosen from."""
    from transformers import LogitsProcessor

    class Finite(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  # transformers' signature
            _check_finite(scores, forbidden=True)
            return scores

    return Finite()


def _check_finite(scores: Tensor, *, forbidden: bool = False) -> None:
    """Raise for a NaN or +inf; -inf everywhere is a fault of the model only before any token is `forbidden`."""
    import torch

    best = scores.amax(dim=-1)
    if bool((torch.isnan(best) | torch.isposinf(best)).any()) or (not forbidden and bool(torch.isneginf(best).any())):
        raise ModelError(
            "the model's logits are not finite", hint="the weights or the dtype are at fault; run `yard doctor`"
        )


def _placed(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`inputs` where the model is; floating ones, such as pixels, in its dtype."""
    import torch

    placed = {}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            value = value.to(model.device, model.dtype if value.is_floating_point() else None)  # noqa: PLW2901
        placed[name] = value
    return placed


@contextmanager
def _seeded(model: Any, generation: Generation, request: Request) -> Iterator[None]:
    """Where transformers draws by itself: the answer's seed in the process-wide random state, which is put back."""
    import torch

    if request.params.greedy:
        yield
        return
    kind, index = model.device.type, model.device.index
    devices = [] if kind in ("cpu", "mps") else [index if index is not None else 0]
    with _RANDOM, torch.random.fork_rng(devices, device_type=kind if devices else "cuda"):
        torch.manual_seed(generation.seed)
        yield


class _Quiet(logging.Filter):
    """Drops what transformers logs in a thread while it runs a request of ours: what matters of it is an error here."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  # logging's signature
        """Whether a record may be shown."""
        return not getattr(self.thread, "running", False)


_QUIET = _Quiet()
_TALKERS = ("utils", "configuration_utils", "logits_process", "candidate_generator", "stopping_criteria")


@contextmanager
def _explained() -> Iterator[None]:
    """What transformers says of a request that it cannot do, as a `RequestError`; nothing is logged meanwhile."""
    for name in _TALKERS:
        logging.getLogger(f"transformers.generation.{name}").addFilter(_QUIET)  # the same one again changes nothing
    before, _QUIET.thread.running = getattr(_QUIET.thread, "running", False), True
    try:
        yield
    except YardError:
        raise
    except (ValueError, TypeError, NotImplementedError, AttributeError, IndexError, KeyError, ImportError) as error:
        text = str(error).strip().split("\n")[0][:500] or type(error).__name__
        raise RequestError(f"transformers' `generate` refuses this request: {text}") from error
    finally:
        _QUIET.thread.running = before
