r"""mergekit's YAML (version 0.1.5), read into a `MergeConfig`: what is understood has its meaning there, what is not is refused by name.

Understood: the methods of `settings.METHODS`; `models` or `slices`; `base_model`; `parameters` of the merge, of a slice and of a
model, as numbers, lists over the layers and `filter`/`value` lists; `dtype`, `out_dtype`, `tokenizer_source`, `tokenizer.source`
(`base` or a model) and `chat_template`. `int8_mask` changes no result here, and is ignored with a warning. Opens no model.

>>> config = read_mergekit("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 3}}\n")
>>> config.method, config.models
('linear', ('a', 'b'))
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelyard.errors import InputError, NotFoundError, near_match
from modelyard.weights.files import show_name
from modelyard.weights.merge.settings import METHODS, Conditional, MergeConfig, MergeInput, Setting, Slice
from modelyard.weights.merge.yaml_text import MAX_BYTES, read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_mergekit"]

_KEYS = frozenset({
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template",
})  # fmt: skip
_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
_IGNORED = "int8_mask"
_FLAGS = frozenset({"normalize", "rescale"})
_MOST_LAYERS = 100_000


def read_mergekit(source: str | Path) -> MergeConfig:
    """Read a configuration from a file (a `Path`) or from its text.

    Raises:
        NotFoundError: There is no such file.
        InputError: `bad_merge_config`, naming the place in the file (`models[1].parameters.weight`) and what is wrong there.
    """
    if isinstance(source, Path):
        label = str(source)
        try:
            with source.open("rb") as stream:
                text = stream.read(MAX_BYTES + 1).decode("utf-8-sig")
        except (FileNotFoundError, IsADirectoryError):
            raise NotFoundError(f"no file `{label}`", hint="give a merge configuration in YAML") from None
        except UnicodeDecodeError:
            raise InputError(f"`{label}` is not UTF-8 text", code="bad_merge_config") from None
    else:
        label, text = "the merge configuration", source
    return _Reader(label).config(read_yaml(text, label))


class _Reader:
    """One configuration being read."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.method = ""
        self.warnings: list[str] = []

    def refuse(self, place: str, what: str, hint: str | None = None) -> NoReturn:
        where = f", `{place}`" if place else ""
        raise InputError(f"`{self.label}`{where}: {what}", code="bad_merge_config", hint=hint)

    def config(self, tree: Mapping[str, Any]) -> MergeConfig:
        self.known("", tree, _KEYS, {"modules": "models in several modules are not merged part by part"})
        self.method = self.read_method(tree.get("merge_method"))
        base = self.model("base_model", tree["base_model"]) if tree.get("base_model") is not None else None
        if (tree.get("models") is None) == (tree.get("slices") is None):
            self.refuse("", "it has not exactly one of `models` and `slices`")
        made = MergeConfig(
            self.method,
            self.whole(tree["models"]) if tree.get("models") is not None else self.slices(tree["slices"], base),
            base,
            self.parameters("parameters", tree.get("parameters")),
            self.dtype("dtype", tree.get("dtype")),
            self.dtype("out_dtype", tree.get("out_dtype")),
            self.tokenizer(tree, base),
            self.template(tree.get("chat_template")),
        )
        return self.counted(made)

    def read_method(self, found: Any) -> str:
        if not isinstance(found, str) or found not in METHODS:
            meant = near_match(str(found), METHODS)
            hint = f"did you mean `{meant}`?" if meant else f"there are {', '.join(METHODS)}"
            self.refuse("merge_method", f"`{show_name(str(found))}` is not a method here", hint)
        return found

    def known(self, place: str, tree: Any, keys: frozenset[str], why: Mapping[str, str] | None = None) -> None:
        if not isinstance(tree, dict):
            self.refuse(place, "it is not a mapping of keys to values")
        for key in tree:
            if key not in keys:
                meant = near_match(key, keys)
                said = (why or {}).get(key, "this key is not understood")
                path = f"{place}.{show_name(key)}" if place else show_name(key)
                self.refuse(path, said, f"did you mean `{meant}`?" if meant else None)

    def whole(self, found: Any) -> tuple[Slice, ...]:
        inputs = []
        for number, item in enumerate(self.items("models", found)):
            place = f"models[{number}]"
            self.known(place, item, frozenset({"model", "parameters"}))
            parameters = self.parameters(f"{place}.parameters", item.get("parameters"))
            inputs.append(MergeInput(self.model(f"{place}.model", item.get("model")), parameters))
        return (Slice(tuple(inputs)),)

    def slices(self, found: Any, base: str | None) -> tuple[Slice, ...]:
        made = []
        for number, item in enumerate(self.items("slices", found)):
            place = f"slices[{number}]"
            self.known(place, item, frozenset({"sources", "parameters", "base_model"}))
            if item.get("base_model") is not None and item["base_model"] != base:
                self.refuse(f"{place}.base_model", "a slice cannot have another base than the whole merge")
            inputs = [
                self.source(f"{place}.sources[{at}]", source)
                for at, source in enumerate(self.items(f"{place}.sources", item.get("sources")))
            ]
            lengths = {each.layers[1] - each.layers[0] for each in inputs if each.layers is not None}
            if len(lengths) != 1:
                self.refuse(place, f"its sources have different numbers of layers: {sorted(lengths)}")
            made.append(Slice(tuple(inputs), self.parameters(f"{place}.parameters", item.get("parameters"))))
        return tuple(made)

    def source(self, place: str, item: Any) -> MergeInput:
        self.known(place, item, frozenset({"model", "layer_range", "parameters"}))
        found = item.get("layer_range")
        whole = isinstance(found, list) and len(found) == 2 and all(type(each) is int for each in found)
        if not whole or not 0 <= found[0] < found[1] <= _MOST_LAYERS:
            self.refuse(f"{place}.layer_range", "it is not a first layer and the one after the last, as [0, 32]")
        parameters = self.parameters(f"{place}.parameters", item.get("parameters"))
        return MergeInput(self.model(f"{place}.model", item.get("model")), parameters, (found[0], found[1]))

    def items(self, place: str, found: Any) -> list[Any]:
        if not isinstance(found, list) or not found:
            self.refuse(place, "it is not a list with anything in it")
        return found

    def model(self, place: str, found: Any) -> str:
        if isinstance(found, dict):
            self.known(place, found, frozenset({"model"}), {"lora": "an adapter is merged into its base first"})
            found = found.get("model")
        if isinstance(found, dict):
            self.known(f"{place}.model", found, frozenset({"path"}))
            found = found.get("path")
        if not isinstance(found, str) or not found or len(found) > 4096:
            self.refuse(place, "it is not a model's folder or name")
        folder, plus, adapter = found.partition("+")
        if plus and not Path(found).exists():
            merge = f"yard merge {folder} {adapter} --to ./merged"
            self.refuse(place, "an adapter on top of a model (`model+lora`) is merged into it first", merge)
        return found

    def parameters(self, place: str, found: Any) -> dict[str, Setting]:
        if found is None:
            return {}
        method = METHODS[self.method]
        names = frozenset({*method.per_model, *method.shared})
        self.known(
            place, found, names | {_IGNORED}, dict.fromkeys(_others(names), f"`{self.method}` has no such parameter")
        )
        if _IGNORED in found:
            self.warnings.append(f"`{_IGNORED}` is ignored: signs are compared as they are, in any case")
        return {
            name: self.setting(f"{place}.{name}", value, name in _FLAGS)
            for name, value in found.items()
            if name != _IGNORED
        }

    def setting(self, place: str, found: Any, flag: bool) -> Setting:
        if isinstance(found, dict):
            found = [found]
        if isinstance(found, list) and any(isinstance(each, dict) for each in found):
            return tuple(self.conditional(f"{place}[{at}]", each, flag) for at, each in enumerate(found))
        made: Setting = self.line(place, found, flag)
        return made

    def conditional(self, place: str, found: Any, flag: bool) -> Conditional:
        self.known(place, found, frozenset({"filter", "value"}))
        filter_ = found.get("filter")
        if filter_ is not None and not isinstance(filter_, str):
            self.refuse(f"{place}.filter", "it is not a part of a tensor's name")
        if "value" not in found:
            self.refuse(place, "it has no `value`")
        return Conditional(self.line(f"{place}.value", found["value"], flag), filter_)

    def line(self, place: str, found: Any, flag: bool) -> Any:
        if isinstance(found, list):
            if not found:
                self.refuse(place, "the list is empty")
            return [self.scalar(f"{place}[{at}]", each, flag) for at, each in enumerate(found)]
        return self.scalar(place, found, flag)

    def scalar(self, place: str, found: Any, flag: bool) -> float | bool:
        if flag:
            if found in (True, False, "true", "false"):
                return found in (True, "true")
            self.refuse(place, f"`{show_name(str(found))}` is neither true nor false")
        number = found
        if isinstance(found, str):  # YAML 1.1 reads 1e-4 as text
            try:
                number = float(found)
            except ValueError:
                number = None
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            self.refuse(place, f"`{show_name(str(found))}` is not a finite number")
        return float(number)

    def dtype(self, place: str, found: Any) -> str | None:
        if found is None:
            return None
        name = _DTYPES.get(str(found).removeprefix("torch."))
        if name is None:
            self.refuse(place, f"`{show_name(str(found))}` is none of {', '.join(_DTYPES)}")
        return name

    def tokenizer(self, tree: Mapping[str, Any], base: str | None) -> str | None:
        place, found = "tokenizer_source", tree.get("tokenizer_source")
        if tree.get("tokenizer") is not None:
            if found is not None:
                self.refuse("tokenizer", "it is there beside `tokenizer_source`")
            built = "a vocabulary is taken as one model has it, not built anew"
            why = {"tokens": built, "pad_to_multiple_of": built}
            self.known("tokenizer", tree["tokenizer"], frozenset({"source"}), why)
            place, found = "tokenizer.source", tree["tokenizer"].get("source")
        if found == "union":
            self.refuse(
                place,
                "a union of vocabularies is not built",
                "name the model whose tokenizer the result has, or `base`",
            )
        if found == "base":
            if base is None:
                self.refuse(place, "there is no `base_model` to take it from")
            return None
        return self.model(place, found) if found is not None else None

    def template(self, found: Any) -> str | None:
        if found is None:
            return None
        if found == "auto":
            return "auto"
        if not isinstance(found, str) or "{" not in found:
            self.refuse(
                "chat_template",
                f"`{show_name(str(found))}` is no template: mergekit's own by name are not here",
                "give the text of a template, or `auto`",
            )
        return found

    def counted(self, config: MergeConfig) -> MergeConfig:
        """The configuration with the base in every slice, as mergekit has it, when the number of models is the method's."""
        method = METHODS[self.method]
        if method.base and config.base is None:
            self.refuse("base_model", f"`{self.method}` needs one")
        slices = []
        for number, part in enumerate(config.slices):
            named = [each.model for each in part.inputs]
            place = f"slices[{number}].sources" if part.inputs[0].layers else "models"
            if len(set(named)) != len(named):
                self.refuse(place, "a model is there twice")
            inputs = part.inputs
            if config.base is not None and config.base not in named:
                if part.inputs[0].layers:
                    self.refuse(place, "the base model is not among them")
                inputs = (*inputs, MergeInput(config.base))
            most = method.most or len(inputs)
            if not method.least <= len(inputs) <= most:
                wanted = f"{most}" if method.least == most else f"at most {most}"
                self.refuse(
                    place,
                    f"`{self.method}` takes {wanted} model{'s' * (most > 1)}, the base included, and there are {len(inputs)}",
                )
            slices.append(Slice(inputs, part.parameters))
        return replace(config, slices=tuple(slices), warnings=tuple(dict.fromkeys(self.warnings)))


def _others(names: frozenset[str]) -> set[str]:
    """Parameters of other methods."""
    return {each for method in METHODS.values() for each in (*method.per_model, *method.shared)} - names
