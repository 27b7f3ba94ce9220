"""Where a store on S3 is, and who may use it.

Knows URLs; does not connect to anything.

>>> location = S3Location.parse("s3://models/team/yard?endpoint=http://127.0.0.1:9000&region=eu-central-1")
>>> location.bucket, location.prefix, location.endpoint, location.path_style
('models', 'team/yard/', 'http://127.0.0.1:9000', True)
>>> location.key("files/ab")
'team/yard/files/ab'
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from modelyard.errors import InputError, near_match

__all__ = ["S3Credentials", "S3Location"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()=-]+(/[A-Za-z0-9!_.*'()=-]+)*")
_OPTIONS = ("endpoint", "region", "path_style")
_FORM = "write it as s3://BUCKET/PREFIX?endpoint=http://HOST:PORT&region=REGION"


@dataclass(frozen=True)
class S3Credentials:
    """An access key; `repr` shows no secret."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class S3Location:
    """A bucket, a prefix in it, and the endpoint that has it.

    Attributes:
        bucket: The bucket's name.
        prefix: Empty, or ending in `/`.
        endpoint: Base URL of the endpoint; None means Amazon's own for the region.
        region: What requests are signed for.
        path_style: Whether the bucket is named in the path instead of the host name.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    path_style: bool = False

    @classmethod
    def parse(cls, url: str, *, endpoint: str | None = None, region: str | None = None) -> S3Location:
        """The location that `s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME&path_style=0|1]` names.

        Args:
            url: The URL.
            endpoint: Where the URL names none.
            region: Where the URL names none.

        Raises:
            InputError: Not such a URL, or one with a user name and password in it.
        """
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "the URL of the store holds a key",
                hint="leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
            )
        prefix = parts.path.strip("/")
        bad_prefix = prefix and (not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")))
        if (
            parts.scheme != "s3"
            or not _BUCKET.fullmatch(parts.netloc)
            or bad_prefix
            or parts.fragment
            or not url.isprintable()
        ):
            raise InputError(f"`{url}` names no place on S3", hint=_FORM)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        for name in options:
            if name not in _OPTIONS:
                meant = near_match(name, _OPTIONS)
                raise InputError(
                    f"`{url}` has an unknown option `{name}`", hint=f"did you mean `{meant}`?" if meant else _FORM
                )
        endpoint = options.get("endpoint") or endpoint
        if endpoint is not None:
            endpoint = _checked_endpoint(endpoint)
        style = options.get("path_style", "0" if endpoint is None else "1")
        if style not in {"0", "1"}:
            raise InputError(f"`{url}`: `path_style` is {style!r}", hint="set it to 0 or 1")
        return cls(
            bucket=parts.netloc,
            prefix=f"{prefix}/" if prefix else "",
            endpoint=endpoint,
            region=options.get("region") or region or "us-east-1",
            path_style=style == "1",
        )

    def __str__(self) -> str:
        default = self.endpoint is not None
        options = {
            "endpoint": self.endpoint or "",
            "region": self.region if self.region != "us-east-1" else "",
            "path_style": "" if self.path_style == default else str(int(self.path_style)),
        }
        query = urlencode({name: value for name, value in options.items() if value}, safe=":/")
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + (f"?{query}" if query else "")

    def key(self, name: str) -> str:
        """The object's key for a name in the store's layout."""
        return self.prefix + name


def _checked_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    try:
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise InputError(f"`{endpoint}` is no endpoint", hint="write it as https://HOST or http://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"
