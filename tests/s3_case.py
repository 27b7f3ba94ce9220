"""What tests of stores on S3 stand on: an endpoint, a fresh bucket prefix, and a way to damage objects behind the store's back.

The endpoint is a `moto_server` on loopback, started once in a test process and ended with it. `make test-s3` names another one, a real
server that checks signatures, in `YARD_TEST_S3_ENDPOINT` (with `_KEY`, `_SECRET`).
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modelyard.store.base import ObjectArea
from modelyard.store.layout import Layout
from modelyard.store.s3 import S3Store
from modelyard.store.s3_location import S3Credentials, S3Location

__all__ = [
    "BUCKET",
    "Endpoint",
    "client",
    "endpoint",
    "is_moto",
    "location",
    "make_store",
    "overwrite",
    "overwrite_journal",
]

BUCKET = "yards"


@dataclass(frozen=True)
class Endpoint:
    """Where an S3 is and who may use it."""

    url: str
    credentials: S3Credentials


def is_moto() -> bool:
    """Whether tests run against the mock; False against a real server."""
    return "YARD_TEST_S3_ENDPOINT" not in os.environ


@cache
def endpoint() -> Endpoint:
    """The endpoint that tests use, with the bucket `BUCKET` made; started on the first call."""
    given = os.environ.get("YARD_TEST_S3_ENDPOINT")
    if given:
        keys = S3Credentials(os.environ["YARD_TEST_S3_KEY"], os.environ["YARD_TEST_S3_SECRET"])
        found = Endpoint(given, keys)
    else:
        found = Endpoint(_start_moto(), S3Credentials("test", "testing"))
    made = client(found)
    if BUCKET not in {bucket["Name"] for bucket in made.list_buckets()["Buckets"]}:
        made.create_bucket(Bucket=BUCKET)
    return found


def _start_moto() -> str:
    # The port is the server's own choice and read from what it says: nobody can take it in between.
    code = (
        "import os, sys\n"
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)\n"
        "server.start()\n"
        "print(server.get_host_and_port()[1], flush=True)\n"
        # It ends with whoever holds the other end of its input, however that ended.
        "sys.stdin.read()\n"
        "os._exit(0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )

    def stop() -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    atexit.register(stop)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{url}/moto-api/", timeout=5):
                return url
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@cache
def _client(found: Endpoint) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=found.url,
        aws_access_key_id=found.credentials.access_key,
        aws_secret_access_key=found.credentials.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def client(found: Endpoint | None = None) -> Any:
    """A plain boto3 client, to look at and change what the store keeps."""
    return _client(found or endpoint())


def location(prefix: str | None = None, *, url: str | None = None) -> S3Location:
    """A fresh place on the endpoint."""
    return S3Location.parse(f"s3://{BUCKET}/{prefix or uuid.uuid4().hex}?endpoint={url or endpoint().url}")


def make_store(
    folder: Path, prefix: str | None = None, *, url: str | None = None, cache_bytes: int = 1 << 30, init: bool = True
) -> S3Store:
    """A store under a fresh prefix with its cache in `folder`."""
    where = location(prefix, url=url)
    store = S3Store(where, endpoint().credentials, folder / "cache", cache_bytes=cache_bytes)
    return store.init() if init else store


def overwrite(store: S3Store, area: ObjectArea, digest: Any, data: bytes) -> None:
    """Put other bytes under an object's name, as somebody with another program would."""
    key = store.location.key(Layout(Path()).object(area, digest).as_posix())
    client().put_object(Bucket=BUCKET, Key=key, Body=data)


def overwrite_journal(store: S3Store, seq: int, data: bytes) -> None:
    """Put other bytes under a journal entry's name."""
    client().put_object(Bucket=BUCKET, Key=store.location.key(f"journal/{seq}"), Body=data)
