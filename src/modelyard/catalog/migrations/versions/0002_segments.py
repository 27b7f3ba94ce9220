"""The second revision: files and segments as rows, how they are held, what a collection marked, metadata to filter by.

Every file that a version has was in the store as a whole until now, so that is how the rows begin. A published revision
never changes, so nothing here refers to `modelyard.catalog.schema`.
"""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")
_BATCH = 5000
_INDEXED = 256


def upgrade() -> None:
    """Apply the revision."""
    _metadata()
    _files()
    _segments()
    _collection()
    op.add_column("versions", sa.Column("derivation", _TEXT, nullable=True))
    op.add_column("leases", sa.Column("observed_seq", sa.BigInteger(), nullable=True))
    op.add_column("leases", sa.Column("observed_at", _TEXT, nullable=True))
    counters = sa.table("counters", sa.column("name", sa.String), sa.column("value", sa.BigInteger))
    op.bulk_insert(counters, [{"name": "collections", "value": 0}])
    op.execute(
        "INSERT INTO files (digest, size, sha256, git_blob, whole) "
        "SELECT blake3, min(size), min(sha256), min(git_blob), 1 FROM version_files GROUP BY blake3"
    )
    _copy_metadata()


def _metadata() -> None:
    op.create_table(
        "version_metadata",
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.Column("key", _TEXT, nullable=False),
        sa.Column("value", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_version_metadata_version_seq")),
        sa.PrimaryKeyConstraint("version_seq", "key", name=op.f("pk_version_metadata")),
    )
    op.create_index(op.f("ix_version_metadata_key_value"), "version_metadata", ["key", "value"], unique=False)


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", _TEXT, nullable=False),
        sa.Column("git_blob", _TEXT, nullable=True),
        sa.Column("cut", _TEXT, nullable=True),
        sa.Column("whole", sa.Integer(), nullable=False),
        sa.Column("used_at", _TEXT, nullable=True),
        sa.Column("nonfinite", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_files")),
    )


def _segments() -> None:
    op.create_table(
        "segments",
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("encoding", _TEXT, nullable=True),
        sa.Column("pack", _TEXT, nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("params", _TEXT, nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.CheckConstraint("encoding IN ('raw', 'packed', 'delta', 'derived')", name=op.f("ck_segments_encoding")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_segments")),
    )
    op.create_index(op.f("ix_segments_pack"), "segments", ["pack"], unique=False)
    op.create_table(
        "file_segments",
        sa.Column("file", _TEXT, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("segment", _TEXT, nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["file"], ["files.digest"], name=op.f("fk_file_segments_file")),
        sa.ForeignKeyConstraint(["segment"], ["segments.digest"], name=op.f("fk_file_segments_segment")),
        sa.PrimaryKeyConstraint("file", "position", name=op.f("pk_file_segments")),
    )
    op.create_index(op.f("ix_file_segments_segment"), "file_segments", ["segment"], unique=False)
    op.create_table(
        "segment_inputs",
        sa.Column("segment", _TEXT, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("input", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["segment"], ["segments.digest"], name=op.f("fk_segment_inputs_segment")),
        sa.ForeignKeyConstraint(["input"], ["segments.digest"], name=op.f("fk_segment_inputs_input")),
        sa.PrimaryKeyConstraint("segment", "position", name=op.f("pk_segment_inputs")),
    )
    op.create_index(op.f("ix_segment_inputs_input"), "segment_inputs", ["input"], unique=False)


def _collection() -> None:
    op.create_table(
        "packs",
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_packs")),
    )
    op.create_table(
        "candidates",
        sa.Column("area", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("marked_seq", sa.BigInteger(), nullable=False),
        sa.Column("marked_at", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("area", "name", name=op.f("pk_candidates")),
    )


def _copy_metadata() -> None:
    connection = op.get_bind()
    versions = sa.table("versions", sa.column("seq", sa.BigInteger), sa.column("metadata", sa.String))
    target = sa.table("version_metadata", sa.column("version_seq"), sa.column("key"), sa.column("value"))
    last = 0
    while True:
        # Pages by key: a database cannot be read through one cursor while another one writes on the same connection.
        query = sa.select(versions.c.seq, versions.c.metadata).where(versions.c.seq > last)
        page = connection.execute(query.order_by(versions.c.seq).limit(_BATCH)).all()
        if not page:
            return
        last = page[-1].seq
        rows = [
            {"version_seq": row.seq, "key": _indexed(key), "value": _indexed(value)}
            for row in page
            for key, value in json.loads(row.metadata).items()
        ]
        if rows:
            connection.execute(sa.insert(target), rows)


def _indexed(text: str) -> str:
    return text if len(text) <= _INDEXED else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
