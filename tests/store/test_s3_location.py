"""`modelyard.store.s3_location`: URLs of stores on S3."""

from __future__ import annotations

import pytest

from modelyard.errors import InputError
from modelyard.store.s3_location import S3Credentials, S3Location


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/a/b",
        "s3://bucket/yard?region=eu-central-1",
        "s3://bucket/yard?endpoint=http://127.0.0.1:9000",
        "s3://bucket/yard?endpoint=https://s3.example&region=eu-west-1&path_style=0",
        "s3://bucket?path_style=1",
    ],
)
def test_a_location_is_written_as_it_was_read(url: str) -> None:
    """The text of a location names the same location."""
    assert str(S3Location.parse(url)) == url
    assert S3Location.parse(str(S3Location.parse(url))) == S3Location.parse(url)


def test_what_the_url_does_not_say_comes_from_the_caller() -> None:
    """Endpoint and region are the URL's where it names them, else the caller's, else Amazon's own."""
    given = S3Location.parse("s3://bucket/", endpoint="http://host:1/", region="r")
    assert (given.prefix, given.endpoint, given.region, given.path_style) == ("", "http://host:1", "r", True)
    named = S3Location.parse("s3://bucket?endpoint=http://other:2&region=q", endpoint="http://host:1", region="r")
    assert (named.endpoint, named.region) == ("http://other:2", "q")
    bare = S3Location.parse("s3://bucket")
    assert (bare.endpoint, bare.region, bare.path_style) == (None, "us-east-1", False)


@pytest.mark.parametrize(
    "url",
    [
        "http://bucket/yard",
        "s3://",
        "s3://Bucket/yard",
        "s3://b/yard",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/a\n",
        "s3://bucket/yard#part",
        "s3://bucket?endpoint=127.0.0.1:9000",
        "s3://bucket?endpoint=http://host:port",
        "s3://bucket?endpoint=http://user:word@host",
        "s3://bucket?endpoint=http://host/path",
        "s3://bucket?path_style=yes",
    ],
)
def test_what_names_no_place_is_refused(url: str) -> None:
    """A URL that is not of the form is an `InputError` with the form, or what to write, as its hint."""
    with pytest.raises(InputError) as caught:
        S3Location.parse(url)
    assert caught.value.hint


def test_a_misspelt_option_is_named_with_its_near_match() -> None:
    """An unknown option is never ignored."""
    with pytest.raises(InputError, match="endpiont") as caught:
        S3Location.parse("s3://bucket?endpiont=http://host")
    assert caught.value.hint == "did you mean `endpoint`?"


def test_a_key_in_the_url_is_refused_and_not_repeated() -> None:
    """A URL is printed and recorded: a secret in it is refused, and the error does not show it."""
    with pytest.raises(InputError) as caught:
        S3Location.parse("s3://key:hush@bucket/yard")
    assert "hush" not in str(caught.value) + str(caught.value.to_dict())


def test_credentials_do_not_show_their_secrets() -> None:
    """What is printed of credentials is the key's name alone."""
    assert repr(S3Credentials("name", "hush", "token")) == "S3Credentials(access_key='name')"
