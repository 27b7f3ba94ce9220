"""Which files a new model takes along beside its weights: for a merge the base's, with the adapter's tokenizer in front.

Another format of the base's weights, its model card and what its training left are not carried: they would be wrong.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from modelyard.errors import ModelError
from modelyard.weights.checks import read_json
from modelyard.weights.filenames import TEMPLATE_FILES, TOKENIZER_FILES, TOKENIZER_PARTS

if TYPE_CHECKING:
    from modelyard.weights.files import Files

__all__ = ["carried_files", "is_carried", "list_parts"]

_LEFT = frozenset({
    "adapter_config.json", "all_results.json", "certificate.json", "eval_results.json", "train_results.json",
    "trainer_state.json",
})  # fmt: skip
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_LEGAL = ("license", "licence", "notice", "copying", "use_policy")


def carried_files(base: Files, adapter: Files) -> dict[str, Files]:
    """File name to where it is taken from, sorted by name; weights and their index are not among them."""
    parts = list_parts(base)
    taken = {name: base for name in base.names() if is_carried(name) or name in parts}
    own = set(adapter.names()) & (TOKENIZER_PARTS | TEMPLATE_FILES)
    if own & TOKENIZER_FILES:
        # A tokenizer is one thing in several files: the adapter's replaces the base's whole, or vocabularies would mix.
        # Only a chat template is worth keeping from the base, when the adapter brings none of its own.
        templated = bool(own & TEMPLATE_FILES) or _has_template(adapter, own)
        replaced = TOKENIZER_PARTS | TEMPLATE_FILES if templated else TOKENIZER_PARTS
        taken = {name: source for name, source in taken.items() if name not in replaced}
    taken.update(dict.fromkeys(own, adapter))
    return dict(sorted(taken.items()))


def _has_template(adapter: Files, own: set[str]) -> bool:
    return "tokenizer_config.json" in own and bool(read_json(adapter, "tokenizer_config.json").get("chat_template"))


def is_carried(name: str) -> bool:
    """Whether a file belongs to a model whatever its weights are: configuration, tokenizer, templates, licence."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parts[0] == "additional_chat_templates" and path.suffix == ".jinja"
    if name in _LEFT or name.endswith(".index.json"):
        return False
    return path.suffix in _SUFFIXES or path.name.lower().startswith(_LEGAL)


def list_parts(files: Files) -> frozenset[str]:
    """The files of the layers that a sentence-transformers model puts on its encoder (pooling, dense layers), as `modules.json` names them.

    Raises:
        ModelError: `bad_json`.
    """
    if "modules.json" not in files.names():
        return frozenset()
    try:
        modules = json.loads(files.read("modules.json").decode("utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(f"`{files.label}/modules.json` is not JSON", code="bad_json") from None
    paths = [each.get("path") for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    folders = {f"{path}/" for path in paths if isinstance(path, str) and path}
    return frozenset(name for name in files.names() if any(name.startswith(folder) for folder in folders))
