"""Loading versions as models, adapters together with their bases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
