"""A LoRA from two checkpoints: the difference of each linear layer, cut to a rank by its SVD.

One tensor of each model is in memory at a time. A matrix whose shorter side is at most `lowrank.EXACT_UP_TO` has its SVD taken whole; a
larger one is projected at random from a fixed seed, and the certificate says which. Every other tensor that differs (norms, biases,
embeddings) is named, and saved whole where that was asked for. An interrupted extraction goes on with the next layer. Knows tensors and
names; runs no model, but builds the base's class without memory to know which of its tensors are linear layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.derivations.numbers import widen
from modelyard.errors import InputError, ModelError
from modelyard.weights.certificate import THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.filenames import TEMPLATE_FILES, TOKENIZER_PARTS
from modelyard.weights.files import Files, show_name
from modelyard.weights.merge.lowrank import factorize, frobenius
from modelyard.weights.merge.plan.keys import PREFIX
from modelyard.weights.output import Work, copy_file, format_json, hash_file, key_of, resumable_folder, write_file
from modelyard.weights.shards import ShardWriter, TensorSpec
from modelyard.weights.values import read_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["extract"]

Progress = Callable[[int, int], None]

_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
_PART = "part-{:06}"
_MUCH = 0.5  # a relative error of which a person should be told: 3/4 of the change are kept at best


def extract(
    base: Files,
    tuned: Files,
    out: Path,
    *,
    rank: int,
    targets: Sequence[str] | None = None,
    min_error: float | None = None,
    save_others: bool = False,
    exact: bool | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Write a PEFT LoRA (float32) that turns `base` into `tuned` as nearly as its rank allows.

    Args:
        base: The model that was trained from.
        tuned: The same architecture after training, whole.
        out: A folder that does not exist yet.
        rank: The most that a module gets.
        targets: Names of modules, or ends of names (`q_proj`); None is every linear layer that differs.
        min_error: Where a lower rank leaves no more than this relative error (Frobenius norm), a module gets the lower one.
        save_others: Save what is no linear layer and differs whole (`modules_to_save`); a linear layer whose bias differs too is then saved whole.
        exact: Take every SVD whole (True) or by random projection (False); None decides by size.
        progress: Called with (tensors done, tensors in all).

    Returns:
        `changes` has each module's rank, relative error and captured energy, and each other tensor that differs.

    Raises:
        InputError: `bad_rank`, `bad_number`, or `no_match` (a target that is no linear layer).
        ModelError: `different_models`, naming what differs; `no_difference`; `quantized_base`; `unsupported_dtype`; `nan_result`;
            `unknown_architecture`.
        ConflictError, BusyError, NoSpaceError: As `resumable_folder`.
    """
    if rank < 1:
        raise InputError(f"a rank is at least 1, not {rank}", code="bad_rank")
    if min_error is not None and not 0 <= min_error < 1:
        raise InputError(f"a relative error is from 0 to below 1, not {min_error}", code="bad_number")
    for files in (base, tuned):
        check_weights(files)
    pair = _Pair(open_checkpoint(base), open_checkpoint(tuned))
    work = _Extraction(pair, rank, targets, min_error, save_others=save_others, exact=exact, progress=progress)
    options = {"rank": rank, "targets": targets, "min_error": min_error, "save_others": save_others, "exact": exact}
    with resumable_folder(out, key_of("extract", options, base, tuned)) as folder:
        return work.write(folder, options)


@dataclass(frozen=True)
class _Layer:
    """A linear layer: the tensor of its weight on disk, and whether that is stored (in, out)."""

    module: str
    tensor: str
    transposed: bool


class _Pair:
    """Two checkpoints with the same tensors."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        self.base, self.tuned = base, tuned
        self.config = read_json(base.files, "config.json")
        other = read_json(tuned.files, "config.json")
        for name, config in ((base.files.label, self.config), (tuned.files.label, other)):
            if config.get("quantization_config"):
                raise ModelError(
                    f"`{name}` is quantized, and differences are taken of plain weights", code="quantized_base"
                )
        if self.config.get("model_type") != other.get("model_type"):
            self._refuse(f"one is a {self.config.get('model_type')!r}, the other a {other.get('model_type')!r}")
        lacking = sorted(base.home.keys() ^ tuned.home.keys())
        if lacking:
            where = base.files.label if lacking[0] in tuned.home else tuned.files.label
            self._refuse(f"`{where}` has no tensor `{show_name(lacking[0])}` ({len(lacking)} are in one only)")
        for name in base.home:
            shapes = base.info(name).shape, tuned.info(name).shape
            if shapes[0] != shapes[1]:
                self._refuse(f"`{show_name(name)}` is {list(shapes[0])} and {list(shapes[1])}")

    def _refuse(self, what: str) -> None:
        names = f"`{self.base.files.label}` and `{self.tuned.files.label}`"
        raise ModelError(f"no adapter leads from one to the other of {names}: {what}", code="different_models")

    def differs(self, name: str) -> bool:
        """Whether a tensor has other values; the same ones in another dtype do not differ."""
        if self.base.info(name).dtype == self.tuned.info(name).dtype:
            with self.base.open(self.base.home[name]) as one, self.tuned.open(self.tuned.home[name]) as other:
                blocks = zip(
                    read_blocks(one, self.base.info(name)), read_blocks(other, self.tuned.info(name)), strict=True
                )
                return not all(np.array_equal(left, right) for left, right in blocks)
        return bool(np.any(self.difference(name)))

    def difference(self, name: str) -> NDArray[np.float32]:
        """Tuned less base, in binary32.

        Raises:
            ModelError: `unsupported_dtype` or `nan_result`.
        """
        made = self.read(self.tuned, name)
        with np.errstate(invalid="ignore"):
            made -= self.read(self.base, name)
        if not np.isfinite(made).all():
            raise ModelError(f"`{show_name(name)}` has a difference that is not finite", code="nan_result")
        return made

    def read(self, model: Checkpoint, name: str) -> NDArray[np.float32]:
        """One tensor in binary32."""
        raw = model.read(name)
        made = np.empty(raw.shape, np.float32)
        widen(raw, model.info(name).dtype, made)
        return made


class _Extraction:
    """One extraction: which tensors are linear layers, and what the others are."""

    def __init__(
        self,
        pair: _Pair,
        rank: int,
        targets: Sequence[str] | None,
        min_error: float | None,
        *,
        save_others: bool,
        exact: bool | None,
        progress: Progress | None,
    ) -> None:
        self.pair, self.rank, self.min_error, self.exact, self.progress = pair, rank, min_error, exact, progress
        layers = _linear_layers(pair)
        if targets is not None:
            unknown = [each for each in targets if not any(_is_target(name, [each]) for name in layers)]
            if unknown:
                raise InputError(f"`{show_name(unknown[0])}` names no linear layer of the base", code="no_match")
            layers = {name: layer for name, layer in layers.items() if _is_target(name, targets)}
        floats = [name for name in sorted(pair.base.home) if _is_float(pair, name)]
        changed = {name for name in floats if pair.differs(name)}
        if not changed:
            raise ModelError("the two models are alike, so there is nothing to extract", code="no_difference")
        by_tensor = {layer.tensor: layer for layer in layers.values()}
        self.layers = {by_tensor[name].module: by_tensor[name] for name in sorted(changed & by_tensor.keys())}
        others = changed - by_tensor.keys()
        self.saved: dict[str, str] = {}  # a tensor's name in the model to that on disk
        self.tied = False
        if save_others:
            self._save(others)
        self.lost = sorted(others - set(self.saved.values()))

    def _save(self, others: set[str]) -> None:
        """Take whole modules for the tensors that are no linear layer's weight."""
        from modelyard.weights.merge.plan.mapped import Mapped

        pair = self.pair
        mapped = Mapped(pair.config, {name: pair.base.info(name).shape for name in pair.base.home})
        disk = {name: found for name in mapped.names if (found := _plain_piece(mapped, name))}
        model_name = {tensor: name for name, tensor in disk.items()}
        for tensor in sorted(others):
            module, _, parameter = model_name.get(tensor, "").rpartition(".")
            if parameter not in {"weight", "bias"}:
                continue
            self.layers.pop(module, None)
            for each in ("weight", "bias"):
                if f"{module}.{each}" in disk:
                    self.saved[f"{module}.{each}"] = disk[f"{module}.{each}"]
        # PEFT wants every side of a tie in the file.
        sides = {name: self.saved[source] for name, source in mapped.tied.items() if source in self.saved}
        self.saved |= sides
        self.tied = bool(sides)

    def write(self, work: Work, options: Mapping[str, Any]) -> Certificate:
        pair = self.pair
        made = Certificate(
            "extract",
            "svd",
            dict(options),
            THIS_MACHINE,
            {
                role: {name: str(hash_file(each.files.path(name))) for name in each.shards}
                for role, each in (("base", pair.base), ("tuned", pair.tuned))
            },
            machine=describe_machine(),
        )
        notes = [self._part(work, number, layer) for number, layer in enumerate(self.layers.values())]
        made.changes = [note["change"] for note in notes]
        self._assemble(work, notes, made)
        self._describe_others(made)
        for name in sorted(set(pair.tuned.files.names()) & (TOKENIZER_PARTS | TEMPLATE_FILES)):
            made.outputs[name] = str(copy_file(pair.tuned.files, name, work.folder))
        for number in range(len(notes)):
            (work.folder / _PART.format(number)).unlink()
        made.write(work.folder)
        return made

    def _part(self, work: Work, number: int, layer: _Layer) -> dict[str, Any]:
        """The factors of one layer, in a file of their own until all are there."""
        name = _PART.format(number)
        note = work.finished(name)
        if note is None:
            difference = self.pair.difference(layer.tensor)
            dense = np.ascontiguousarray(difference.T) if layer.transposed else difference
            made = factorize(dense, self.rank, exact=self.exact)
            rank = made.a.shape[0] if self.min_error is None else made.least_rank(self.min_error)
            b, a = made.b[:, :rank].astype(np.float32), made.a[:rank].astype(np.float32)
            error = made.error_at(rank)
            change = {
                "module": layer.module,
                "tensor": layer.tensor,
                "rank": rank,
                "error": error,
                "energy": 1.0 - error * error,
                "decomposition": made.how,
            }
            note = {"change": change, "shape": [b.shape[0], a.shape[1]]}
            work.finish(name, write_file(work.folder / name, a.tobytes() + b.tobytes()), note)
        if self.progress is not None:
            self.progress(number + 1, len(self.layers))
        return note

    def _assemble(self, work: Work, notes: Sequence[Mapping[str, Any]], made: Certificate) -> None:
        pair, specs = self.pair, []
        for note in notes:
            module, rank, (rows, columns) = note["change"]["module"], note["change"]["rank"], note["shape"]
            specs.append(TensorSpec(f"{PREFIX}{module}.lora_A.weight", "F32", (rank, columns)))
            specs.append(TensorSpec(f"{PREFIX}{module}.lora_B.weight", "F32", (rows, rank)))
        specs += [
            TensorSpec(PREFIX + name, pair.tuned.info(tensor).dtype, pair.tuned.info(tensor).shape)
            for name, tensor in self.saved.items()
        ]
        with ShardWriter(work.folder / "adapter_model.safetensors", specs) as writer:
            for number in range(len(notes)):
                writer.write((work.folder / _PART.format(number)).read_bytes())
            for tensor in self.saved.values():
                with pair.tuned.open(pair.tuned.home[tensor]) as shard:
                    for block in read_blocks(shard, pair.tuned.info(tensor)):
                        writer.write(block.data)
        made.outputs["adapter_model.safetensors"] = str(writer.digest())
        config = _configuration(self.pair, list(self.layers.values()), notes, self.rank, self._saved_modules())
        config["ensure_weight_tying"] = self.tied
        text = format_json(config)
        made.outputs["adapter_config.json"] = str(write_file(work.folder / "adapter_config.json", text))

    def _saved_modules(self) -> list[str]:
        """`modules_to_save`: of tied modules the one that the others share the values of."""
        held = {tensor: name for name, tensor in reversed(self.saved.items())}
        return list(dict.fromkeys(name.rpartition(".")[0] for name in held.values()))

    def _describe_others(self, made: Certificate) -> None:
        for name in self.lost:
            whole = frobenius(self.pair.read(self.pair.base, name).reshape(1, -1))
            lost = frobenius(self.pair.difference(name).reshape(1, -1))
            made.changes.append({"tensor": name, "lost": lost / whole if whole else lost})
        made.changes += [{"tensor": tensor, "saved": name} for name, tensor in self.saved.items()]
        made.matched = {"modules": len(self.layers), "saved": len(self.saved), "lost": len(self.lost)}
        worst = max(
            (change for change in made.changes if "error" in change), key=lambda change: change["error"], default=None
        )
        if worst is not None and worst["error"] > _MUCH:
            made.warnings.append(
                f"`{show_name(worst['module'])}` keeps {worst['energy']:.0%} of its change at rank {worst['rank']}: a higher rank keeps more"
            )
        if self.lost:
            most = max(change["lost"] for change in made.changes if "lost" in change)
            made.warnings.append(
                f"{len(self.lost)} tensors differ and are not in the adapter ({show_name(self.lost[0])}, ...), by up to"
                f" {most:.3g} of themselves: save_others=True saves norms, biases and embeddings whole"
            )


def _linear_layers(pair: _Pair) -> dict[str, _Layer]:
    """Every linear layer of the base's class whose weight is one tensor on disk, by its module's name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from modelyard.weights.merge.plan.mapped import Mapped

    mapped = Mapped(pair.config, {name: pair.base.info(name).shape for name in pair.base.home})
    made = {}
    for module, layer in mapped.model.named_modules():
        name = f"{module}.weight"
        if isinstance(layer, torch.nn.Linear | Conv1D) and name in mapped.names:
            tensor = _plain_piece(mapped, name)
            if tensor is not None:
                made[module] = _Layer(module, tensor, isinstance(layer, Conv1D))
    return made


def _plain_piece(mapped: Any, name: str) -> str | None:
    """The tensor on disk that a model's tensor is, where it is one as it is."""
    try:
        pieces = mapped.pieces(name)
    except ModelError:
        return None  # joined or cut in a way that is not followed: such a tensor is listed as one that no layer takes
    piece = pieces[0]
    plain = len(pieces) == 1 and piece.rows is None and piece.expert is None and not piece.turned and piece.first == 0
    return piece.tensor if plain else None


def _is_target(module: str, targets: Sequence[str]) -> bool:
    return any(module == each or module.endswith(f".{each}") for each in targets)


def _is_float(pair: _Pair, name: str) -> bool:
    kinds = {model.info(name).dtype for model in (pair.base, pair.tuned)}
    if any(kind.startswith(("F6", "F8", "F4")) for kind in kinds):
        raise ModelError(f"`{show_name(name)}` is {', '.join(sorted(kinds))}", code="unsupported_dtype")
    return kinds <= STORAGE.keys()


def _configuration(
    pair: _Pair, layers: Sequence[_Layer], notes: Sequence[Mapping[str, Any]], rank: int, modules: Sequence[str]
) -> dict[str, Any]:
    """The configuration of a plain LoRA with the scale 1."""
    ranks = {note["change"]["module"]: int(note["change"]["rank"]) for note in notes}
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else rank
    other = {module: each for module, each in ranks.items() if each != common}
    architectures = pair.config.get("architectures") or [""]
    task = next((task for end, task in _TASKS.items() if str(architectures[0]).endswith(end)), None)
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": pair.base.files.label,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "target_modules": [layer.module for layer in layers],
        "modules_to_save": list(modules) or None,
        "fan_in_fan_out": any(layer.transposed for layer in layers),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
