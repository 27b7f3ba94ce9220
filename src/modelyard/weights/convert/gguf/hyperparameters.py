"""A configuration as GGUF's metadata, and metadata as a configuration.

`describe` gives the keys behind the architecture's name; `rebuild` makes a config.json of any file's keys, and `settle` prefers the
configuration that our own files carry where it says the same. Knows configurations and keys; opens no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelError
from modelyard.weights.convert.gguf.rotation import describe_rotation, head_size, rebuild_rotation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from modelyard.weights.convert.gguf.families import Family

__all__ = ["Keys", "check_depth", "describe", "load_settings", "rebuild", "settle"]

Keys = dict[str, tuple[str, Any]]
"""Key without the architecture to its type (`u32`, `f32`, `bool`, `str`, `strs`) and value."""

Factors = dict[str, "NDArray[np.float32]"]

# Layers of the one size of each Gemma that scales queries by its width a head, as llama.cpp tells it.
_WIDE_LAYERS = {"gemma2": 46, "gemma3": 62}
_NONE, _RANK = 0, 4


def load_settings(plain: Mapping[str, Any], label: str) -> Any:
    """The configuration class of transformers with these values and its own defaults for the rest.

    Raises:
        ModelError: transformers does not know the model type, or does not take the values.
    """
    from transformers import AutoConfig

    from modelyard.weights.loading.translate import translated

    options = {key: value for key, value in plain.items() if key not in {"model_type", "quantization_config"}}
    with translated(label, "read"):
        return AutoConfig.for_model(str(plain["model_type"]), **options)


def check_depth(plain: Mapping[str, Any], tensors: int, label: str) -> None:
    """Refuse a configuration of more layers than there are tensors, before anything is made for each of them.

    Raises:
        ModelError: `bad_metadata`.
    """
    for name in ("num_hidden_layers", "n_layer"):
        layers = plain.get(name, 1)
        if type(layers) is not int or not 1 <= layers <= tensors:
            raise ModelError(
                f"`{label}` says {name} {str(layers)[:20]}, and has {tensors} tensors", code="bad_metadata"
            )


def describe(config: Any, family: Family, pooling: int | None = None) -> tuple[Keys, Factors, list[str]]:
    """The keys that say what `config` says, the tensors that belong to them, and what llama.cpp does otherwise.

    Args:
        config: A configuration of transformers.
        family: Its architecture.
        pooling: How an encoder's tokens become one vector (llama.cpp's numbers); None leaves it open.

    Raises:
        ModelError: `unsupported_option`, naming the key: llama.cpp computes with another value.
    """
    _refuse_others(config, family)
    keys: Keys = {}
    for each in family.fields:
        value = _value(config, each.name)
        if value is not None:
            keys[each.key] = (each.kind, float(value) if each.kind == "f32" else int(value))
        elif each.needed:
            raise ModelError(f"the configuration has no `{each.name}`", code="unsupported_option")
    rotation, factors = describe_rotation(config, family)
    keys |= rotation
    windows, warnings = _describe_window(config, family, keys)
    keys |= windows
    if "rope_factors_long.weight" in factors:
        original = keys["rope.scaling.original_context_length"][1]
        warnings.append(
            f"llama.cpp rotates by the long factors when its context is above {original} tokens, this model when the text is"
        )
    if family.arch == "bert":
        ranks = (config.architectures or [""])[0] == "BertForSequenceClassification"
        keys["attention.causal"] = ("bool", False)
        keys["pooling_type"] = ("u32", _RANK if ranks else pooling or _NONE)
        if ranks:
            keys["classifier.output_labels"] = (
                "strs",
                [str(config.id2label[index]) for index in range(config.num_labels)],
            )
    return keys, factors, warnings


def _value(config: Any, name: str) -> Any:
    value = getattr(config, name, None)
    if value is None and name == "n_inner":
        return 4 * config.n_embd
    if value is None and name == "num_key_value_heads":
        return config.num_attention_heads
    if value is None and name == "head_dim":
        return head_size(config)
    return value


def _refuse_others(config: Any, family: Family) -> None:
    for name, values in family.fixed.items():
        found = getattr(config, name, values[0])
        if found not in values:
            raise ModelError(
                f"`{name}` is {found!r}, and llama.cpp computes `{family.arch}` with {values[0]!r}",
                code="unsupported_option",
                hint="its GGUF form would be another model",
                option=name,
            )
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None:
        wide = config.num_hidden_layers == _WIDE_LAYERS.get(family.arch)
        expected = config.hidden_size // config.num_attention_heads if wide else head_size(config)
        if scalar != expected:
            raise ModelError(
                f"`query_pre_attn_scalar` is {scalar}, and llama.cpp computes `{family.arch}` with {expected}",
                code="unsupported_option",
                hint="its GGUF form would be another model",
                option="query_pre_attn_scalar",
            )
    if family.tied == "always" and not config.tie_word_embeddings:
        raise ModelError(
            f"its head is not its embedding, and llama.cpp has no place for another in `{family.arch}`",
            code="unsupported_option",
            option="tie_word_embeddings",
        )


def _describe_window(config: Any, family: Family, keys: Keys) -> tuple[Keys, list[str]]:
    """The pattern of sliding layers where it is not the architecture's own, and a word where llama.cpp has no window."""
    window = keys.get("attention.sliding_window")
    if window is None:
        return {}, []
    if family.window is None:
        if window[1] >= int(keys["context_length"][1]):
            return {}, []
        return {}, [
            f"llama.cpp computes `{family.arch}` without its sliding window of {window[1]} tokens: texts longer than that differ"
        ]
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    for period in (family.window, *range(len(sliding) + 1)):
        if sliding == _sliding_layers(period, len(sliding)):
            return ({} if period == family.window else {"attention.sliding_window_pattern": ("u32", period)}), []
    raise ModelError(
        "its sliding layers follow no period, and GGUF files state one number",
        code="unsupported_option",
        option="layer_types",
    )


def _sliding_layers(period: int, layers: int) -> list[bool]:
    """Every layer slides but the last of each `period`; 0 is all."""
    return [period == 0 or layer % period < period - 1 for layer in range(layers)]


def settle(
    said: Mapping[str, Any],
    factors: Factors,
    family: Family,
    carried: dict[str, Any] | None,
    *,
    vocabulary: int,
    names: Collection[str],
    label: str,
) -> dict[str, Any]:
    """The config.json of a file: the carried one where it describes itself by the file's keys, else rebuilt from these.

    A tool that changed the keys is believed: the carried configuration then only fills in what no key says.

    Args:
        said: The keys without the architecture.
        factors: The tensors that follow from the configuration.
        family: The architecture.
        carried: The configuration that the file carries.
        vocabulary: Rows of the embedding.
        names: The file's tensors.
        label: The file, for messages.
    """
    tied = "output.weight" not in names
    made = rebuild(said, factors, family, vocabulary=vocabulary, names=names)
    if carried is None or carried.get("model_type") not in family.classes or not _as_deep(carried, made):
        return made
    classes = carried.get("architectures")
    if not isinstance(classes, list) or not set(classes) <= set(family.classes[carried["model_type"]]):
        return made
    settings = load_settings(carried, label)
    keys, own, _ = describe(settings, family, pooling=said.get("pooling_type"))
    same = all(_same(value, said.get(key), kind) for key, (kind, value) in keys.items())
    same = same and own.keys() == factors.keys() and all(np.array_equal(own[name], factors[name]) for name in own)
    if same and (settings.tie_word_embeddings == tied or family.tied == "headless"):
        return carried
    return {**carried, **made, "model_type": carried["model_type"], "architectures": classes}


def _as_deep(carried: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether two configurations have as many layers, and no more labels than a head has rows here: both make lists of that length."""
    layers = all(carried.get(name) == made.get(name) for name in ("num_hidden_layers", "n_layer"))
    return layers and int(carried.get("num_labels") or 0) <= 1 << 20


def _same(value: Any, said: Any, kind: str) -> bool:
    if kind == "f32":
        return said is not None and np.float32(value) == np.float32(said)
    return bool(value == said)


def rebuild(
    said: Mapping[str, Any], factors: Factors, family: Family, *, vocabulary: int, names: Collection[str]
) -> dict[str, Any]:
    """A config.json from a file's keys (without the architecture), for any file of this architecture.

    Raises:
        ModelError: `bad_metadata`: a key that every such file has is not there.
    """
    model_type = next(iter(family.classes))
    config: dict[str, Any] = {"model_type": model_type, "architectures": [family.classes[model_type][0]]}
    for each in family.fields:
        value = said.get(each.key)
        if value is not None and (each.needed or value != 0):  # some writers say 0 where there is none
            config[each.name] = _shortest(value) if each.kind == "f32" else _whole(value, each.key)
        elif each.needed:
            raise ModelError(f"the file has no `{family.arch}.{each.key}`", code="bad_metadata")
    config["vocab_size"] = vocabulary
    if family.tied != "headless":
        config["tie_word_embeddings"] = "output.weight" not in names
    if family.arch == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in names
        config["mlp_bias"] = "blk.0.ffn_up.bias" in names
    if family.rotary:
        head = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        plain = {key: _shortest(value) if isinstance(value, float) else value for key, value in said.items()}
        config["rope_parameters"] = rebuild_rotation(plain, factors, family, head, config["max_position_embeddings"])
        original = config["rope_parameters"].get("original_max_position_embeddings")
        if family.arch == "phi3" and original is not None:
            config["original_max_position_embeddings"] = original
    if family.window is not None:
        period = int(said.get("attention.sliding_window_pattern", family.window))
        sliding = _sliding_layers(period, config["num_hidden_layers"])
        config["layer_types"] = ["sliding_attention" if each else "full_attention" for each in sliding]
        config["query_pre_attn_scalar"] = _scalar(config, family)
    if model_type == "bert" and said.get("pooling_type") == _RANK:
        config["architectures"] = ["BertForSequenceClassification"]
        labels = said.get("classifier.output_labels") or ["LABEL_0"]
        config["id2label"] = {str(index): name for index, name in enumerate(labels)}
        config["label2id"] = {name: index for index, name in enumerate(labels)}
    return config


def _scalar(config: Mapping[str, Any], family: Family) -> int:
    if config["num_hidden_layers"] == _WIDE_LAYERS.get(family.arch):
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _whole(value: Any, key: str) -> int:
    if type(value) is not int or value < 1:
        raise ModelError(
            f"`{key}` is no number above zero; a value for each layer has no form here", code="bad_metadata"
        )
    return value


def _shortest(value: Any) -> float:
    """The shortest decimal that is this binary32: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))
