"""What a folder holds, from its headers and small JSON files: no tensor is read, no library is asked.

>>> import tempfile
>>> from pathlib import Path
>>> from modelyard.weights.files import FolderFiles
>>> inspect(FolderFiles(Path(tempfile.mkdtemp()))).kind
'none'
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from modelyard.weights.checks import read_json
from modelyard.weights.ranges import read_header_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.weights.files import Files
    from modelyard.weights.headers import Header

__all__ = ["Inspection", "inspect", "task_of"]

_TASKS = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForImageTextToText", "image-text-to-text"),
    ("ForImageClassification", "image-classification"),
    ("ForAudioClassification", "audio-classification"),
    ("ForSpeechSeq2Seq", "automatic-speech-recognition"),
    ("ForCTC", "automatic-speech-recognition"),
    ("ForSeq2SeqLM", "text2text-generation"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("ForMultipleChoice", "multiple-choice"),
    ("Model", "feature-extraction"),
)
_ADAPTER_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_TOKENIZER = frozenset(
    {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model"}
)


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        kind: `model`, `adapter`, `tokenizer` (and nothing else), or `none`.
        architecture: The class that `config.json` names; for an adapter its PEFT kind (`LORA`); None if unknown.
        task: The pipeline task, as the Hub calls it; None if unknown.
        parameters: Elements in the weights. A tied output layer that is not stored is not counted twice.
        dtypes: Elements by dtype, as safetensors calls it.
        bytes: The weights' tensor bytes.
        tied: Whether the output layer is the input embedding.
        chat_template: Whether the tokenizer has one.
        base_model: What an adapter says it was trained on; None for the rest.
        quantization: The quantization method of the weights, None if there is none.
    """

    kind: Literal["model", "adapter", "tokenizer", "none"]
    architecture: str | None = None
    task: str | None = None
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    tied: bool = False
    chat_template: bool = False
    base_model: str | None = None
    quantization: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def inspect(files: Files) -> Inspection:
    """Describe a set of files. It need not be complete, but what is there must be sound.

    Raises:
        ModelError: A header or a JSON file is broken.
    """
    names = set(files.names())
    template = _has_template(files, names)
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if "adapter_config.json" in names:
        config = read_json(files, "adapter_config.json")
        stored = [name for name in weights if name.startswith("adapter_model")]
        return Inspection(
            kind="adapter" if stored else "none",
            architecture=_text(config.get("peft_type")),
            task=_ADAPTER_TASKS.get(str(config.get("task_type"))),
            chat_template=template,
            base_model=_text(config.get("base_model_name_or_path")),
            **_sizes(files, stored),
        )
    config = read_json(files, "config.json") if "config.json" in names else {}
    architecture = _architecture(config)
    quantization = config.get("quantization_config")
    complete = bool(weights) and "config.json" in names
    return Inspection(
        kind="model" if complete else "tokenizer" if names & _TOKENIZER and not weights else "none",
        architecture=architecture,
        task=task_of(architecture),
        tied=_tied(config, files, weights) if complete else False,
        chat_template=template,
        quantization=_text(quantization.get("quant_method")) if isinstance(quantization, dict) else None,
        **_sizes(files, weights),
    )


def task_of(architecture: str | None) -> str | None:
    """The Hub's name for what a model class does, by the class's name; None if it does not say.

    >>> task_of("LlamaForCausalLM"), task_of("BertModel"), task_of("Thing")
    ('text-generation', 'feature-extraction', None)
    """
    return next((task for ending, task in _TASKS if architecture and architecture.endswith(ending)), None)


def _sizes(files: Files, weights: list[str]) -> dict[str, Any]:
    dtypes: Counter[str] = Counter()
    size = 0
    for name in weights:
        header = read_header_of(files, name)
        for info in header.tensors.values():
            dtypes[info.dtype] += info.elements
            size += info.end - info.start
    return {"parameters": dtypes.total(), "dtypes": dict(sorted(dtypes.items())), "bytes": size}


def _architecture(config: Mapping[str, Any]) -> str | None:
    listed = config.get("architectures")
    return _text(listed[0]) if isinstance(listed, list) and listed else None


def _tied(config: Mapping[str, Any], files: Files, weights: list[str]) -> bool:
    said = config.get("tie_word_embeddings")
    if said is not None:
        return bool(said)
    headers: list[Header] = [read_header_of(files, name) for name in weights]
    has_head = any(
        name.endswith(("lm_head.weight", "embed_out.weight")) for header in headers for name in header.tensors
    )
    return task_of(_architecture(config)) == "text-generation" and not has_head


def _has_template(files: Files, names: set[str]) -> bool:
    if names & {"chat_template.jinja", "chat_template.json"}:
        return True
    return "tokenizer_config.json" in names and bool(read_json(files, "tokenizer_config.json").get("chat_template"))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
