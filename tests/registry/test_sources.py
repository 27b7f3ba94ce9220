"""What lineage offers for segments: every exact operation, and delta bases in the order in which they are likely."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from modelyard.catalog import versions
from modelyard.derivations import apply_dare, apply_linear, apply_ties
from modelyard.derivations.operands import Operands
from modelyard.errors import InputError
from modelyard.registry.decoding import catalog_decoder
from modelyard.registry.hints import Hint
from modelyard.registry.places import HeaderFiles, Places
from modelyard.registry.sources import Offer, Sources
from modelyard.weights import FolderFiles
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.merge import merge_lora
from registry.segment_models import bf16, contents, folder, on_disk, outdate, save, tuned, weights
from tiny_models import make_llama, save_adapter, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry import Version
    from registry.registry_helpers import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def offers(
    bench: Bench, version: Version, scratch: Path, path: str = "model.safetensors"
) -> tuple[list[Offer], Sources]:
    """What is offered for one file of a version, and who offers it."""
    context = bench.yard._context
    sources = Sources(context, Places(context, catalog_decoder(context.raw, context.catalog)), scratch)
    with context.catalog.read() as connection:
        record = versions.load(connection, versions.by_digest(connection, [version.id]))[0]
    entry = version.file(path)
    assert entry is not None
    return list(sources.offers(record, [entry.blake3])), sources


def operations(found: list[Offer]) -> list[tuple[str, ...]]:
    """The operations that each offer names."""
    return [tuple(str(made.params["operation"]) for made in offer.derivations) for offer in found]


def named(found: list[Offer], bases: list[Offer]) -> list[int | None]:
    """For each offer, which of `bases` its first delta base is."""
    where = {offer.segment: at for at, offer in enumerate(bases)}
    return [where.get(offer.bases[0]) if offer.bases else None for offer in found]


@pytest.mark.parametrize(
    ("config", "shards"),
    [({}, None), ({"modules_to_save": ["lm_head"]}, None), ({"use_rslora": True}, "200KB")],
    ids=["plain", "saved-modules", "sharded"],
)
def test_every_tensor_of_a_merge_is_computed_or_shared(
    bench: Bench, tmp_path: Path, config: dict[str, Any], shards: str | None
) -> None:
    """Real merges, sharded ones and replaced tensors too: after compaction no tensor of the merge is stored as bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    model = make_llama(hidden_size=128, tie_word_embeddings=False).to(torch.bfloat16)
    base = save_model(tmp_path / "base", model)
    adapter = save_adapter(tmp_path / "adapter", base, **config)
    if "modules_to_save" in config:
        trained = load_file(adapter / "adapter_model.safetensors")
        (head,) = [name for name in trained if "lm_head" in name]
        trained[head] = trained[head].float() * 1.1  # float32 beside a bfloat16 base: a cast
        save_file(trained, adapter / "adapter_model.safetensors", {"format": "pt"})
    if shards:
        for old in base.glob("*.safetensors"):
            old.unlink()
        model.save_pretrained(base, max_shard_size=shards)
    merge_lora(FolderFiles(base), FolderFiles(adapter), tmp_path / "merged")
    first = bench.yard.commit(base, "team/base", kind="base")
    second = bench.yard.commit(adapter, "team/adapter", kind="adapter", from_=[("finetuned", first)])
    merged = bench.yard.commit(tmp_path / "merged", "team/model", kind="merged", from_=[("merged", second)])
    outdate(bench)
    done = bench.yard.compact(idle_days=0, least_rate=0)
    assert done.notes == ()
    assert done.segments["derived"] == (5 if config.get("modules_to_save") else 4)
    assert done.after["derived"] == 0
    tensors = bench.yard.usage(merged.name).repos[0].versions[0]
    assert tensors.unique < 0.02 * merged.size
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, merged) == on_disk(tmp_path / "merged")


def test_an_adapter_that_has_no_exact_merge_offers_nothing_and_says_why(bench: Bench, tmp_path: Path) -> None:
    """What `plan_adapter` refuses is a note, and the version is kept in another way."""
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    source = bench.write({"adapter_config.json": json.dumps({"peft_type": "LORA", "use_qalora": True, "r": 2})})
    save(source / "adapter_model.safetensors", {"base_model.model.a.lora_A.weight": weights()["a.weight"]})
    adapter = bench.yard.commit(source, "team/adapter", kind="adapter", from_=[("finetuned", base)])
    made = bench.yard.commit(
        folder(bench, tuned(weights())), "team/model", kind="merged", from_=[("merged", adapter), ("merged", base)]
    )
    found, sources = offers(bench, made, tmp_path)
    assert operations(found) == [()] * 5
    assert any("QALoRA" in note for note in sources.notes)
    outdate(bench)
    assert bench.yard.compact(idle_days=0).segments["delta"] == 4


@pytest.mark.parametrize(("from_", "to"), [("F32", "BF16"), ("F32", "F16"), ("BF16", "F32")])
def test_a_converted_model_is_a_cast_of_its_source(bench: Bench, tmp_path: Path, from_: str, to: str) -> None:
    """Tensors of the same shape in another dtype are computed from the ones they were converted from."""
    tensors = {name: _through(values, from_) for name, values in weights().items()}
    source = bench.yard.commit(folder(bench, tensors, from_), "team/base", kind="base")
    converted = folder(bench, tensors, to)
    made = bench.yard.commit(converted, "team/model", kind="exported", from_=[("converted", source)])
    outdate(bench)
    assert operations(offers(bench, made, tmp_path)[0]) == [(), *[("cast/1",)] * 4]
    done = bench.yard.compact(idle_days=0, least_rate=0)
    assert done.segments["derived"] == 4
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, made) == on_disk(converted)


def _through(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values as `dtype` holds them, as float32."""
    return (bf16(values).astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


HINTS: dict[str, dict[str, Any]] = {
    "linear/1": {"weights": ["0.5", "0.25"]},
    "ties/1": {"weights": ["1", "0.7"], "density": "0.2"},
    "dare/1": {"weights": ["0.6", "0.4"], "density": "0.5", "seed": 7},
}


@pytest.mark.parametrize("operation", HINTS)
def test_a_sum_of_models_is_computed_from_them(bench: Bench, operation: str) -> None:
    """What the committer says the files were computed by is used where the bytes agree: linear, TIES and DARE."""
    inputs = [tuned(weights(), seed) for seed in (1, 2)]
    base = bench.yard.commit(folder(bench, weights(), "F32"), "team/base", kind="base")
    models = [bench.yard.commit(folder(bench, each, "F32"), f"team/m{at}") for at, each in enumerate(inputs)]
    hint = HINTS[operation]
    shares = [float(each) for each in hint["weights"]]
    merged = {}
    for name, under in weights().items():
        parts = [each[name] for each in inputs]
        plain = Operands(parts, ["F32"] * 2, shares)
        changes = Operands(parts, ["F32"] * 2, shares, base=under, base_dtype="F32")
        if operation == "linear/1":
            made = apply_linear(plain, "F32")
        elif operation == "ties/1":
            made = apply_ties(changes, 0.2, "F32")
        else:
            made = apply_dare(changes, 0.5, "F32", seed=7, name=name)
        merged[name] = made.reshape(under.shape)
    source = folder(bench, merged, "F32")
    said = {"operation": operation, "inputs": [str(model.id) for model in models], **hint}
    if operation != "linear/1":
        said["base"] = str(base.id)
    version = bench.yard.commit(
        source, "team/model", kind="merged", from_=[("merged", model) for model in models], derivation=said
    )
    outdate(bench)
    done = bench.yard.compact(idle_days=0, least_rate=0)
    assert done.segments["derived"] == 4
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, version) == on_disk(source)


def test_a_hint_that_is_wrong_is_not_believed(bench: Bench) -> None:
    """Other weights than were used: the bytes do not agree, so the segments are kept as bytes, and read right."""
    model = bench.yard.commit(folder(bench, weights(), "F32"), "team/base", kind="base")
    source = folder(bench, {name: values * 0.75 for name, values in weights().items()}, "F32")
    said = {"operation": "linear/1", "inputs": [str(model.id)], "weights": ["0.5"]}
    made = bench.yard.commit(source, "team/model", kind="merged", from_=[("merged", model)], derivation=said)
    outdate(bench)
    assert "derived" not in bench.yard.compact(idle_days=0, least_rate=0).segments
    bench.yard.collect(now=True, force=True)
    assert contents(bench.yard, made) == on_disk(source)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "{}",
        "7",
        '{"operation":"slerp/1","inputs":["aa"],"weights":["1"]}',
        '{"operation":"linear/1","inputs":["aa"],"weights":[]}',
        '{"operation":"linear/1","inputs":[],"weights":[]}',
        '{"operation":"linear/1","inputs":["aa"],"weights":["half"]}',
        '{"operation":"linear/1","inputs":["aa"],"base":"bb","weights":["1"]}',
        '{"operation":"ties/1","inputs":["aa"],"weights":["1"]}',
        '{"operation":"dare/1","inputs":["aa"],"base":"bb","weights":["1"],"seed":"x"}',
    ],
)
def test_a_hint_that_makes_no_sense_is_refused(said: str) -> None:
    """A hint is the committer's text: whatever is in it, the answer is a hint or a typed error."""
    with pytest.raises(InputError, match="derivation"):
        Hint.read(said)


def test_delta_bases_come_in_the_order_in_which_they_are_likely(bench: Bench, tmp_path: Path) -> None:
    """The base first, then the parent, then a sibling; never the segment itself, another shape, or a deleted version."""
    base = bench.yard.commit(folder(bench, weights()), "team/base", kind="base")
    made = []
    for step in (1, 2, 3):
        source = folder(bench, tuned(weights(), step))
        made.append(bench.yard.commit(source, "team/model", kind="finetuned", from_=[("finetuned", base)]))
    around = [offers(bench, each, tmp_path)[0] for each in (base, *made)]
    likely = [[around.index(theirs) for theirs in _having(around, offer.bases)] for offer in around[2][1:]]
    assert likely == [[0, 1, 3]] * 4  # v2: its base, its parent v1, its sibling v3
    assert [offer.bases for offer in around[0]] == [()] * 5
    other = bench.yard.commit(
        folder(bench, {"a.weight": weights()["a.weight"].T, **tuned({"b.weight": weights()["b.weight"]})}), "team/model"
    )
    found, _ = offers(bench, other, tmp_path)
    assert [offer.bases for offer in found if offer.size == 96 * 128 * 2] == [()]
    bench.yard.delete(base.name, force=True)
    after, _ = offers(bench, made[1], tmp_path)
    assert named(after[1:], around[1]) == [1, 2, 3, 4]


def _having(around: list[list[Offer]], bases: tuple[str, ...]) -> list[list[Offer]]:
    """Which list of offers each of these segments is in."""
    return [next(each for each in around if base in {offer.segment for offer in each}) for base in bases]


def test_files_without_tensors_are_alike_when_they_are_cut_alike(bench: Bench, tmp_path: Path) -> None:
    """Two versions of a file of the same size pair their segments by position; the dtype is BYTES."""
    text = b"a line of text\n" * 100
    one = bench.yard.commit(bench.write({"data.txt": text}), "datasets/team/data")
    two = bench.yard.commit(bench.write({"data.txt": text.replace(b"line", b"LINE")}), "datasets/team/data")
    (offer,), _ = offers(bench, two, tmp_path, "data.txt")
    entry = one.file("data.txt")
    assert entry is not None
    assert (offer.dtype, offer.bases) == ("BYTES", (entry.blake3,))


def test_a_version_in_segments_shows_its_headers_without_being_made_whole(bench: Bench, tmp_path: Path) -> None:
    """Readers of headers get a sparse file of the right size; nothing is put together in the store."""
    source = folder(bench, weights())
    made = bench.yard.commit(source, "team/model")
    outdate(bench)
    bench.yard.compact(idle_days=0)
    bench.yard.collect(now=True, force=True)
    context = bench.yard._context
    places = Places(context, catalog_decoder(context.raw, context.catalog))
    with context.catalog.read() as connection:
        record = versions.load(connection, versions.by_digest(connection, [made.id]))[0]
    shown = HeaderFiles(places, record, tmp_path)
    assert open_checkpoint(shown).shards == open_checkpoint(FolderFiles(source)).shards
    assert shown.read("config.json") == (source / "config.json").read_bytes()
    path = shown.path("model.safetensors")
    assert path.stat().st_size == shown.size("model.safetensors") == (source / "model.safetensors").stat().st_size
    entry = made.file("model.safetensors")
    assert entry is not None
    assert not bench.store.has_file(entry.blake3)
