"""What an estimate needs of a checkpoint: its configuration and, where there are weights, the headers of its tensors.

Knows files and names; loads no library and no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.checks import read_json
from modelyard.weights.files import Files, FolderFiles, SingleFile, show_name
from modelyard.weights.gguf import parse_gguf
from modelyard.weights.hub.ranges import open_stream, read_header_of

if TYPE_CHECKING:
    from modelyard.weights.headers import TensorInfo

__all__ = ["Described", "describe"]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Described:
    """A checkpoint by its configuration and headers.

    Attributes:
        config: The content of config.json.
        label: What messages call it.
        tensors: Name to dtype, shape and place; empty for a folder without weights.
        dtype: What it is stored in: as its configuration says, else as most of its bytes are.
        quantization: The method that its configuration names, None for plain weights.
    """

    config: dict[str, Any]
    label: str
    dtype: str
    quantization: str | None
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The class that its configuration names."""
        listed = self.config.get("architectures")
        return str(listed[0]) if isinstance(listed, list) and listed else ""

    @property
    def stored(self) -> int:
        """Bytes of its tensors."""
        return sum(info.end - info.start for info in self.tensors.values())


def describe(source: Files | Path | str) -> Described:
    """Read configuration and headers; of a folder with a GGUF file and no config.json, and of such a file, its header.

    Raises:
        ModelError: `no_config`: no config.json, so nothing says what it is; `not_a_folder`; or a broken file.
    """
    files = _files(Path(source).expanduser()) if isinstance(source, str | Path) else source
    names = set(files.names())
    models = [name for name in sorted(names) if name.endswith(".gguf")]
    if "config.json" not in names and models:
        return _describe_gguf(files, models)
    if "config.json" not in names:
        adapter = "adapter_config.json" in names
        raise ModelError(
            f"`{files.label}` {'is an adapter, and what it takes is its base' if adapter else 'has no config.json'}",
            code="no_config",
            hint="give the folder of its base" if adapter else "give the folder that holds config.json",
        )
    config = read_json(files, "config.json")
    weights = [name for name in sorted(names) if name.endswith(".safetensors") and "/" not in name]
    tensors = {name: info for shard in weights for name, info in read_header_of(files, shard).tensors.items()}
    said = config.get("quantization_config")
    quantization = said.get("quant_method") if isinstance(said, dict) else None
    if isinstance(said, dict) and quantization is None:
        quantization = "bitsandbytes" if "load_in_4bit" in said or "load_in_8bit" in said else "unknown"
    return Described(
        config, files.label, _dtype(config, tensors), quantization and show_name(str(quantization)), tensors
    )


def _files(path: Path) -> Files:
    return SingleFile(path) if path.is_file() and path.suffix == ".gguf" else FolderFiles(path)


def _describe_gguf(files: Files, names: list[str]) -> Described:
    """A GGUF file as loading makes a model of it: dense, in the file's own float type, or in float32 of blocks."""
    from modelyard.weights.convert.gguf.reading import read_config
    from modelyard.weights.loading.gguf_model import stored_dtype

    if len(names) > 1:
        raise ModelError(
            f"`{files.label}` holds {len(names)} GGUF files",
            code="no_config",
            hint=f"name one: {files.label}/{show_name(names[0])}",
        )
    [name] = names
    label = files.label if files.label.endswith(name) else f"{files.label}/{show_name(name)}"
    with open_stream(files, name, buffered=True) as stream:
        header = parse_gguf(stream, files.size(name), label, full=True)
        config, _ = read_config(label, header, stream)
    return Described(config, label, stored_dtype(header), None)


def _dtype(config: dict[str, Any], tensors: dict[str, TensorInfo]) -> str:
    """As loading decides: what the configuration says, for the whole or for its text part, else what is stored most."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        said = str(place.get("dtype") or place.get("torch_dtype") or "").removeprefix("torch.")
        if said in _DTYPES.values():
            return said
    sizes: dict[str, int] = {}
    for info in tensors.values():
        if info.dtype in _DTYPES:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.end - info.start
    return _DTYPES[max(sizes, key=lambda name: sizes[name])] if sizes else "float32"
