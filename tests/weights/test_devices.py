"""Where modules go: present devices, device maps that place everything, and weights that stay on the disk."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelyard.errors import RequestError
from modelyard.weights.load import load
from modelyard.weights.loading import devices
from tiny_models import make_llama, save_model

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of twelve layers, so that `layers.1` is a prefix of `layers.10` as text."""
    return save_model(tmp_path_factory.mktemp("model"), make_llama(num_hidden_layers=12))


@pytest.fixture(scope="module")
def meta() -> Any:
    """The same architecture on the meta device."""
    with torch.device("meta"):
        return make_llama(num_hidden_layers=12)


def logits(model: Any) -> torch.Tensor:
    """What a model says of `IDS`."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def everywhere(place: Any, **others: Any) -> dict[str, Any]:
    """A whole map of the twelve layers with `place`, and some of them elsewhere."""
    names = ["model.embed_tokens", "model.norm", "lm_head", *(f"model.layers.{index}" for index in range(12))]
    return {**dict.fromkeys(names, place), **others}


def test_the_cpu_is_always_here_and_other_devices_are_named_when_absent() -> None:
    """A device that is not here is refused with what is; a mistyped one with the near match."""
    assert devices.present_devices()[0] == "cpu"
    assert devices.check_device("cpu") == "cpu"
    for absent in ({"cuda:7", "mps", "xpu:3"}) - set(devices.present_devices()):
        with pytest.raises(RequestError, match="no such device here") as caught:
            devices.check_device(absent)
        assert caught.value.code == "no_device"
        assert caught.value.details["here"] == devices.present_devices()
        assert "cpu" in str(caught.value.hint)
    with pytest.raises(RequestError, match="no device") as caught:
        devices.check_device("cdua")
    assert "did you mean `cuda`?" in str(caught.value.hint)


def test_a_map_that_leaves_parameters_uncovered_lists_all_of_them(meta: Any) -> None:
    """Every uncovered parameter is in the details, the modules to add in the hint; `layers.1` does not cover `layers.10`."""
    places = everywhere("cpu")
    del places["model.layers.10"], places["model.layers.11"], places["lm_head"]
    with pytest.raises(RequestError, match="19 parameters without a place") as caught:
        devices.resolve_map(places, meta)
    expected = {
        name for name in meta.state_dict() if name.startswith(("model.layers.10.", "model.layers.11.", "lm_head."))
    }
    assert caught.value.code == "uncovered_parameters"
    assert set(caught.value.details["uncovered"]) == expected
    assert "`lm_head`" in str(caught.value.hint)


def test_a_map_that_names_no_module_lists_every_such_name(meta: Any) -> None:
    """Wrong names come with their near match; a tensor's name with the module that holds it."""
    wrong = {"": "cpu", "model.layer.1": "cpu", "model.norm.weight": "cpu"}
    with pytest.raises(RequestError, match="2 modules that the model has not") as caught:
        devices.resolve_map(wrong, meta)
    assert caught.value.details["unknown"] == ["model.layer.1", "model.norm.weight"]
    assert "did you mean `model.layers.1`?" in str(caught.value.hint)
    assert "place its module `model.norm`" in str(caught.value.hint)


@pytest.mark.parametrize("wrong", ["fastest", 3, {}, {"": "gpu"}, {"": 9}, {"": -1}, 1.5, {"": True}])
def test_what_is_no_device_map_is_refused(meta: Any, wrong: Any) -> None:
    """Unknown strategies, absent accelerators and other values are errors of the field."""
    with pytest.raises(RequestError) as caught:
        devices.resolve_map(wrong, meta)
    assert caught.value.details["field"] == "device_map"


def test_strategies_place_everything(meta: Any) -> None:
    """Each strategy gives a whole map; with enough memory that is the one device that is here."""
    for strategy in devices.STRATEGIES:
        places = devices.resolve_map(strategy, meta)
        assert all(devices.place_of(name, places) is not None for name in meta.state_dict())
    if devices.present_devices() == ["cpu"]:
        assert devices.resolve_map("auto", meta) == {"": "cpu"}


def test_too_little_memory_leaves_the_rest_on_the_disk(meta: Any) -> None:
    """`max_memory` is obeyed: what does not fit goes to the disk, whole layers together."""
    places = devices.resolve_map("sequential", meta, max_memory={"cpu": "400KB"})
    held = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in meta.named_parameters()
        if devices.place_of(name, places) == "cpu"
    )
    assert 0 < held <= 400_000
    assert "disk" in places.values()


def test_amounts_of_memory_are_bytes_or_text() -> None:
    """Decimal and binary units are told apart, and anything else is refused."""
    assert devices.parse_memory({"cpu": "2GiB"}) == {"cpu": 2 << 30}
    assert devices.parse_memory({"cpu": "500 MB"}) == {"cpu": 500_000_000}
    for wrong in ("much", "-1GB", -1, None, True):
        with pytest.raises(RequestError, match="no amount of memory"):
            devices.parse_memory({"cpu": wrong})


def test_nested_names_mean_what_they_say(meta: Any) -> None:
    """A module's own place wins over the one of the module around it, and no name of the answer is inside another."""
    places = devices.resolve_map({"": "cpu", "model.layers.1": "disk"}, meta)
    assert devices.place_of("model.layers.1.mlp.up_proj.weight", places) == "disk"
    assert devices.place_of("model.layers.10.mlp.up_proj.weight", places) == "cpu"
    assert devices.place_of("lm_head.weight", places) == "cpu"
    assert not any(a != b and b.startswith(f"{a}.") for a in places for b in places)


@pytest.mark.parametrize(
    "device_map",
    [
        everywhere("cpu", **{"model.layers.1": "disk", "model.layers.7": "disk"}),
        everywhere("disk", **{"model.layers.0": "cpu"}),
        {"": "cpu", "model.layers.1": "disk"},
        {"": "disk"},
        "disk",
    ],
    ids=["two layers", "all but one", "nested", "everything", "one word"],
)
def test_offloaded_models_give_the_same_results(folder: Path, device_map: Any) -> None:
    """With layers on the disk every logit has the same bits, and those layers take no memory."""
    whole = load(folder).model
    model = load(folder, device_map=device_map)
    assert torch.equal(logits(model.model), logits(whole))
    away = [name for name, tensor in model.model.named_parameters() if tensor.device.type == "meta"]
    expected = [name for name, _ in whole.named_parameters() if devices.place_of(name, model.plan.places) == "disk"]
    assert sorted(away) == sorted(expected)
    assert away


def test_too_little_memory_is_survived(folder: Path) -> None:
    """A strategy with a limit loads what fits, leaves the rest on the disk, and answers the same."""
    model = load(folder, device_map="sequential", max_memory={"cpu": "400KB"})
    assert 0 < model.plan.bytes["cpu"] <= 400_000
    assert model.plan.bytes["disk"] > 0
    assert torch.equal(logits(model.model), logits(load(folder).model))


def test_a_tied_model_is_offloaded_right(tmp_path: Path) -> None:
    """Embeddings that are one tensor stay one, wherever the two modules are put."""
    save_model(tmp_path, make_llama(tie_word_embeddings=True))
    whole = logits(load(tmp_path).model)
    for places in (
        {"": "cpu", "lm_head": "disk"},
        {"": "disk", "lm_head": "cpu"},
        {"": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"},
        "disk",
    ):
        model = load(tmp_path, device_map=places)
        assert torch.equal(logits(model.model), whole)
        sides = ("lm_head.weight", "model.embed_tokens.weight")
        assert len({devices.place_of(side, model.plan.places) for side in sides}) == 1


def test_weights_that_must_be_written_again_go_to_the_offload_folder(tmp_path: Path) -> None:
    """With a cast the offloaded weights cannot be read from the checkpoint; given or temporary, the folder has them."""
    save_model(tmp_path / "model", make_llama())
    places = {"": "cpu", "model.layers.1": "disk"}
    given = tmp_path / "given"
    half = load(tmp_path / "model", dtype="bfloat16").model
    model = load(tmp_path / "model", dtype="bfloat16", device_map=places, offload_folder=given)
    assert torch.equal(logits(model.model), logits(half))
    assert given.is_dir()


def test_a_temporary_offload_folder_lives_as_long_as_the_model(meta: Any) -> None:
    """It is there while the model is, and gone when the model is garbage; a given one stays."""
    path = devices.find_offload_folder(None, {"": "disk"})
    assert path is not None
    (path / "layer.safetensors").write_bytes(b"x")
    holder = torch.nn.Linear(1, 1)
    devices.keep_while(holder, path)
    assert path.is_dir()
    del holder
    gc.collect()
    assert not path.exists()
    assert devices.find_offload_folder(None, {"": "cpu"}) is None
    assert devices.find_offload_folder(None, None) is None


def test_an_offload_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Nothing is written over a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        devices.find_offload_folder(tmp_path / "file", {"": "disk"})


def test_ties_between_larger_parts_are_refused(meta: Any) -> None:
    """Where neither side of a tie stands alone in the map, moving one would move others: the two names are in the error."""
    with torch.device("meta"):
        inner = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        model: Any = torch.nn.ModuleDict({"x": inner, "y": torch.nn.ModuleDict({"c": torch.nn.Linear(2, 2)})})
    model.all_tied_weights_keys = {"y.c.weight": "x.a.weight"}
    with pytest.raises(RequestError, match=r"only one of `y.c.weight` and `x.a.weight`") as caught:
        devices.resolve_map({"x": "cpu", "y": "disk"}, model)
    assert caught.value.code == "split_tie"
