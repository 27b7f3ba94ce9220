"""How long a load takes, stage by stage: from real loads, and the explanation of each stage from given ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelyard.errors import YardError
from modelyard.weights.times import STAGES, time_load
from tiny_models import make_llama, make_tokenizer, save_model


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in float16, which a CPU computes in float32."""
    import torch

    return save_model(tmp_path_factory.mktemp("times") / "half", make_llama().to(torch.float16))


def test_stages_of_a_real_load(half: Path) -> None:
    """Every stage of a folder is there, in order, with the bytes of the weights where they are gone over."""
    size = (half / "model.safetensors").stat().st_size
    done = time_load(half)
    names = [stage.name for stage in done.stages]
    assert names == [name for name in STAGES if name != "verify"]
    found = {stage.name: stage for stage in done.stages}
    assert found["read"].bytes == found["place"].bytes == size
    assert 0 < found["cast"].bytes < size
    assert all(stage.seconds >= 0 for stage in done.stages)
    assert sum(stage.seconds for stage in done.stages) <= done.seconds
    assert done.slowest in names
    assert done.to_dict()["stages"][1]["bytes_per_second"] > 0


def test_no_cast_no_stage(tmp_path: Path) -> None:
    """A model that is loaded as it is stored has no stage `cast`."""
    done = time_load(save_model(tmp_path / "model"))
    assert "cast" not in [stage.name for stage in done.stages]


def test_the_model_is_let_go(half: Path) -> None:
    """What was loaded to be timed is released."""
    kept: list[Any] = []

    def load(source: Path, **options: Any) -> Any:
        from modelyard.weights.load import load as load_folder

        kept.append(load_folder(source, **options))
        return kept[0]

    time_load(half, load=load)
    with pytest.raises(YardError):
        kept[0].generate("hello", max_new_tokens=1)


def explained(stage: str, folder: Path, casts: dict[str, Any] | None = None, dtype: str = "float32") -> Any:
    """What is said of a load in which one stage took nearly all the time."""
    tokenizer = make_tokenizer()

    def load(source: Path, observe: Any) -> Any:
        for name in STAGES:
            observe(name, 100.0 if name == stage else 0.001, 1000 if name in {"read", "verify"} else 0)
        return SimpleNamespace(
            plan=SimpleNamespace(casts=casts or {}, dtype=dtype),
            folder=Path(source),
            base=None,
            tokenizer=tokenizer,
            model=None,
            release=lambda: None,
        )

    return time_load(folder, load=load)


@pytest.mark.parametrize(
    ("stage", "cure"),
    [("verify", "--trust-verified"), ("read", None), ("preprocessor", "AutoTokenizer"), ("audit", None)],
)
def test_the_slow_stage_is_named_with_its_cure(stage: str, cure: str | None, tmp_path: Path) -> None:
    """Hashing is cured by trusting what was verified, an old tokenizer by saving it anew; some stages have no cure."""
    done = explained(stage, tmp_path, dtype="float16")
    assert done.slowest == stage
    assert (cure is None and done.cure is None) or (cure is not None and cure in str(done.cure))


def test_a_cast_is_cured_by_converting_once(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that casts names both dtypes and the command that casts for good."""
    monkeypatch.setattr("modelyard.weights.times._cast_again", lambda _: (100.0, 1000))
    done = explained("cast", half, {"float16 -> float32": None})
    assert done.slowest == "cast"
    assert "float16 -> float32" in done.cause
    assert f"yard convert {half} --dtype float32" in str(done.cure)


def test_a_cold_page_cache_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bytes came from a disk, that is the cause."""
    readings = iter([5000, 6000])
    monkeypatch.setattr("modelyard.weights.times._bytes_from_disk", lambda: next(readings))
    done = explained("read", tmp_path)
    assert "1,000 of 1,000 bytes came from the disk" in done.cause
    assert "cached" in str(done.cure)
