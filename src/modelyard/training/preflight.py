"""Preflight: everything that can be known about a training run before it starts, in seconds.

What would make the run worthless is an error (`DataError`, `RecipeError`, `ModelError`); what may is a finding. Builds the
base without its weights and tokenizes every row; trains nothing and writes nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import DataError
from modelyard.training import machine
from modelyard.training.coverage import Coverage, plan_coverage, read_skeleton
from modelyard.training.isolation import quiet_libraries
from modelyard.training.tokens import Encoded, encode_rows, load_tokenizer, stop_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.training.config import TrainConfig
    from modelyard.training.data import Rows

__all__ = ["Estimate", "Finding", "Plan", "Preflight", "make_plan", "packed_length", "preflight"]

_SHOWN = 5
"""Rows that a finding names."""

_WORKSPACE = 64 << 20
"""Buffers of the math library and of the optimizer's step, which hardly depend on the model."""

_PACKED_LENGTH = 1024
"""Longest packed sequence where `max_length` is not given: attention among rows packed together is wasted work."""


@dataclass(frozen=True)
class Finding:
    """Something worth knowing before training; `level` is `warning` or `info`, `code` is stable, for programs."""

    level: Literal["warning", "info"]
    code: str
    message: str
    hint: str | None = None

    def to_dict(self) -> dict[str, str]:
        """The finding as plain values."""
        plain = {"level": self.level, "code": self.code, "message": self.message}
        return plain | ({"hint": self.hint} if self.hint else {})


@dataclass(frozen=True)
class Estimate:
    """Bytes that training takes, by a formula (rough: the activations depend on the architecture).

    Attributes:
        weights: The frozen base.
        adapter: LoRA weights, their gradients and AdamW's two moments, all in float32.
        activations: What one forward pass keeps for the backward pass, logits included.
        available: What the machine has left.
        disk: Checkpoints at their most: two kept, one being written, and the result.
        disk_free: Free on the disk of the working folder; None when no folder was given.
    """

    weights: int
    adapter: int
    activations: int
    available: int
    disk: int
    disk_free: int | None

    @property
    def memory(self) -> int:
        """Bytes of memory in all."""
        return self.weights + self.adapter + self.activations


@dataclass(frozen=True)
class Plan:
    """What a run will do, as far as base, rows and options decide it; made once, used by `preflight` and `train`."""

    tokenizer: Any
    encoded: Encoded
    coverage: Coverage
    parameters: int
    context: int | None
    limit: int | None
    dtype: machine.Arithmetic
    stops: tuple[int, ...]
    estimate: Estimate
    hidden: int


@dataclass(frozen=True)
class Preflight:
    """The outcome: figures in `report`, and findings, warnings first."""

    findings: tuple[Finding, ...]
    report: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether there is no warning."""
        return not any(finding.level == "warning" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for `--json`."""
        return {"ok": self.ok, "findings": [finding.to_dict() for finding in self.findings], **self.report}


def _sequence_limit(config: TrainConfig, context: int | None) -> int | None:
    """The longest row in tokens: the option, but never more than the base's context."""
    if config.max_length is None:
        return context
    return config.max_length if context is None else min(config.max_length, context)


def preflight(base: Path, rows: Rows, config: TrainConfig, *, workdir: Path | None = None) -> Preflight:
    """Check a run before it starts.

    Args:
        base: Model folder with config, tokenizer and weights.
        rows: What to train on.
        config: How.
        workdir: Where `train` will work, to compare its disk with what checkpoints need.

    Raises:
        ModelError: The base is not a sound causal language model with a tokenizer.
        RecipeError: LoRA targets match no module.
        DataError: The chat template refuses a row, or no row has a token to train.
    """
    with quiet_libraries():
        plan = make_plan(base, rows, config, workdir=workdir)
        threads = machine.choose_threads(config.threads, plan.hidden, _batch_tokens(plan.encoded, config))
        report = _report(plan, rows, threads)
    findings = _findings(plan, rows, config)
    return Preflight(tuple(sorted(findings, key=lambda finding: finding.level != "warning")), report)


def make_plan(base: Path, rows: Rows, config: TrainConfig, *, workdir: Path | None = None) -> Plan:
    """Decide what a run will do; raises what `preflight` raises."""
    from modelyard.weights.checks import check_model
    from modelyard.weights.files import FolderFiles

    check_model(FolderFiles(base))
    skeleton = read_skeleton(base)
    coverage = plan_coverage(skeleton, config)
    text_config = skeleton.config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None)
    limit = _sequence_limit(config, context)
    tokenizer = load_tokenizer(base)
    stops = stop_tokens(base, tokenizer)
    encoded = encode_rows(rows, tokenizer, stops=stops, limit=limit)
    if not encoded.rows:
        raise DataError(
            f"no row has a token to train: all {len(rows)} rows have only masked tokens"
            + (f" after the cut at {limit} tokens" if encoded.truncated else ""),
            hint="raise max_length"
            if encoded.truncated
            else "the assistant's messages are what is trained: are there any?",
        )
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    dtype = machine.choose_dtype(config.dtype, parameters)
    estimate = _estimate(
        text_config, parameters, dtype, coverage, tokens=_batch_tokens(encoded, config), workdir=workdir
    )
    hidden = int(text_config.hidden_size)
    return Plan(tokenizer, encoded, coverage, parameters, context, limit, dtype, tuple(stops), estimate, hidden)


def packed_length(config: TrainConfig, plan_limit: int | None) -> int:
    """The longest packed sequence in tokens."""
    if config.max_length is not None and plan_limit is not None:
        return plan_limit
    return min(plan_limit or _PACKED_LENGTH, _PACKED_LENGTH)


def _batch_tokens(encoded: Encoded, config: TrainConfig) -> int:
    """Tokens of the largest batch: the longest rows together, padded."""
    longest = max(len(row.ids) for row in encoded.rows)
    return min(config.batch_size, len(encoded.rows)) * longest


def _estimate(
    text_config: Any, parameters: int, dtype: str, coverage: Coverage, *, tokens: int, workdir: Path | None
) -> Estimate:
    """Bytes for one batch of `tokens` tokens, padding included."""
    width = 2 if dtype == "bfloat16" else 4
    hidden, layers = int(text_config.hidden_size), int(text_config.num_hidden_layers)
    inner = int(getattr(text_config, "intermediate_size", None) or 4 * hidden)
    # A layer keeps about eight tensors of the hidden width (norms, attention's inputs and output, residuals) and five of
    # the inner width (gate, up, their products, the activation); LoRA keeps another copy of its inputs in float32.
    kept = tokens * layers * (8 * hidden + 5 * inner) * width + tokens * layers * 4 * hidden * (4 if width == 2 else 0)
    logits = tokens * int(text_config.vocab_size) * 4 * 3
    return Estimate(
        weights=parameters * width,
        adapter=coverage.parameters * 4 * 4,
        activations=kept + logits + _WORKSPACE,
        available=machine.available_memory(),
        disk=coverage.parameters * 4 * (3 * 3 + 1),
        disk_free=None if workdir is None else machine.free_disk(workdir),
    )


def _rows(rows: Rows, numbers: list[int]) -> str:
    names = ", ".join(rows.examples[number].source or f"row {number + 1}" for number in numbers[:_SHOWN])
    more = len(numbers) - _SHOWN
    return names + (f" and {more} more" if more > 0 else "")


def _findings(plan: Plan, rows: Rows, config: TrainConfig) -> list[Finding]:
    return [*_row_findings(plan, rows), *_plan_findings(plan, rows, config)]


def _row_findings(plan: Plan, rows: Rows) -> list[Finding]:
    encoded = plan.encoded
    found: list[Finding] = []
    if encoded.empty:
        found.append(
            Finding(
                "warning",
                "no-trained-token",
                f"{len(encoded.empty)} of {len(rows)} rows have no token to train and are left out: "
                f"{_rows(rows, encoded.empty)}",
                "raise max_length" if set(encoded.empty) & set(encoded.truncated) else None,
            )
        )
    if encoded.truncated:
        found.append(
            Finding(
                "warning",
                "truncated",
                f"{len(encoded.truncated)} of {len(rows)} rows are longer than {plan.limit} tokens and lose "
                f"{encoded.cut_tokens} tokens at the end: {_rows(rows, encoded.truncated)}",
                "raise max_length" if plan.context is None or (plan.limit or 0) < plan.context else None,
            )
        )
    if encoded.without_stop:
        found.append(
            Finding(
                "warning",
                "no-stop-token",
                f"{len(encoded.without_stop)} of {len(encoded.rows)} rows train no stop token, so the model may not learn "
                f"to end its answers: {_rows(rows, encoded.without_stop)}",
                "the chat template should end a turn with a token that is an `eos_token_id` in generation_config.json",
            )
        )
    if encoded.crossing:
        found.append(
            Finding(
                "warning",
                "token-crosses-turn",
                f"in {len(encoded.crossing)} rows a token straddles the beginning of the answer: "
                f"{_rows(rows, encoded.crossing)}",
                "the chat template should end its generation prompt with a special token or a line end",
            )
        )
    if encoded.injected:
        found.append(
            Finding(
                "warning",
                "special-token-in-content",
                f"{len(encoded.injected)} rows contain the text of a special token: {_rows(rows, encoded.injected)}",
                "it becomes the special token itself; remove it unless that is meant",
            )
        )
    return found


def _plan_findings(plan: Plan, rows: Rows, config: TrainConfig) -> list[Finding]:
    found: list[Finding] = []
    estimate = plan.estimate
    for suffix, count in plan.coverage.uneven.items():
        found.append(  # reads better than a nested expression
            Finding("warning", "uneven-coverage", f"`{suffix}` exists in {count} of {plan.coverage.layer_count} layers")
        )
    if estimate.memory > estimate.available:
        found.append(
            Finding(
                "warning",
                "memory",
                f"about {estimate.memory >> 20} MiB are needed and {estimate.available >> 20} MiB are available",
                "lower batch_size (and raise gradient_accumulation), or max_length",
            )
        )
    if estimate.disk_free is not None and estimate.disk > estimate.disk_free:
        found.append(
            Finding(
                "warning",
                "disk",
                f"checkpoints take up to {estimate.disk >> 20} MiB and {estimate.disk_free >> 20} MiB are free",
                "lower rank, or train in another folder",
            )
        )
    if config.dtype == "bfloat16" and not machine.has_fast_bfloat16():
        found.append(
            Finding("warning", "slow-bfloat16", "this processor has no bfloat16 arithmetic", "leave dtype at `auto`")
        )
    if rows.ignored_columns:
        names = ", ".join(f"`{name}`" for name in rows.ignored_columns)
        found.append(
            Finding(
                "info",
                "ignored-columns",
                f"the format {rows.format} does not read the columns {names}",
                'to use them say so: columns: {"prompt": "<column>", "completion": "<column>"}',
            )
        )
    return found


def _report(plan: Plan, rows: Rows, threads: int) -> dict[str, Any]:
    encoded, estimate, coverage = plan.encoded, plan.estimate, plan.coverage
    lengths = sorted(len(row.ids) for row in encoded.rows)
    return {
        "rows": {**rows.counts, "usable": len(encoded.rows), "format": rows.format, "digest": str(rows.digest)},
        "tokens": {
            "total": encoded.tokens,
            "trained": encoded.trained_tokens,
            "trained_share": encoded.trained_tokens / encoded.tokens,
            "longest": lengths[-1],
            "median": lengths[len(lengths) // 2],
            "limit": plan.limit,
            "context": plan.context,
            "truncated_rows": len(encoded.truncated),
            "cut": encoded.cut_tokens,
            "stop_share": 1 - len(encoded.without_stop) / len(encoded.rows),
        },
        "lora": {
            "modules": len(coverage.modules),
            "by_name": dict(sorted(coverage.layers.items())),
            "layers": coverage.layer_count,
            "trainable_parameters": coverage.parameters,
            "base_parameters": plan.parameters,
            "trainable_share": coverage.parameters / (coverage.parameters + plan.parameters),
        },
        "memory": {
            "weights": estimate.weights,
            "adapter": estimate.adapter,
            "activations": estimate.activations,
            "total": estimate.memory,
            "available": estimate.available,
        },
        "disk": {"checkpoints": estimate.disk, "free": estimate.disk_free},
        "compute": {"dtype": plan.dtype, "threads": threads},
        "examples": [_marked(plan, number) for number in range(min(3, len(encoded.rows)))],
    }


def _marked(plan: Plan, number: int) -> list[dict[str, Any]]:
    """One row as it will be trained: pieces of text, each trained or not."""
    row = plan.encoded.rows[number]
    borders = [0, *(i for i in range(1, len(row.ids)) if row.trained[i] != row.trained[i - 1]), len(row.ids)]
    return [
        {"text": plan.tokenizer.decode(row.ids[start:end].tolist()), "trained": bool(row.trained[start])}
        for start, end in itertools.pairwise(borders)
    ]
