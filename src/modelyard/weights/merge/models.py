"""Whole models merged into one: `linear`, `slerp`, `ties`, `dare_linear`, `dare_ties`, `task_arithmetic`, and `passthrough` of layers.

Streams from the models' files to new ones: a block of each model is in memory (the whole tensor for `ties`), and a merge that
was interrupted goes on with the file after the last finished one. The arithmetic is `mixing`'s; which tensors belong together is
`pairing`'s; mergekit's YAML is read by `mergekit`. Knows folders and files; runs no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from modelyard.derivations.dare import dare_key
from modelyard.errors import InputError
from modelyard.weights.carry import carried_files
from modelyard.weights.certificate import EVERYWHERE, THIS_MACHINE, Certificate, describe_machine
from modelyard.weights.checkpoint import Checkpoint, open_checkpoint
from modelyard.weights.checks import check_weights, read_json
from modelyard.weights.files import Files, FolderFiles
from modelyard.weights.merge.mixing import BLOCK_ELEMENTS, Mixer
from modelyard.weights.merge.pairing import Mix, check_numbers, describe_differences, merged_config, pair_tensors
from modelyard.weights.merge.settings import METHODS, MergeConfig, MergeInput, Slice
from modelyard.weights.output import Work, copy_file, format_json, hash_file, key_of, resumable_folder, write_file
from modelyard.weights.pipeline import usable_cores
from modelyard.weights.shards import ShardWriter, TensorSpec, plan_shards, write_index
from modelyard.weights.untrained import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.weights.merge.settings import Setting

__all__ = ["merge_models"]

Progress = Callable[[int, int], None]


def merge_models(
    models: MergeConfig | Sequence[Files],
    out: Path,
    *,
    method: str | None = None,
    base: Files | None = None,
    weights: Sequence[float] | None = None,
    density: float | Sequence[float] | None = None,
    parameters: Mapping[str, float | bool] | None = None,
    dtype: str | None = None,
    sources: Mapping[str, Files] | None = None,
    seed: int = 0,
    shard_size: int | None = None,
    threads: int | None = None,
    block_elements: int = BLOCK_ELEMENTS,
    progress: Progress | None = None,
) -> Certificate:
    """Write a new model folder, merged from whole models of one architecture.

    `linear`, `ties`, `dare_linear`, `dare_ties`, `task_arithmetic` and `passthrough` give the same bits everywhere; `slerp` on
    this machine. All arithmetic is binary32 from the values as they are stored, and rounds once to the result's dtype.

    Args:
        models: What `read_mergekit` gave, or the models; the base is not among them.
        out: A folder that does not exist yet.
        method: One of `settings.METHODS`. This and the next five only where `models` are models.
        base: The model that changes are counted from (and the first of two for `slerp`).
        weights: One for each model.
        density: The share of each model's changes that is kept: one for all, or one for each.
        parameters: The method's others: `t`, `lambda`, `normalize`, `rescale`, `scale`.
        dtype: `float32`, `float16` or `bfloat16`; None is what the models' dtypes promote to.
        sources: The files of each model that a `MergeConfig` names; None takes the names for folders.
        seed: What `dare` draws from, 0 to 2^53 - 1.
        shard_size: The most bytes in one file of weights; None is the layout of the base's files.
        threads: Compute threads; cannot change a bit of the result.
        block_elements: How many elements are worked on at once; cannot change a bit either.
        progress: Called with (bytes done, bytes in all) of the result's weights.

    Raises:
        InputError: `bad_merge_config`, `missing_parameter`, `bad_number` or `bad_seed`.
        ModelError: A model is unsafe or broken; `different_models`, naming what differs; `untied`; `quantized_base`;
            `unsupported_dtype`; `nan_result` or `infinite_result`, naming the tensor.
        ConflictError, BusyError, NoSpaceError: As `resumable_folder`.
    """
    if isinstance(models, MergeConfig):
        if any(given is not None for given in (method, base, weights, density, parameters, dtype)):
            raise InputError("a merge configuration says method and parameters itself", code="bad_merge_config")
        config, files = models, _files_of(models, sources)
    else:
        config, files = _configured(
            models, method, base, weights=weights, density=density, parameters=parameters, dtype=dtype
        )
    dare_key(seed, "")
    return _Merge(config, files, seed).write(out, shard_size, threads or usable_cores(), block_elements, progress)


class _Merge:
    """One merge: its plan, and the files it makes."""

    def __init__(self, config: MergeConfig, files: Mapping[str, Files], seed: int) -> None:
        self.config, self.files, self.seed = config, files, seed
        for name in dict.fromkeys(config.models):
            check_weights(files[name])
        needed = {each.model for part in config.slices for each in part.inputs} | {config.donor}
        self.models = {name: open_checkpoint(files[name]) for name in config.models if name in needed}
        self.mixes = pair_tensors(config, self.models)
        for mix in self.mixes.values():
            check_numbers(mix)
        exact = config.method != "slerp"
        self.certificate = Certificate(
            "merge",
            config.method,
            {"config": config.to_dict(), "seed": seed},
            EVERYWHERE if exact else THIS_MACHINE,
            warnings=[*config.warnings, *describe_differences(config, self.models)],
            machine=None if exact else describe_machine(),
        )

    def write(
        self, out: Path, shard_size: int | None, threads: int, block_elements: int, progress: Progress | None
    ) -> Certificate:
        layout = self._layout(shard_size)
        options = {"config": self.config.to_dict(), "seed": self.seed, "shard_size": shard_size}
        total = sum(spec.size for specs in layout.values() for spec in specs)
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None:
                progress(done, total)

        with resumable_folder(out, key_of("merge-models", options, *self.files.values())) as work:
            with Mixer(self.models, seed=self.seed, threads=threads, block_elements=block_elements) as mixer:
                for name, specs in layout.items():
                    self._write_shard(work, name, specs, mixer, advance)
            self._write_rest(work, layout)
            self.certificate.write(work.folder)
        return self.certificate

    def _layout(self, shard_size: int | None) -> dict[str, list[TensorSpec]]:
        specs = [TensorSpec(mix.name, mix.dtype, mix.shape) for mix in self.mixes.values()]
        donor = self.models[self.config.donor]
        if shard_size is None and set(self.mixes) == set(donor.home) and not _renumbered(self.mixes):
            by_file: dict[str, list[TensorSpec]] = {}
            for spec in specs:
                by_file.setdefault(donor.home[spec.name], []).append(spec)
            return by_file
        return plan_shards(specs, shard_size or _largest_file(donor))

    def _write_shard(
        self, work: Work, name: str, specs: list[TensorSpec], mixer: Mixer, advance: Callable[[int], None]
    ) -> None:
        note = work.finished(name)
        if note is None:
            changes = []
            with ShardWriter(work.folder / name, specs) as writer:
                for spec in specs:

                    def write(data: memoryview) -> None:
                        writer.write(data)
                        advance(len(data))

                    mixed = mixer.mix(self.mixes[spec.name], write)
                    changes.append({"tensor": spec.name, "dtype": spec.dtype} | mixed.to_dict())
            note = {"changes": changes}
            work.finish(name, writer.digest(), note)
        else:
            advance(sum(spec.size for spec in specs))
        self.certificate.changes += note["changes"]
        self.certificate.outputs[name] = str(work.digest(name))

    def _write_rest(self, work: Work, layout: Mapping[str, list[TensorSpec]]) -> None:
        made, folder = self.certificate, work.folder
        index = write_index(folder, layout)
        if index is not None:
            made.outputs["model.safetensors.index.json"] = str(index)
        config = merged_config(self.config, self.models, self.mixes)
        config.pop(KEY, None)  # the marked weights are no longer there
        donor = self.files[self.config.donor]
        carried = carried_files(donor, self.files[self.config.tokenizer] if self.config.tokenizer else donor)
        template = self._template()
        for name, source in carried.items():
            if name == "config.json":
                made.outputs[name] = str(write_file(folder / name, format_json(config)))
            elif template is not None and name == "chat_template.jinja":
                continue
            elif template is not None and name == "tokenizer_config.json":
                plain = read_json(source, name)
                plain.pop("chat_template", None)
                made.outputs[name] = str(write_file(folder / name, format_json(plain)))
            else:
                made.outputs[name] = str(copy_file(source, name, folder))
        if template is not None:
            made.outputs["chat_template.jinja"] = str(write_file(folder / "chat_template.jinja", template.encode()))
        for name, model in self.models.items():
            made.inputs[name] = {shard: str(hash_file(model.files.path(shard))) for shard in model.shards}
        operations = Counter(change["operation"] for change in made.changes)
        made.matched = {"tensors": len(made.changes)} | dict(sorted(operations.items()))

    def _template(self) -> str | None:
        """The chat template that the configuration asks for; None leaves the tokenizer's."""
        if self.config.chat_template != "auto":
            return self.config.chat_template
        found = [text for files in self.files.values() if (text := _chat_template(files))]
        return Counter(found).most_common(1)[0][0] if found else None


def _configured(
    models: Sequence[Files],
    method: str | None,
    base: Files | None,
    *,
    weights: Sequence[float] | None,
    density: float | Sequence[float] | None,
    parameters: Mapping[str, float | bool] | None,
    dtype: str | None,
) -> tuple[MergeConfig, dict[str, Files]]:
    """The configuration that arguments mean, with each model under its label, or a number where two have one."""
    if method is None or method not in METHODS:
        raise InputError(
            f"`{method}` is not a method of merging models",
            code="bad_merge_config",
            hint=f"there are {', '.join(METHODS)}",
        )
    if dtype not in {None, "float32", "float16", "bfloat16"}:
        raise InputError(f"no dtype `{dtype}`", code="unknown_dtype", hint="known: float32, float16, bfloat16")
    takes = METHODS[method]
    each: dict[str, Sequence[float]] = {}
    if weights is not None:
        each["weight"] = weights
    if density is not None:
        each["density"] = [density] * len(models) if isinstance(density, int | float) else density
    for name, values in each.items():
        if name not in takes.per_model or len(values) != len(models):
            what = (
                f"takes no `{name}`"
                if name not in takes.per_model
                else f"{len(values)} of {name} for {len(models)} models"
            )
            raise InputError(f"`{method}`: {what}", code="bad_merge_config")
    own = {name: float(value) for name, value in (parameters or {}).items() if name in takes.per_model}
    shared: dict[str, Setting] = {
        name: value for name, value in (parameters or {}).items() if name not in takes.per_model
    }
    unknown = shared.keys() - takes.shared.keys()
    if unknown:
        raise InputError(f"`{method}` has no parameter `{min(unknown)}`", code="bad_merge_config")
    files: dict[str, Files] = {}
    for number, model in enumerate([*([base] if base is not None else []), *models]):
        files[model.label if model.label not in files else f"{model.label} ({number})"] = model
    names = list(files)
    base_name = names.pop(0) if base is not None else None
    if takes.base and base_name is None:
        raise InputError(f"`{method}` needs a base model", code="bad_merge_config")
    inputs = [
        MergeInput(name, own | {key: float(values[number]) for key, values in each.items()})
        for number, name in enumerate(names)
    ]
    inputs += [MergeInput(base_name)] if base_name is not None and takes.base else []
    if not takes.least <= len(inputs) <= (takes.most or len(inputs)):
        raise InputError(f"`{method}` does not take {len(inputs)} models, the base included", code="bad_merge_config")
    return MergeConfig(method, (Slice(tuple(inputs)),), base_name, shared, out_dtype=dtype), files


def _files_of(config: MergeConfig, sources: Mapping[str, Files] | None) -> dict[str, Files]:
    """The files of every model that a configuration names."""
    if sources is None:
        return {name: FolderFiles(name) for name in config.models}
    missing = [name for name in config.models if name not in sources]
    if missing:
        raise InputError(f"the merge names `{missing[0]}`, and no files were given for it", code="bad_merge_config")
    return {name: sources[name] for name in config.models}


def _renumbered(mixes: Mapping[str, Mix]) -> bool:
    return any(part.tensor != mix.name for mix in mixes.values() for part in mix.parts[:1])


def _largest_file(model: Checkpoint) -> int | None:
    """What the donor's shards hold at most, so that a result of another size has files of about that size; None for one file."""
    if model.index is None:
        return None
    return max(sum(info.end - info.start for info in header.tensors.values()) for header in model.shards.values())


def _chat_template(files: Files) -> str | None:
    names = files.names()
    if "chat_template.jinja" in names:
        return files.read("chat_template.jinja", 1 << 20).decode("utf-8", "replace").strip()
    found = read_json(files, "tokenizer_config.json").get("chat_template") if "tokenizer_config.json" in names else None
    return found.strip() if isinstance(found, str) else None
