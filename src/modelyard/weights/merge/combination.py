"""One adapter from several, in delta space: linear, svd, ties, dare and slerp of what the adapters really add to each weight.

PEFT's `add_weighted_adapter` works on A and B apart, so its "linear" is not linear in the change, and it hands `use_rslora` and
`use_dora` on to a result that they no longer fit (peft#3004, peft#3761). Here a result is a plain LoRA whose scale is 1
(`lora_alpha` = `r`), and what it adds is the function of the inputs' deltas that was asked for. One module is in memory at a time.
Knows adapters, and of a base only the weights that a DoRA was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from modelyard.derivations import Operands, apply_linear
from modelyard.errors import InputError, ModelError
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checkpoint import open_checkpoint
from modelyard.weights.files import Files, show_name
from modelyard.weights.merge.blending import Blend, blend_dense, blend_products
from modelyard.weights.merge.delta import Adapter, Delta, key_names, read_adapter
from modelyard.weights.merge.lowrank import Factors, factorize, shorten
from modelyard.weights.merge.plan.keys import PREFIX
from modelyard.weights.output import copy_file, format_json, fresh_folder, hash_file, write_file
from modelyard.weights.shards import ShardWriter, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.weights.checkpoint import Checkpoint

__all__ = ["check_bases", "combine"]

Progress = Callable[[int, int], None]

_DENSE = frozenset({"ties", "dare"})
_CARRIED = ("task_type", "base_model_name_or_path", "auto_mapping", "revision", "fan_in_fan_out", "peft_version")


def combine(
    adapters: Sequence[Files],
    out: Path,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float | None = None,
    t: float | None = None,
    seed: int = 0,
    base: Files | None = None,
    saved: str = "refuse",
    same_base: bool = False,
    progress: Progress | None = None,
) -> Certificate:
    """Write one PEFT adapter (float32) whose delta is a function of the deltas of several.

    `linear` is the sum of weight times delta. Without `rank` it is exact, by joining the factors along their rank, and the same bits
    everywhere; one adapter with the weight 1 keeps its function. With `rank`, and in `svd`, the sum is cut to that rank by an SVD that never makes the
    wide product. `slerp` turns from the first of two deltas to the second, module by module, exactly likewise. `ties` and `dare` are
    `ties/1` and `dare/1` of docs/design/derivations.md over each module's deltas, with zeros as the base; what they make has full rank and is
    cut to `rank`. So is what a DoRA is part of. `changes` of the certificate has each module's relative error in the Frobenius norm.

    A module that an adapter lacks counts as zeros.

    Args:
        adapters: PEFT adapters of one base: LoRA, rsLoRA or DoRA of linear layers, convolutions and embeddings.
        out: A folder that does not exist yet.
        method: `linear`, `svd`, `ties`, `dare` or `slerp`.
        weights: One for each adapter; None is 1 each. `slerp` takes none.
        rank: Of the result. None: for `svd` the largest of the adapters'; for the others their sum, at most the matrix's.
        density: For `ties` and `dare`: the share of each delta that is kept, above 0 to 1.
        t: For `slerp`: 0 is the first adapter, 1 the second.
        seed: For `dare`.
        base: The base's files, for DoRA.
        saved: What becomes of tensors that adapters saved whole (`modules_to_save`): `refuse`, or `average`: the mean by the weights
            divided by their sum (`linear/1`), where every adapter has them.
        same_base: Believe that the adapters are of one base though their configurations name two.
        progress: Called with (modules done, modules in all).

    Raises:
        InputError: `unknown_method`, `missing_parameter`, `bad_number`, `bad_density`, `bad_rank` or `bad_seed`.
        ModelError: As `delta.read_adapter`; `different_bases`; `bad_shape`; `modules_to_save`; `no_base`.
        ConflictError, NoSpaceError: As `fresh_folder`.
    """
    blend = Blend.checked(method, len(adapters), weights=weights, density=density, t=t, seed=seed)
    if rank is not None and rank < 1:
        raise InputError(f"a rank is at least 1, not {rank}", code="bad_rank")
    if saved not in {"refuse", "average"}:
        raise InputError(f"`saved` is `refuse` or `average`, not `{saved}`", code="bad_option")
    read = [read_adapter(files) for files in adapters]
    check_bases(read, same_base)
    work = _Combination(read, blend, rank, open_checkpoint(base) if base is not None else None)
    whole = _whole(read, saved)
    with fresh_folder(out) as folder:
        made = work.write(folder, whole, progress)
        for name, source in carried_files(adapters[0], adapters[0]).items():
            if name not in made.outputs:
                made.outputs[name] = str(copy_file(source, name, folder))
        made.write(folder)
    return made


@dataclass
class _Module:
    """One module of the result: its deltas, with their adapters' numbers, and the rank it will have."""

    name: str
    deltas: list[tuple[int, Delta]]
    rank: int = 0
    dense: bool = False
    certificate: dict[str, Any] = field(default_factory=dict)

    @property
    def form(self) -> Delta:
        """Any of its deltas: they have one form."""
        return self.deltas[0][1]


class _Combination:
    """The modules of all adapters, side by side."""

    def __init__(self, adapters: list[Adapter], blend: Blend, rank: int | None, base: Checkpoint | None) -> None:
        self.adapters, self.blend, self.rank, self.base = adapters, blend, rank, base
        self.modules = [self._module(name) for name in sorted({name for each in adapters for name in each.deltas})]
        if not self.modules:
            raise ModelError("these adapters change no module by a delta", code="no_match")

    def _module(self, name: str) -> _Module:
        found = [(number, each.deltas[name]) for number, each in enumerate(self.adapters) if name in each.deltas]
        forms = {delta.form for _, delta in found}
        if len(forms) > 1:
            shapes = " and ".join(f"{delta.shape} in `{self.adapters[number].label}`" for number, delta in found)
            raise ModelError(f"`{show_name(name)}` cannot be combined: its delta is {shapes}", code="bad_shape")
        module = _Module(name, found)
        module.dense = self.blend.method in _DENSE or any(delta.magnitude is not None for _, delta in found)
        ranks = [delta.rank for _, delta in found]
        wanted = self.rank or (max(ranks) if self.blend.method == "svd" else sum(ranks))
        limit = min(module.form.shape)
        joined = self.rank is None and self.blend.method != "svd" and not module.dense
        # A product that is joined keeps its rank, even one above the matrix's, since cutting it would round.
        module.rank = sum(ranks) if joined else min(wanted, sum(ranks) if not module.dense else limit, limit)
        return module

    def write(
        self, folder: Path, whole: Mapping[str, list[tuple[Adapter, str]]], progress: Progress | None
    ) -> Certificate:
        specs = [spec for module in self.modules for spec in _specs(module)]
        specs += [
            TensorSpec(PREFIX + name, "F32", read[0][0].weights.info(read[0][1]).shape) for name, read in whole.items()
        ]
        made = self._certificate()
        with ShardWriter(folder / "adapter_model.safetensors", specs) as writer:
            for done, module in enumerate(self.modules, 1):
                for part in self._factors(module):
                    writer.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
                made.changes.append(module.certificate)
                if progress is not None:
                    progress(done, len(self.modules))
            for name, read in whole.items():
                writer.write(self._average(read).reshape(-1).view(np.uint8).data)
                made.changes.append({"tensor": name, "operation": "linear/1", "replaced": True})
        made.outputs["adapter_model.safetensors"] = str(writer.digest())
        config = _configuration(self.adapters[0], self.modules, whole)
        text = format_json(config)
        made.outputs["adapter_config.json"] = str(write_file(folder / "adapter_config.json", text))
        made.matched = {"modules": len(self.modules), "adapters": len(self.adapters), "averaged": len(whole)}
        cut = [change["error"] for change in made.changes if change.get("error")]
        if cut:
            made.warnings.append(
                f"{len(cut)} of {len(self.modules)} modules were cut to their rank, with a relative error up to {max(cut):.3g}"
            )
        return made

    def _factors(self, module: _Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A and B of the result, in the order of the file."""
        given = [(self.adapters[number], delta, number) for number, delta in module.deltas]
        module.certificate = {"module": module.name, "shape": list(module.form.shape), "rank": module.rank}
        if module.dense:
            deltas = {number: adapter.dense(delta, self.base) for adapter, delta, number in given}
            result = blend_dense(self.blend, deltas, module.name)
            made = factorize(result, module.rank)
            b, a = made.b.astype(np.float32), made.a.astype(np.float32)
        else:
            products = {number: (*adapter.factors(delta), delta.scale) for adapter, delta, number in given}
            b, a = blend_products(self.blend, products)
            made = Factors(b.astype(np.float64), a.astype(np.float64))
            if module.rank < a.shape[0]:
                made = shorten(made.b, made.a, module.rank)
                b, a = made.b.astype(np.float32), made.a.astype(np.float32)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ModelError(
                f"`{show_name(module.name)}` cannot be combined: the result is not finite", code="nan_result"
            )
        module.certificate |= {"error": made.error, "decomposition": made.how}
        return a, b

    def _average(self, read: list[tuple[Adapter, str]]) -> NDArray[np.float32]:
        weights = self.blend.shares()
        parts = [adapter.read(key) for adapter, key in read]
        return apply_linear(Operands(parts, ["F32"] * len(parts), weights), "F32")

    def _certificate(self) -> Certificate:
        everywhere = self.blend.method == "linear" and not any(
            module.dense or module.rank < sum(delta.rank for _, delta in module.deltas) for module in self.modules
        )
        inputs: dict[str, dict[str, str]] = {}
        for number, adapter in enumerate(self.adapters):
            files = adapter.weights.files
            names = [*adapter.weights.shards, "adapter_config.json"]
            inputs[f"adapter {number}: {adapter.label}"] = {name: str(hash_file(files.path(name))) for name in names}
        return Certificate(
            "combine",
            self.blend.method,
            self.blend.to_dict() | {"rank": self.rank},
            EVERYWHERE if everywhere else THIS_MACHINE,
            inputs,
            machine=None if everywhere else describe_machine(),
        )


def check_bases(adapters: Sequence[Adapter], same_base: bool) -> None:
    """Refuse adapters of different bases or tasks, by what their configurations say.

    Raises:
        ModelError: `different_bases`.
    """
    named = {str(each.options.values.get("base_model_name_or_path") or "") for each in adapters} - {""}
    if len(named) > 1 and not same_base:
        shown = " and ".join(f"`{show_name(name)}`" for name in sorted(named)[:3])
        raise ModelError(
            f"these adapters were trained on {shown}, and deltas of different bases do not add",
            code="different_bases",
            hint="if these are two names of one base, say so (same_base=True)",
        )
    tasks = {str(each.options.task) for each in adapters}
    if len(tasks) > 1:
        raise ModelError(f"these adapters are of different tasks: {', '.join(sorted(tasks))}", code="different_bases")


def _whole(adapters: list[Adapter], saved: str) -> dict[str, list[tuple[Adapter, str]]]:
    """Tensors that are averaged, by their name in the base."""
    names = sorted({name for each in adapters for name in each.whole})
    if names and saved == "refuse":
        _refuse_saved(f"they saved {len(names)} tensors whole ({show_name(names[0])}, ...), which have no delta")
    for name in names:
        lacking = [each.label for each in adapters if name not in each.whole]
        if lacking:
            _refuse_saved(f"`{show_name(name)}` was saved whole, and `{lacking[0]}` has none to average it with")
        shapes = {each.weights.info(each.whole[name]).shape for each in adapters}
        if len(shapes) > 1:
            _refuse_saved(f"`{show_name(name)}` was saved whole in the shapes {' and '.join(map(str, sorted(shapes)))}")
    return {name: [(each, each.whole[name]) for each in adapters] for name in names}


def _refuse_saved(what: str) -> NoReturn:
    raise ModelError(
        f"these adapters cannot be combined: {what}",
        code="modules_to_save",
        hint="average them with saved='average', or merge each adapter into the base and merge the models",
    )


def _specs(module: _Module) -> list[TensorSpec]:
    """A's and B's, in the shapes that PEFT has for this kind of layer."""
    form, (a, b) = module.form, key_names(module.form)
    return [
        TensorSpec(a, "F32", (module.rank, *form.a_shape[1:])),
        TensorSpec(b, "F32", (form.b_shape[0], module.rank, *form.b_shape[2:])),
    ]


def _configuration(first: Adapter, modules: Sequence[_Module], whole: Mapping[str, Any]) -> dict[str, Any]:
    """A plain LoRA whose every module has the scale 1: alpha is the rank."""
    ranks = Counter(module.rank for module in modules)
    common = ranks.most_common(1)[0][0]
    other = {module.name: module.rank for module in modules if module.rank != common}
    values = first.options.values
    saved = list(dict.fromkeys(name.rpartition(".")[0] for name in whole))
    return {
        "peft_type": "LORA",
        **{name: values[name] for name in _CARRIED if values.get(name) is not None},
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "target_modules": [module.name for module in modules],
        "modules_to_save": saved or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
