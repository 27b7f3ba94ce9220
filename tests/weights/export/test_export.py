"""Exports compute what their source computes, by the runtimes themselves; what does not is refused and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from export_matrix import ARCHITECTURES, FAST, read_rows
from modelyard.errors import InputError, ModelError, RequestError
from modelyard.weights.certificate import read
from modelyard.weights.create import create
from modelyard.weights.export import export, exporting, open_export, process, steps, supported_architectures
from modelyard.weights.export.manifest import Manifest
from modelyard.weights.export.samples import refuse_constant
from modelyard.weights.files import FolderFiles
from modelyard.weights.parity import Batch
from modelyard.weights.untrained import find_untrained
from tiny_models import make_llama, make_tokenizer, save_model

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.xdist_group("export"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

IDS = np.array([[0, 0, 0, 17, 8, 9, 40], [11, 12, 13, 14, 15, 16, 41]], np.int64)
MASK = np.array([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]], np.int64)
PADDED = Batch({"input_ids": IDS, "attention_mask": MASK}, MASK.astype(np.bool_), "padded")
WORDS = {
    "input_ids": np.array([[2, 40, 41, 42, 3], [2, 50, 3, 0, 0]], np.int64),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int64),
    "token_type_ids": np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], np.int64),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for everything."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def llama(base: Path) -> Path:
    """A Llama of one layer, with heads of 16 numbers."""
    model = make_llama(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    return save_model(base / "llama", model)


@pytest.fixture(scope="module")
def bert(base: Path) -> Path:
    """A BERT that classifies."""
    return ARCHITECTURES["BERT, classification"](base / "bert")


@pytest.fixture(scope="module")
def bert_onnx(bert: Path, base: Path) -> Path:
    """BERT as ONNX, as everybody exports it: in a process of its own."""
    seen: list[tuple[int, int]] = []
    export(bert, base / "bert-onnx", "onnx", threads=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert all(done <= total for done, total in seen)
    return base / "bert-onnx"


@pytest.fixture(scope="module")
def together(llama: Path, bert: Path, bert_onnx: Path, base: Path) -> Path:
    """A folder with `llama-onnx`, `llama-genai` and `bert-openvino`; and what transformers says of `bert-onnx`."""
    jobs = [
        {"source": str(llama), "out": str(base / "llama-onnx"), "format": "onnx"},
        {"source": str(llama), "out": str(base / "llama-genai"), "format": "genai", "type": "fp32"},
        {"source": str(bert), "out": str(base / "bert-openvino"), "format": "openvino"},
    ]
    script = Path(__file__).with_name("export_together.py")
    given = json.dumps({name: values.tolist() for name, values in WORDS.items()})
    command = [sys.executable, str(script), json.dumps(jobs), str(bert_onnx), given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (base / "transformers.json").write_text(done.stdout.splitlines()[-1])
    return base


def torch_logits(folder: Path, name: str, **inputs: Any) -> np.ndarray[Any, Any]:
    """What transformers itself says."""
    import transformers

    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(
            **{key: torch.from_numpy(value) for key, value in inputs.items()}
        ).logits.numpy()
    return found


def torch_tokens(folder: Path, tokens: int) -> list[list[int]]:
    """What transformers itself writes, greedily, behind the padded rows."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    ids, mask = torch.from_numpy(IDS), torch.from_numpy(MASK)
    made = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens)
    found: list[list[int]] = made[:, IDS.shape[1] :].tolist()
    return found


def copying(finished: Path, spoil: Callable[[Path], None] | None = None) -> Callable[..., None]:
    """In place of tracing: the graph of an export that is there, after `spoil`."""

    def trace(job: steps.Job, model: Any, batches: Any, tell: Any) -> None:
        for path in finished.glob("*model*"):
            if path.suffix in {".onnx", ".data", ".json", ".xml", ".bin"}:
                shutil.copy(path, job.folder)
        shutil.copy(finished / "export.json", job.folder)
        if spoil is not None:
            spoil(Path(job.folder))

    return trace


def here(monkeypatch: pytest.MonkeyPatch, trace: Callable[..., None]) -> None:
    """Exports run in this process, their graph by `trace`."""
    monkeypatch.setattr(exporting, "run_in_process", steps.run_job)
    monkeypatch.setattr(steps, "_trace", trace)


def double_a_weight(folder: Path) -> None:
    """The first quarter of the weights times two, as a broken exporter might."""
    path = folder / "model.onnx.data"
    values = np.fromfile(path, np.float32)
    values[: len(values) // 4] *= 2
    values.tofile(path)


def test_onnxruntime_alone_computes_what_transformers_does(bert: Path, bert_onnx: Path) -> None:
    """The folder's model.onnx in a plain onnxruntime session gives transformers' logits for padded rows with token types."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bert_onnx / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {each.name for each in session.get_inputs()} == set(WORDS)
    [found] = session.run(["logits"], WORDS)
    expected = torch_logits(bert, "BertForSequenceClassification", **WORDS)
    assert np.abs(found - expected).max() < 1e-5


def test_the_certificate_has_every_difference(bert_onnx: Path) -> None:
    """Single rows of three lengths and a padded batch were compared, every file is listed by digest, and the machine is named."""
    made = read(FolderFiles(bert_onnx))
    assert made is not None
    assert (made.operation, made.method, made.exactness) == ("export", "onnx fp32", "this machine")
    assert [each["name"] for each in made.checks] == [
        f"{name}: logits" for name in ("length 4", "length 7", "length 12", "padded")
    ]
    assert all(each["holds"] and 0 <= each["max_difference"] < 1e-4 * each["scale"] for each in made.checks)
    assert set(made.outputs) == set(FolderFiles(bert_onnx).names()) - {"certificate.json"}
    assert made.machine is not None
    assert {"onnx", "onnxruntime", "transformers"} <= set(made.machine["libraries"])


def test_transformers_reads_the_folder_too(bert: Path, together: Path) -> None:
    """`ExportedModel.from_pretrained` of transformers opens the folder and computes the same."""
    found = np.array(json.loads((together / "transformers.json").read_text()))
    expected = torch_logits(bert, "BertForSequenceClassification", **WORDS)
    assert np.abs(found - expected).max() < 1e-5


def test_nothing_is_ignored(bert_onnx: Path) -> None:
    """An input that the graph does not take, and one that it needs and is not given, are errors; token types are zero when they are left out."""
    runner = open_export(bert_onnx, threads=1)
    with pytest.raises(InputError, match="does not take position_ids"):
        runner.outputs(Batch({**WORDS, "position_ids": WORDS["input_ids"]}, None, "more"))
    with pytest.raises(InputError, match="lacks attention_mask"):
        runner.outputs(Batch({"input_ids": WORDS["input_ids"]}, None, "less"))
    zeros = runner.outputs(Batch({**WORDS, "token_type_ids": np.zeros_like(IDS[:, :5])}, None, "zeros"))["logits"]
    left_out = {name: values for name, values in WORDS.items() if name != "token_type_ids"}
    assert np.array_equal(runner.outputs(Batch(left_out, None, "left out"))["logits"], zeros)


def test_one_graph_does_prefill_and_decoding(llama: Path, together: Path) -> None:
    """Padded rows and 12 greedy tokens with the cache are transformers' own, from the one graph that is there."""
    folder = together / "llama-onnx"
    assert [path.name for path in folder.glob("*.onnx")] == ["model.onnx"]
    runner = open_export(folder, threads=1)
    expected = torch_logits(llama, "LlamaForCausalLM", input_ids=IDS[:1, 3:], attention_mask=MASK[:1, 3:])
    found = runner.outputs(PADDED)["logits"]
    assert np.abs(found[:1, 3:] - expected).max() < 1e-4
    assert runner.generate(PADDED, 12) == torch_tokens(llama, 12)


def test_sizes_of_the_graph_have_names(together: Path) -> None:
    """The inputs of the decoder's graph say batch, tokens, total and past, and the fixed sizes of the cache are numbers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(together / "llama-onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    shapes = {each.name: each.shape for each in session.get_inputs()}
    assert shapes["input_ids"] == ["batch", "tokens"]
    assert shapes["attention_mask"][1] == "total"
    assert shapes["input.past_key_values.layers.0.keys"] == ["batch", 1, "past", 16]


def test_openvino_computes_in_float32(bert: Path, together: Path) -> None:
    """The OpenVINO graph gives transformers' logits for padded rows, in float32 also where the processor would rather compute in bfloat16."""
    runner: Any = open_export(together / "bert-openvino", threads=1)
    compiled = runner._graphs["model"]._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    found = runner.outputs(Batch(WORDS, None, "padded"))["logits"]
    assert np.abs(found - torch_logits(bert, "BertForSequenceClassification", **WORDS)).max() < 1e-5


def test_genai_writes_what_transformers_writes(llama: Path, together: Path) -> None:
    """onnxruntime-genai's greedy tokens behind rows of two lengths are transformers' own, and so are its logits."""
    runner = open_export(together / "llama-genai", threads=1)
    assert runner.generate(PADDED, 12) == torch_tokens(llama, 12)
    found = runner.outputs(PADDED)["logits"]
    expected = torch_logits(llama, "LlamaForCausalLM", input_ids=IDS[:1, 3:], attention_mask=MASK[:1, 3:])
    assert np.abs(found[:1, 3:] - expected).max() < 1e-4


def test_genai_refuses_padding_tokens_within_a_batch(together: Path) -> None:
    """A row with the padding token inside would be computed wrong by onnxruntime-genai, so it is refused."""
    ids = IDS.copy()
    ids[1, 3] = 0
    with pytest.raises(InputError, match="padding token 0"):
        open_export(together / "llama-genai", threads=1).outputs(
            Batch({"input_ids": ids, "attention_mask": MASK}, None, "x")
        )


def test_genai_goes_on_behind_a_token_that_ends(llama: Path, together: Path, tmp_path: Path) -> None:
    """A runner's rows do not end at the end token: with one that is written at once, 12 tokens are transformers' own still."""
    folder = shutil.copytree(together / "llama-genai", tmp_path / "genai")
    expected = torch_tokens(llama, 12)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [expected[0][1], expected[1][3]]
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert open_export(folder, threads=1).generate(PADDED, 12) == expected


def test_fast_pairs_are_as_the_page_says(bert_onnx: Path, together: Path) -> None:
    """What this module exported is `pass` in docs/reference/exports.json."""
    rows = read_rows()
    assert {rows[pair]["result"] for pair in FAST} == {"pass"}


def test_a_wrong_weight_is_an_error_that_leaves_nothing(
    bert: Path, bert_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph with other weights fails its tolerance: export_differs, with the measured differences, and no file."""
    here(monkeypatch, copying(bert_onnx, double_a_weight))
    with pytest.raises(ModelError, match="computes something else, and was not kept") as caught:
        export(bert, tmp_path / "out", "onnx", threads=1)
    assert caught.value.code == "export_differs"
    assert any(not each["holds"] for each in caught.value.details["checks"])
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_of_zero_refuses_any_difference(
    bert: Path, bert_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true graph differs by rounding: with tolerance 0 it is refused, and the hint's tolerance lets it pass."""
    here(monkeypatch, copying(bert_onnx))
    with pytest.raises(ModelError) as caught:
        export(bert, tmp_path / "out", "onnx", tolerance=0.0, threads=1)
    assert caught.value.hint is not None
    enough = float(caught.value.hint.rpartition(" ")[2])
    assert 0 < enough < 1e-4
    assert all(each["holds"] for each in export(bert, tmp_path / "out", "onnx", tolerance=enough, threads=1).checks)


def test_an_interrupted_export_goes_on_with_the_comparison(
    bert: Path, bert_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its graph was written, the same command does not trace again; a changed file is traced anew."""
    traced: list[str] = []
    copy = copying(bert_onnx)

    def trace(job: steps.Job, *rest: Any) -> None:
        traced.append(job.folder)
        copy(job, *rest)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    here(monkeypatch, trace)
    with monkeypatch.context() as inner:
        inner.setattr(steps, "compare_export", stop)
        with pytest.raises(KeyboardInterrupt):
            export(bert, tmp_path / "out", "onnx", threads=1)
        double_a_weight(Path(traced[0]))
        with pytest.raises(KeyboardInterrupt):
            export(bert, tmp_path / "out", "onnx", threads=1)
    assert len(traced) == 2
    made = export(bert, tmp_path / "out", "onnx", threads=1)
    assert len(traced) == 2
    assert set(made.outputs) == set(FolderFiles(tmp_path / "out").names()) - {"certificate.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_mark_of_untrained_weights_is_carried(
    bert_onnx: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of random weights is marked until its graph changes, and its certificate warns."""
    create(bert, task="text-classification").save(tmp_path / "random")
    here(monkeypatch, copying(bert_onnx))
    made = export(tmp_path / "random", tmp_path / "out", "onnx", tolerance=1e9, threads=1)
    found = find_untrained(FolderFiles(tmp_path / "out"))
    assert found is not None
    assert found.kind == "random"
    assert any("random weights" in each for each in made.warnings)
    double_a_weight(tmp_path / "out")
    assert find_untrained(FolderFiles(tmp_path / "out")) is None


class _Scattered:
    """The files of a folder, without the folder."""

    def __init__(self, folder: Path) -> None:
        self._files = FolderFiles(folder)
        self.label = "scattered"
        self.names, self.size, self.read, self.path = (
            self._files.names,
            self._files.size,
            self._files.read,
            self._files.path,
        )


def test_files_need_no_folder(bert: Path, bert_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that lie anywhere are exported as a folder's are, with the preprocessors beside the graph."""
    here(monkeypatch, copying(bert_onnx))
    export(_Scattered(bert), tmp_path / "out", "onnx", threads=1)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_adapters_are_merged_first(tmp_path: Path) -> None:
    """An adapter is not exported, nor a folder without a model; the hint merges it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    with pytest.raises(ModelError, match="it has no config"):
        export(adapter, tmp_path / "out", "onnx", threads=1)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter") as caught:
        export(adapter, tmp_path / "out", "onnx", threads=1)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("merge it into its base first: yard merge BASE")


def test_genai_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that onnxruntime's kernel does not take, and classes that the builder does not know, are refused before anything is built."""
    here(monkeypatch, copying(tmp_path))
    with pytest.raises(ModelError, match="heads of 8 numbers") as caught:
        export(save_model(tmp_path / "llama"), tmp_path / "out", "genai", threads=1)
    assert caught.value.code == "not_exportable"
    gpt2 = ARCHITECTURES["GPT-2"](tmp_path / "gpt2")
    with pytest.raises(
        ModelError, match="GPT2LMHeadModel cannot be exported to genai: onnxruntime-genai's builder does not know"
    ):
        export(gpt2, tmp_path / "out", "genai", threads=1)
    assert not (tmp_path / "out").exists()


def test_architectures_are_asked_of_the_builder() -> None:
    """Those of genai are read from the installed builder; the others are found out by trying."""
    known = supported_architectures("genai")
    assert known is not None
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"} <= known
    assert "GPT2LMHeadModel" not in known
    assert supported_architectures("onnx") is None


def test_requests_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown format or type is a RequestError with the near match; a package that is not there, one line to install it."""
    with pytest.raises(RequestError) as caught:
        export(tmp_path, tmp_path / "out", "onxx")
    assert caught.value.hint == "did you mean `onnx`?"
    with pytest.raises(RequestError, match="no type `int3`"):
        export(tmp_path, tmp_path / "out", "genai", type="int3")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else find(name, *rest)
    )
    with pytest.raises(ModelError, match="needs the package `openvino`") as missing:
        export(tmp_path, tmp_path / "out", "openvino")
    assert missing.value.hint == "pip install 'modelyard[export]'"


def test_a_process_that_dies_is_an_error(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends without a word is `export_failed`, with the last that it said, and leaves nothing."""
    monkeypatch.setattr(process, "_WORKER", "modelyard.weights.export.no_such_worker")
    with pytest.raises(ModelError, match=r"ended without a result.*no_such_worker") as caught:
        export(bert, tmp_path / "out", "onnx", threads=1)
    assert caught.value.code == "export_failed"
    assert list(tmp_path.iterdir()) == []


def test_a_sample_without_padding_is_refused() -> None:
    """A mask of ones would vanish from the graph: such a sample is not traced."""
    ids = torch.ones((2, 4), dtype=torch.int64)
    with pytest.raises(ModelError, match="lose attention_mask"):
        refuse_constant({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    refuse_constant({"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])})


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    """`open_export` of any other folder says how to make one; a manifest of another form is told."""
    with pytest.raises(ModelError, match="is no export") as caught:
        open_export(tmp_path)
    assert caught.value.hint is not None
    assert "yard export" in caught.value.hint
    (tmp_path / "modelyard_export.json").write_text('{"format": "other"}')
    with pytest.raises(ModelError, match="not what an export has"):
        Manifest.read(tmp_path)


def test_tokenizer_is_the_models_own(llama: Path, together: Path) -> None:
    """The tokenizer beside the graph reads and writes as the source's, chat template included."""
    from transformers import AutoTokenizer

    for name in ("llama-onnx", "llama-genai"):
        made = AutoTokenizer.from_pretrained(together / name)
        assert made("where is my card")["input_ids"] == make_tokenizer()("where is my card")["input_ids"]
        assert made.chat_template == make_tokenizer().chat_template
    assert (together / "llama-onnx" / "generation_config.json").read_bytes() == (
        llama / "generation_config.json"
    ).read_bytes()
