"""What tests marked `services` stand on: the PostgreSQL that `make services` started.

Without it such a test is skipped with the reason; with `YARD_REQUIRE_SERVICES=1`, as in CI, it fails instead.
"""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fresh_postgres", "postgres_url"]

ENV = Path(__file__).parent.parent / ".services" / "env"


def postgres_url() -> str:
    """URL of the test database; skips or fails the calling test when there is none."""
    if ENV.exists():
        for line in ENV.read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == "YARD_TEST_POSTGRES_URL":
                return value
    reason = "PostgreSQL is not running (make services)"
    if os.environ.get("YARD_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def fresh_postgres() -> Iterator[str]:
    """URL of an empty schema for one test; it is dropped at the end."""
    url = make_url(postgres_url())
    schema = f"yard_{uuid.uuid4().hex[:12]}"
    engine = create_engine(url.set(drivername="postgresql+psycopg"))
    try:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        own = url.update_query_dict({"options": f"-csearch_path={schema}"})
        yield own.render_as_string(hide_password=False)
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    finally:
        engine.dispose()
