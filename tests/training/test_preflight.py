"""Preflight: what would make a run worthless is an error, what may is a finding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard.errors import DataError, ModelError, RecipeError
from modelyard.training import Example, Finding, Rows, TrainConfig, machine, preflight
from modelyard.training.preflight import Preflight
from training.training_base import TEMPLATE, make_base


def rows(*pairs: tuple[str, str]) -> Rows:
    """Question and answer rows."""
    return Rows(
        [
            Example(
                messages=[{"role": "user", "content": q}, {"role": "assistant", "content": a}], source=f"a.jsonl:{n}"
            )
            for n, (q, a) in enumerate(pairs, start=1)
        ]
    )


SKY = rows(("what is the sky", "blue"), ("and today", "the sky is blue today"))


def finding(outcome: Preflight, code: str) -> Finding:
    """The finding with this code."""
    return next(found for found in outcome.findings if found.code == code)


def test_sound_run_has_no_finding(tiny_base: Path) -> None:
    """A sound run is ok, and its figures add up and are plain JSON."""
    outcome = preflight(tiny_base, SKY, TrainConfig(rank=4))
    plain = json.loads(json.dumps(outcome.to_dict()))
    assert (outcome.ok, outcome.findings) == (True, ())
    assert plain["rows"]["usable"] == 2
    assert 0 < plain["tokens"]["trained"] < plain["tokens"]["total"]
    assert plain["tokens"]["stop_share"] == 1.0
    assert plain["compute"] == {"dtype": "float32", "threads": 1}


def test_trainable_parameters_are_counted(tiny_base: Path) -> None:
    """Coverage lists each linear layer of every block, and the count is rank * (inputs + outputs) over all."""
    lora = preflight(tiny_base, SKY, TrainConfig(rank=4)).report["lora"]
    block = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 64) + (64 + 32)
    assert (lora["modules"], lora["layers"], lora["trainable_parameters"]) == (14, 2, 2 * 4 * block)
    assert lora["by_name"]["self_attn.q_proj"] == 2


def test_examples_show_what_is_trained(tiny_base: Path) -> None:
    """The first rows are shown as rendered, with the trained part marked."""
    first = preflight(tiny_base, SKY, TrainConfig()).report["examples"][0]
    assert [piece["text"] for piece in first if piece["trained"]] == ["blue<|end|>"]
    assert "".join(piece["text"] for piece in first).startswith("<|user|>what is the sky<|end|>")


def test_targets_that_match_nothing_are_all_listed(tiny_base: Path) -> None:
    """Every target that matches no linear layer is reported at once, with the near match."""
    with pytest.raises(RecipeError) as caught:
        preflight(tiny_base, SKY, TrainConfig(targets=["q_porj", "k_proj", "embed_tokens", "lm_head"]))
    message = caught.value.message
    assert "`q_porj` matches no module; did you mean `q_proj`?" in message
    assert "`embed_tokens` is not a linear layer" in message
    assert "`lm_head` is the output head" in message
    assert "k_proj`" not in message
    assert "q_proj" in (caught.value.hint or "")


def test_uneven_coverage_is_a_finding(tiny_base: Path) -> None:
    """A target that exists in some layers only is named with the count."""
    outcome = preflight(tiny_base, SKY, TrainConfig(targets=["layers.0.self_attn.q_proj", "v_proj"]))
    found = finding(outcome, "uneven-coverage")
    assert not outcome.ok
    assert found.message == "`self_attn.q_proj` exists in 1 of 2 layers"


def test_no_trained_token_at_all_is_an_error(tiny_base: Path) -> None:
    """When every row is masked whole, training is refused before it starts."""
    long = rows(("what is the colour of the sky " * 9, "blue"))
    with pytest.raises(
        DataError, match=r"no row has a token to train: all 1 rows .* after the cut at 16 tokens"
    ) as caught:
        preflight(tiny_base, long, TrainConfig(max_length=16))
    assert caught.value.hint == "raise max_length"


def test_some_masked_rows_are_named(tiny_base: Path) -> None:
    """Rows left without a trained token, and rows cut, are counted and named."""
    mixed = rows(("a", "b"), ("what is the colour of the sky " * 9, "blue"))
    outcome = preflight(tiny_base, mixed, TrainConfig(max_length=16))
    assert (
        "1 of 2 rows have no token to train and are left out: a.jsonl:2" in finding(outcome, "no-trained-token").message
    )
    assert "1 of 2 rows are longer than 16 tokens" in finding(outcome, "truncated").message


def test_context_of_the_base_limits_rows(tiny_base: Path) -> None:
    """Without max_length, and with one that is too large, the base's context is the limit."""
    for config in (TrainConfig(), TrainConfig(max_length=4096)):
        assert preflight(tiny_base, SKY, config).report["tokens"]["limit"] == 128


def test_missing_stop_token_is_a_finding(tmp_path: Path) -> None:
    """A template whose turns end with no stop token would teach a model that never stops."""
    base = make_base(tmp_path, template=TEMPLATE.replace("<|end|>", ""))
    outcome = preflight(base, SKY, TrainConfig())
    assert finding(outcome, "no-stop-token").message.startswith("2 of 2 rows train no stop token")
    assert outcome.report["tokens"]["stop_share"] == 0.0


def test_too_little_memory_or_disk_is_a_finding(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate above what is available is a warning that gives both figures."""
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 10)
    monkeypatch.setattr(machine, "free_disk", lambda _folder: 1 << 10)
    outcome = preflight(tiny_base, SKY, TrainConfig(), workdir=tmp_path)
    assert "are available" in finding(outcome, "memory").message
    assert "are free" in finding(outcome, "disk").message


def test_ignored_columns_are_told(tiny_base: Path) -> None:
    """Columns that the format does not read are a finding, not a silence."""
    outcome = preflight(tiny_base, Rows(SKY.examples, ignored_columns=("category",)), TrainConfig())
    assert outcome.ok
    assert "`category`" in finding(outcome, "ignored-columns").message


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    """A folder that is not a model is refused before any library reads it."""
    with pytest.raises(ModelError):
        preflight(tmp_path, SKY, TrainConfig())


def test_dtype_follows_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 is chosen for large models where the processor has it, never elsewhere, unless it was asked for."""
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda: True)
    assert [machine.choose_dtype("auto", count) for count in (10**6, 10**9)] == ["float32", "bfloat16"]
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda: False)
    assert machine.choose_dtype("auto", 10**9) == "float32"
    assert machine.choose_dtype("bfloat16", 10**6) == "bfloat16"


def test_thread_choice_leaves_torch_alone() -> None:
    """Measuring threads returns one of the possible counts and puts torch's own back."""
    import torch

    before = torch.get_num_threads()
    assert machine.choose_threads(None, 64, 256) in range(1, before + 1)
    assert machine.choose_threads(3, 64, 256) == 3
    assert torch.get_num_threads() == before
