"""Adapter files: the folder that PEFT, vLLM and the registry read, written the same way for the same weights.

No path of this machine gets into it. Knows no training loop.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from modelyard.errors import IntegrityError
from modelyard.weights.filenames import TEMPLATE_FILES, TOKENIZER_PARTS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ADAPTER_FILES", "copy_tokenizer", "load_adapter", "save_adapter"]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
ADAPTER_FILES = (WEIGHTS, CONFIG)


def save_adapter(model: Any, folder: Path, base_name: str | None) -> None:
    """Write the LoRA weights of a PEFT model, float32, in order of name, and their config.

    The config calls the base `base_name`, or leaves it open: lineage says which version it is.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    _write_config(model, folder, base_name)


def load_adapter(model: Any, folder: Path) -> None:
    """Put saved LoRA weights into a PEFT model; `IntegrityError` unless they are exactly the model's."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(str(folder / WEIGHTS))
    have = get_peft_model_state_dict(model, save_embedding_layers=False)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in have.items()}:
        raise IntegrityError(f"{folder.name}: {WEIGHTS} does not fit the base and the options")
    set_peft_model_state_dict(model, saved)


def _write_config(model: Any, folder: Path, base_name: str | None) -> None:
    config = model.peft_config["default"]
    plain = {name: _plain(value) for name, value in config.to_dict().items() if name != "runtime_config"}
    plain |= {"base_model_name_or_path": base_name, "inference_mode": True, "revision": None}
    text = json.dumps(plain, indent=2, sort_keys=True, default=str)
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def _plain(value: Any) -> Any:
    # A set's order changes from process to process.
    return sorted(value) if isinstance(value, set | frozenset) else value


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the base's tokenizer files, byte for byte, so that a store keeps them once."""
    for name in sorted(TOKENIZER_PARTS | TEMPLATE_FILES):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
