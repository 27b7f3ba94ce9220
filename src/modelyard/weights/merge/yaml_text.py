"""YAML that nobody vouches for, as plain values: bounded, without tags, and nothing in it runs.

Scalars are PyYAML's (YAML 1.1), since that is how mergekit reads its files. Refused, with the line: tags, repeated keys, keys that are
no text, several documents, and more than `MAX_VALUES` values once aliases are expanded. Knows no merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError

if TYPE_CHECKING:
    import yaml

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "read_yaml"]

MAX_BYTES = 1 << 16  # PyYAML takes a second for so much
MAX_VALUES = 4_000
MAX_DEPTH = 16

_PLAIN = "tag:yaml.org,2002:"
_SCALARS = frozenset(_PLAIN + kind for kind in ("null", "bool", "int", "float", "str"))


def read_yaml(text: str, label: str) -> dict[str, Any]:
    """The mapping that a YAML text holds: dict, list, str, int, float, bool and None.

    Raises:
        InputError: `bad_merge_config`: it is not YAML, is no mapping, or is beyond a limit; the message names the line.
    """
    import yaml

    if len(text) > MAX_BYTES:
        raise _refuse(label, f"it has {len(text)} characters, more than {MAX_BYTES}")
    loader = yaml.SafeLoader(text)
    try:
        _check_size(text, label)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise _refuse(label, "it is no mapping of keys to values, as `merge_method: linear`")
        return _Builder(label, loader).mapping(root, 0)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise _refuse(label, f"{where}it is not YAML ({str(getattr(error, 'problem', error))[:80]})") from None
    except RecursionError:
        raise _refuse(label, "it is nested too deeply") from None
    finally:
        loader.dispose()


def _check_size(text: str, label: str) -> None:
    """Refuse depth and number of values before anything recurses over them; aliases are counted as they are built."""
    import yaml

    depth = count = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        count += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH:
            raise _refuse(label, f"it is nested beyond {MAX_DEPTH}")
        if count > MAX_VALUES:
            raise _refuse(label, f"it has more than {MAX_VALUES} values")


class _Builder:
    """Plain values of nodes, counted."""

    def __init__(self, label: str, loader: yaml.SafeLoader) -> None:
        self._label, self._loader, self._count = label, loader, 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        import yaml

        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:  # by aliases
            raise self._bad(node, f"it has more than {MAX_VALUES} values, or is nested beyond {MAX_DEPTH}")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            self._plain(node, "seq")
            return [self.value(item, depth + 1) for item in node.value]
        if node.tag not in _SCALARS:
            if node.tag != _PLAIN + "timestamp":
                raise self._bad(node, f"the tag `{node.tag[:40]}` is not read")
            return node.value
        try:
            return self._loader.construct_object(node)
        except ValueError:
            raise self._bad(node, f"`{str(node.value)[:40]}` is not a number") from None

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        self._plain(node, "map")
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if key_node.tag == _PLAIN + "str" else None
            if not isinstance(key, str):
                raise self._bad(key_node, "a key is not text")
            if key in made:
                raise self._bad(key_node, f"the key `{key[:40]}` is there twice")
            made[key] = self.value(value_node, depth + 1)
        return made

    def _plain(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _PLAIN + kind:
            raise self._bad(node, f"the tag `{node.tag[:40]}` is not read")

    def _bad(self, node: yaml.Node, what: str) -> InputError:
        return _refuse(self._label, f"line {node.start_mark.line + 1}: {what}")


def _refuse(label: str, what: str) -> InputError:
    return InputError(f"`{label}`: {what}", code="bad_merge_config")
