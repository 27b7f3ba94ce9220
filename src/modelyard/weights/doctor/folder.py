"""Each file by itself: what it really is, whether its header is sound, and whether its JSON can be read.

What a file holds decides, never what it is called: a pickle under any name is a pickle. Knows formats, no architectures.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from modelyard.errors import ModelError, YardError
from modelyard.weights.checks import check_config
from modelyard.weights.content import identify, refuse_content
from modelyard.weights.doctor.findings import from_error, make, some
from modelyard.weights.files import show_name
from modelyard.weights.gguf import read_gguf
from modelyard.weights.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelyard.weights.content import Content
    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding

__all__ = ["FOREIGN", "examine_files", "is_pickled_weights"]

FOREIGN: dict[Content, str] = {
    "hdf5": "TensorFlow (HDF5)",
    "msgpack": "Flax (msgpack)",
    "onnx": "ONNX",
    "tflite": "TensorFlow Lite",
}
"""Weights of other libraries, by content."""

_PICKLED_WEIGHTS = re.compile(
    r"(.*/)?(?!training_args|optimizer|scheduler|scaler|rng_state|random_states)[^/]+\.(bin|pt|pth|ckpt)"
)
_WEIGHT_LIKE = re.compile(
    r"(.*/)?(pytorch_model|adapter_model|model|tf_model|flax_model)[^/]*\.(bin|pt|pth|ckpt|h5|msgpack|gguf)"
)
_NEVER_EMPTY = re.compile(
    r"(.*/)?(tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|vocab\.txt|[^/]+\.(gguf|jinja))"
)


def is_pickled_weights(name: str) -> bool:
    """Whether a pickle of this name is weights, as far as a name can say; what training left behind is not."""
    return _PICKLED_WEIGHTS.fullmatch(name) is not None


def examine_files(case: Case) -> Iterator[Finding]:
    """Look at every file; fills `case.contents`, `case.headers` and `case.broken`."""
    for name in case.files.names():
        try:
            case.contents[name] = identify(case.files.path(name))
            yield from _by_content(case, name, case.contents[name])
        except YardError as error:
            case.broken.add(name)
            yield from_error(error)
        except OSError as error:
            case.broken.add(name)
            label = f"{case.files.label}/{show_name(name)}"
            yield make("not_a_regular_file", f"`{label}` cannot be read: {error.strerror}", f"ls -l {case.files.label}")
    yield from _pickles(case)
    yield from _foreign(case)
    yield from _configurations(case)


def _by_content(case: Case, name: str, content: Content) -> Iterator[Finding]:
    label = f"{case.files.label}/{show_name(name)}"
    if content == "pickle" or content in FOREIGN:
        case.broken.add(name)  # said for all of them together
        return
    if content == "html" and _WEIGHT_LIKE.fullmatch(name):
        refuse_content(content, label)
    if content != "html" or name.endswith((".safetensors", ".json")):
        refuse_content(content, label)
    if content == "gguf":
        read_gguf(case.files.path(name))
    elif name.endswith(".safetensors"):
        case.headers[name] = read_header(case.files.path(name))
    elif content == "safetensors":
        case.broken.add(name)
        right = f"{show_name(name.rpartition('.')[0] or name)}.safetensors"
        what = f"`{label}` is a safetensors file under another name, which no loader looks for; it should be `{right}`"
        yield make("wrong_name", what, case.mend)
    elif content == "empty" and _NEVER_EMPTY.fullmatch(name):
        case.broken.add(name)
        yield make("empty_file", f"`{label}` is empty: a download or a copy ended before it began", "fetch it again")
    elif _WEIGHT_LIKE.fullmatch(name):
        case.broken.add(name)
        what = f"`{label}` is named like weights and is neither safetensors nor GGUF"
        yield make("unknown_format", what, "save the model as safetensors: model.save_pretrained(FOLDER)")


def _pickles(case: Case) -> Iterator[Finding]:
    pickles = [name for name, content in case.contents.items() if content == "pickle"]
    weights = [name for name in pickles if is_pickled_weights(name)]
    others = [name for name in pickles if name not in weights]
    convert = f"yard convert {case.path} --to ./CONVERTED"
    if weights:
        if case.headers:
            what = f"{some(weights)}: pickles, which can run any code, beside {some(case.headers)}; nothing needs them"
        else:
            what = f"the weights are pickles, which can run any code when they are loaded: {some(weights)}"
        yield make("avoidable_pickle", what, convert, level="warning" if case.headers else None)
    for name in others:
        said = (
            "under another name" if name.endswith((".safetensors", ".json", ".txt", ".model")) else "left by training"
        )
        what = f"`{case.files.label}/{show_name(name)}` is a pickle ({said}), which can run any code when it is loaded"
        safe = not name.endswith(".safetensors")
        yield make("pickle", what, convert if safe else "take the file from its source again, as safetensors")


def _foreign(case: Case) -> Iterator[Finding]:
    for content, library in FOREIGN.items():
        named = [name for name, found in case.contents.items() if found == content]
        if not named:
            continue
        if case.headers or any(found in {"gguf", "pickle"} for found in case.contents.values()):
            size = sum(case.files.size(name) for name in named)
            what = f"{some(named)} hold weights of {library} too: {size:,} bytes that nothing here reads"
            yield make("foreign_weights", what, case.mend, level="warning")
        else:
            what = f"{some(named)} hold weights of {library}, and there are no safetensors: nothing here reads them"
            hint = (
                "save them as safetensors with the library that wrote them (transformers 4 with from_tf or from_flax)"
            )
            yield make("foreign_weights", what, hint)


def _configurations(case: Case) -> Iterator[Finding]:
    for name in sorted(case.names):
        if name.endswith(".json") and name not in case.broken:
            try:
                _read_any(case, name)
            except YardError as error:
                case.broken.add(name)
                yield from_error(error)
    try:
        check_config(_Readable(case))
    except YardError as error:
        yield from_error(error)


def _read_any(case: Case, name: str) -> None:
    """Read a JSON file; one whose content is a list is sound too, where nothing asks for an object."""
    import json

    label = f"{case.files.label}/{show_name(name)}"
    try:
        parsed = json.loads(case.files.read(name).decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"`{label}` is not UTF-8 text", code="bad_json", hint="fetch it again") from None
    except RecursionError:
        raise ModelError(f"`{label}` is nested too deeply", code="bad_json", hint="fetch it again") from None
    except ValueError as error:
        said = f"`{label}` is not JSON ({str(error)[:80]})"
        raise ModelError(said, code="bad_json", hint="fetch it again") from None
    if not isinstance(parsed, dict) and name.rpartition("/")[2] in _OBJECTS:
        raise ModelError(f"`{label}` is not a JSON object", code="bad_json", hint="fetch it again")


_OBJECTS = frozenset({
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "adapter_config.json",
    "preprocessor_config.json", "processor_config.json", "model.safetensors.index.json",
})  # fmt: skip


class _Readable:
    """A case's files without the broken ones."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.label = case.files.label
        self.size, self.read, self.path = case.files.size, case.files.read, case.files.path

    def names(self) -> list[str]:
        """See `Files.names`."""
        return [name for name in self._case.files.names() if name not in self._case.broken]
