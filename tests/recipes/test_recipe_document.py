"""Reading YAML that nobody vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelyard.errors import NotFoundError, RecipeError
from modelyard.recipes.document import MAX_BYTES, read_document, read_file, read_value

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("12", 12),
        ("0o17", 15),
        ("-.5", -0.5),
        ("true", True),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'12'", "12"),
        ("[a, 1]", ["a", 1]),
        ("{a: {b: 2}}", {"a": {"b": 2}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """Numbers are numbers in every usual form, and words and dates stay text."""
    found = read_value(text, "--set")
    assert found == value
    assert type(found) is type(value)


def test_lines_are_known() -> None:
    """Each key and list item knows its line, and an absent key has the line of what it would be in."""
    document = read_document("a: 1\nb:\n  c: [x,\n    y]\n", "r.yaml")
    assert document.line(("b", "c")) == 3
    assert document.line(("b", "c", 1)) == 4
    assert document.line(("b", "missing")) == 2
    assert document.line(("missing",)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "`r.yaml`, line 3: the key `a` was already given in line 1"),
        ("a:\n  b: 1\n  b: 1\n", "`r.yaml`, line 3: the key `b` was already given in line 2"),
        (
            "a: !!python/object/apply:os.system [x]\n",
            "line 1: the tag `tag:yaml.org,2002:python/object/apply:os.system`",
        ),
        ("a: !!binary aGk=\n", "line 1: the tag"),
        ("a: [1,\nb: 2\n", "not YAML"),
        ("\ta: 1\n", "line 1, column 1: not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("- a\n", "line 1: a recipe is a mapping"),
        ("", "`r.yaml` is empty"),
        ("# only a comment\n", "`r.yaml` is empty"),
        ("? [a]\n: 1\n", "line 1: a key has to be text"),
        ("a: \x07\n", "not YAML"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    """A repeated key, a tag, a second document and broken syntax are refused; the message has the line."""
    with pytest.raises(RecipeError) as caught:
        read_document(text, "r.yaml")
    assert message in caught.value.message


def test_alias_bombs_are_refused() -> None:
    """Aliases that would expand to millions of values, refer to themselves, nest deeply or abound are refused, at once."""
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 6)}]\n" for i in range(1, 9))
    for text, why in (
        (f"a0: &a0 [1, 1, 1, 1, 1, 1]\n{levels}", "values once aliases are expanded"),
        ("a: &a [*a]\n", "deep once aliases are expanded"),
        (f"a: {'[' * 200}{']' * 200}\n", "nested more than"),
        ("a: &a 1\nb: [" + "*a, " * 100 + "1]\n", "aliases"),
        (f"a: '{'x' * (MAX_BYTES + 1)}'\n", "which no recipe needs"),
    ):
        with pytest.raises(RecipeError) as caught:
            read_document(text, "r.yaml")
        assert why in caught.value.message


def test_a_few_aliases_are_fine() -> None:
    """An anchor used twice is what YAML is for."""
    assert read_document("a: &x {b: 1}\nc: *x\n", "r.yaml").tree == {"a": {"b": 1}, "c": {"b": 1}}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, a folder and text that is not UTF-8 are named, with the line where there is one."""
    with pytest.raises(NotFoundError, match="does not exist"):
        read_file(tmp_path / "none.yaml")
    with pytest.raises(NotFoundError, match="is a folder"):
        read_file(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RecipeError, match="line 2: not UTF-8"):
        read_file(path)
