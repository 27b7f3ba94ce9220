"""Weights that nobody trained: no alias moves to them, however they come there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from modelyard.cli.main import run
from modelyard.errors import GateRefusedError
from modelyard.registry.contents import StoredFiles
from modelyard.weights.untrained import KEY, Untrained, mark
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from registry.registry_helpers import Bench

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

HEAD = ("lm_head.weight",)


def marked(folder: Path, tensors: tuple[str, ...] | None = HEAD) -> Path:
    """A tiny model whose head, or all of it, is marked as drawn at random."""
    save_model(folder)
    mark(folder, Untrained("head" if tensors else "random", 3, tensors))
    return folder


@pytest.mark.parametrize(("tensors", "words"), [(HEAD, "lm_head.weight"), (None, "random weights")])
def test_no_alias_moves_to_it(bench: Bench, tensors: tuple[str, ...] | None, words: str) -> None:
    """An untrained head and a random model are refused, gate or none: the tensors and the next step are named."""
    version = bench.yard.commit(marked(bench.folder / "new", tensors), "team/model")
    for _ in range(2):
        with pytest.raises(GateRefusedError, match=words) as caught:
            bench.yard.promote(version, "production")
        assert caught.value.code == "untrained"
        assert caught.value.details["tensors"] == (list(tensors) if tensors else None)
        assert f"yard train --base {version.name}" in str(caught.value.hint)
    assert [ref.name for ref in bench.yard.refs("team/model")] == ["main"]


def test_the_incumbent_stays(bench: Bench) -> None:
    """An alias that has a holder keeps it, and the log has no promotion."""
    good = bench.yard.commit(save_model(bench.folder / "good"), "team/model")
    bench.yard.promote(good, "production")
    bad = bench.yard.commit(marked(bench.folder / "new"), "team/model")
    with pytest.raises(GateRefusedError):
        bench.yard.promote(bad, "production")
    assert bench.yard.resolve("team/model@production") == good
    assert [entry.action for entry in bench.yard.log("team/model@production")] == ["promote"]


def test_training_makes_the_mark_untrue(bench: Bench) -> None:
    """Whoever trains it, and leaves the mark where it is: other tensors, no refusal."""
    import torch

    folder = marked(bench.folder / "new")
    config = (folder / "config.json").read_bytes()
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight += 1
    save_model(folder, model)
    (folder / "config.json").write_bytes(config)
    assert KEY in json.loads(config)
    version = bench.yard.commit(folder, "team/model")
    assert bench.yard.untrained(version) is None
    assert bench.yard.promote(version, "production").moved


SOUND = {"format": 1, "kind": "head", "seed": 0, "tensors": ["lm_head.weight"], "digest": "0"}


@pytest.mark.parametrize(
    "value",
    [
        {"format": 9},
        False,
        {**SOUND, "kind": ["head"]},
        {**SOUND, "kind": {}},
        {**SOUND, "seed": True},
        {**SOUND, "tensors": [5]},
        {**SOUND, "digest": None},
    ],
)
def test_a_mark_that_nobody_can_read_is_no_pass(bench: Bench, value: object) -> None:
    """A mark of another form, of values of any type, is refused too, with what is wrong about it."""
    folder = save_model(bench.folder / "new")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, KEY: value}))
    version = bench.yard.commit(folder, "team/model")
    with pytest.raises(GateRefusedError, match=KEY) as caught:
        bench.yard.promote(version, "production")
    assert caught.value.code == "bad_mark"


def test_a_key_that_is_written_with_escapes_is_a_mark_too(bench: Bench) -> None:
    """JSON can spell the key in other bytes; it says the same."""
    folder = marked(bench.folder / "new")
    path = folder / "config.json"
    path.write_text(path.read_text().replace(KEY, "\\u006d" + KEY[1:]))
    assert KEY.encode() not in path.read_bytes()
    version = bench.yard.commit(folder, "team/model")
    assert bench.yard.untrained(version) is not None


def test_a_config_is_read_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion of what was looked at before opens no file: aliases move as fast as they did."""
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.promote(one, "production")
    bench.yard.promote(two, "production")

    def read(*_arguments: object) -> bytes:
        raise AssertionError("a config.json without a mark was read again")

    monkeypatch.setattr(StoredFiles, "read", read)
    assert bench.yard.promote(one, "production").moved


def test_an_adapter_answers_with_its_bases_head(bench: Bench) -> None:
    """An adapter that leaves its base's untrained head as it is, is refused as that is; one that holds a head of its own is not."""
    from safetensors.torch import load_file, save_file

    base = marked(bench.folder / "base")
    first = save_adapter(bench.folder / "first", base)
    made = bench.yard.commit(base, "team/base")
    adapter = bench.yard.commit(first, "team/adapter", from_=made)
    assert adapter.kind == "adapter"
    with pytest.raises(GateRefusedError, match="lm_head") as caught:
        bench.yard.promote(adapter, "production")
    assert caught.value.code == "untrained"
    tensors = load_file(first / "adapter_model.safetensors")
    head = make_llama().lm_head.weight.detach() + 1
    save_file(tensors | {"base_model.model.lm_head.weight": head}, first / "adapter_model.safetensors")
    trained = bench.yard.commit(first, "team/adapter", from_=made)
    assert bench.yard.untrained(trained) is None
    assert bench.yard.promote(trained, "production").moved


def test_an_adapter_is_what_a_random_base_was_trained_to(bench: Bench) -> None:
    """Training came out as the adapter: the refusal of its base sent there."""
    base = marked(bench.folder / "base", None)
    made = bench.yard.commit(base, "team/base")
    adapter = bench.yard.commit(save_adapter(bench.folder / "first", base), "team/adapter", from_=made)
    assert bench.yard.promote(adapter, "production").moved


def test_show_says_so(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """`yard show` names what nobody trained, for people and as JSON; it is null for what was trained."""
    import modelyard

    yard = modelyard.open(bench.folder / "shown", create=True)
    yard.commit(marked(bench.folder / "new"), "team/new")
    yard.commit(save_model(bench.folder / "good"), "team/good")
    home = ["--yard", str(bench.folder / "shown")]
    assert run(["show", "team/new", *home]) == 0
    assert "untrained head (lm_head.weight)" in capsys.readouterr().out
    assert run(["show", "team/new", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out)["untrained"] == {"kind": "head", "tensors": list(HEAD), "seed": 3}
    assert run(["show", "team/good", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out)["untrained"] is None
    assert run(["promote", "team/new", "--to", "production", *home]) == 7
    assert "lm_head.weight" in capsys.readouterr().err
