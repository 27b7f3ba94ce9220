"""Supervised fine-tuning: it learns, it is deterministic, it survives, and it says nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from modelyard.digest import digest_bytes
from modelyard.errors import BusyError, ConflictError, NoSpaceError, RecipeError, YardError
from modelyard.training import TrainConfig, TrainResult, checkpoints, train
from modelyard.training.checkpoints import Workdir
from training import crash_child

pytestmark = [
    # TRL still imports what its dependencies deprecate; nothing of ours, and only on the first import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # PEFT 0.21 asks transformers 5.23 by an older name when it loads an adapter.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

ROWS, CONFIG = crash_child.ROWS, crash_child.CONFIG


def weights(result: TrainResult) -> str:
    """The digest of the adapter's weights file."""
    return digest_bytes((result.adapter / "adapter_model.safetensors").read_bytes())


@pytest.fixture(scope="module")
def straight(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run of nine steps with dropout and gradient accumulation."""
    return train(tiny_base, ROWS, CONFIG, tmp_path_factory.mktemp("straight"))


def test_training_learns(straight: TrainResult) -> None:
    """The loss falls, every step is in the log, and the result says what was trained."""
    assert straight.log[-1]["loss"] < straight.log[0]["loss"]
    assert [entry["step"] for entry in straight.log] == list(range(1, 10))
    assert (straight.steps, straight.resumed_from, straight.metrics["rows"]) == (9, None, 12)


def test_adapter_is_a_peft_folder_without_local_paths(straight: TrainResult, tiny_base: Path) -> None:
    """PEFT loads the adapter onto the base and it changes the output; no path of this machine is in it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names = sorted(path.name for path in straight.adapter.iterdir())
    assert names == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((straight.adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (None, 4, 32)
    assert config["target_modules"] == sorted(config["target_modules"])
    for name in names:
        assert str(tiny_base).encode() not in (straight.adapter / name).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, str(straight.adapter))(ids).logits
    assert not torch.equal(before, after)


def test_same_call_gives_the_same_bits(straight: TrainResult, tiny_base: Path, tmp_path: Path) -> None:
    """A second run elsewhere ends with bit-identical weights and the same log."""
    again = train(tiny_base, ROWS, CONFIG, tmp_path)
    assert weights(again) == weights(straight)
    assert again.log == straight.log


def test_finished_run_is_not_repeated(straight: TrainResult, tiny_base: Path) -> None:
    """The same call on a finished folder returns its result without training."""
    seen: list[dict[str, Any]] = []
    again = train(tiny_base, ROWS, CONFIG, straight.adapter.parent, progress=seen.append)
    assert (seen, again.resumed_from, weights(again)) == ([], 9, weights(straight))


@pytest.mark.parametrize(("where", "resumed"), [("step", 4), ("checkpoint", 2)])
def test_kill_and_resume_is_bit_identical(
    straight: TrainResult, tiny_base: Path, tmp_path: Path, where: str, resumed: int
) -> None:
    """SIGKILL between steps, or while a checkpoint is written; the same call goes on to bit-identical weights."""
    child = [sys.executable, crash_child.__file__, str(tiny_base), str(tmp_path), where]
    assert subprocess.run(child, check=False).returncode == -signal.SIGKILL
    result = train(tiny_base, ROWS, CONFIG, tmp_path)
    assert result.resumed_from == resumed
    assert weights(result) == weights(straight)
    assert result.log == straight.log


def stopped(tiny_base: Path, work: Path, step: int, number: signal.Signals = signal.SIGTERM) -> YardError:
    """Run until a signal comes at a step; the error that the run ends with."""

    def progress(entry: dict[str, Any]) -> None:
        if entry["step"] == step:
            os.kill(os.getpid(), number)

    with pytest.raises(YardError) as caught:
        train(tiny_base, ROWS, CONFIG, work, progress=progress)
    return caught.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops(straight: TrainResult, tiny_base: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends the run after the step under way, saved; the next call resumes from there to the same bits."""
    before = signal.getsignal(number)
    error = stopped(tiny_base, tmp_path, 4, number)
    assert (error.code, error.details["step"]) == ("interrupted", 5)
    assert signal.getsignal(number) == before
    result = train(tiny_base, ROWS, CONFIG, tmp_path)
    assert (result.resumed_from, weights(result)) == (5, weights(straight))


def test_damaged_checkpoint_falls_back(straight: TrainResult, tiny_base: Path, tmp_path: Path) -> None:
    """When the newest checkpoint is damaged, the run goes on from the one before and says so."""
    stopped(tiny_base, tmp_path, 4)
    (tmp_path / "checkpoints" / "step-5" / "optimizer.pt").write_bytes(b"broken")
    result = train(tiny_base, ROWS, CONFIG, tmp_path)
    assert (result.resumed_from, weights(result)) == (4, weights(straight))
    assert result.metrics["quarantined"] == [
        "step-5: optimizer.pt has 6 bytes, not " + result.metrics["quarantined"][0].split()[-1]
    ]


def test_crash_after_the_last_step_keeps_the_result(
    straight: TrainResult, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the last checkpoint and the result trains no step more, and gives the same adapter."""
    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "publish_adapter", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_base, ROWS, CONFIG, tmp_path)
    result = train(tiny_base, ROWS, CONFIG, tmp_path)
    assert (result.resumed_from, weights(result), len(result.log)) == (9, weights(straight), 9)


def test_folder_of_other_options_is_refused(straight: TrainResult, tiny_base: Path) -> None:
    """A working folder of other options is refused and left as it was."""
    other = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(ConflictError, match="other options"):
        train(tiny_base, ROWS, other, straight.adapter.parent)
    assert straight.adapter.is_dir()


def test_second_run_in_the_folder_is_busy(tiny_base: Path, tmp_path: Path) -> None:
    """A run in a folder where another works is refused at once."""
    with Workdir.locked(tmp_path), pytest.raises(BusyError):
        train(tiny_base, ROWS, CONFIG, tmp_path)


def test_divergence_stops_with_the_last_good_checkpoint(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite stops the run before the weights are touched; the last good checkpoint stays."""
    import torch
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward
    calls = 0

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        outputs = forward(self, *args, **kwargs)
        if calls == 10:  # the second half of step 5
            outputs.loss = outputs.loss * torch.nan
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", poisoned)
    with pytest.raises(YardError, match=r"diverged at step 5: loss nan.*the checkpoint of step 4 is kept") as caught:
        train(tiny_base, ROWS, CONFIG, tmp_path)
    assert caught.value.code == "diverged"


def test_full_disk_is_typed(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while a checkpoint is written is a NoSpaceError, and the one before stays."""
    written = checkpoints.write_manifest

    def fill(folder: Path, **facts: Any) -> None:
        if facts["step"] == 4:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . No space left on device")
        written(folder, **facts)

    monkeypatch.setattr(checkpoints, "write_manifest", fill)
    with pytest.raises(NoSpaceError):
        train(tiny_base, ROWS, CONFIG, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


def test_unknown_target_is_refused_before_training(tiny_base: Path, tmp_path: Path) -> None:
    """LoRA targets that match no module stop the run before anything is written but the lock."""
    with pytest.raises(RecipeError, match="matches no module"):
        train(tiny_base, ROWS, TrainConfig(targets=["nope"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_training_is_silent_and_leaves_no_trace(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed; random state, threads, log level and environment are afterwards what they were."""
    import torch
    from transformers.utils import logging

    def state() -> tuple[Any, ...]:
        return (random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads(), logging.get_verbosity())

    before, environment = state(), dict(os.environ)
    seen: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tiny_base, ROWS, TrainConfig(rank=2, max_steps=2, batch_size=4), tmp_path, progress=seen.append)
    assert state() == before
    assert dict(os.environ) == environment
    assert capfd.readouterr() == ("", "")
    assert [entry["step"] for entry in seen] == [1, 2]
    assert set(seen[0]) >= {"step", "steps", "loss", "learning_rate", "tokens_per_second", "epoch"}


def test_packing_gives_the_same_loss(tiny_base: Path, tmp_path: Path) -> None:
    """The first step's loss over all rows is the same packed and padded: packed rows do not see one another."""
    losses = []
    for packing in (False, True):
        config = TrainConfig(rank=2, max_steps=1, batch_size=12, packing=packing, warmup_ratio=0.0)
        losses.append(train(tiny_base, ROWS, config, tmp_path / str(packing)).log[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """The ids that transformers makes of a conversation."""
    return list(tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"])


def test_loss_is_the_models_own(tiny_base: Path, tmp_path: Path) -> None:
    """The first loss equals the base's own loss on the same tokens with the prompts masked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    total, count = 0.0, 0
    for example in ROWS:
        messages = example.messages or []
        whole = rendered(tokenizer, messages)
        prompt = rendered(tokenizer, messages[:1], add_generation_prompt=True)
        answer = len(whole) - len(prompt) - 1  # the line end after the stop token is not trained
        ids = torch.tensor([whole])
        logits = torch.log_softmax(model(ids).logits[0], -1)
        for position in range(len(prompt), len(prompt) + answer):
            total -= logits[position - 1, ids[0, position]].item()
        count += answer
    config = TrainConfig(rank=2, max_steps=1, batch_size=5, gradient_accumulation=3)
    assert train(tiny_base, ROWS, config, tmp_path).log[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_bfloat16_trains(tiny_base: Path, tmp_path: Path) -> None:
    """With bfloat16 the base is computed in it and the adapter kept in float32."""
    from safetensors.torch import load_file

    result = train(tiny_base, ROWS, TrainConfig(rank=2, max_steps=2, dtype="bfloat16"), tmp_path)
    assert {str(t.dtype) for t in load_file(result.adapter / "adapter_model.safetensors").values()} == {"torch.float32"}
    assert result.metrics["dtype"] == "bfloat16"
