"""`metadata.json` of SmoLoRA's layout: what a yard recorded of a version, under the keys that the guide gives.

Whatever nobody recorded says so in words. Knows runs, edges and adapters' configurations; reads headers, never weights.
"""

from __future__ import annotations

import json
import math
from datetime import UTC
from typing import TYPE_CHECKING, Any

from modelyard.errors import ConflictError, ModelError, NotFoundError
from modelyard.registry.layouts import METADATA, NOT_RECORDED

if TYPE_CHECKING:
    from modelyard.registry.model import Version
    from modelyard.registry.yard import Yard

__all__ = ["describe"]

_TRAINING = {
    "learning_rate": ("learning_rate",),
    "max_steps": ("max_steps", "steps"),
    "batch_size": ("batch_size", "per_device_train_batch_size"),
    "gradient_accumulation_steps": ("gradient_accumulation_steps", "gradient_accumulation"),
}
_LORA = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_modules": "target_modules"}


def describe(yard: Yard, final: Version | None, adapter: Version | None) -> dict[str, Any]:
    """The guide's keys for a merged version, an adapter, or both."""
    version = final or adapter
    assert version is not None  # noqa: S101  # an entry has one of them
    made = adapter or version
    config = _adapter_config(yard, adapter) if adapter is not None else {}
    options = _options(yard, made)
    found: dict[str, Any] = {
        "timestamp": version.created_at.astimezone(UTC).isoformat(),
        "base_model": _base_model(yard, made, config),
        "dataset": _datasets(yard, made),
        "training_config": {key: _first(options, names, made) for key, names in _TRAINING.items()},
        "lora_config": {key: config.get(name) for key, name in _LORA.items()},
        "performance_metrics": {
            "final_loss": _number(made.metadata.get("loss")),
            "training_time": _number(made.metadata.get("seconds")),
            "parameters_trained": _parameters(yard, adapter) if adapter is not None else None,
        },
    }
    kept = {
        key.removeprefix(METADATA): value
        for key, value in {**made.metadata, **version.metadata}.items()
        if key.startswith(METADATA)
    }
    # What came with an import is what its author wrote, and wins over what was found out.
    found |= {key: _plain(value) for key, value in kept.items()}
    return {key: _said(value) for key, value in found.items()}


def _said(value: Any) -> Any:
    """The same value with words where there is none."""
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items()}
    return NOT_RECORDED if value is None else value


def _plain(text: str) -> Any:
    """What `kept_metadata` made text of."""
    if text[:1] in {"{", "["} or text in {"null", "true", "false"} or _number(text) is not None:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _number(text: str | None) -> float | int | None:
    try:
        return json.loads(text) if text is not None and isinstance(json.loads(text), int | float) else None
    except ValueError:
        return None


def _options(yard: Yard, version: Version) -> dict[str, Any]:
    """The configuration of the run that made a version, by the last part of each key."""
    record = yard.run_record(version.inputs) if version.inputs is not None else None
    config = record.inputs.get("config") if record is not None else None
    if not isinstance(config, dict):
        return {}
    found: dict[str, Any] = {}
    # The training's own options last: they win over another section's of the same name.
    for key, text in sorted(config.items(), key=lambda item: item[0].startswith("train.")):
        try:
            found[key.rpartition(".")[2]] = json.loads(text) if isinstance(text, str) else text
        except ValueError:
            found[key.rpartition(".")[2]] = text
    return found


def _first(options: dict[str, Any], names: tuple[str, ...], version: Version) -> Any:
    for name in names:
        if options.get(name) is not None:
            return options[name]
    return next((_number(version.metadata[name]) for name in names if name in version.metadata), None)


def _adapter_config(yard: Yard, adapter: Version) -> dict[str, Any]:
    from modelyard.weights.checks import read_json

    try:
        found = read_json(yard.files(adapter), "adapter_config.json")
    except (ModelError, NotFoundError):
        return {}
    modules = found.get("target_modules")
    return found | {"target_modules": sorted(modules) if isinstance(modules, list) else modules}


def _base_model(yard: Yard, version: Version, config: dict[str, Any]) -> Any:
    """The base by its edge (its hub name, where it has one), else the path that PEFT noted."""
    try:
        base = yard.base_of(version)
    except (ConflictError, NotFoundError):
        return config.get("base_model_name_or_path")
    return base.metadata.get("origin", base.name)


def _datasets(yard: Yard, version: Version) -> str | None:
    edges = {edge.version for edge in version.lineage if edge.type == "trained-on"}
    nodes = yard.lineage(version, direction="up").nodes if edges else ()
    names = sorted(node.names[0] for node in nodes if node.id in edges and node.names)
    return ", ".join(names) or None


def _parameters(yard: Yard, adapter: Version) -> int | None:
    from modelyard.weights.headers import read_header

    files = yard.files(adapter)
    names = [name for name in files.names() if name.endswith(".safetensors")]
    if not names:
        return None
    return sum(math.prod(tensor.shape) for name in names for tensor in read_header(files.path(name)).tensors.values())
