r"""Reading YAML that nobody vouches for: plain values, the line of each key, and nothing that runs or explodes.

YAML here means the 1.2 core schema: `1e-4` is a number, `no` and `2024-01-01` are text. Refused, with the line: duplicate
keys, tags, several documents, aliases beyond `MAX_ALIASES`, more than `MAX_VALUES` values once aliases are expanded,
nesting beyond `MAX_DEPTH` and files beyond `MAX_BYTES`. This module does not know what a recipe is.

>>> found = read_document("train:\n  learning_rate: 1e-4\n", "r.yaml")
>>> found.tree, found.line(("train", "learning_rate"))
({'train': {'learning_rate': 0.0001}}, 2)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from modelyard.errors import NotFoundError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAX_ALIASES",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Document",
    "Location",
    "read_document",
    "read_file",
    "read_value",
]

MAX_BYTES = 1 << 20
MAX_ALIASES = 64
MAX_VALUES = 10_000
MAX_DEPTH = 24

Location = tuple[str | int, ...]
"""Where a value is: keys and list indexes from the top, e.g. `("train", "targets", 0)`."""

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR = (_TAG + name for name in ("null", "bool", "int", "float", "str"))
_CORE = (
    (_NULL, r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    (_BOOL, r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    (_INT, r"(?:[-+]?[0-9]{1,30}|0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30})", list("-+0123456789")),
    (
        _FLOAT,
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar types of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML reads it from the class


for _tag, _form, _first in _CORE:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^{_form}$"), _first)


@dataclass
class Document:
    """A YAML mapping as plain values.

    Attributes:
        tree: The values: dict, list, str, int, float, bool, None.
        label: What messages call it: the file as the user named it.
        lines: Line number (from 1) of each key and list item.
    """

    tree: dict[str, Any]
    label: str
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """The line of `location`, or of the nearest thing around it that stands in the file."""
        while location:
            if location in self.lines:
                return self.lines[location]
            location = location[:-1]
        return None


def read_file(path: Path) -> Document:
    """Read a YAML file whose top is a mapping.

    Raises:
        NotFoundError: There is no such file.
        RecipeError: It is not usable; the message names the line.
    """
    if not path.is_file():
        what = "is a folder, not a recipe file" if path.is_dir() else "does not exist"
        raise NotFoundError(f"recipe `{path}` {what}", hint="examples/ has recipes to start from")
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"`{path}`, line {line}: not UTF-8 text", hint="save the file as UTF-8") from error
    return read_document(text, str(path))


def read_document(text: str, label: str) -> Document:
    """Read YAML text whose top is a mapping; `label` is what messages call it.

    Raises:
        RecipeError: It is not YAML, is no mapping, repeats a key, holds a tag, or is beyond a limit.
    """
    root = _compose(text, label)
    if root is None:
        raise RecipeError(f"`{label}` is empty", hint="examples/ has recipes to start from")
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(
            f"`{label}`, line {_line(root)}: a recipe is a mapping of keys to values, e.g. `base: ./model`"
        )
    document = Document({}, label)
    _Builder(document).mapping(root, (), document.tree)
    return document


def read_value(text: str, label: str) -> Any:
    """Read one YAML value, as on the right of `--set key=value`; empty text is None.

    >>> read_value("1e-4", "--set"), read_value("[a, b]", "--set"), read_value("yes", "--set")
    (0.0001, ['a', 'b'], 'yes')
    """
    root = _compose(text, label)
    return None if root is None else _Builder(Document({}, label)).value(root, ())


def _compose(text: str, label: str) -> yaml.Node | None:
    if len(text) > MAX_BYTES:
        raise RecipeError(f"`{label}` is over {MAX_BYTES >> 20} MiB, which no recipe needs")
    try:
        _check_shape(text, label)
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"`{label}`{where}: not YAML: {problem}", hint=_indent_hint(problem)) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"`{label}`: not YAML: {error}") from error


def _indent_hint(problem: str) -> str | None:
    if "\\t" in problem or "'\t'" in problem:
        return "YAML is indented with spaces, not tabs"
    return None


def _check_shape(text: str, label: str) -> None:
    """Refuse what would make composing deep or wide, from the flat event stream, before anything is built."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"`{label}`, line {event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RecipeError(f"{where}: nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MAX_ALIASES:
                raise RecipeError(f"{where}: more than {MAX_ALIASES} aliases")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 1


class _Builder:
    """Turns nodes into plain values and notes the lines; counts values as they are after aliases are expanded."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0

    def value(self, node: yaml.Node, location: Location) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._refuse(node, f"more than {MAX_VALUES} values once aliases are expanded")
        if len(location) > MAX_DEPTH:
            raise self._refuse(node, f"nested more than {MAX_DEPTH} deep once aliases are expanded")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = []
            for index, item in enumerate(node.value):
                self._document.lines[(*location, index)] = _line(item)
                items.append(self.value(item, (*location, index)))
            return items
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, location, {})
        raise self._refuse(node, f"the tag `{node.tag}` is not allowed here")

    def mapping(self, node: yaml.MappingNode, location: Location, into: dict[str, Any]) -> dict[str, Any]:
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refuse(key_node, "a key has to be text")
            key = str(key_node.value)
            if key in into:
                first = self._document.lines[(*location, key)]
                raise self._refuse(key_node, f"the key `{key}` was already given in line {first}")
            self._document.lines[(*location, key)] = _line(key_node)
            into[key] = self.value(value_node, (*location, key))
        return into

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        match node.tag:
            case tag if tag == _STR:
                return text
            case tag if tag == _NULL:
                return None
            case tag if tag == _BOOL:
                return text.lower() == "true"
            case tag if tag == _INT:
                return int(text, 0 if text[:2] in {"0o", "0x"} else 10)
            case tag if tag == _FLOAT:
                return float(text.replace(".inf", "inf").replace(".nan", "nan").lower())
        raise self._refuse(node, f"the tag `{node.tag}` is not allowed here")

    def _refuse(self, node: yaml.Node, why: str) -> RecipeError:
        return RecipeError(f"`{self._document.label}`, line {_line(node)}: {why}")
