"""The trainer: TRL's `SFTTrainer` with our data order, our checkpoints, the model's own loss, and nothing said aloud.

What is replaced, and why:

- *Loss.* On a CPU TRL's fused head is slower and larger than the model's own loss, which is called instead, and only on
  the positions from the first trained token on: the head is most of a small model's work.
- *Data order.* Our batches depend on seed and epoch alone, so that a resumed run sees the same ones.
- *Checkpoints.* Written to staging and published whole (`checkpoints`), between steps only, where the random state is
  that of an uninterrupted run.
- *Non-finite loss or gradient.* Stops before the optimizer moves; transformers would replace the loss and go on.
- *Telemetry.* None is sent.

Knows no yard and no files but the working folder's.
"""

from __future__ import annotations

import inspect
import json
import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError
from modelyard.training.adapter import load_adapter, save_adapter
from modelyard.training.batches import EpochBatches, collate_packed, collate_padded, pack_rows
from modelyard.training.checkpoints import full_disk_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelyard.training.checkpoints import Workdir
    from modelyard.training.config import TrainConfig
    from modelyard.training.tokens import EncodedRow

__all__ = ["Schedule", "Session", "build_trainer", "plan_schedule", "stop_signals"]

LOG = "log.json"


@dataclass(frozen=True)
class Schedule:
    """How long a run is: the items of an epoch (rows, or lists of rows when packed) and the optimizer steps in all."""

    items: list[Any]
    lengths: list[int]
    steps_per_epoch: int
    steps: int


def plan_schedule(rows: list[EncodedRow], config: TrainConfig, packed_length: int) -> Schedule:
    """Lay out the items of an epoch and count the steps."""
    items: list[Any] = rows
    lengths = [len(row.ids) for row in rows]
    if config.packing:
        bins = pack_rows(lengths, max(packed_length, *lengths))
        items = [[rows[position] for position in part] for part in bins]
        lengths = [sum(len(row.ids) for row in part) for part in items]
    batches = math.ceil(len(items) / config.batch_size)
    per_epoch = math.ceil(batches / config.gradient_accumulation)
    return Schedule(items, lengths, per_epoch, config.max_steps or math.ceil(config.epochs * per_epoch))


@dataclass
class Session:
    """What one attempt at a run gathers: the log so far, the signal that asked it to stop, counters for the speed.

    `base_name` is what the adapter calls its base.
    """

    schedule: Schedule
    progress: Callable[[dict[str, Any]], None] | None = None
    base_name: str | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    signal_name: str | None = None
    tokens: int = 0
    started: float = 0.0
    loss: float = 0.0
    gradient_norm: float = 0.0

    def record(self, step: int, epoch: float, learning_rate: float) -> None:
        """Note a finished step and tell whoever watches."""
        seconds = time.monotonic() - self.started
        entry = {
            "step": step,
            "steps": self.schedule.steps,
            "loss": self.loss,
            "learning_rate": learning_rate,
            "gradient_norm": self.gradient_norm,
            "epoch": epoch,
        }
        self.log.append(entry)
        if self.progress is not None:
            self.progress(entry | {"tokens_per_second": self.tokens / seconds if seconds > 0 else 0.0})


@contextmanager
def stop_signals(session: Session) -> Iterator[None]:
    """SIGTERM and SIGINT ask the session to stop after the step; a second one acts as it did before.

    Only the main thread can receive signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, _frame: object) -> None:
        session.signal_name = signal.Signals(number).name
        for one, handler in before.items():
            signal.signal(one, handler)

    for one in (signal.SIGTERM, signal.SIGINT):
        before[one] = signal.signal(one, ask)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def build_trainer(
    model: Any, tokenizer: Any, config: TrainConfig, session: Session, workdir: Workdir, *, bfloat16: bool
) -> Any:
    """An `SFTTrainer` for a PEFT model, ready for `.train(resume_from_checkpoint=...)`.

    Args:
        model: The PEFT model.
        tokenizer: The base's tokenizer; only its padding token is used.
        config: The options.
        session: Collects the log; asked after every step whether to stop.
        workdir: Where checkpoints are published.
        bfloat16: Whether to compute under bfloat16 autocast.
    """
    from transformers import PrinterCallback, ProgressCallback

    trainer = _trainer_class()(
        model=model,
        args=_arguments(config, session.schedule, workdir.root, bfloat16=bfloat16),
        train_dataset=_announced_rows(session.schedule.items),
        processing_class=tokenizer,
        callbacks=[_step_callback(config, session)],
        data_collator=_collator(config, tokenizer),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.bind(model, config, session, workdir)
    return trainer


def _collator(config: TrainConfig, tokenizer: Any) -> Callable[[Any], dict[str, Any]]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return collate_packed(pad) if config.packing else collate_padded(pad)


def _arguments(config: TrainConfig, schedule: Schedule, root: Path, *, bfloat16: bool) -> Any:
    from trl.trainer.sft_config import SFTConfig

    kinds = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    return SFTConfig(
        output_dir=str(root / "staging"),
        use_cpu=True,
        bf16=bfloat16,
        seed=config.seed,
        data_seed=config.seed,
        max_steps=schedule.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=kinds[config.schedule],
        warmup_steps=round(config.warmup_ratio * schedule.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        max_length=None,
        gradient_checkpointing=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _announced_rows(items: list[Any]) -> Any:
    """A dataset for `SFTTrainer`'s checks; the batches themselves come from memory, which is many times faster."""
    from datasets import Dataset

    first = items[0][0] if isinstance(items[0], list) else items[0]
    return Dataset.from_dict({"input_ids": [first.ids.tolist()], "labels": [first.ids.tolist()]})


def _step_callback(config: TrainConfig, session: Session) -> Any:
    from transformers import TrainerCallback

    class StepCallback(TrainerCallback):
        """Records every step, and decides when to save and when to stop; only ever between steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            session.started = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            last = state.global_step >= session.schedule.steps
            control.should_save = last or state.global_step % config.save_every == 0
            if session.signal_name is not None and not last:
                control.should_save = control.should_training_stop = True

    return StepCallback()


def _trainer_class() -> Any:
    from torch.utils.data import DataLoader
    from trl.trainer.sft_trainer import SFTTrainer

    class EpochLoader(DataLoader):  # type: ignore[type-arg]  # items are rows or lists of rows
        """A data loader whose batches follow the epoch's plan."""

        def set_epoch(self, epoch: int) -> None:
            self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]  # it is an EpochBatches

    class YardTrainer(SFTTrainer):
        """See the module."""

        def bind(self, model: Any, config: TrainConfig, session: Session, workdir: Workdir) -> None:
            """Give the trainer what transformers' constructor has no place for."""
            self.options, self.session, self.workdir = config, session, workdir
            self.step_loss = 0.0
            forward = inspect.signature(model.get_base_model().forward).parameters
            self.keeps_logits = "logits_to_keep" in forward

        def _send_telemetry(self) -> None:
            """Tell nobody."""

        def floating_point_ops(self, _inputs: dict[str, Any]) -> int:
            """Not counted: it walks over every parameter in every step."""
            return 0

        def get_train_dataloader(self) -> Any:
            schedule = self.session.schedule
            batches = EpochBatches(schedule.lengths, self.options.batch_size, self.options.seed)
            return EpochLoader(schedule.items, batch_sampler=batches, collate_fn=self.data_collator)  # type: ignore[arg-type]

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The model's own mean loss per trained token of the step; the head runs from the first trained token on."""
            labels = inputs["labels"]
            self.session.tokens += labels.numel()
            if self.keeps_logits:
                # The logits at a position predict the next one.
                first = int((labels != -100).any(0).int().argmax()) - 1
                inputs = {**inputs, "labels": labels[:, first:], "logits_to_keep": labels.shape[1] - first}
            if num_items_in_batch is not None:
                inputs = {**inputs, "num_items_in_batch": num_items_in_batch}
            outputs = model(**inputs, use_cache=False)
            share = 1 if num_items_in_batch is not None else self.current_gradient_accumulation_steps
            self.step_loss += outputs.loss.item() / share
            return (outputs.loss, outputs) if return_outputs else outputs.loss

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
            self.session.loss, self.step_loss = self.step_loss, 0.0
            self.session.gradient_norm = float(norm)
            if not (math.isfinite(self.session.loss) and math.isfinite(self.session.gradient_norm)):
                raise _diverged(self.session, self.state.global_step + 1, self.workdir)
            return norm

        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            # Called after every step, and once more at the end of an epoch, when there is nothing new to record.
            if self.state.global_step > len(self.session.log):
                epoch = float(self.state.epoch or 0.0)
                self.session.record(self.state.global_step, epoch, float(kwargs["learning_rate"]))
            super()._maybe_log_save_evaluate(*args, **kwargs)

        def _save_checkpoint(self, _model: Any, _trial: Any) -> None:
            with full_disk_named(self.workdir.root):
                folder = self.workdir.begin()
                save_adapter(self.model, folder, self.session.base_name)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_rng_state(str(folder))
                self.state.save_to_json(str(folder / "trainer_state.json"))
                (folder / LOG).write_text(json.dumps(self.session.log) + "\n", "utf-8")
                self.workdir.publish(self.state.global_step)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            from pathlib import Path

            load_adapter(model or self.model, Path(resume_from_checkpoint))

    return YardTrainer


def _diverged(session: Session, step: int, workdir: Workdir) -> YardError:
    good = workdir.newest()
    kept = f"; the checkpoint of step {good.step} is kept" if good else ""
    return YardError(
        f"training diverged at step {step}: loss {session.loss}, gradient norm {session.gradient_norm}{kept}",
        hint="lower learning_rate, or raise warmup_ratio",
        code="diverged",
        step=step,
    )
