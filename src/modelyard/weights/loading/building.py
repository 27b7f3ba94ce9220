"""The model itself: read from a folder's files, or drawn at random, and what of it came from where.

The caller holds `LOADING`. Knows transformers' classes; knows no adapters and no preprocessors.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.architecture import is_sentence_encoder
from modelyard.weights.audit import audit_keys, audit_ties
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.checks import read_json
from modelyard.weights.files import FolderFiles
from modelyard.weights.headers import read_header
from modelyard.weights.leftovers import is_idle, lacks_pooler
from modelyard.weights.loading.classes import Choice, choose
from modelyard.weights.loading.configs import label_config, load_config, read_architecture
from modelyard.weights.loading.heads import Split, module_targets, split
from modelyard.weights.loading.lock import seeded
from modelyard.weights.loading.samples import refuse_redrawn
from modelyard.weights.loading.translate import translated
from modelyard.weights.tasks import ADAPTER_TASKS
from modelyard.weights.untrained import Untrained, find_untrained, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from modelyard.weights.loading.options import LoadOptions
    from modelyard.weights.loading.plan import LoadPlan

__all__ = ["Built", "Decision", "Hints", "adapter_hints", "build", "decide", "draw", "mark_drawn", "take"]


@dataclass(frozen=True, slots=True)
class Hints:
    """What adapters say about the model that they were trained on, for what the caller does not say.

    Attributes:
        task: By the `task_type` of their configuration.
        num_labels: By the shape of the head that they hold.
        heads: Whether an adapter holds a head, so that the base's being absent is no fault.
    """

    task: str | None = None
    num_labels: int | None = None
    heads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What will be built.

    Attributes:
        choice: Its class, task and configuration.
        stored: The configuration as the folder has it.
        relabelled: Whether another number of labels was asked for than the folder's.
    """

    choice: Choice
    stored: Any
    relabelled: bool


@dataclass(slots=True)
class Built:
    """A model as it was built.

    Attributes:
        model: The model of transformers, on the CPU or where its device map says.
        choice: Its class and task.
        dtype: The torch dtype that was asked for.
        split: What was added, dropped and at fault.
        allowed: Faults that were let pass.
        untrained: The mark of what nobody trained.
        casts: `"float16 -> float32"` to the number of tensors.
    """

    model: Any
    choice: Choice
    dtype: Any
    split: Split
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    untrained: Untrained | None = None
    casts: dict[str, int] = field(default_factory=dict)


def decide(folder: Path, options: LoadOptions, hints: Hints | None = None) -> Decision:
    """What is built from a folder, before anything is.

    Raises:
        ModelError, RequestError: As `classes.choose` and `configs.load_config`.
    """
    hints = hints or Hints()
    stored = load_config(folder)
    config = load_config(folder, **options.config) if options.config else stored
    count = options.num_labels if options.relabels() else hints.num_labels
    wanted = len(options.id2label) if options.id2label is not None else count
    relabelled = wanted is not None and wanted != stored.num_labels
    config = label_config(config, count, options.id2label)
    task = options.task
    if task is None and options.model_class is None:
        task = hints.task
        if task is None and is_sentence_encoder(read_architecture(stored), FolderFiles(folder).names()):
            task = "feature-extraction"
    choice = choose(config, str(folder), task=task, model_class=options.model_class)
    return Decision(choice, stored, relabelled)


def build(folder: Path, options: LoadOptions, decision: Decision, plan: LoadPlan, hints: Hints) -> Built:
    """The model of a folder.

    Args:
        folder: Where the files are; they were checked.
        options: What was asked for.
        decision: What `decide` said.
        plan: Where modules go, their dtype, and what attention is computed with.
        hints: What the adapters that will be attached hold themselves.

    Raises:
        ModelError, RequestError: As `weights.load.load`.
    """
    import torch

    from modelyard.weights.loading.plan import build_meta

    choice, dtype, label = decision.choice, getattr(torch, plan.dtype), str(folder)
    if options.random:
        return draw(choice, dtype, options.seed, folder, attention=options.attention and plan.attention)
    checkpoint = open_checkpoint(FolderFiles(folder))
    with translated(folder), seeded(options.seed), _explained(label, options.device, plan):
        bare = lacks_pooler(choice.cls, checkpoint.home, lambda: build_meta(choice.cls, choice.config, dtype)[0])
        model, info = _read(folder, options, choice, plan, dtype, without_pooler=bare)
    shapes = {name: checkpoint.info(name).shape for name in checkpoint.home}
    parts = split(info, model, choice, decision.stored, relabelled=decision.relabelled, disk=shapes)
    allowed = audit_keys(label, parts.missing, parts.unexpected, parts.mismatched, options.allow)
    if info.get("error_msgs"):
        raise ModelError(f"{folder}: {'; '.join(map(str, info['error_msgs'][:3]))}")
    audit_ties(label, model)
    drawn = {*parts.added, *allowed.get("missing", ()), *(str(item[0]) for item in parts.mismatched)}
    if options.quantization is None and getattr(model.config, "quantization_config", None) is None:
        refuse_redrawn(label, model, checkpoint, drawn)
    untrained = _untrained(
        folder, model, {name for name in drawn - set(hints.heads) if not is_idle(name)}, options.seed
    )
    casts = {name: cast.tensors for name, cast in plan.casts.items()}
    return Built(model, choice, dtype, parts, allowed, untrained, casts)


def _read(
    folder: Path, options: LoadOptions, choice: Choice, plan: LoadPlan, dtype: Any, *, without_pooler: bool
) -> tuple[Any, dict[str, Any]]:
    """The model with the folder's weights, and transformers' report."""
    from modelyard.weights.loading import devices, quantization

    more: dict[str, Any] = {"add_pooling_layer": False} if without_pooler else {}
    wanted = quantization.make_config(options.quantization, device=options.device, dtype=dtype)
    if wanted is not None:
        more["quantization_config"] = wanted
    if options.attention is not None:
        more["attn_implementation"] = plan.attention
    if plan.mapped or wanted is not None or plan.places != {"": "cpu"}:
        more["device_map"] = plan.places
    offload = devices.find_offload_folder(options.offload_folder, plan.places)
    if offload is not None:
        more["offload_folder"] = str(offload)
    model, info = _from_pretrained(
        choice.cls,
        folder,
        config=choice.config,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that they come back with names, and the audit refuses them
        **more,
    )
    if offload is not None and options.offload_folder is None:
        devices.keep_while(model, offload)
    return model, info


def _from_pretrained(cls: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of its load."""
    import transformers

    base: Any = transformers.PreTrainedModel
    if cls.from_pretrained.__func__ is base.from_pretrained.__func__:
        model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
        return model, info
    # A class with a `from_pretrained` of its own may break on the pair that `output_loading_info` makes of its model (the
    # decision models do): its report is taken where it is made. The caller holds `LOADING`, so nobody else sees the hook.
    reports: list[dict[str, Any]] = []
    finish = cls._finalize_model_loading

    def finish_and_keep(*args: Any, **kwargs: Any) -> Any:
        report = finish(*args, **kwargs)
        reports.append(report.to_dict())
        return report

    cls._finalize_model_loading = staticmethod(finish_and_keep)
    try:
        model = cls.from_pretrained(folder, **options)
    finally:
        del cls._finalize_model_loading
    return model, reports[-1]


@contextmanager
def _explained(label: str, device: str, plan: LoadPlan) -> Iterator[None]:
    """Turn running out of memory into an error that says what would fit."""
    from modelyard.weights.loading import memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise memory.explain_oom(error, what=f"`{label}`", device=device, weights=plan.resident) from error


def draw(choice: Choice, dtype: Any, seed: int, label: Path | str, *, attention: str | None = None) -> Built:
    """A model whose every weight is drawn from `seed`, in eval mode."""
    more = {} if attention is None else {"attn_implementation": attention}
    with translated(label, "built"), seeded(seed):
        model = choice.cls._from_config(copy.deepcopy(choice.config), dtype=dtype, **more)  # noqa: SLF001  AutoModel.from_config calls it
    model.eval()
    mark = Untrained("random", seed, None, fingerprint(model.state_dict(), None))
    return Built(model, choice, dtype, Split((), (), (), (), ()), {}, mark)


def take(model: Any, task: str, dtype: Any, casts: dict[str, int]) -> Built:
    """A model that somebody else read and checked."""
    choice = Choice(type(model), task, model.config, type(model))
    return Built(model, choice, dtype, Split((), (), (), (), ()), casts=casts)


def adapter_hints(folders: Mapping[str, Path]) -> Hints:
    """What the adapters in `folders` say about their base: the first its task and labels, all of them which head they hold."""
    found = [_hint(folder) for folder in folders.values()]
    if not found:
        return Hints()
    heads = set(found[0].heads).intersection(*(each.heads for each in found[1:]))
    return Hints(found[0].task, found[0].num_labels, tuple(sorted(heads)))


def _hint(folder: Path) -> Hints:
    said = read_json(FolderFiles(folder), "adapter_config.json")
    task = ADAPTER_TASKS.get(str(said.get("task_type")))
    kept = [name for name in (said.get("modules_to_save") or ()) if isinstance(name, str)]
    path = folder / "adapter_model.safetensors"
    tensors = read_header(path).tensors if path.exists() else {}
    heads = {
        name.removeprefix("base_model.model."): info.shape
        for name, info in tensors.items()
        if any(f".{module}." in f".{name}." for module in kept)
    }
    sizes = {shape[0] for name, shape in heads.items() if shape and _is_head(name)}
    labelled = task in {"text-classification", "token-classification"} and len(sizes) == 1
    return Hints(task, sizes.pop() if labelled else None, tuple(heads))


def _is_head(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in {"classifier", "score"} and name.count(".") == 1


def _untrained(folder: Path, model: Any, drawn: set[str], seed: int) -> Untrained | None:
    """The mark of a loaded model: what was drawn now, and what the folder's own mark says of the rest."""
    found = find_untrained(FolderFiles(folder))
    if found is not None and found.tensors is None:
        return Untrained("random", found.seed, None, fingerprint(model.state_dict(), None))
    if found is not None and found.tensors is not None:
        kept = {each for inside in module_targets(model, found.tensors).values() for each in inside}
        if kept and not drawn:
            seed = found.seed
        drawn |= kept
    return mark_drawn(model, drawn, seed)


def mark_drawn(model: Any, drawn: set[str], seed: int) -> Untrained | None:
    """The mark of tensors that were drawn from `seed`; None where there are none."""
    held = model.state_dict()
    names_drawn = tuple(sorted(drawn & set(held), key=str.encode))
    return Untrained("head", seed, names_drawn, fingerprint(held, names_drawn)) if names_drawn else None
