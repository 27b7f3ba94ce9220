"""Writing a copy of a checkpoint without what is mechanical to mend; the original is never touched.

What is mended: wrapper prefixes and `base_layer` in names, an index and its total size, weights under a name that no loader looks
for, files that nothing needs (stray shards, second sets, other libraries' weights, pickles beside safetensors), the tie flag and
the dtype of config.json, generation_config.json, and with a base its chat template. Values of tensors are copied bit for bit:
nothing is padded, cast or invented.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.checks import as_path
from modelyard.weights.doctor.case import Case
from modelyard.weights.doctor.folder import FOREIGN, examine_files
from modelyard.weights.doctor.names import unwrap
from modelyard.weights.doctor.numbers import main_dtype
from modelyard.weights.doctor.settings import propose_generation
from modelyard.weights.doctor.shards import SHARD, examine_set
from modelyard.weights.doctor.templates import answer_end, find_templates, render_template
from modelyard.weights.doctor.vocabulary import end_ids, read_vocabulary
from modelyard.weights.files import FolderFiles, show_name
from modelyard.weights.output import HashingWriter, copy_file, format_json, fresh_folder, write_file
from modelyard.weights.untrained import KEY, Untrained, digest_tensors, mark

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelyard.weights.checkpoint import Checkpoint, Shard
    from modelyard.weights.doctor.findings import Finding
    from modelyard.weights.files import Files
    from modelyard.weights.headers import Header

__all__ = ["MENDED", "Mended", "mend"]

MENDED = frozenset({
    "avoidable_pickle", "base_layer_names", "bad_index", "dtype_mismatch", "eos_mismatch", "eos_not_in_template", "foreign_weights",
    "index_mismatch", "misnamed_weights", "missing_index", "no_chat_template", "no_generation_config", "no_output_layer",
    "stray_weights", "template_broken", "template_changed", "template_unsafe", "tied_mismatch", "total_size",
    "two_weight_sets", "wrapped_names", "wrong_name",
})  # fmt: skip
"""The codes that `mend` does away with, where it can."""

_CHUNK = 4 << 20
_TEMPLATE_CODES = frozenset({"no_chat_template", "template_broken", "template_changed", "template_unsafe"})


@dataclass
class Mended:
    """What `mend` did.

    Attributes:
        applied: A sentence for each thing that was changed.
        left: Files of the original that the copy does not have.
        before: What was wrong with the original.
        after: What is wrong with the copy.
    """

    applied: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    before: list[Finding] = field(default_factory=list)
    after: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {
            "applied": self.applied,
            "left": self.left,
            "before": [finding.to_dict() for finding in self.before],
            "after": [finding.to_dict() for finding in self.after],
        }


def mend(files: Files, out: Path, *, base: Files | None = None) -> Mended:
    """Write a mended copy of `files` to the new folder `out`, and examine that.

    Args:
        files: A model or adapter folder.
        out: A folder that does not exist yet; it appears whole or not at all.
        base: Where a chat template is taken from when the one here is missing, another, broken or unsafe.

    Raises:
        ModelError: `nothing_to_mend`: nothing is wrong that is mechanical to mend.
        ConflictError, NoSpaceError: As `fresh_folder`.
    """
    from modelyard.weights.doctor import diagnose

    made = Mended(before=diagnose(files, base=base))
    codes = {finding.code for finding in made.before}
    theirs = find_templates(base).get("default") if base is not None else None
    possible = codes & MENDED - (_TEMPLATE_CODES if theirs is None else frozenset())
    if not possible:
        found = ", ".join(sorted(codes)) or "nothing"
        raise ModelError(
            f"`{files.label}` has nothing that is mechanical to mend (found: {found})",
            code="nothing_to_mend",
            hint=f"yard doctor {as_path(files.label)} says what each needs",
        )
    case = Case(files, files.label)
    # Examined again for what they fill in; what they find is in `before`.
    list(examine_files(case))
    _rename_wrong(case)
    list(examine_set(case))
    with fresh_folder(out) as folder:
        _copy(case, folder, made)
        _write_weights(case, folder, codes, made)
        _write_config(case, folder, codes, made)
        _mark_anew(case, folder, codes)
        _write_generation(case, folder, codes, made)
        if theirs is not None and codes & _TEMPLATE_CODES:
            _write_template(folder, theirs[1], made)
        copy = FolderFiles(folder)
        copy.label = str(out)  # as it will be called
        made.after = diagnose(copy, base=base)
    return made


def _rename_wrong(case: Case) -> None:
    """Take safetensors under another name for weights, where there are no others."""
    from modelyard.weights.headers import read_header

    for name, content in case.contents.items():
        if content == "safetensors" and not name.endswith(".safetensors") and not case.headers:
            case.headers[name] = read_header(case.files.path(name))
            case.take_all()
            return


def _copy(case: Case, folder: Path, made: Mended) -> None:
    """Everything but weights, indexes and what nothing needs."""
    weights = set(case.weights.shards) if case.weights else set()
    for name in case.files.names():
        content = case.contents.get(name, "other")
        if name.endswith((".safetensors.index.json", ".bin.index.json")) and case.weights is not None:
            continue
        if name in weights:
            continue
        needless = content in FOREIGN or content in {"pickle", "safetensors", "gguf"}
        # What a failed download left in the place of weights that nothing needs.
        needless = needless or (content in {"html", "lfs-pointer"} and name in case.broken)
        inner = "/" in name and content in {"safetensors", "gguf"}  # another model's, of a pipeline of several
        if needless and case.weights is not None and not inner:
            made.left.append(name)
            continue
        copy_file(case.files, name, folder)
    if made.left:
        made.applied.append("left out: " + ", ".join(show_name(name) for name in made.left))


def _write_weights(case: Case, folder: Path, codes: set[str], made: Mended) -> None:
    weights = case.weights
    if weights is None:
        return
    renamed = _new_names(weights, codes)
    changed = {old: new for old, new in renamed.items() if old != new}
    if changed:
        old, new = next(iter(changed.items()))
        made.applied.append(f"{len(changed)} tensors renamed, as `{show_name(old)}` to `{show_name(new)}`")
    targets = _targets(case, weights)
    weight_map: dict[str, str] = {}
    total = 0
    for shard, header in weights.shards.items():
        target = targets[shard]
        if target != shard:
            made.applied.append(f"`{show_name(shard)}` is now `{target}`")
        if any(name in changed for name in header.tensors):
            with weights.open(shard) as opened:
                _write_renamed(opened, header, renamed, folder / target)
        else:
            _copy_as(case.files, shard, folder / target)
        weight_map.update({renamed[name]: target for name in header.tensors})
        total += sum(info.end - info.start for info in header.tensors.values())
    if len(weights.shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        name = f"{case.stem}.safetensors.index.json"
        write_file(folder / name, (json.dumps(index, indent=2) + "\n").encode())
        if codes & {"bad_index", "index_mismatch", "missing_index", "total_size"}:
            made.applied.append(f"`{name}` written from the shards: {len(weight_map)} tensors, {total} bytes")


def _new_names(weights: Checkpoint, codes: set[str]) -> dict[str, str]:
    names = {name: name for name in weights.home}
    if "wrapped_names" in codes:
        names = {name: unwrap(name) for name in names}
        first = {name.partition(".")[0] for name in names}
        if all(old == new for old, new in names.items()) and len(first) == 1:
            names = {name: name.partition(".")[2] for name in names}
    if "base_layer_names" in codes and not any(".lora_" in name for name in names):
        names = {old: new.replace(".base_layer.", ".") for old, new in names.items()}
    if len(set(names.values())) != len(names):
        raise ModelError(
            f"`{weights.files.label}` holds some tensors both with and without a prefix, so which one counts is not known",
            code="ambiguous_names",
            hint="save the model that is inside the wrapper (`accelerator.unwrap_model(model)`)",
        )
    return names


def _targets(case: Case, weights: Checkpoint) -> dict[str, str]:
    """Each file's name in the copy: its own where a loader looks for it."""
    if len(weights.shards) == 1:
        (only,) = weights.shards
        return {only: f"{case.stem}.safetensors"}
    numbered = all(SHARD.fullmatch(shard) for shard in weights.shards)
    if numbered:
        return {shard: shard for shard in weights.shards}
    count = len(weights.shards)
    return {shard: f"{case.stem}-{at:05d}-of-{count:05d}.safetensors" for at, shard in enumerate(weights.shards, 1)}


def _write_renamed(shard: Shard, header: Header, renamed: dict[str, str], target: Path) -> None:
    """The same tensor bytes behind a header with other names."""
    entries: dict[str, Any] = {"__metadata__": header.metadata or {"format": "pt"}}
    for name, info in header.in_file_order():
        entries[renamed[name]] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    size = max((info.end for info in header.tensors.values()), default=0)
    buffer = bytearray(min(_CHUNK, size))
    with HashingWriter(target) as writer:
        writer.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, size, _CHUNK):
            part = memoryview(buffer)[: min(_CHUNK, size - start)]
            shard.read_into(part, start)
            writer.write(part)


def _copy_as(files: Files, name: str, target: Path) -> None:
    with files.path(name).open("rb") as source, HashingWriter(target) as writer:
        while chunk := source.read(_CHUNK):
            writer.write(chunk)


def _write_config(case: Case, folder: Path, codes: set[str], made: Mended) -> None:
    config = dict(case.config)
    if "tied_mismatch" in codes:
        config = _tie(config, tied=False)
        made.applied.append("config.json: `tie_word_embeddings` is false, since both tensors are there and differ")
    if "no_output_layer" in codes:
        config = _tie(config, tied=True)
        made.applied.append("config.json: `tie_word_embeddings` is true, since there is no output layer of its own")
    stored = main_dtype(case.weights.shards) if case.weights else None
    if "dtype_mismatch" in codes and stored is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = stored
        made.applied.append(f"config.json: `dtype` is {stored}, as the tensors are")
    if config != case.config:
        _write_json(folder, "config.json", config)


def _mark_anew(case: Case, folder: Path, codes: set[str]) -> None:
    """The mark of untrained weights is over their names too: what was true of the original is written for the copy."""
    found = case.config.get(KEY)
    if case.weights is None or not isinstance(found, dict) or not codes & {"wrapped_names", "base_layer_names"}:
        return
    named = found.get("tensors")
    names = named if isinstance(named, list) else list(case.weights.home)
    if set(names) <= set(case.weights.home) and digest_tensors(case.weights, names) == found.get("digest"):
        renamed = _new_names(case.weights, codes)
        tensors = None if named is None else tuple(renamed[name] for name in names)
        mark(folder, Untrained(found["kind"], found["seed"], tensors))


def _tie(config: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    inner = config.get("text_config")
    if isinstance(inner, dict) and "tie_word_embeddings" in inner:
        config = config | {"text_config": inner | {"tie_word_embeddings": tied}}
    return config | {"tie_word_embeddings": tied}


def _write_generation(case: Case, folder: Path, codes: set[str], made: Mended) -> None:
    wanted = codes & {"no_generation_config", "eos_mismatch", "eos_not_in_template"}
    if not wanted:
        return
    vocabulary = read_vocabulary(case)
    config = dict(case.generation) | propose_generation(case, vocabulary)
    ends = sorted(end_ids(config))
    more: Sequence[int] = ()
    if vocabulary is not None and "eos_mismatch" in codes:
        more = [vocabulary.ids[vocabulary.named["eos_token"]]]
    if vocabulary is not None and "eos_not_in_template" in codes:
        template = find_templates(case.files).get("default")
        done = render_template(template[1], vocabulary.named) if template else None
        word = vocabulary.first_special(answer_end(done.text) or "") if done and done.text else None
        more = [*more, vocabulary.ids[word]] if word is not None else more
    ends += [number for number in more if number not in ends]
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if config == case.generation or not config:
        return
    _write_json(folder, "generation_config.json", config)
    said = ", ".join(f"{key} {value}" for key, value in config.items() if re.search("token_id$", key))
    made.applied.append(f"generation_config.json holds {said}")


def _write_template(folder: Path, text: str, made: Mended) -> None:
    path = folder / "chat_template.jinja"
    path.unlink(missing_ok=True)
    write_file(path, text.encode())
    # transformers prefers the file, but others read the copy in the configuration.
    for name in ("tokenizer_config.json", "chat_template.json"):
        target = folder / name
        if not target.exists():
            continue
        try:
            held = json.loads(target.read_text("utf-8"))
        except ValueError:
            continue  # broken, which the doctor says of the copy too
        if isinstance(held, dict) and held.pop("chat_template", None) is not None:
            target.unlink()
            if held:
                write_file(target, format_json(held))
    made.applied.append("chat_template.jinja is the base's")


def _write_json(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / name).unlink(missing_ok=True)
    write_file(folder / name, format_json(value))
