"""From an adapter and its base to the plan of their merge.

The order: the configuration, the keys, the names on disk, a site for each change, and what of it needs more than a change (a head that
the base has not, embeddings that are tied). Everything that cannot be merged is refused here, before any weight is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.checks import read_json
from modelyard.weights.files import show_name
from modelyard.weights.merge.plan.disk import Disk
from modelyard.weights.merge.plan.keys import sort_keys
from modelyard.weights.merge.plan.layouts import Builder
from modelyard.weights.merge.plan.options import read_options, refuse
from modelyard.weights.merge.plan.site import Plan
from modelyard.weights.merge.plan.tied import part_tied

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from modelyard.weights.checkpoint import Checkpoint
    from modelyard.weights.merge.plan.heads import Head
    from modelyard.weights.merge.plan.keys import Factors, Keys
    from modelyard.weights.merge.plan.options import Options
    from modelyard.weights.merge.plan.site import Site

__all__ = ["plan_adapter"]


def plan_adapter(base: Checkpoint, adapter: Checkpoint, config: Mapping[str, Any] | None = None) -> Plan:
    """Match an adapter with its base, completely or not at all.

    Args:
        base: The tensors that are merged into.
        adapter: The adapter's.
        config: The base's configuration; None reads its config.json.

    Raises:
        ModelError: `unsupported_adapter` or an option's name (no change of weights, and why); `quantized_base`; `no_match` (keys
            that have no tensor in the base); `tied_embeddings`, `conv`, `unsupported_layout`, `unsupported_dtype`,
            `incomplete_head` (what is not merged, and why); `bad_rank`, `rank_mismatch`, `bad_shape`, `bad_adapter` (the adapter
            contradicts itself).
    """
    options = read_options(adapter.files)
    if config is None:
        config = read_json(base.files, "config.json") if "config.json" in base.files.names() else {}
    if config.get("quantization_config"):
        refuse(
            base.files.label,
            "quantized_base",
            "it is quantized, and merging can mean two things",
            hint="choose: --quantized original --original FOLDER (the weights it was quantized from), or --quantized dequantized",
        )
    return _Planner(Disk(base, config, adapter.files.label), adapter, options).plan()


class _Planner:
    """The parts of one plan as they come together."""

    def __init__(self, disk: Disk, adapter: Checkpoint, options: Options) -> None:
        self.disk, self.adapter, self.options = disk, adapter, options
        self.keys: Keys = sort_keys(adapter.home, options)
        self.modules = {factors.module for factors in self.keys.factors}
        self.builder = Builder(disk, adapter, options)
        self.sites: dict[str, list[Site]] = {}
        self.names: dict[str, str] = {}

    def plan(self) -> Plan:
        """The whole plan."""
        targets = {id(factors): self._targets(factors) for factors in self.keys.factors}
        head = self._match(targets)
        for factors in self.keys.factors:
            self._add_factors(factors, targets[id(factors)])
        for name, key in self.keys.whole.items():
            if name in self.names:
                self._add(self.names[name], lambda on, key=key: self.builder.replaced(on, key))
        for module, key in self.keys.tokens.items():
            self._add_tokens(module, key)
        parted = part_tied(self.disk, self.adapter, self.options, self.sites)
        self._check()
        added, settings = parted.added, parted.config
        if head is not None:
            self.sites.update(head.sites)
            added, settings = added | head.added, settings | head.config
        return Plan(
            {name: tuple(sites) for name, sites in sorted(self.sites.items())},
            dict(sorted(added.items())),
            settings,
            tuple(parted.warnings),
            self.options.start,
        )

    # Names.

    def _targets(self, factors: Factors) -> dict[str, str]:
        """What a module's factors change, as the adapter calls it: `weight` and `bias` to tensor names."""
        module = factors.module
        if factors.of_attention:
            module = module.removesuffix(".base_layer.out_proj") + ".out_proj"
        made = {"weight": f"{module}.weight", "bias": f"{module}.bias"}
        parameter = self._parameter(factors)
        if parameter is not None:
            return {"weight": parameter, "parameter": parameter}
        if f"{factors.module}.base_layer.out_proj" in self.modules:
            return {"weight": f"{module}.in_proj_weight", "bias": f"{module}.in_proj_bias"}
        return made

    def _parameter(self, factors: Factors) -> str | None:
        """The parameter of `target_parameters` that these factors change, None where they are a layer's.

        The file does not name it. The parameters of a module nest in their order, the first innermost, so how many `base_layer` a
        key has tells which one it is.
        """
        wanted = self.options.parameters
        if not wanted:
            return None
        module = factors.module
        owned = [f"{module}.{name}" for name in self.disk.mapped.parameters(module)]
        targeted = [path for path in owned if path in wanted or any(path.endswith(f".{each}") for each in wanted)]
        if not targeted:
            return None
        if factors.depth >= len(targeted):
            what = f"`{show_name(module)}` has a change for each of {factors.depth + 1} parameters, and {len(targeted)} are named"
            refuse(self.options.label, "bad_adapter", what)
        return targeted[len(targeted) - 1 - factors.depth]

    def _match(self, targets: dict[int, dict[str, str]]) -> Head | None:
        """Find every tensor on disk; a head that the base has not is given back."""
        wanted = [each["weight"] for each in targets.values()]
        wanted += [targets[id(factors)]["bias"] for factors in self.keys.factors if "bias" in factors.roles]
        whole = list(self.keys.whole)
        tokens = [f"{module}.weight" for module in self.keys.tokens]
        try:
            self.names = self.disk.match([*wanted, *whole, *tokens])
        except ModelError as error:
            if error.code != "no_match" or not whole or not (wanted or tokens):
                raise
        else:
            return None
        # What is left over when everything else fits is a head that the base has not.
        self.names = self.disk.match([*wanted, *whole, *tokens], may_lack=whole)
        from modelyard.weights.merge.plan.heads import add_head

        head = {name: self.keys.whole[name] for name in whole if name not in self.names}
        return add_head(self.disk, self.adapter, self.options, head)

    # Sites.

    def _add_factors(self, factors: Factors, target: dict[str, str]) -> None:
        name = self.names[target["weight"]]
        parameter = target.get("parameter")
        if parameter is not None:
            self._add(name, lambda on: self.builder.experts(factors, on, parameter))
        else:
            self._add(name, lambda on: self.builder.low_rank(factors, on))
        if "bias" in factors.roles:
            if parameter is not None:
                what = f"`{show_name(parameter)}` is a parameter, and has no bias that `lora_bias` could change"
                refuse(self.options.label, "lora_bias", what)
            self._add(self.names[target["bias"]], lambda on: self.builder.bias(factors, on))

    def _add_tokens(self, module: str, key: str) -> None:
        tokens = self.options.tokens
        rows = next((rows for name, rows in tokens.items() if not name or f".{module}".endswith(f".{name}")), None)
        if rows is None:
            what = f"`{show_name(module)}` has trained tokens that its configuration does not name"
            refuse(self.options.label, "bad_adapter", what)
        self._add(self.names[f"{module}.weight"], lambda on: self.builder.tokens(module, on, key, rows))

    def _add(self, name: str, build: Any) -> None:
        """Add the sites that `build` makes on the tensor called `name`; of a tied one that is not stored, on its source."""
        source = self.disk.source(name)
        for site in build(source):
            tensor = site.tensor if source == name else name
            self.sites.setdefault(tensor, []).append(replace(site, tensor=tensor))

    def _check(self) -> None:
        for tensor, sites in self.sites.items():
            kinds = {site.kind for site in sites}
            if "replaced" in kinds and any(site.low_rank for site in sites):
                refuse(self.options.label, "bad_adapter", f"it both replaces and changes `{show_name(tensor)}`")
            if _overlap(site.layout.rows for site in sites if site.low_rank):
                refuse(
                    self.options.label,
                    "ambiguous_names",
                    f"two of its modules mean the same rows of `{show_name(tensor)}`",
                )


def _overlap(rows: Iterable[range]) -> bool:
    end = 0
    for each in sorted(rows, key=lambda place: place.start):
        if each.start < end:
            return True
        end = each.stop
    return False
