"""The part of `Yard` that makes one version from several: merge, combine, extract.

As `transformation`: each method resolves its inputs, says what the result is and what it came from, and calls one function of
`weights.merge`. Knows no tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import InputError, ModelError
from modelyard.registry.deferred import deferred
from modelyard.registry.transformation import Transformation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelyard.digest import Digest
    from modelyard.registry import lineage as _lineage
    from modelyard.registry import transforms as _transforms
    from modelyard.registry.model import Version
    from modelyard.registry.transforms import Edges, Operand, Transformed
    from modelyard.weights.certificate import Certificate

    Source = str | Path | Version
    Progress = Callable[[int, int], None]
else:
    _lineage = deferred("lineage")
    _transforms = deferred("transforms")

__all__ = ["Bench", "Merging"]


_COMBINE_OPTIONS = frozenset({"density", "seed", "t", "saved"})


class Merging(Transformation):
    """What `Yard` inherits to make one version from several; not used alone."""

    def merge(
        self,
        adapter: Source,
        to: str | Path | None = None,
        *,
        base: Source | None = None,
        mode: Literal["exact", "peft"] = "exact",
        quantized: Literal["dequantized", "original"] | None = None,
        original: Source | None = None,
        check: bool = True,
        threads: int | None = None,
        branch: str = "main",
        message: str = "",
        inputs: Digest | None = None,
        progress: Progress | None = None,
    ) -> Transformed:
        """Merge an adapter into its base: exactly, the same bits on every machine, or as PEFT does on this one.

        Args:
            adapter: The adapter.
            to: A repo or a new folder; None is the adapter's own repo.
            base: Its base; None is the one that its lineage records.
            mode: `exact` or `peft`; see docs/design/transforming.md.
            quantized: For a quantized base: merge into what it dequantizes to, or into `original`.
            original: The base before it was quantized.
            check: Compare the merged model with the base and adapter on fixed prompts, and keep what was measured.
            threads: Compute threads; in `exact` mode they cannot change a bit.
            branch: Which branch of the repo moves.
            message: For people.
            inputs: Digest of what decided the outcome, for recipes.
            progress: Called with (bytes done, bytes in all) of the base.

        Raises:
            NotFoundError: There is no such version, or its base is not in this yard.
            ModelError: It is no adapter, or cannot be merged, and why.
        """
        from modelyard.weights.merge import merge

        of = self._find(adapter)
        if of.version is not None and of.version.kind != "adapter":
            kind = f"kind `{of.version.kind}`" if of.version.kind else "no kind"
            raise ModelError(f"`{of.label}` has {kind} and is no adapter", hint="merge an adapter: yard ls REPO")
        on = self._base(of, base)
        before = self._find(original) if original is not None else None
        options = {"mode": mode, "quantized": quantized, "check": check}

        def work(out: Path) -> Certificate:
            return merge(
                on.files(),
                of.files(),
                out,
                mode=mode,
                quantized=quantized,
                original=before.files() if before is not None else None,
                check=check,
                threads=threads,
                progress=progress,
            )

        return _transforms.transform(
            self._home(),
            "merge",
            [of, on, *([before] if before is not None else [])],
            self._repo(to, of),
            work,
            options=options,
            kind="merged",
            edges=[("merged", of), ("merged", before or on)],
            branch=branch,
            message=message or f"{of.label} merged into {on.label}",
            inputs=inputs,
            metadata={"operation": "lora/1"} if mode == "exact" else {"operation": "peft"},
        )

    def merge_models(
        self,
        config: str | Path,
        to: str | Path,
        *,
        seed: int = 0,
        branch: str = "main",
        message: str = "",
        progress: Progress | None = None,
    ) -> Transformed:
        """Merge whole models as a mergekit configuration says.

        Args:
            config: The configuration's YAML, or its file. Where it names a model, that is a source as everywhere.
            to: A repo or a new folder.
            seed: What DARE draws from.
            branch: Which branch of the repo moves.
            message: For people.
            progress: Called with (bytes done, bytes in all).

        Raises:
            InputError: The configuration has a method or a key that is not supported, or is malformed; the path to it is named.
            ModelError: The models do not fit each other.
        """
        from modelyard.weights.merge import mergekit, models

        asked = mergekit.read_mergekit(config)
        found = {name: self._find(_written(name)) for name in asked.models}
        operands = list(found.values())
        return _transforms.transform(
            self._home(),
            "merge-models",
            operands,
            to,
            lambda out: models.merge_models(
                asked, out, sources={name: each.files() for name, each in found.items()}, seed=seed, progress=progress
            ),
            options={"config": repr(asked), "seed": seed},
            kind="merged",
            edges=[("merged", each) for each in operands],
            branch=branch,
            message=message or f"{asked.method} of {', '.join(each.label for each in operands)}",
            metadata={"operation": asked.method},
        )

    def combine(
        self,
        adapters: Sequence[Source],
        to: str | Path,
        *,
        method: str = "linear",
        weights: Sequence[float] | None = None,
        rank: int | None = None,
        base: Source | None = None,
        branch: str = "main",
        message: str = "",
        progress: Progress | None = None,
        **options: Any,
    ) -> Transformed:
        """One adapter from several, computed on what they add to the weights and not on their factors.

        Args:
            adapters: The adapters, of one base.
            to: A repo or a new folder.
            method: `linear`, `svd`, `ties`, `dare` or `slerp`.
            weights: One for each adapter; None is 1 each.
            rank: The rank of the result; None is what loses nothing (`linear`), or the sum of the ranks.
            base: Their base; None is the one that lineage records. Only DoRA reads it.
            branch: Which branch of the repo moves.
            message: For people.
            progress: Called with (modules done, modules in all).
            **options: Of the method: `density`, `seed`, `t`; `saved="average"` for modules that the adapters saved whole.

        Raises:
            InputError: A method or an option that is not known, or weights that do not fit.
            ModelError: The adapters do not go together.
        """
        from modelyard.weights.merge import combination

        if unknown := sorted(set(options) - _COMBINE_OPTIONS):
            raise InputError(
                f"`combine` has no option `{unknown[0]}`",
                code="bad_option",
                hint=f"known: {', '.join(sorted(_COMBINE_OPTIONS))}",
            )
        found = [self._find(each) for each in adapters]
        on = self._find(base) if base is not None else self._common_base(found)
        edges: Edges = [("merged", each) for each in found]
        edges += [("finetuned", on)] if on is not None else []
        asked: dict[str, Any] = {
            "method": method,
            "weights": list(weights or [1.0] * len(found)),
            "rank": rank,
            **options,
        }
        return _transforms.transform(
            self._home(),
            "combine",
            [*found, *([on] if on is not None else [])],
            to,
            lambda out: combination.combine(
                [each.files() for each in found],
                out,
                base=on.files() if on is not None else None,
                same_base=on is not None,
                progress=progress,
                **asked,
            ),
            options=asked,
            kind="adapter",
            edges=edges,
            branch=branch,
            message=message or f"{method} of {', '.join(each.label for each in found)}",
        )

    def extract(
        self,
        base: Source,
        tuned: Source,
        to: str | Path,
        *,
        rank: int,
        branch: str = "main",
        message: str = "",
        progress: Progress | None = None,
        **options: Any,
    ) -> Transformed:
        """A LoRA adapter from two checkpoints: the best of its rank for what `tuned` changed in each linear layer.

        Args:
            base: The model before.
            tuned: The model after.
            to: A repo or a new folder.
            rank: Of the adapter.
            branch: Which branch of the repo moves.
            message: For people.
            progress: Called with (tensors done, tensors in all).
            **options: Those of `weights.merge.extraction.extract`.

        Raises:
            ModelError: The checkpoints are not of one architecture.
        """
        from modelyard.weights.merge import extraction

        before, after = self._find(base), self._find(tuned)
        asked: dict[str, Any] = {"rank": rank, **options}
        return _transforms.transform(
            self._home(),
            "extract",
            [before, after],
            to,
            lambda out: extraction.extract(before.files(), after.files(), out, progress=progress, **asked),
            options=asked,
            kind="adapter",
            edges=[("finetuned", before), ("converted", after)],
            branch=branch,
            message=message or f"extracted from {after.label}, rank {rank}",
        )

    def _base(self, adapter: Operand, base: Source | None) -> Operand:
        if base is not None:
            return self._find(base)
        if adapter.version is None:
            raise InputError(f"`{adapter.label}` is a folder: say which base it was made on", hint="--base REFERENCE")
        return self._find(_lineage.adapter_base(self._context, adapter.version))

    def _repo(self, to: str | Path | None, operand: Operand) -> str | Path:
        if to is not None:
            return to
        if operand.version is None:
            raise InputError(f"where is what is made from `{operand.label}` to go?", hint="--to NAMESPACE/NAME")
        return operand.version.repo

    def _common_base(self, adapters: Sequence[Operand]) -> Operand | None:
        """The base that the adapters' lineage names; None for folders.

        Raises:
            ModelError: `other_base`: they name different ones.
        """
        bases = {
            str(base.id): base
            for base in (_lineage.adapter_base(self._context, each.version) for each in adapters if each.version)
        }
        if len(bases) > 1:
            names = ", ".join(sorted(base.name for base in bases.values()))
            raise ModelError(f"the adapters were made on different bases: {names}", code="other_base")
        return next((self._find(base) for base in bases.values()), None)


class Bench(Merging):
    """The same operations without a yard: on folders and hubs' models, to folders.

    Args:
        fetch: `weights.hub.fetch` with what the surroundings say about the hub.
    """

    def __init__(self, fetch: Callable[..., Path]) -> None:
        self._fetch = fetch

    def fetch(self, source: str, **options: Any) -> Path:
        """A hub's model in the hub cache."""
        return self._fetch(source, **options)

    def _home(self) -> None:
        return None


def _written(name: str) -> str | Path:
    """A model as a mergekit file names it: a path that exists is one, however it is written; else a source as everywhere."""
    return Path(name) if not name.startswith("hf:") and Path(name).expanduser().exists() else name
