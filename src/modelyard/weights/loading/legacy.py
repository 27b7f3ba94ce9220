"""Names of yesterday: what `from_pretrained` took before transformers 5, and the name of today.

Each is taken with a `DeprecatedNameWarning` that shows the modern name, or refused with it. A keyword that neither this
table nor `load` knows is an error with the near match. Knows names only.

>>> import warnings
>>> with warnings.catch_warnings(record=True) as said:
...     warnings.simplefilter("always")
...     accept({"torch_dtype": "bfloat16", "load_in_8bit": True}, known={"dtype", "quantization"})
{'dtype': 'bfloat16', 'quantization': 'bnb-8bit'}
>>> print(said[0].message)
`torch_dtype` is now `dtype`: pass dtype='bfloat16'
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError, near_match

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["ENVIRONMENT", "DeprecatedNameWarning", "accept", "accept_environment", "modern_class", "modern_names"]


class DeprecatedNameWarning(FutureWarning):
    """A name that transformers dropped was used; the message has the modern one."""


_RENAMED = {
    "torch_dtype": "dtype",
    "attn_implementation": "attention",
    "quantization_config": "quantization",
    "use_auth_token": "token",
    "local_files_only": "offline",
    "num_classes": "num_labels",
    "device_id": "device",
    "adapter_name_or_path": "adapters",
    "pretrained_model_name_or_path": "source",
    "model_name_or_path": "source",
}
# A switch that is now a value of another option.
_SWITCHES: dict[str, tuple[str, Any]] = {
    "load_in_8bit": ("quantization", "bnb-8bit"),
    "load_in_4bit": ("quantization", "bnb-4bit"),
    "use_flash_attention_2": ("attention", "flash_attention_2"),
    "ignore_mismatched_sizes": ("allow", ("mismatched",)),
}
# Always so today: the value that says so is taken, any other is refused.
_ALWAYS: dict[str, tuple[Any, str]] = {
    "low_cpu_mem_usage": (True, "weights are always mapped and placed one by one"),
    "safe_serialization": (True, "safetensors is all that is read and written"),
    "use_safetensors": (True, "safetensors is all that is read and written"),
    "trust_remote_code": (False, "code from a model is never run"),
    "from_tf": (False, "only safetensors are read"),
    "from_flax": (False, "only safetensors are read"),
    "output_loading_info": (True, "it is in `Model.load_report`"),
    "_fast_init": (True, "only tensors that no file holds are drawn"),
    "offload_state_dict": (True, "weights are always mapped and placed one by one"),
    "use_fast": (True, "the fast tokenizer is taken where there is one"),
}
_CLASSES = {
    "AutoModelForVision2Seq": "AutoModelForImageTextToText",
    "Vision2Seq": "AutoModelForImageTextToText",
    "AutoModelWithLMHead": "AutoModelForCausalLM",
}

ENVIRONMENT = {
    "TRANSFORMERS_CACHE": "HF_HUB_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE": "HF_HUB_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE": "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE": "HF_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN",
    "TRANSFORMERS_OFFLINE": "HF_HUB_OFFLINE",
}
"""Variables that were renamed: the old name and the one of today."""


def accept(given: Mapping[str, Any], *, known: Collection[str]) -> dict[str, Any]:
    """Keywords that `load` does not have, as the ones it has.

    Args:
        given: What the caller passed beyond the signature.
        known: The names of the signature, `source` included.

    Raises:
        RequestError: A name that nobody knows (the hint has the near match), a value that is no longer possible, or two
            names for one option.
    """
    made: dict[str, Any] = {}
    for name, value in given.items():
        option, new = _modern(name, value, known)
        if option is None:
            continue
        if option in made:
            raise RequestError(f"`{option}` is given twice", hint=f"leave `{name}` out", field=option)
        made[option] = new
    return made


def modern_names(options: Mapping[str, Any], *, of: Collection[str]) -> dict[str, Any]:
    """A call's keywords with the old names of the options `of` replaced and all others as they are.

    For who reads some options before `load` does: the old names of the others are for `load` to take.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     modern_names({"torch_dtype": "float16", "use_auth_token": "hf_x"}, of={"token"})
    {'torch_dtype': 'float16', 'token': 'hf_x'}

    Raises:
        RequestError: An option is given under both names, or as `accept`.
    """
    old = {name: value for name, value in options.items() if name not in of and _RENAMED.get(name) in of}
    today = {name: value for name, value in options.items() if name not in old}
    for name, value in accept(old, known=of).items():
        if today.get(name) not in (None, value):
            raise RequestError(f"`{name}` is given twice", hint="leave the old name out", field=name)
        today[name] = value
    return today


def modern_class(name: str) -> str:
    """The class of transformers that is meant today by a name that was dropped; any other name as it is."""
    modern = _CLASSES.get(name)
    if modern is None:
        return name
    _warn(f"`{name}` is now `{modern}`: pass model_class={modern!r}")
    return modern


def accept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of today that old ones stand for, where the modern one is not set.

    >>> accept_environment({"HF_HUB_CACHE": "/a"})
    {}
    """
    made: dict[str, str] = {}
    for old, modern in ENVIRONMENT.items():
        if environment.get(old) and not environment.get(modern) and modern not in made:
            shown = "..." if modern == "HF_TOKEN" else environment[old]
            _warn(f"the variable {old} is now {modern}: export {modern}={shown}")
            made[modern] = environment[old]
    return made


def _modern(name: str, value: Any, known: Collection[str]) -> tuple[str | None, Any]:
    """The option and the value that a dropped name means; None where it asks for what is always so."""
    if name in _RENAMED:
        option = _RENAMED[name]
        if value is None:  # what the old name meant by it: not given
            _warn(f"`{name}` is now `{option}`: leave it out")
            return None, None
        value = _dtype_name(value) if option == "dtype" else value
        shown = "..." if option == "token" else repr(value)
        _warn(f"`{name}` is now `{option}`: pass {'it first' if option == 'source' else f'{option}={shown}'}")
        return option, value
    if name in _SWITCHES:
        option, new = _SWITCHES[name]
        _warn(f"`{name}` is now `{option}`: pass {option}={new!r}")
        return (option, new) if value else (None, None)
    if name in _ALWAYS:
        only, why = _ALWAYS[name]
        if value is not None and bool(value) != only:
            raise RequestError(f"`{name}={value!r}` is not possible: {why}", hint=f"leave `{name}` out", field=name)
        _warn(f"`{name}` is not needed any more: {why}")
        return None, None
    meant = near_match(name, [*known, *_RENAMED, *_SWITCHES])
    hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(sorted(known))}"
    raise RequestError(f"`load` has no option `{name}`", hint=hint, field=name)


def _dtype_name(value: Any) -> Any:
    """`torch.bfloat16` as its name."""
    return value if value is None or isinstance(value, str) else str(value).removeprefix("torch.")


def _warn(text: str) -> None:
    warnings.warn(text, DeprecatedNameWarning, stacklevel=5)
