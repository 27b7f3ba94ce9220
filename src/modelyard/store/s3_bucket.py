"""One prefix of a bucket, as few calls: what this package needs of S3, and nothing else.

The only module that knows the client library (botocore, beneath boto3). Every PUT is signed over its payload's SHA-256, so that an endpoint which
checks signatures never acknowledges other bytes than were sent, and names that SHA-256 as the object's checksum besides. Retries
are the client's own (five attempts, exponential back-off with jitter). Knows keys and bytes; does not know areas or digests.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from modelyard.errors import AuthError, BusyError, InputError, IntegrityError, NotFoundError, YardError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelyard.store.s3_location import S3Credentials, S3Location

__all__ = ["Bucket", "Head", "Upload"]

_ATTEMPTS = 5
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_CONNECTIONS = 16

_DENIED = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "401", "ExpiredToken"})
_DENIED_TOO = frozenset({"InvalidToken", "AllAccessDisabled", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed"})
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_BUSY = frozenset({"SlowDown", "503", "ServiceUnavailable", "InternalError", "500", "RequestTimeout", "502", "504"})
_UNSUPPORTED = frozenset({"NotImplemented", "501", "InvalidArgument", "InvalidRequest"})


@dataclass(frozen=True)
class Head:
    """What an endpoint says of an object.

    Attributes:
        size: Its length in bytes.
        etag: What changes when its bytes do.
        digest: The digest that its writer put beside it, in the request that stored the bytes; None when there is none.
    """

    size: int
    etag: str
    digest: str | None


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was begun and neither completed nor aborted; its age in seconds, by the endpoint's own clock."""

    name: str
    id: str
    age: float


class Bucket:
    """A prefix of a bucket; safe to share between threads, not between a process and its fork.

    Args:
        location: Where.
        credentials: Who.
    """

    def __init__(self, location: S3Location, credentials: S3Credentials) -> None:
        self.location = location
        self._client = _connect(location, credentials)

    # -- reading -------------------------------------------------------------------------------------------------------

    def head(self, name: str) -> Head | None:
        """What is stored under `name`, or None."""
        with self._explained(name, "look at"):
            try:
                found = self._client.head_object(**self._named(name))
            except _client_error() as error:
                if _code(error) in _ABSENT:
                    return None
                raise
        return _head(found)

    def get(self, name: str, limit: int) -> bytes | None:
        """The bytes under `name`, or None; `IntegrityError` when there are more than `limit`."""
        return self._read(name, {}, limit)

    def read(self, name: str, start: int, end: int, etag: str | None = None) -> bytes | None:
        """Bytes `start` to `end` (fewer where the object ends) under `name`, or None when there is no object.

        With `etag`, `IntegrityError` (code ``changed``) when the object is another one by now.
        """
        if end <= start:
            return b""
        options: dict[str, Any] = {"Range": f"bytes={start}-{end - 1}"}
        if etag is not None:
            options["IfMatch"] = etag
        return self._read(name, options, end - start)

    def names(self, folder: str) -> Iterator[str]:
        """Every name that begins with `folder`, in whatever order the endpoint lists them."""
        prefix = self.location.key(folder)
        token: dict[str, str] = {}
        while True:
            with self._explained(folder, "list"):
                page = self._client.list_objects_v2(Bucket=self.location.bucket, Prefix=prefix, **token)
            for entry in page.get("Contents", []):
                yield str(entry["Key"]).removeprefix(self.location.prefix)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes, *, digest: str | None = None, sha256: str | None = None) -> str:
        """Store `data` under `name`, replacing what is there; its ETag. Acknowledged only with its checksum."""
        with self._explained(name, "write"):
            return str(self._client.put_object(**self._stored(name, data, digest, sha256))["ETag"])

    def put_new(self, name: str, data: bytes) -> bool | None:
        """Store `data` under `name` only where nothing is; whether it was, or None where the endpoint has no such request."""
        with self._explained(name, "write"):
            for attempt in range(_ATTEMPTS):
                try:
                    self._client.put_object(**self._stored(name, data, None, None), IfNoneMatch="*")
                except _client_error() as error:
                    code, status = _code(error), _status(error)
                    if status == 412:
                        return False
                    if status == 409 and attempt + 1 < _ATTEMPTS:  # two such requests at once: neither may have won
                        time.sleep(random.uniform(0.05, 0.2) * 2**attempt)  # noqa: S311  spreads retries, no secret
                        continue
                    if code in _UNSUPPORTED or status == 501:
                        return None
                    raise
                return True
        return False

    def delete(self, name: str) -> None:
        """Remove `name`; one that is not there is fine."""
        with self._explained(name, "remove"), suppress(FileNotFoundError):
            try:
                self._client.delete_object(**self._named(name))
            except _client_error() as error:
                if _code(error) not in _ABSENT:
                    raise

    def begin(self, name: str, *, digest: str) -> str:
        """Begin a multipart upload; its id."""
        with self._explained(name, "write"):
            begun = self._client.create_multipart_upload(**self._named(name), **_described(digest))
        return str(begun["UploadId"])

    def put_part(self, name: str, upload: str, number: int, data: bytes) -> str:
        """Store part `number` (from 1); its ETag."""
        with self._explained(name, "write"):
            done = self._client.upload_part(**self._named(name), UploadId=upload, PartNumber=number, Body=data)
        return str(done["ETag"])

    def complete(self, name: str, upload: str, etags: Mapping[int, str]) -> None:
        """Put the parts together: the object appears whole, or not at all."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(etags.items())]
        with self._explained(name, "write"):
            try:
                self._client.complete_multipart_upload(
                    **self._named(name), UploadId=upload, MultipartUpload={"Parts": parts}
                )
            except _client_error() as error:
                # A first attempt may have succeeded although its answer was lost: the caller looks at what is there.
                if _code(error) != "NoSuchUpload":
                    raise

    def abort(self, name: str, upload: str) -> None:
        """Give up a multipart upload; one that is not there is fine."""
        with self._explained(name, "give up writing"):
            try:
                self._client.abort_multipart_upload(**self._named(name), UploadId=upload)
            except _client_error() as error:
                if _code(error) not in {*_ABSENT, "NoSuchUpload"}:
                    raise

    def uploads(self) -> Iterator[Upload]:
        """Every multipart upload under the prefix that was begun and not ended, by whomever."""
        marker: dict[str, str] = {}
        while True:
            with self._explained("", "list"):
                page = self._client.list_multipart_uploads(
                    Bucket=self.location.bucket, Prefix=self.location.prefix, **marker
                )
            date = page["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            for entry in page.get("Uploads", []):
                name = str(entry["Key"])
                # Some endpoints list more than was asked for.
                if name.startswith(self.location.prefix):
                    begun: datetime = entry["Initiated"]
                    yield Upload(
                        name.removeprefix(self.location.prefix), str(entry["UploadId"]), (now - begun).total_seconds()
                    )
            if not page.get("IsTruncated"):
                return
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    # -- how it is done ------------------------------------------------------------------------------------------------

    def _named(self, name: str) -> dict[str, Any]:
        return {"Bucket": self.location.bucket, "Key": self.location.key(name)}

    def _stored(self, name: str, data: bytes, digest: str | None, sha256: str | None) -> dict[str, Any]:
        checksum = bytes.fromhex(sha256) if sha256 is not None else hashlib.sha256(data).digest()
        return {
            **self._named(name),
            **_described(digest),
            "Body": data,
            "ChecksumSHA256": base64.b64encode(checksum).decode(),
        }

    def _read(self, name: str, options: dict[str, Any], limit: int) -> bytes | None:
        """One GET, body included; the client retries until the body begins, this until it has ended."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

        with self._explained(name, "read"):
            for attempt in range(_ATTEMPTS):
                try:
                    found = self._client.get_object(**self._named(name), **options)
                    body = found["Body"]  # not as a context: its own errors come out of its own `read` only
                    try:
                        if int(found["ContentLength"]) > limit:
                            raise IntegrityError(f"`{self._shown(name)}` is damaged: it has more than {limit} bytes")
                        return bytes(body.read())
                    finally:
                        body.close()
                except (HTTPClientError, IncompleteReadError, ResponseStreamingError):
                    if attempt + 1 == _ATTEMPTS:
                        raise
                    time.sleep(random.uniform(0.05, 0.2) * 2**attempt)  # noqa: S311  spreads retries, no secret
                except _client_error() as error:
                    if _code(error) in _ABSENT:
                        return None
                    if _status(error) == 416:  # nothing there to read: an empty object, or a range beyond its end
                        return b""
                    if _status(error) == 412:
                        raise _changed(self._shown(name)) from error
                    raise
        return None

    def _shown(self, name: str) -> str:
        return f"s3://{self.location.bucket}/{self.location.key(name)}"

    @contextmanager
    def _explained(self, name: str, action: str) -> Iterator[None]:
        """Turn what the client raises in the body into our errors."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._refused(error, name, action) from error
        except BotoCoreError as error:
            raise YardError(
                f"could not {action} `{self._shown(name)}`: {_first_line(error)}",
                hint=f"is {self.location.endpoint or 'the endpoint'} reachable? Then run the command again",
                code="store_unreachable",
            ) from error

    def _refused(self, error: Exception, name: str, action: str) -> YardError:
        code, status, shown = _code(error), _status(error), self._shown(name)
        text = f"could not {action} `{shown}`: {_first_line(error)}"
        if code in _DENIED | _DENIED_TOO or status in {401, 403}:
            return AuthError(
                f"not allowed to {action} `{shown}`: {code}",
                hint="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the region, and what the key may do",
            )
        if code == "NoSuchBucket":
            where = f" --endpoint-url {self.location.endpoint}" if self.location.endpoint else ""
            return NotFoundError(
                f"there is no bucket `{self.location.bucket}`", hint=f"aws s3 mb s3://{self.location.bucket}{where}"
            )
        if code in _BUSY or (status is not None and status >= 500):
            return BusyError(text, hint="the endpoint is overloaded or failing: try again later")
        if code in {"BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest"}:
            return IntegrityError(text, hint="bytes were damaged on their way: run the command again")
        if status == 301 or code in {"PermanentRedirect", "IllegalLocationConstraintException"}:
            return InputError(text, hint="name the bucket's own region: s3://BUCKET/PREFIX?region=REGION")
        return YardError(text, code="store_refused", s3_code=code)


def _connect(location: S3Location, credentials: S3Credentials) -> Any:
    try:
        import botocore.session
        from botocore.config import Config
    except ImportError as error:
        raise InputError("a store on S3 needs boto3", hint="pip install 'modelyard[s3]'") from error

    # Whatever the caller did not say comes from nowhere: no profile, no configuration file.
    nowhere: dict[str, Any] = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    session = botocore.session.Session(session_vars=nowhere)
    return session.create_client(
        "s3",
        region_name=location.region,
        endpoint_url=location.endpoint,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        aws_session_token=credentials.session_token,
        config=Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            ignore_configured_endpoint_urls=True,
            use_fips_endpoint=False,
            use_dualstack_endpoint=False,
            # A checksum of our own is sent as a header; the client's would be a trailer, which not every endpoint reads.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if location.path_style else "virtual", "payload_signing_enabled": True},
        ),
    )


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    found: type[Exception] = ClientError
    return found


def _described(digest: str | None) -> dict[str, Any]:
    kind: dict[str, Any] = {"ContentType": "application/octet-stream"}
    return kind if digest is None else {**kind, "Metadata": {"blake3": digest}}


def _head(found: Mapping[str, Any]) -> Head:
    return Head(int(found["ContentLength"]), str(found["ETag"]), found.get("Metadata", {}).get("blake3"))


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int | None:
    found = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(found) if found is not None else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _changed(shown: str) -> IntegrityError:
    return IntegrityError(f"`{shown}` changed while it was read", hint="run the command again", code="changed")
