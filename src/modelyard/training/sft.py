"""Supervised fine-tuning of a LoRA adapter: a base folder and rows in, an adapter folder out.

Deterministic: one base, rows, options, library versions and kind of processor give one set of weights, bit for bit,
however often the run is killed and started again. Knows no yard, no database and no network; prints nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.digest import hash_stream
from modelyard.errors import IntegrityError, InternalError
from modelyard.training import adapter, machine
from modelyard.training.checkpoints import Workdir, interrupted
from modelyard.training.isolation import compute_threads, kept_random_state, quiet_libraries
from modelyard.training.preflight import Plan, make_plan, packed_length
from modelyard.training.trainer import LOG, Session, build_trainer, plan_schedule, stop_signals
from modelyard.weights.load import loading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelyard.training.config import TrainConfig
    from modelyard.training.data import Rows

__all__ = ["TrainResult", "train"]

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers")


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run.

    Attributes:
        adapter: PEFT folder: weights, config, tokenizer files. It stays in the working folder.
        steps: Optimizer steps in all.
        seconds: Wall time of this call.
        loss: Mean loss per trained token over the last tenth of the steps.
        log: One dict a step: step, steps, loss, learning_rate, gradient_norm, epoch.
        resumed_from: The step whose checkpoint this call went on from; None for a run from the beginning.
        metrics: Figures of the run: rows, tokens, trainable parameters, dtype, threads, quarantined checkpoints.
    """

    adapter: Path
    steps: int
    seconds: float
    loss: float
    log: list[dict[str, Any]]
    resumed_from: int | None
    metrics: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the log as plain values."""
        return {
            "adapter": str(self.adapter),
            "steps": self.steps,
            "seconds": self.seconds,
            "loss": self.loss,
            "resumed_from": self.resumed_from,
            "metrics": self.metrics,
        }


def train(
    base: Path,
    rows: Rows,
    config: TrainConfig,
    workdir: Path,
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    base_name: str | None = None,
    restart: bool = False,
) -> TrainResult:
    """Train an adapter; called again after a crash, go on from the last good checkpoint to the same weights.

    Args:
        base: Model folder with config, tokenizer and weights; only read.
        rows: What to train on.
        config: How.
        workdir: Folder for checkpoints and the result; it belongs to this base, these rows and these options. After a
            finished run the same call returns its result at once.
        progress: Called after every step with `step`, `steps`, `loss`, `learning_rate`, `gradient_norm`, `epoch` and
            `tokens_per_second` (padded tokens).
        base_name: What the adapter's config calls its base; None leaves it open.
        restart: Discard what `workdir` holds, another run's checkpoints and results too, and begin again.

    Raises:
        ModelError, RecipeError, DataError: As `preflight`.
        BusyError: Another run works in `workdir`.
        ConflictError: `workdir` belongs to other inputs.
        NoSpaceError: The disk is full; earlier checkpoints stay.
        YardError: With code `diverged`: loss or gradient is not finite, the last good checkpoint stays; with code
            `interrupted`: SIGTERM or SIGINT came, the state is saved.
    """
    begun = time.monotonic()
    with Workdir.locked(workdir) as folder, quiet_libraries(), kept_random_state():
        inputs = _inputs(base, rows, config, base_name)
        finished = folder.finished(inputs)
        if finished is not None and not restart:
            return _result(folder, finished, time.monotonic() - begun, int(finished["steps"]))
        plan = make_plan(base, rows, config, workdir=workdir)
        first = {
            "threads": machine.choose_threads(config.threads, plan.hidden, config.batch_size * _median(plan)),
            "dtype": plan.dtype,
        }
        chosen = folder.claim(inputs, first, restart=restart)
        schedule = plan_schedule(plan.encoded.rows, config, packed_length(config, plan.limit))
        session = Session(schedule, progress, base_name)
        threads, dtype = config.threads or int(chosen["threads"]), str(chosen["dtype"])
        with compute_threads(threads):
            resumed_from = _run(base, plan, config, folder, session, dtype=dtype)
        _publish(base, plan, folder, session, {"threads": threads, "dtype": dtype})
        done = folder.finished(inputs)
        if done is None:
            raise InternalError(f"{workdir}: the adapter that was just written does not verify")
        return _result(folder, done, time.monotonic() - begun, resumed_from)


def _median(plan: Plan) -> int:
    lengths = sorted(len(row.ids) for row in plan.encoded.rows)
    return lengths[len(lengths) // 2]


def _inputs(base: Path, rows: Rows, config: TrainConfig, base_name: str | None) -> dict[str, Any]:
    """Everything that decides the adapter's bytes on one kind of processor."""
    files: dict[str, str] = {}
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in {".json", ".jinja", ".safetensors", ".txt", ".model"}:
            with path.open("rb") as stream:
                files[path.name] = str(hash_stream(stream).blake3)
    return {
        "base": files,
        "base name": base_name,
        "rows": str(rows.digest),
        "options": str(config.key),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _run(base: Path, plan: Plan, config: TrainConfig, folder: Workdir, session: Session, *, dtype: str) -> int | None:
    """Train to the end; the last checkpoint then holds the result. Returns the step that was resumed from."""
    from transformers import set_seed

    checkpoint = folder.newest()
    if checkpoint is not None:
        session.log = json.loads((checkpoint.folder / LOG).read_bytes())
        if checkpoint.step >= session.schedule.steps:
            return checkpoint.step
    # Before the model: LoRA's initial weights are drawn from this seed.
    set_seed(config.seed)
    model = _build_model(base, plan, config, dtype)
    trainer = build_trainer(model, plan.tokenizer, config, session, folder, bfloat16=dtype == "bfloat16")
    with stop_signals(session):
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    if trainer.state.global_step < session.schedule.steps:
        raise interrupted(session.signal_name or "a signal", trainer.state.global_step)
    return checkpoint.step if checkpoint else None


def _build_model(base: Path, plan: Plan, config: TrainConfig, dtype: str) -> Any:
    """The base, frozen, with LoRA pairs in exactly the modules that were planned."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # transformers patches process-wide state while it loads, so every load takes the one lock.
    with loading():
        model = AutoModelForCausalLM.from_pretrained(
            str(base),
            dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora)
    covered = set(peft_model.targeted_module_names)
    if covered != set(plan.coverage.modules):
        missing = sorted(set(plan.coverage.modules) - covered) or sorted(covered - set(plan.coverage.modules))
        raise InternalError(
            f"LoRA covers {len(covered)} modules, not the {len(plan.coverage.modules)} planned: {missing[:3]}"
        )
    return peft_model


def _publish(base: Path, plan: Plan, folder: Workdir, session: Session, facts: dict[str, Any]) -> None:
    """Make the newest checkpoint's weights the result."""
    final = folder.newest()
    if final is None or final.step != session.schedule.steps:
        raise IntegrityError(
            f"{folder.root}: the last checkpoint does not verify", hint="run the same command again: it is made anew"
        )
    staging = folder.begin()
    for name in adapter.ADAPTER_FILES:
        shutil.copyfile(final.folder / name, staging / name)
    adapter.copy_tokenizer(base, staging)
    tail = session.log[-max(1, len(session.log) // 10) :]
    metrics = {
        "rows": len(plan.encoded.rows),
        "tokens": plan.encoded.tokens,
        "trained_tokens": plan.encoded.trained_tokens,
        "steps_per_epoch": session.schedule.steps_per_epoch,
        "trainable_parameters": plan.coverage.parameters,
        "first_loss": session.log[0]["loss"],
        "quarantined": folder.quarantined,
        **facts,
    }
    folder.publish_adapter(
        {
            "steps": final.step,
            "loss": sum(entry["loss"] for entry in tail) / len(tail),
            "log": session.log,
            "metrics": metrics,
        }
    )


def _result(folder: Workdir, stored: dict[str, Any], seconds: float, resumed_from: int | None) -> TrainResult:
    return TrainResult(
        adapter=folder.adapter,
        steps=int(stored["steps"]),
        seconds=seconds,
        loss=float(stored["loss"]),
        log=stored["log"],
        resumed_from=resumed_from,
        metrics=stored["metrics"],
    )
