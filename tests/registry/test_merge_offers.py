"""A planned merge as derivations: what is offered for each segment gives that segment's bytes when it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapter_kinds import KINDS
from modelyard.derivations import replay
from modelyard.registry.merge_offers import MergeOffers, plan_offers
from modelyard.registry.places import Slice, TensorPlace
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.files import FolderFiles
from modelyard.weights.merge import merge_lora
from modelyard.weights.merge.plan import plan_adapter

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

DERIVED = {
    "linear-bfloat16-bfloat16": {"lora/1"},
    "conv1d": {"lora/1"},
    "embedding-bfloat16": {"lora/1"},
    "conv2d": {"lora/1"},
    "conv3d": {"lora/1"},
    "experts-qwen3-moe-bfloat16": {"lora/1"},
    "experts-gpt-oss": {"lora/1"},
    "experts-mixtral-of-transformers-4": {"lora/1"},
    "lora-bias-bfloat16": {"lora/1", "linear/1"},
    "dora-bfloat16": {"dora/1"},
    "dora-conv1d": {"dora/1"},
    "dora-embedding": {"dora/1"},
    "dora-conv2d-bfloat16": {"dora/1"},
    "tied-both": {"lora/1"},
}
WHOLE_ONLY = {"dora-conv1d", "dora-embedding", "experts-gpt-oss"}


def places(checkpoint: Checkpoint) -> dict[str, TensorPlace]:
    """A folder's tensors as a yard knows them; a file is one segment, called by its path."""
    made = {}
    for shard, header in checkpoint.shards.items():
        path = str(checkpoint.files.path(shard))
        for name, info in header.tensors.items():
            start, end = header.data_start + info.start, header.data_start + info.end
            made[name] = TensorPlace(path, shard, name, info.dtype, info.shape, start, end)
    return made


def part(place: TensorPlace, start: int, end: int) -> list[Slice]:
    """Bytes of a tensor as two parts, so that they have to be joined."""
    middle = (start + end) // 2
    parts = [Slice(place.file, place.start + a, place.start + b) for a, b in ((start, middle), (middle, end))]
    return [each for each in parts if each.start < each.end]


def read(slices: list[Slice]) -> bytes:
    """The bytes of parts of segments."""
    return b"".join(Path(each.segment).read_bytes()[each.start : each.end] for each in slices)


def prepared(name: str, folder: Path) -> tuple[MergeOffers, dict[str, TensorPlace]]:
    """The offers of a kind's merge, and the merged tensors."""
    made = KINDS[name](folder)
    merge_lora(FolderFiles(made.base), FolderFiles(made.adapter), folder / "out")
    base, adapter = open_checkpoint(FolderFiles(made.base)), open_checkpoint(FolderFiles(made.adapter), "adapter_model")
    offers = plan_offers(plan_adapter(base, adapter), places(base), places(adapter), part)
    return offers, places(open_checkpoint(FolderFiles(folder / "out")))


def cut(place: TensorPlace, pieces: int, offers: MergeOffers) -> list[tuple[int, int]]:
    """A tensor's bytes cut at rows, as segments may be; a stack of experts is cut at each of them."""
    sites = offers.plan.sites.get(place.name, ())
    length = place.end - place.start
    if len(sites) > 1:
        width = length // sites[0].layout.shape[0]
        return [(site.layout.rows.start * width, site.layout.rows.stop * width) for site in sites]
    rows = sites[0].layout.shape[0] if sites else 1
    ends = sorted({rows * (piece + 1) // pieces * (length // rows) for piece in range(pieces)} - {0})
    return list(zip([0, *ends[:-1]], ends, strict=True))


def is_shared(offers: MergeOffers, tensor: str) -> bool:
    """Whether a tensor has the base's bytes, or the adapter's as they are: the same segment, which needs no operation."""
    return all(site.kind == "replaced" for site in offers.plan.sites[tensor])


@pytest.mark.parametrize("name", DERIVED)
def test_offers_give_the_merged_bytes(name: str, tmp_path: Path) -> None:
    """Every changed tensor, whole and cut, is computed from the base and the adapter: the merged folder's bytes."""
    offers, merged = prepared(name, tmp_path)
    seen: set[str] = set()
    for tensor in offers.plan.sites:
        place = merged[tensor]
        for pieces in (1, 3):
            for start, end in cut(place, pieces, offers):
                found: Any = offers.offer(tensor, place, start, end)
                if found is None:
                    assert (name in WHOLE_ONLY and pieces > 1) or is_shared(offers, tensor), tensor
                    continue
                params, roles = found
                buffers = {role: read(slices) for role, slices in roles.items()}
                assert replay(params, buffers, size=end - start) == read(part(place, start, end)), tensor
                seen.add(params["operation"])
    assert seen == DERIVED[name]


@pytest.mark.parametrize("name", ["experts-gpt-oss", "conv1d", "tokens", "start-gaussian"])
def test_what_no_operation_makes_is_not_offered(name: str, tmp_path: Path) -> None:
    """Parts of rows, segments of several experts, trained tokens and tensors that the merge leaves alone have no offer."""
    offers, merged = prepared(name, tmp_path)
    for tensor, place in merged.items():
        sites = offers.plan.sites.get(tensor, ())
        length = place.end - place.start
        assert offers.offer(tensor, place, 0, length - 2) is None
        if not sites or len(sites) > 1 or sites[0].kind == "tokens":
            assert offers.offer(tensor, place, 0, length) is None


def test_a_start_that_rewrote_the_base_offers_nothing(tmp_path: Path) -> None:
    """PiSSA's plan is of another base, so no segment of the merge is computed from this one."""
    made = KINDS["start-pissa"](tmp_path)
    base, adapter = open_checkpoint(FolderFiles(made.base)), open_checkpoint(FolderFiles(made.adapter), "adapter_model")
    plan = plan_adapter(base, adapter)
    offers = plan_offers(plan, places(base), places(adapter), part)
    for tensor, place in places(base).items():
        assert offers.offer(tensor, place, 0, place.end - place.start) is None
