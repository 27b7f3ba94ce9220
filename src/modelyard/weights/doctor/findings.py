"""What the doctor can say: a finding, and the table of every code with its level.

The codes are the contract: `docs/guides/diagnosing.md` explains each, and a test holds the page and this table together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from modelyard.errors import PickleError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelyard.errors import YardError

__all__ = ["CODES", "Finding", "Level", "from_error", "make", "some"]

Level = Literal["error", "warning", "info"]

SHOWN = 5
"""How many names a message lists."""

CODES: Mapping[str, Level] = {
    # Files that are not what their names say. (A refused safetensors or GGUF header keeps the code of `headers` or `gguf`.)
    "avoidable_pickle": "error",
    "pickle": "error",
    "lfs_pointer": "error",
    "html_page": "error",
    "archive": "error",
    "empty_file": "error",
    "wrong_name": "error",
    "unknown_format": "error",
    "foreign_weights": "error",
    "not_a_regular_file": "error",
    "unsafe_path": "error",
    "bad_json": "error",
    "file_too_large": "error",
    "remote_code": "error",
    # The set of weights.
    "not_a_model": "error",
    "misnamed_weights": "error",
    "missing_index": "error",
    "bad_index": "error",
    "missing_shard": "error",
    "index_mismatch": "error",
    "duplicate_tensor": "error",
    "stray_weights": "warning",
    "two_weight_sets": "warning",
    "total_size": "info",
    # Names, shapes and values of tensors.
    "wrapped_names": "error",
    "base_layer_names": "error",
    "unknown_architecture": "warning",
    "missing_tensors": "error",
    "layer_count": "error",
    "unexpected_tensors": "warning",
    "mismatched_shape": "error",
    "labels_mismatch": "error",
    "image_size": "error",
    "tied_mismatch": "error",
    "no_output_layer": "error",
    "nonfinite": "error",
    "dtype_mismatch": "warning",
    "random_weights": "warning",
    "bad_mark": "error",
    # Tokenizer, template and preprocessor.
    "no_tokenizer": "warning",
    "tokenizer_larger": "error",
    "special_token_missing": "warning",
    "token_id_out_of_range": "error",
    "pad_is_eos": "warning",
    "eos_mismatch": "warning",
    "max_length": "warning",
    "no_chat_template": "info",
    "template_changed": "warning",
    "template_broken": "error",
    "template_unsafe": "error",
    "eos_not_in_template": "warning",
    "no_generation_config": "warning",
    "no_preprocessor": "warning",
    # Adapters.
    "no_base": "warning",
    "base_differs": "error",
    "bad_rank": "error",
    "rank_mismatch": "error",
    "empty_adapter": "error",
    "unpaired_factor": "error",
    "target_missing": "error",
    "adapter_shape": "error",
    "adapter_dtype": "info",
    "untrained": "warning",
}
"""Every code of the doctor's own, with the level that it has unless what was found makes it lighter."""


@dataclass(frozen=True)
class Finding:
    """One thing found: `error` is unusable, `warning` is usable and probably not what is wanted, `info` is good to know."""

    level: Level
    code: str
    message: str
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def make(code: str, message: str, hint: str | None = None, *, level: Level | None = None) -> Finding:
    """A finding whose level is that of its code in `CODES`, unless another is given."""
    return Finding(level or CODES[code], code, message, hint)


def from_error(error: YardError) -> Finding:
    """What an examination raised, as a finding; always an error."""
    code = "pickle" if isinstance(error, PickleError) else error.code
    return Finding("error", code, error.message, error.hint)


def some(names: Iterable[str]) -> str:
    """The first names, escaped for a terminal, and how many more there are.

    >>> some(["a", "b"]), some("abcdefg")
    ('`a`, `b`', '`a`, `b`, `c`, `d`, `e` and 2 more')
    """
    listed: Sequence[str] = [f"`{show_name(name)}`" for name in names]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
