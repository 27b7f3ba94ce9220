"""A folder becomes the model that is in it, or an error that says why not."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelyard.errors import ModelError, PickleError, RequestError
from modelyard.weights.load import cpu_runs_bfloat16, load, pick_dtype
from modelyard.weights.loading import dtypes
from tiny_models import make_llama, make_tokenizer, save_adapter, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    # PEFT 0.21 reads an attribute that transformers 5.23 renamed, when these tests make adapters.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model folder; tests that change one write their own."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A sound adapter of `folder`."""
    return save_adapter(tmp_path_factory.mktemp("adapter"), folder)


def edit(folder: Path, change: Callable[[Tensors], Tensors], name: str = "model.safetensors") -> Path:
    """Rewrite a folder's weights."""
    path = folder / name
    tensors = change(load_file(path))
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
    return folder


def without(*names: str) -> Callable[[Tensors], Tensors]:
    """Weights less some tensors."""
    return lambda tensors: {key: value for key, value in tensors.items() if key not in names}


def edit_json(path: Path, **values: Any) -> None:
    """Change top-level keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_is_loaded_as_it_is_on_disk(folder: Path) -> None:
    """Every tensor has the file's bits, and the model is ready to answer: eval mode, no gradients needed."""
    model = load(folder)
    held = load_file(folder / "model.safetensors")
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, held[name])
    assert not model.model.training
    assert (model.task, model.folder, model.base, model.version) == ("text-generation", folder, None, None)


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library is silent: no progress bar and no table, on either stream, also when loading fails."""
    load(folder)
    assert capfd.readouterr() == ("", "")


def test_a_failed_load_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What transformers would report in a table is in the error and nowhere else."""
    edit(save_model(tmp_path), without("model.norm.weight"))
    capfd.readouterr()
    with pytest.raises(ModelError):
        load(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        (without("model.norm.weight"), r"1 missing \(model.norm.weight\)", "yard doctor"),
        (
            lambda held: {f"module.{key}": value for key, value in held.items()},
            "21 missing .* 21 unexpected",
            "`module.`",
        ),
        (
            lambda held: {key.replace("q_proj.", "q_proj.base_layer."): value for key, value in held.items()},
            "2 missing .* 2 unexpected",
            "`base_layer`",
        ),
        (lambda held: {**held, "extra.weight": torch.ones(2)}, r"1 unexpected \(extra.weight\)", "yard doctor"),
        (
            lambda held: {**held, "model.norm.weight": torch.ones(7)},
            r"of another shape \(model.norm.weight: \[7\] on disk, \[32\] by config.json\)",
            "yard doctor",
        ),
        (
            lambda held: {**held, "model.norm.weight": torch.full((32,), torch.nan)},
            r"1 tensors hold NaN or infinity: model.norm.weight",
            "diverged",
        ),
        (
            lambda held: {
                **held,
                "lm_head.weight": held["lm_head.weight"].index_fill(0, torch.tensor([3]), -torch.inf),
            },
            "1 tensors hold NaN or infinity: lm_head.weight",
            "diverged",
        ),
    ],
    ids=["missing", "prefix", "base_layer", "unexpected", "shape", "nan", "infinity"],
)
def test_weights_that_are_not_the_architectures_are_refused(
    tmp_path: Path, change: Callable[[Tensors], Tensors], words: str, hint: str
) -> None:
    """What transformers would fill with random numbers or ignore is an error that names the tensors."""
    edit(save_model(tmp_path), change)
    with pytest.raises(ModelError, match=words) as caught:
        load(tmp_path)
    assert hint in str(caught.value.hint)


def test_one_layer_too_many_in_the_config_is_refused(tmp_path: Path) -> None:
    """A config that promises more layers than the file holds lists what is missing."""
    save_model(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match="9 missing"):
        load(tmp_path)


def test_tensors_that_a_class_initialises_over_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class whose initialisation does not ask what was loaded reports a clean load; the values tell."""
    import transformers

    def init_weights(self: Any, module: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            module.weight.data.copy_(torch.zeros_like(module.weight))

    monkeypatch.setattr(transformers.LlamaPreTrainedModel, "_init_weights", init_weights, raising=False)
    monkeypatch.setattr(
        transformers.PreTrainedModel, "_initialize_weights", lambda self, module, *_: self._init_weights(module)
    )
    auto: Any = transformers.AutoModelForCausalLM
    theirs, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not theirs.lm_head.weight.any()
    assert (info["missing_keys"], info["mismatched_keys"]) == (set(), set())
    with pytest.raises(ModelError, match=r"15 tensors were initialised anew .*: lm_head\.weight") as caught:
        load(folder)
    assert caught.value.code == "reinitialised"


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    """A tied model comes back tied, with the output embedding not on disk."""
    save_model(tmp_path, make_llama(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load(tmp_path).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_tie_that_the_file_denies_is_refused(tmp_path: Path) -> None:
    """A config that ties two embeddings which differ on disk is ambiguous, so it is an error."""
    save_model(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    with pytest.raises(ModelError, match="ties the embeddings"):
        load(tmp_path)


def test_pickles_and_broken_files_never_reach_a_library(tmp_path: Path) -> None:
    """A pickle is refused as one, and a truncated file by our own reader, before transformers is asked."""
    save_model(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load(tmp_path)
    path.unlink()
    torch.save(load_file_bytes(whole), tmp_path / "pytorch_model.bin")
    with pytest.raises(PickleError):
        load(tmp_path)


def load_file_bytes(data: bytes) -> Tensors:
    """The tensors of a safetensors file in memory."""
    from safetensors.torch import load as load_bytes

    return dict(load_bytes(data))


def test_what_is_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    """A missing folder, an empty one, one without a tokenizer and an unknown architecture each say what they are."""
    with pytest.raises(ModelError, match="no folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"has no config.json"):
        load(tmp_path)
    make_llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(tmp_path)
    for architectures, words in ((["DinosaurForCausalLM"], "`DinosaurForCausalLM`"), (None, "no architecture")):
        edit_json(tmp_path / "config.json", architectures=architectures)
        with pytest.raises(ModelError, match=words) as caught:
            load(tmp_path)
        assert (caught.value.code, caught.value.hint) == (
            "unknown_architecture",
            "say what it is for: task='text-generation'",
        )


def test_options_are_checked(folder: Path) -> None:
    """A wrong dtype comes with the near match, a wrong device is named, and a base for what is no adapter is refused."""
    with pytest.raises(RequestError, match="bfloat61") as caught:
        load(folder, dtype="bfloat61")
    assert caught.value.hint == "did you mean `bfloat16`?"
    with pytest.raises(RequestError, match="threads"):
        load(folder, threads=0)
    with pytest.raises(RequestError, match="device"):
        load(folder, device="gpu")
    with pytest.raises(ModelError, match="takes no base"):
        load(folder, base=folder)


def test_dtype_auto_is_the_checkpoints_where_the_cpu_computes_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 stays where the CPU has it, and is widened to float32 with the same values where not."""
    save_model(tmp_path, make_llama().to(torch.bfloat16))
    held = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    for able, kind in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(dtypes, "cpu_runs_bfloat16", lambda able=able: able)
        model = load(tmp_path).model
        assert {parameter.dtype for parameter in model.parameters()} == {kind}
        assert torch.equal(model.model.norm.weight.float(), held.float())
    assert load(tmp_path, dtype="float32").model.dtype == torch.float32
    assert isinstance(cpu_runs_bfloat16(), bool)
    assert pick_dtype("auto", "float16", "cpu") == "float32"
    assert pick_dtype("auto", "float16", "cuda") == "float16"


def test_threads_that_load_at_once_do_not_damage_one_another(tmp_path: Path) -> None:
    """Two threads load mixed dtypes of tied and untied models: every one comes out right, and so does the next."""
    tied = save_model(tmp_path / "tied", make_llama(tie_word_embeddings=True))
    untied = save_model(tmp_path / "untied")
    problems: list[str] = []

    def work(folder: Path, dtype: str) -> None:
        for _ in range(5):
            model = load(folder, dtype=dtype).model
            kinds = {str(parameter.dtype) for parameter in model.parameters()}
            one = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
            if kinds != {f"torch.{dtype}"} or one != (folder == tied):
                problems.append(f"{folder.name} {dtype}: {kinds}, tied {one}")

    threads = [threading.Thread(target=work, args=args) for args in ((tied, "bfloat16"), (untied, "float32"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(tied, "float32")
    assert problems == []
    assert torch.get_default_dtype() == torch.float32


def test_an_adapter_is_applied(folder: Path, adapter: Path) -> None:
    """The loaded adapter changes the logits by B A scaled, as PEFT's own merge does."""
    model = load(adapter)
    assert (model.folder, model.base) == (adapter, folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        adapted = model.model(input_ids=ids).logits
        plain = load(folder).model(input_ids=ids).logits
        merged = model.model.merge_and_unload()(input_ids=ids).logits
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)


def test_a_base_may_be_given_and_must_be_there(tmp_path: Path, folder: Path, adapter: Path) -> None:
    """The base that is passed wins; one that is not here is named in the error."""
    edit_json(copy(adapter, tmp_path / "moved") / "adapter_config.json", base_model_name_or_path="org/big-base")
    with pytest.raises(ModelError, match="an adapter of `org/big-base`") as caught:
        load(tmp_path / "moved")
    assert caught.value.details["base_model"] == "org/big-base"
    assert load(tmp_path / "moved", base=folder).base == folder
    with pytest.raises(ModelError, match="no folder"):
        load(tmp_path / "moved", base=tmp_path / "nothing")
    with pytest.raises(ModelError, match="is itself an adapter"):
        load(tmp_path / "moved", base=adapter)


def test_a_gguf_file_is_no_base_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    """Its tensors have other names: the error says which command makes a folder of it."""
    adapter = save_adapter(tmp_path / "adapter", folder)
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="is a GGUF file") as caught:
        load(adapter, base=tmp_path / "base.gguf")
    assert str(caught.value.hint).startswith(f"make a folder of it: yard convert {tmp_path}/base.gguf --to ./base")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            without("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
            "1 missing .*layers.0.self_attn.q_proj.lora_A",
        ),
        (
            lambda held: {key.replace("self_attn", "attention"): value for key, value in held.items()},
            "8 missing .* 8 unexpected",
        ),
        (lambda held: {key: value * torch.nan for key, value in held.items()}, "8 tensors hold NaN"),
        (lambda held: {key: value[:2] for key, value in held.items()}, "cannot be loaded"),
    ],
    ids=["missing", "renamed", "nan", "shape"],
)
def test_an_adapter_that_would_not_be_applied_whole_is_refused(
    tmp_path: Path, adapter: Path, change: Callable[[Tensors], Tensors], words: str
) -> None:
    """Tensors of an adapter that are missing, match nothing or are broken are errors, never the base served quietly."""
    edit(copy(adapter, tmp_path / "broken"), change, "adapter_model.safetensors")
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "broken")


def test_a_fully_trained_module_that_the_adapter_lacks_is_missed(tmp_path: Path, folder: Path) -> None:
    """`modules_to_save` counts: its tensor's absence is an error though PEFT would use the base's."""
    path = save_adapter(tmp_path / "whole", folder, modules_to_save=["lm_head"])
    load(path)
    edit(path, without("base_model.model.lm_head.weight"), "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"1 missing \(base_model.model.lm_head.weight\)"):
        load(path)


def test_the_adapters_own_tokenizer_wins(tmp_path: Path, folder: Path, adapter: Path) -> None:
    """A tokenizer beside the adapter is the one it was trained with; without one it is the base's."""
    assert load(adapter).processor.chat_template == make_tokenizer().chat_template
    own = copy(adapter, tmp_path / "own")
    make_tokenizer("{{ messages[0].content }}").save_pretrained(own)
    assert load(own).processor.chat_template == "{{ messages[0].content }}"


def copy(source: Path, target: Path) -> Path:
    """A copy of a flat folder."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
