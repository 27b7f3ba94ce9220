"""What may be chosen about a training run: one strict, frozen value.

Every wrong key and value is reported at once, in a `RecipeError` that names the key and its near match. This module knows
nothing of files, models or data; whether a choice fits a base is decided by `preflight`.

>>> TrainConfig(rank=8, learning_rate=1e-3).rank
8
>>> try:
...     TrainConfig(lerning_rate=1e-3)
... except RecipeError as error:
...     print(error)
training: `lerning_rate` is not an option; did you mean `learning_rate`?
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modelyard.digest import Digest, digest_json
from modelyard.errors import RecipeError, near_match

__all__ = ["TrainConfig"]

AllLinear = Literal["all-linear"]
ALL_LINEAR: AllLinear = "all-linear"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_NOT_RESULT = ("save_every", "threads")
"""Options that change how a run goes and not the weights it ends with; they are left out of `TrainConfig.key`."""


class TrainConfig(BaseModel):
    """The options of one training run; the defaults are a sensible LoRA run on a small machine.

    Raises `RecipeError` that lists every wrong key and value.

    Attributes:
        method: `sft`: supervised fine-tuning of a LoRA adapter.
        rank: Rank r of every LoRA matrix pair.
        alpha: LoRA scale numerator; the update is multiplied by alpha / rank.
        dropout: Probability of dropping an input element of a LoRA pair, in [0, 1).
        targets: `all-linear`, or module names (suffixes such as `q_proj`), each of which must match.
        epochs: Passes over the rows; may be fractional. `max_steps` wins when given.
        max_steps: Optimizer steps in total; None means that `epochs` decides.
        batch_size: Rows (packed sequences with `packing`) per forward pass.
        gradient_accumulation: Forward passes per optimizer step.
        learning_rate: Peak rate of AdamW.
        schedule: How the rate falls after the warm-up.
        warmup_ratio: Share of all steps during which the rate rises linearly, in [0, 1).
        weight_decay: AdamW's decoupled decay.
        max_gradient_norm: Gradients are scaled down to this norm.
        max_length: Longest row in tokens, longer ones are cut at the end; None means the base's context length.
        packing: Put several short rows into one sequence; rows do not see one another.
        seed: Decides initialisation, dropout and the order of rows.
        dtype: Arithmetic of the frozen base; `auto` chooses from the processor's instruction set.
        save_every: Optimizer steps between checkpoints; the last step is always saved.
        threads: Compute threads; None measures what is fastest right now.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["sft"] = "sft"
    rank: int = Field(16, ge=1, le=4096)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: AllLinear | list[str] = ALL_LINEAR
    epochs: float = Field(3.0, gt=0, le=10_000)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1, le=65_536)
    gradient_accumulation: int = Field(1, ge=1, le=65_536)
    learning_rate: float = Field(2e-4, gt=0, le=10)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, le=10)
    max_gradient_norm: float = Field(1.0, gt=0)
    max_length: int | None = Field(None, ge=8)
    packing: bool = False
    seed: int = Field(0, ge=0, lt=2**32)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    save_every: int = Field(100, ge=1)
    threads: int | None = Field(None, ge=1, le=1024)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _recipe_error(error, type(self)) from None

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: str | list[str]) -> str | list[str]:
        if isinstance(targets, list) and (not targets or not all(name.strip() for name in targets)):
            raise ValueError("must name at least one module, or be `all-linear`")
        return targets

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values."""
        return self.model_dump()

    @property
    def key(self) -> Digest:
        """The digest of every option that may change the resulting weights."""
        plain = self.model_dump(exclude=set(_NOT_RESULT))
        return digest_json({name: value if isinstance(value, list) else repr(value) for name, value in plain.items()})


def _recipe_error(error: ValidationError, model: type[BaseModel]) -> RecipeError:
    """Translate pydantic's findings into one error; `details["problems"]` holds them one by one."""
    problems: dict[str, str] = {}
    for found in error.errors(include_url=False):
        name = str(found["loc"][0]) if found["loc"] else "training"
        text = _describe(found["type"], name, found["msg"], found.get("input"), model)
        # A union reports each of its members; one sentence per key is enough.
        problems.setdefault(name, text)
    return RecipeError(
        "training: " + "; ".join(problems.values()),
        hint="known options: " + ", ".join(model.model_fields),
        problems=[{"key": name, "problem": text} for name, text in problems.items()],
    )


def _describe(kind: str, name: str, message: str, value: object, model: type[BaseModel]) -> str:
    if kind == "extra_forbidden":
        meant = near_match(name, model.model_fields)
        return f"`{name}` is not an option" + (f"; did you mean `{meant}`?" if meant else "")
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) and name in model.model_fields:
        return f"`{name}` is the text {value!r}, not a number (YAML reads 1e-4 as text: write 1.0e-4 or 0.0001)"
    if name == "targets":
        return f"`targets` is {value!r}: name at least one module in a list, or write `{ALL_LINEAR}`"
    shown = repr(value)
    message = message[:1].lower() + message[1:]
    return f"`{name}` is {shown[:60]}: {message.removeprefix('input ')}"
