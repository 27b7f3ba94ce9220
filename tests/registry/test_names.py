"""Which names are refused, and that the refusal says what is allowed."""

from __future__ import annotations

import pytest

from modelyard.errors import InputError, RefError
from modelyard.registry.names import check_metadata, check_path, check_paths, check_ref_name, check_repo_name

HOSTILE = [
    *(
        "..",
        ".",
        "a//b",
        "CON",
        "aux.txt",
        "dot.",
        "space ",
        "%2e%2e%2f",
        "%252e%252e%252f",
        "a\\b",
        "a#b",
        "a?b",
        "a;b",
    ),
    *(
        "1.0'; DROP",
        "{{7*7}}",
        "$(id)",
        "-rf",
        "--help",
        "line\nbreak",
        "nul\0",
        "\u202egpj",
        "zero\u200bwidth",
        "a" * 300,
    ),
]


@pytest.mark.parametrize(
    "name", [*HOSTILE, "\u0430dmin", "é", "a--b", "a..b", ".hidden", "x.git", "", " a", "a b", "a@b", "a/b/c"]
)
@pytest.mark.parametrize("place", ["ns/{}", "{}/name"])
@pytest.mark.row(27, 29, 30)
def test_hostile_repo_names_are_refused(name: str, place: str) -> None:
    """A repo's name follows the Hub's rules; the refusal names the allowed pattern and prints nothing unprintable."""
    with pytest.raises(RefError) as error:
        check_repo_name(place.format(name))
    assert "96 characters" in (error.value.hint or "")
    assert error.value.message.isprintable()
    assert error.value.message.isascii()


@pytest.mark.parametrize("name", ["team/intents", "Org-1/model.v2_x", "a/b", "n/" + "x" * 96, "_x/y_"])
def test_plain_repo_names_are_fine(name: str) -> None:
    """Names that the Hub accepts are accepted."""
    assert check_repo_name(name) == name


@pytest.mark.parametrize("name", ["team", "datasets/x", "Models/x", "spaces/x", "a/b/c"])
def test_repo_names_have_a_namespace_that_is_not_reserved(name: str) -> None:
    """A bare name and the Hub's own prefixes are refused."""
    with pytest.raises(RefError):
        check_repo_name(name)


@pytest.mark.parametrize(
    "name",
    [*HOSTILE, "v7", "V7", "v0", "deadbeef", "DEADBEEF", "0" * 64, "12345678", "latest", "Latest", "a/b", "a@b", ""],
)
@pytest.mark.row(30, 35)
def test_hostile_ref_names_are_refused(name: str) -> None:
    """A ref may not look like a number, a digest, `latest`, an option, or anything that a shell or page reads."""
    with pytest.raises(RefError) as error:
        check_ref_name(name)
    assert "allowed" in (error.value.hint or "")


@pytest.mark.parametrize("name", ["main", "production", "v7-rc1", "release.1", "deadbee", "x" * 96, "0" * 65])
def test_plain_ref_names_are_fine(name: str) -> None:
    """Names that nothing mistakes for something else are accepted."""
    assert check_ref_name(name) == name


@pytest.mark.parametrize(
    "path",
    [
        *(name for name in HOSTILE if name not in {"a" * 300, "1.0'; DROP", "{{7*7}}"}),
        *("/etc/passwd", "C:/x", "\\\\host\\share", "a/../b", "./a", "a/", "a/./b", ".git/config", "x/.GIT/hooks"),
        *(
            "x" * 256,
            "/".join(["x" * 200] * 6),
            "lpt1",
            "nul.json",
            "a:b",
            "\ud800",
            "a*",
            '"a"',
            "<a>",
            "a|b",
            "~\x7f",
        ),
    ],
)
@pytest.mark.row(27)
def test_hostile_paths_are_refused(path: str) -> None:
    """A file's name must mean the same file on every system and in every URL."""
    with pytest.raises(RefError) as error:
        check_path(path)
    assert error.value.message.isascii()


@pytest.mark.parametrize(
    "path",
    ["config.json", "a/b/c.txt", "model-00001-of-00002.safetensors", ".gitattributes", "é.txt", "a b.txt", "x(1).md"],
)
def test_plain_paths_are_fine(path: str) -> None:
    """What model repositories really hold is accepted."""
    assert check_path(path) == path


@pytest.mark.parametrize(
    "paths",
    [
        ["Model.bin", "model.bin"],
        ["\u00e9.txt", "e\u0301.txt"],
        ["A/x", "a/y"],
        ["stra\u00dfe", "STRASSE"],
        ["a", "A/b"],
        ["x/y", "x/y/z"],
        ["same", "same"],
    ],
)
@pytest.mark.row(28)
def test_paths_that_are_one_file_somewhere_are_refused(paths: list[str]) -> None:
    """Two names that fold or normalize to one would overwrite each other on macOS or Windows."""
    with pytest.raises(RefError, match="on some systems"):
        check_paths(paths)


def test_a_folder_may_hold_many_files() -> None:
    """Files that share folders are no duplicates."""
    check_paths(["a/x", "a/y", "a/b/x", "b/x"])


@pytest.mark.parametrize(
    ("metadata", "message"), [({"a": 1}, ""), ({1: "a"}, ""), ([], ""), ({"a": "\0"}, ""), ({}, "a\0"), ({}, "\udc80")]
)
@pytest.mark.row(30)
def test_metadata_that_a_database_cannot_keep_is_refused(metadata: object, message: str) -> None:
    """Metadata and messages are text that both databases can keep."""
    with pytest.raises(InputError):
        check_metadata(metadata, message)
