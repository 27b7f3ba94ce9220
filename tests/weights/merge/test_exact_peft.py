"""Mode `exact` against PEFT: every kind's tensors within the stated bound of `merge_and_unload`, every kind's function the attached one's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import adapter_bases as bases
from adapter_kinds import KINDS
from modelyard.errors import ModelError
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.files import FolderFiles
from modelyard.weights.merge import merge_lora
from modelyard.weights.merge.plan import plan_adapter

if TYPE_CHECKING:
    from adapter_kinds import Made
    from modelyard.weights.merge.plan import Plan, Site

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
ULP = {torch.float32: (24, -126), torch.float16: (11, -14), torch.bfloat16: (8, -126)}
U = 2.0**-24
BOUNDED = [
    "linear-float32-float32", "linear-float16-bfloat16", "linear-bfloat16-float32", "linear-encoder-decoder", "linear-llava",
    "linear-qwen2-vl", "rslora", "patterns-rslora", "conv1d", "conv1d-bfloat16", "multihead-attention", "dora-float32",
    "dora-float16", "dora-bfloat16", "dora-conv1d", "dora-embedding", "dora-embedding-bfloat16", "dora-conv2d",
    "dora-conv2d-bfloat16", "conv2d", "conv2d-bfloat16", "conv1d-layers", "conv3d", "embedding", "embedding-bfloat16", "head",
    "modules-to-save-bfloat16", "modules-to-save-norms", "classifier", "tokens-bfloat16", "tokens-alone", "tied-saved-head",
    "tied-saved-ensured", "tied-tokens", "lora-bias", "lora-bias-bfloat16", "bias-lora-only", "bias-all", "experts-qwen3-moe",
    "experts-qwen3-moe-bfloat16", "experts-gpt-oss", "experts-gpt-oss-bfloat16", "experts-mixtral-of-transformers-4", "velora",
    "monteclora", "start-mica",
]  # fmt: skip


def merged(name: str, folder: Path) -> tuple[Made, Plan]:
    """A kind's base and adapter, merged by us into `folder`/out, and the plan of it."""
    made = KINDS[name](folder)
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), folder / "out")
    base, adapter = open_checkpoint(FolderFiles(made.base)), open_checkpoint(FolderFiles(made.adapter), "adapter_model")
    return made, plan_adapter(base, adapter)


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What a model computes."""
    with torch.no_grad():
        output = model(**inputs)
    found = output.logits if getattr(output, "logits", None) is not None else output.pooler_output
    return torch.as_tensor(found).double()


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance between neighbouring numbers of `dtype` at each magnitude, in float64."""
    precision, least = ULP[dtype]
    exponent = torch.frexp(values.double().abs()).exponent.double() - 1
    exponent[values == 0] = least
    return torch.exp2(exponent.clamp(min=least) - (precision - 1))


def bound(site: Site, before: torch.Tensor, ours: torch.Tensor, adapter: dict[str, torch.Tensor], name: str) -> Any:
    """How far PEFT's result may be from ours on the rows of one site, as docs/design/derivations.md states it."""
    layout, dtype = site.layout, ours.dtype
    rows = slice(layout.rows.start, layout.rows.stop)
    weight, made = (part.reshape(layout.shape)[rows] for part in (before, ours))
    rounding = ulp(torch.maximum(weight.abs(), made.abs()), dtype)
    if site.kind in {"replaced", "tokens"}:
        return rows, torch.zeros_like(rounding)
    if site.kind == "bias":
        product = (float(site.scale) * adapter[site.tensors["bias"]].double()).reshape(-1, 1)
        return rows, rounding + 2 * U * product.abs()
    a, b = (adapter[site.tensors[role]].double().flatten(1) for role in "AB")
    a, b = a[list(layout.a_rows)], b[list(layout.b_rows)][:, list(layout.b_columns)]
    terms, product = (float(site.scale) * b.abs()) @ a.abs(), float(site.scale) * b @ a
    if site.dora:
        return rows, _dora_bound(site, weight, made, adapter, terms, product)
    terms, product = (part.T if layout.transposed else part for part in (terms, product))
    limit = rounding + 2 * site.rank * U * terms
    attention = name == "multihead-attention"
    if site.kind in {"embedding", "expert"} or attention or name == "start-mica":
        limit += ulp(product.abs(), dtype) * (2 if attention else 1)
    return rows, limit + (rounding if attention else 0)


def _dora_bound(
    site: Site,
    weight: torch.Tensor,
    made: torch.Tensor,
    adapter: dict[str, torch.Tensor],
    terms: torch.Tensor,
    product: torch.Tensor,
) -> torch.Tensor:
    turned = site.layout.transposed
    values = (weight.T if turned else weight).double() + product
    error = 2 * site.rank * U * terms + 2 * U * values.abs()
    norm = values.norm(dim=1, keepdim=True)
    factor = adapter[site.tensors["magnitude"]].double().reshape(-1, 1) / norm
    result = (factor * values).abs()
    relative = (values.shape[1] + 8) * U + error.norm(dim=1, keepdim=True) / norm
    limit: torch.Tensor = factor.abs() * error + result * relative
    return ulp(made, made.dtype) + (limit.T if turned else limit)


@pytest.mark.parametrize("name", BOUNDED)
def test_within_the_bound_of_peft(name: str, tmp_path: Path) -> None:
    """Every element of every tensor is within the kind's bound of PEFT's merge, and every changed tensor did change."""
    made, plan = merged(name, tmp_path)
    made.attach().merge_and_unload().save_pretrained(tmp_path / "peft")
    theirs, ours, before = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "peft", tmp_path / "out", made.base)
    )
    adapter = load_file(made.adapter / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert plan.sites
    for tensor, exact in ours.items():
        sites = plan.sites.get(tensor, ())
        if not sites:
            assert torch.equal(exact, theirs[tensor])
            continue
        matrix = exact.reshape(sites[0].layout.shape)
        limit = torch.zeros(matrix.shape, dtype=torch.double)
        start = before.get(tensor, torch.zeros_like(exact))
        for site in sites:
            rows, allowed = bound(site, start, exact, adapter, name)
            limit[rows] += allowed
        far = (matrix.double() - theirs[tensor].reshape(matrix.shape).double()).abs()
        assert bool((far <= limit).all()), (tensor, float((far - limit).max()))
        assert not torch.equal(exact, start)


@pytest.mark.parametrize(
    "name", ["dora-conv1d", "experts-gpt-oss-bfloat16", "conv2d", "lora-bias-bfloat16", "tied-both"]
)
def test_threads_and_blocks_do_not_show(name: str, tmp_path: Path) -> None:
    """Whatever the threads and blocks, every file of a merge is the same."""
    made = KINDS[name](tmp_path)
    outputs = []
    for threads, block in ((1, 1 << 16), (2, 17), (3, 100)):
        out = tmp_path / f"{threads}"
        done = merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), out, threads=threads, block_elements=block)
        outputs.append(done.outputs)
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("tied-head", True),
        ("tied-embedding", True),
        ("tied-both", True),
        ("tied-ensured", False),
        ("tied-saved-head", True),
        ("tied-saved-ensured", False),
        ("tied-tokens", False),
        ("tied-linear", False),
    ],
)
@pytest.mark.row(26)
def test_tied_embeddings_compute_what_is_attached(name: str, added: bool, tmp_path: Path) -> None:
    """A change to a tied pair gives the attached adapter's logits; where the sides differ the head is a tensor of its own."""
    made, plan = merged(name, tmp_path)
    attached, whole = (logits(model, made.inputs()) for model in (made.attach(), made.load(tmp_path / "out")))
    scale = float(attached.abs().max())
    assert float((attached - whole).abs().max()) < 1e-5 * scale
    assert float((attached - logits(made.load(), made.inputs())).abs().max()) > 0.1 * scale
    assert list(plan.added) == (["lm_head.weight"] if added else [])
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is added
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is not added


def test_tied_head_of_a_model_that_ties_unless_told(tmp_path: Path) -> None:
    """GPT-2's configuration says nothing of the tie that its class has; a LoRA on its head parts the pair all the same."""
    from adapter_factories import lora

    made = lora(bases.gpt2, target_modules=["lm_head", "c_attn"], task_type="CAUSAL_LM")(tmp_path)
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    attached, whole = (logits(model, made.inputs()) for model in (made.attach(), made.load(tmp_path / "out")))
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())


def gemma3() -> Any:
    """A tied Gemma 3, whose embedding is scaled where it is read."""
    sizes = {**bases._TEXT, "intermediate_size": 24, "head_dim": 8, "tie_word_embeddings": True}
    return bases._make("Gemma3ForCausalLM", "Gemma3TextConfig", **sizes)


def bert() -> Any:
    """A BERT that fills masks: its decoder is its word embedding."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return bases._make(
        "BertForMaskedLM", "BertConfig", **{name: bases._TEXT[name] for name in names}, intermediate_size=24
    )


def nested() -> Any:
    """A tied Qwen2-VL, whose flag stands in the part of the text, too."""
    model = bases.qwen2_vl()
    values = model.config.to_dict()
    values["text_config"]["tie_word_embeddings"] = values["tie_word_embeddings"] = True
    return bases._make("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", **values)


@pytest.mark.parametrize(
    ("make", "target"), [(gemma3, "embed_tokens"), (gemma3, "lm_head"), (bert, "decoder"), (nested, "lm_head")]
)
def test_ties_of_other_architectures(make: Any, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled embeddings, a masked language model's decoder, and a flag in a part of the configuration: the attached logits."""
    import adapter_factories

    monkeypatch.setitem(adapter_factories._TASKS, "MaskedLM", "fill-mask")
    monkeypatch.setitem(adapter_factories._TASKS, "Gemma3ForCausalLM", "text-generation")
    made = adapter_factories.lora(make, target_modules=[target])(tmp_path)
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    attached, whole = (logits(model, made.inputs()) for model in (made.attach(), made.load(tmp_path / "out")))
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    parts = [config, *(part for key, part in config.items() if key == "text_config")]
    assert not any(part["tie_word_embeddings"] for part in parts)


def test_embedding_that_more_than_a_head_shares_is_refused(tmp_path: Path) -> None:
    """T5's one embedding is encoder's, decoder's and head's: a change to one of them cannot be told in its configuration."""
    from adapter_factories import lora

    made = lora(bases.t5, target_modules=["lm_head", "q"], task_type="SEQ_2_SEQ_LM")(tmp_path)
    with pytest.raises(ModelError) as caught:
        merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), tmp_path / "out")
    assert caught.value.code == "tied_embeddings"
    assert "encoder.embed_tokens" in caught.value.message


@pytest.mark.parametrize("name", ["multihead-attention", "dora-embedding", "conv3d", "lora-bias"])
def test_function_is_the_attached_ones(name: str, tmp_path: Path) -> None:
    """What is attached and what is merged compute the same."""
    made, _ = merged(name, tmp_path)
    attached, whole = (logits(model, made.inputs()) for model in (made.attach(), made.load(tmp_path / "out")))
    assert float((attached - whole).abs().max()) < 1e-5 * float(attached.abs().max())
