"""What a model is, from headers and small files: no tensor is read, no library is asked, nothing is loaded.

A folder, a yard's version, a `.gguf` file, or `RemoteFiles`, of which only the headers are fetched.

>>> import tempfile
>>> from pathlib import Path
>>> from modelyard.weights.files import FolderFiles
>>> inspect(FolderFiles(Path(tempfile.mkdtemp()))).kind
'none'
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelyard.weights.checks import read_json
from modelyard.weights.filenames import TOKENIZER_FILES
from modelyard.weights.files import Files, FolderFiles
from modelyard.weights.hub.ranges import read_header_of
from modelyard.weights.inspection.classes import task_of
from modelyard.weights.inspection.counting import Stored, count_tensors
from modelyard.weights.inspection.facts import (
    AdapterFacts,
    TokenizerFacts,
    find_licence,
    read_adapter,
    read_tokenizer,
    template_text,
)
from modelyard.weights.inspection.gguf_facts import GgufFacts, read_gguf_facts
from modelyard.weights.inspection.tree import Module, make_tree
from modelyard.weights.tasks import ADAPTER_TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AdapterFacts", "Inspection", "Module", "TokenizerFacts", "inspect", "task_of"]

_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "shared.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


@dataclass(frozen=True)
class Inspection:
    """What a model is, by what its files say.

    Attributes:
        kind: `model`, `adapter`, `tokenizer` (and nothing else), or `none`.
        architecture: The class that `config.json` names; for an adapter its PEFT kind (`LORA`); for GGUF its
            architecture; None if unknown.
        task: The pipeline task, as the Hub calls it; None if unknown.
        parameters: Numbers that the weights stand for, packed ones unpacked. A tied output layer that is not stored is
            not counted twice.
        dtypes: Stored elements by dtype, as safetensors or GGUF calls it.
        bytes: The weights' tensor bytes: what they take where they stay as they are.
        tied: Whether the output layer is the input embedding.
        chat_template: Whether the tokenizer has one.
        base_model: What an adapter says it was trained on; None for the rest.
        quantization: The quantization method of the weights, None if there is none.
        trainable: Parameters that can be trained as they are stored: plain floating-point ones.
        model_type: What `config.json` calls its kind.
        modules: Parameters and bytes by module, layers that are alike told once; None without weights.
        tied_weights: Names that share their values: (the one that is not stored, the one that is).
        unknown: Tensors packed in a way that is not known here; they count as they are stored.
        tokenizer: Of the folder; None where there is none.
        licence: As its README says, else as its licence file reads; None where nothing does.
        adapter: An adapter's configuration.
        gguf: What a GGUF header says of the model.
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
    trainable: int = 0
    model_type: str | None = None
    modules: Module | None = None
    tied_weights: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    tokenizer: TokenizerFacts | None = None
    licence: str | None = None
    adapter: AdapterFacts | None = None
    gguf: GgufFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def inspect(source: Files | Path | str) -> Inspection:
    """Describe a model. It need not be complete, but what is there must be sound.

    Args:
        source: Any `Files` (a folder, a yard's version, `RemoteFiles`), or the path of a folder or of a `.gguf` file.

    Raises:
        ModelError: A header or a JSON file is broken; `not_a_folder`.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix == ".gguf" and path.is_file():
            return _inspect_gguf(FolderFiles(path.parent), path.name)
        source = FolderFiles(path)
    names = set(source.names())
    if "adapter_config.json" in names:
        return _inspect_adapter(source, names)
    ggufs = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
    if ggufs and "config.json" not in names:
        return _inspect_gguf(source, ggufs[0])
    return _inspect_model(source, names)


def _inspect_adapter(files: Files, names: set[str]) -> Inspection:
    config = read_json(files, "adapter_config.json")
    facts = read_adapter(config)
    tensors = _tensors(files, [name for name in _weights(names) if name.startswith("adapter_model")])
    return Inspection(
        kind="adapter" if tensors is not None else "none",
        architecture=facts.method,
        task=ADAPTER_TASKS.get(str(config.get("task_type"))),
        chat_template=template_text(files, names) is not None,
        base_model=facts.base,
        adapter=facts,
        tokenizer=read_tokenizer(files, names),
        licence=find_licence(files, names),
        **_sizes(tensors or {}, {}),
    )


def _inspect_model(files: Files, names: set[str]) -> Inspection:
    config = read_json(files, "config.json") if "config.json" in names else {}
    tensors = _tensors(files, _weights(names))
    architecture = _architecture(config)
    complete = tensors is not None and "config.json" in names
    tied = complete and _is_tied(config, tensors or {})
    return Inspection(
        kind="model" if complete else "tokenizer" if names & TOKENIZER_FILES and tensors is None else "none",
        architecture=architecture,
        model_type=_text(config.get("model_type")),
        task=task_of(architecture),
        tied=tied,
        tied_weights=_tied(tensors or {}) if tied else (),
        chat_template=template_text(files, names) is not None,
        quantization=_quantization(config),
        tokenizer=read_tokenizer(files, names),
        licence=find_licence(files, names),
        **_sizes(tensors or {}, config),
    )


def _inspect_gguf(files: Files, name: str) -> Inspection:
    facts, tensors = read_gguf_facts(files, name)
    sizes = _sizes(tensors, {})
    return Inspection(
        kind="model",
        architecture=facts.architecture,
        task="text-generation" if facts.tokens else None,
        chat_template=facts.template is not None,
        quantization=facts.quantization,
        tied=not any(head in tensors for head in _HEADS) and "token_embd.weight" in tensors,
        licence=facts.licence,
        gguf=facts,
        **sizes,
    )


def _weights(names: set[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)


def _tensors(files: Files, weights: list[str]) -> dict[str, Stored] | None:
    """Every tensor of the named files; None where there are none."""
    if not weights:
        return None
    return {
        tensor: Stored(info.dtype, info.elements, info.end - info.start)
        for name in weights
        for tensor, info in read_header_of(files, name).tensors.items()
    }


def _sizes(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, Any]:
    counted = count_tensors(tensors, config)
    dtypes: Counter[str] = Counter()
    for stored in tensors.values():
        dtypes[stored.dtype] += stored.elements
    return {
        "parameters": sum(item.parameters for item in counted),
        "trainable": sum(item.trainable for item in counted),
        "dtypes": dict(sorted(dtypes.items())),
        "bytes": sum(stored.bytes for stored in tensors.values()),
        "modules": make_tree(counted) if counted else None,
        "unknown": tuple(item.name for item in counted if item.unknown),
    }


def _architecture(config: Mapping[str, Any]) -> str | None:
    listed = config.get("architectures")
    return _text(listed[0]) if isinstance(listed, list) and listed else None


def _quantization(config: Mapping[str, Any]) -> str | None:
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return None
    old = "bitsandbytes" if "load_in_4bit" in said or "load_in_8bit" in said else None
    return _text(said.get("quant_method")) or old


def _is_tied(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> bool:
    said = config.get("tie_word_embeddings")
    if said is not None:
        return bool(said)
    return task_of(_architecture(config)) == "text-generation" and not any(name.endswith(_HEADS) for name in tensors)


def _tied(tensors: Mapping[str, Stored]) -> tuple[tuple[str, str], ...]:
    """(what is not stored, what it is taken from), for a model whose output layer is its embedding."""
    embedding = next((name for name in tensors if name.endswith(_EMBEDDINGS)), None)
    head = next((name for name in tensors if name.endswith(_HEADS)), "lm_head.weight")
    return ((head, embedding),) if embedding is not None else ()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
