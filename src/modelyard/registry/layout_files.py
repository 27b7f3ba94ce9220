"""The files that SmoLoRA's guide names and a version may lack, derived from those it has.

What is there is never touched. Nothing is invented: a file whose content does not follow from the others is not written.
Knows folders, no yard.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.registry.model import Version

__all__ = ["complete_adapter", "complete_model"]

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def complete_model(folder: Path, *, bins: bool) -> None:
    """Add `generation_config.json`, `special_tokens_map.json`, `vocab.txt` and the `.bin` files where they follow."""
    config = _read(folder / "config.json")
    ids = {key: config[key] for key in _IDS if config.get(key) is not None}
    _add(folder / "generation_config.json", {"_from_model_config": True, **ids} if config else None)
    tokenizer = _read(folder / "tokenizer_config.json")
    tokens = {key: tokenizer[key] for key in _TOKENS if tokenizer.get(key) is not None}
    tokens |= {key: tokenizer[key] for key in _LISTS if tokenizer.get(key)}
    _add(folder / "special_tokens_map.json", tokens if tokenizer else None)
    _vocabulary(folder)
    if bins:
        _pickle_all(folder, "model", "pytorch_model")


def complete_adapter(folder: Path, version: Version, *, bins: bool) -> None:
    """Add `README.md` and `adapter_model.bin`."""
    readme = folder / "README.md"
    if not readme.exists():
        text = f"# {version.repo}\n\nAn adapter: `{version.name}`, id `{version.id}`.\n"
        readme.write_text(text, "utf-8")
    if bins:
        _pickle_all(folder, "adapter_model", "adapter_model")


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file; nothing where there is none, or it is something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _add(path: Path, value: dict[str, Any] | None) -> None:
    if value is not None and not path.exists():
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _vocabulary(folder: Path) -> None:
    """`vocab.txt`, one token a line in the order of the ids: a WordPiece vocabulary's form, and of no other."""
    model = _read(folder / "tokenizer.json").get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece" or (folder / "vocab.txt").exists():
        return
    vocabulary: dict[str, int] = model["vocab"]
    lines = sorted(vocabulary, key=lambda token: vocabulary[token])
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _pickle_all(folder: Path, stem: str, torch_stem: str) -> None:
    """Each safetensors file again as torch's own format, and the index of several."""
    names = sorted(path.name for path in folder.glob(f"{stem}*.safetensors"))
    renamed = {
        name: f"{torch_stem}{name.removeprefix(stem).removesuffix('.safetensors')}.bin"
        for name in names
        if not (folder / f"{torch_stem}{name.removeprefix(stem).removesuffix('.safetensors')}.bin").exists()
    }
    for name, target in renamed.items():
        _pickle(folder / name, folder / target)
    index = _read(folder / f"{stem}.safetensors.index.json")
    if index:
        index["weight_map"] = {tensor: renamed.get(file, file) for tensor, file in index["weight_map"].items()}
        _add(folder / f"{torch_stem}.bin.index.json", index)


def _pickle(source: Path, target: Path) -> None:
    """The tensors of a safetensors file as `torch.save` writes them, from the mapped file."""
    import torch
    from safetensors import safe_open

    with safe_open(str(source), framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
        torch.save(tensors, target)
