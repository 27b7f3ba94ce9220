"""Loading versions as models, adapters together with their bases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from modelyard.catalog.schema import files
from modelyard.errors import IntegrityError, NotFoundError
from modelyard.store import MemoryStore
from tiny_models import save_adapter, save_model

if TYPE_CHECKING:
    from registry.registry_helpers import Bench

# PEFT 0.21 reads an attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_a_version_loads_from_its_links(bench: Bench) -> None:
    """A loaded model answers, knows its version, and was read from links into the store."""
    made = bench.yard.commit(save_model(bench.folder / "llama"), "team/model")
    assert made.kind == "base"
    model = bench.yard.load("team/model")
    assert model.version == made
    assert model.folder == bench.root / "links" / made.id
    assert isinstance(model.generate("where is my card", max_new_tokens=4), str)


def test_an_adapter_finds_its_base_by_lineage(bench: Bench) -> None:
    """An adapter version loads onto the base at its `finetuned` edge; the folder that PEFT noted plays no part."""
    base = bench.yard.commit(save_model(bench.folder / "llama"), "team/base")
    made = bench.yard.commit(
        save_adapter(bench.folder / "adapter", bench.folder / "llama"), "team/adapter", from_=[base]
    )
    assert made.kind == "adapter"
    model, plain = bench.yard.load(made), bench.yard.load(base)
    prompt = "where is my card"
    assert model.version == made
    assert model.generate(prompt, max_new_tokens=8) != plain.generate(prompt, max_new_tokens=8)
    lone = bench.yard.commit(bench.folder / "adapter", "team/lone")
    with pytest.raises(NotFoundError, match="which base"):
        bench.yard.load(lone)


@pytest.mark.row(42)
def test_a_damaged_model_is_not_loaded(bench: Bench) -> None:
    """A flipped bit in the stored weights is found before a library reads them."""
    made = bench.yard.commit(save_model(bench.folder / "llama"), "team/model")
    bench.yard.load(made)
    entry = made.file("model.safetensors")
    assert entry is not None
    path = bench.store.file_path(entry.blake3)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        bench.yard.load(made)


def test_a_yard_without_links_loads_copies(bench: Bench) -> None:
    """Over a store in memory the model is loaded from a temporary folder, which goes when the model goes."""
    import gc

    yard = bench.open(store=MemoryStore(), links=None)
    yard.commit(save_model(bench.folder / "llama"), "team/model")
    model = yard.load("team/model")
    folder = model.folder
    assert isinstance(model.generate("where", max_new_tokens=2), str)
    assert folder.is_dir()
    del model
    gc.collect()
    assert not folder.exists()


def test_values_that_were_looked_at_are_not_read_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole load keeps that the files are finite, the next one reads no value; one with a cast looks, and says nothing."""
    from modelyard.weights import audit

    looked: list[object] = []
    real = audit._is_finite

    def look(tensor: object) -> bool:
        looked.append(tensor)
        return real(tensor)

    monkeypatch.setattr(audit, "_is_finite", look)
    base = bench.yard.commit(save_model(bench.folder / "llama"), "team/base")
    bench.yard.load(base, dtype="bfloat16")
    assert looked
    looked.clear()
    bench.yard.load(base, dtype="float32")  # the cast one above left no note
    assert looked
    looked.clear()
    bench.yard.load(base, dtype="float32")
    assert not looked
    bench.yard.load(base, dtype="bfloat16")
    assert looked


def test_a_set_that_was_not_read_is_not_called_finite(bench: Bench) -> None:
    """Of two sets of weights in a version a load reads one: what it found says nothing of the other, which holds a NaN."""
    folder = save_model(bench.folder / "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    save_file(tensors, folder / "consolidated.safetensors", {"format": "pt"})
    base = bench.yard.commit(folder, "team/base")
    bench.yard.load(base, dtype="float32")
    with bench.yard._context.catalog.read() as connection:
        held = connection.execute(select(files.c.digest, files.c.nonfinite)).all()
    assert {row.nonfinite for row in held} == {None}
