"""Every model type that transformers knows: its modality, its tasks, what serves it here, and whether it can be trained here.

A view of transformers' own tables and of ours (`weights.tasks`); nothing is built. What is served and trained is what this
package does today, not what the type could do.

>>> [item.model_type for item in architectures("time-series")][:2]
['patchtsmixer', 'patchtst']
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, get_args

from modelyard.errors import RequestError, near_match
from modelyard.weights.tasks import TASKS, Modality

__all__ = ["Architecture", "architectures"]

MODALITIES: tuple[str, ...] = get_args(Modality)

# Tables that list classes of every kind: they say what else a type has, not what it is for.
_GENERAL = frozenset({"feature-extraction", "pretraining", "any-to-any", "backbone", "text-encoding"})
_WRITES = frozenset({"text-generation", "text-to-spectrogram"})


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type.

    Attributes:
        model_type: As config.json names it.
        modality: Of the inputs of what it is mostly for.
        tasks: Everything that transformers has a class of it for, in the order of `weights.tasks.TASKS`.
        classes: Task to the class.
        engines: What serves it here: `torch` answers chats and completions with a text generator; nothing else is served yet.
        trainable: How it can be trained here: `sft`, supervised fine-tuning of an adapter on a text generator; None for not.
    """

    model_type: str
    modality: str
    tasks: tuple[str, ...]
    classes: dict[str, str]
    engines: tuple[str, ...]
    trainable: str | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def architectures(modality: str | None = None) -> list[Architecture]:
    """Every model type with a class for some task, sorted by name.

    Args:
        modality: Only those of `text`, `image`, `video`, `audio`, `multimodal` or `time-series`; None for all.

    Raises:
        RequestError: There is no such modality.
    """
    if modality is not None and modality not in MODALITIES:
        meant = near_match(modality, MODALITIES)
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(MODALITIES)}"
        raise RequestError(f"no modality `{modality}`", hint=hint, field="modality")
    return [item for item in _all() if modality in {None, item.modality}]


@cache
def _all() -> tuple[Architecture, ...]:
    found: dict[str, dict[str, str]] = {}
    for name, task in TASKS.items():
        for model_type, architecture in task.model_types().items():
            found.setdefault(model_type, {})[name] = architecture
    return tuple(_describe(model_type, classes) for model_type, classes in sorted(found.items()))


def _describe(model_type: str, classes: dict[str, str]) -> Architecture:
    modality = _modality(classes)
    writes = "text-generation" in classes and modality in {"text", "multimodal"}
    return Architecture(
        model_type=model_type,
        modality=modality,
        tasks=tuple(classes),
        classes=classes,
        engines=("torch",) if writes else (),
        trainable="sft" if writes else None,
    )


def _modality(classes: dict[str, str]) -> str:
    """What goes in: of the first task that says what the type is for, but for types with a text decoder as a part.

    Whisper has a decoder that writes text alone, and Wav2Vec2 classifies "sequences" of sound: both take sound.
    """
    special = [name for name in classes if name not in _GENERAL]
    kinds = {TASKS[name].modality for name in special}
    first = TASKS[special[0] if special else next(iter(classes))].modality
    if first != "text":
        return first
    if "automatic-speech-recognition" in classes or ("audio" in kinds and not _WRITES & set(classes)):
        return "audio"
    return "multimodal" if "multimodal" in kinds else "text"
