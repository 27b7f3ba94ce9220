"""Diff: files, configuration, tokenizer, template and tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.registry_helpers import report
from registry.test_commit_segments import LAYERS, model, weights
from registry.test_commit_segments import tensors as layers

if TYPE_CHECKING:
    from modelyard.registry import Version
    from registry.registry_helpers import Bench


def commit(bench: Bench, tensors: dict[str, Any], config: dict[str, Any] | None = None, **files: str) -> Version:
    names = {name.replace("__", "."): content for name, content in files.items()}
    folder = bench.write({"config.json": json.dumps(config or {"model_type": "llama"}), **names})
    save_file(tensors, folder / "model.safetensors")
    return bench.yard.commit(folder, "team/model")


def test_files_and_configuration_keys(bench: Bench) -> None:
    """Files are added, removed and changed; configuration differs key by key, nested ones by their path, types included."""
    tensors = {"w": np.ones(2, np.float32)}
    a = commit(
        bench, tensors, {"model_type": "llama", "rope": {"theta": 1, "kind": "x"}, "flag": True}, old="1", both="1"
    )
    b = commit(
        bench,
        tensors,
        {"model_type": "llama", "rope": {"theta": 2, "kind": "x"}, "flag": 1, "new": None},
        fresh="1",
        both="2",
    )
    found = bench.yard.diff(a, b)
    assert (found.files_added, found.files_removed, found.files_changed) == (
        ("fresh",),
        ("old",),
        ("both", "config.json"),
    )
    assert [(change.key, change.before, change.after) for change in found.config] == [
        ("flag", True, 1),
        ("new", "(absent)", None),
        ("rope.theta", 1, 2),
    ]
    assert (found.same, found.tokenizer_changed, found.tensors.same) == (False, False, 1)
    assert bench.yard.diff(a, a).same
    assert json.loads(json.dumps(found.to_dict()))["files_added"] == ["fresh"]


@pytest.mark.parametrize(
    ("before", "after", "tokenizer", "template"),
    [
        ({"tokenizer__json": "{}"}, {"tokenizer__json": "{ }"}, True, False),
        ({"chat_template__jinja": "a"}, {"chat_template__jinja": "b"}, False, True),
        (
            {"tokenizer_config__json": '{"chat_template": "a"}'},
            {"tokenizer_config__json": '{"chat_template": "b"}'},
            True,
            True,
        ),
        ({"tokenizer_config__json": '{"x": 1}'}, {"tokenizer_config__json": '{"x": 2}'}, True, False),
        ({"tokenizer_config__json": '{"chat_template": "a"}'}, {"chat_template__jinja": "a"}, True, False),
        ({}, {"chat_template__jinja": "a"}, False, True),
    ],
)
def test_tokenizer_and_chat_template(
    bench: Bench, before: dict[str, Any], after: dict[str, Any], tokenizer: bool, template: bool
) -> None:
    """A changed tokenizer and a changed chat template are told apart, wherever the template is kept."""
    tensors = {"w": np.ones(2, np.float32)}
    found = bench.yard.diff(commit(bench, tensors, **before), commit(bench, tensors, **after))
    assert (found.tokenizer_changed, found.chat_template_changed) == (tokenizer, template)


def test_tensors_by_header(bench: Bench) -> None:
    """Without norms, tensors are added, removed, or changed in dtype or shape; values are not looked at."""
    a = commit(bench, {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32), "gone": np.ones(1, np.float32)})
    b = commit(bench, {"w": np.ones((3, 2), np.float32), "b": np.zeros(3, np.float16), "new": np.ones(1, np.float32)})
    found = bench.yard.diff(a, b).tensors
    assert (found.added, found.removed, found.same, found.by_value) == (("new",), ("gone",), 0, False)
    assert [(change.name, change.dtype, change.shape, change.relative_norm) for change in found.changed] == [
        ("b", ("F32", "F16"), ((3,), (3,)), None),
        ("w", ("F32", "F32"), ((2, 3), (3, 2)), None),
    ]


def test_norms_are_those_of_the_whole_tensor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, the relative norm is that of numpy in one piece; equal tensors are equal, and a zero one has none."""
    from modelyard.registry import tensors

    monkeypatch.setattr(tensors, "_BLOCK", 7)
    random = np.random.default_rng(0)
    before = random.normal(size=(10, 11)).astype(np.float32)
    after = before + random.normal(size=before.shape).astype(np.float32) / 50
    steps = np.arange(20, dtype=np.int64)
    a = commit(bench, {"w": before, "same": before, "zero": np.zeros(3, np.float32), "steps": steps, "cast": before})
    b = commit(
        bench,
        {
            "w": after,
            "same": before,
            "zero": np.ones(3, np.float32),
            "steps": steps + 1,
            "cast": before.astype(np.float16),
        },
    )
    found = bench.yard.diff(a, b, norms=True).tensors
    norms = {change.name: change.relative_norm for change in found.changed}
    wide = before.astype(np.float64)
    expected = np.linalg.norm(after.astype(np.float64) - wide) / np.linalg.norm(wide)
    assert norms["w"] == pytest.approx(expected, rel=1e-12)
    assert norms["zero"] is None
    assert norms["steps"] == pytest.approx(np.sqrt(20) / np.linalg.norm(steps))
    assert norms["cast"] is not None
    assert 0 < norms["cast"] < 1e-3
    assert (found.same, found.by_value) == (1, True)


def test_bfloat16_norms(bench: Bench) -> None:
    """bfloat16, which numpy does not know, is read as the upper half of a float32."""
    import struct

    def file(value: float) -> bytes:
        bits = np.full(4, value, np.float32).view(np.uint32) >> 16
        header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header + bits.astype("<u2").tobytes()

    made = [
        bench.yard.commit(bench.write({"config.json": "{}", "model.safetensors": file(value)}), "team/model")
        for value in (1.0, 1.5)
    ]
    assert bench.yard.diff(*made, norms=True).tensors.changed[0].relative_norm == 0.5


def test_a_diff_compares_reports(bench: Bench) -> None:
    """Metrics by task and data set: changed, added and removed; of several reports of one kind the last counts."""
    data = bench.data()
    one, two = bench.model(1.0), bench.model(2.0)
    bench.yard.add_report(one, report(one, [True, False], data))
    bench.yard.add_report(one, report(one, [True, True], data, task="other"))
    bench.yard.add_report(two, report(two, [False, False], data))
    bench.yard.add_report(two, report(two, [True, True], data, rows="again"))
    found = bench.yard.diff(one, two).reports
    assert [(each.task, each.metric, each.before, each.after) for each in found] == [
        ("exact-match", "accuracy", 0.5, 1.0),
        ("other", "accuracy", 1.0, None),
    ]
    assert {each.dataset for each in found} == {str(data.id)}
    assert bench.yard.diff(one, one).reports == ()


def test_a_diff_reads_files_that_are_not_whole(bench: Bench) -> None:
    """Tensors of a version that is kept in segments are compared by value, and nothing is made whole for it."""
    one = bench.yard.commit(model(bench, layers()), "team/model")
    two = bench.yard.commit(model(bench, layers(layer3=1)), "team/model")
    assert not bench.store.has_file(weights(two))
    found = bench.yard.diff(one, two, norms=True).tensors
    assert [change.name for change in found.changed] == ["layer3"]
    assert found.same == LAYERS - 1
    old, new = layers()["layer3"].astype(float), layers(layer3=1)["layer3"].astype(float)
    expected = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert found.changed[0].relative_norm == pytest.approx(expected)
    assert not bench.store.has_file(weights(two))
