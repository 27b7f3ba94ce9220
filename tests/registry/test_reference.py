"""The grammar of references."""

from __future__ import annotations

import pytest

from modelyard.errors import RefError
from modelyard.registry import Reference
from modelyard.registry.reference import repo_of

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("team/intents", Reference("model", "team/intents", "main")),
        ("team/intents@v7", Reference("model", "team/intents", "v7")),
        ("team/intents@latest", Reference("model", "team/intents", "latest")),
        ("team/intents@production", Reference("model", "team/intents", "production")),
        ("datasets/team/support@v12", Reference("dataset", "team/support", "v12")),
        (f"team/intents@{DIGEST}", Reference("model", "team/intents", DIGEST)),
        ("team/intents@01234567", Reference("model", "team/intents", "01234567")),
        ("team/intents@0123456", Reference("model", "team/intents", "0123456")),
    ],
)
def test_references_parse(text: str, parsed: Reference) -> None:
    """`[datasets/]ns/name[@REV]`, and no REV means main."""
    assert Reference.parse(text) == parsed
    assert Reference.parse(str(parsed)) == parsed


def test_a_rev_is_a_number_a_digest_or_a_name() -> None:
    """What a REV is follows from its form alone."""
    number, prefix, name = (Reference.parse(f"a/b@{rev}") for rev in ("v007", "deadbeef", "deadbee"))
    assert (number.number, number.prefix) == (7, None)
    assert (prefix.number, prefix.prefix) == (None, "deadbeef")
    assert (name.number, name.prefix) == (None, None)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("./out", "yard commit"),
        ("../out", "yard commit"),
        ("/tmp/out", "yard commit"),
        ("~/out", "yard commit"),
        ("hf://org/name@main", "yard import"),
        ("https://example.org/x", "NAMESPACE/NAME"),
        ("intents", "NAMESPACE/NAME"),
        ("", "NAMESPACE/NAME"),
        ("@v7", "NAMESPACE/NAME"),
        ("a/b@", "ref names"),
        ("a/b@v7@v8", "ref names"),
        ("a/b@DEADBEEF", "ref names"),
        ("a/b@$(id)", "ref names"),
        ("a/b@../../x", "ref names"),
        ("a/b@\u202ev7", "ref names"),
        ("a/b@v\u0667", "ref names"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_next_step(text: str, hint: str) -> None:
    """A path, a hub id, a URL and a malformed name are each told apart."""
    with pytest.raises(RefError) as error:
        Reference.parse(text)
    assert hint in (error.value.hint or "")
    assert error.value.exit_code == 2


def test_a_repo_is_named_without_a_rev() -> None:
    """Where a repo is meant, a REV is refused, and so are two types that disagree."""
    assert repo_of("team/x", "dataset") == Reference("dataset", "team/x")
    assert repo_of("datasets/team/x", "dataset") == Reference("dataset", "team/x")
    for text, repo_type in (("team/x@v1", None), ("datasets/team/x", "model")):
        with pytest.raises(RefError):
            repo_of(text, repo_type)  # type: ignore[arg-type]  # a literal of each type
