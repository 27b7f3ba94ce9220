"""The tables, and nothing else: what the catalog remembers and how its rows hang together.

Text compares bytewise on both databases, numbers come from counter rows (`counters`, `repos.last_number`), and every
table that needs an order carries a `seq` from the catalog's own sequence; no clock decides anything. This module does
not know what a tensor, a manifest's bytes or a folder is.
"""

from __future__ import annotations

from sqlalchemy import (
    TEXT,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
)

__all__ = ["TEXT_C", "metadata"]

# PostgreSQL would otherwise sort and compare by the locale of the cluster; SQLite's default is bytewise already.
TEXT_C = String().with_variant(TEXT(collation="C"), "postgresql")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

counters = Table(
    "counters",
    metadata,
    Column("name", TEXT_C, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

repos = Table(
    "repos",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("type", TEXT_C, nullable=False),
    Column("name", TEXT_C, nullable=False),
    Column("last_number", BigInteger, nullable=False),
    Column("created_at", TEXT_C, nullable=False),
    UniqueConstraint("type", "name"),
    CheckConstraint("type IN ('model', 'dataset')", name="type"),
)

versions = Table(
    "versions",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("repo_id", BigInteger, ForeignKey("repos.id"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("id", TEXT_C, nullable=False),
    Column("kind", TEXT_C),
    Column("parent", TEXT_C),
    Column("inputs", TEXT_C),
    Column("created_at", TEXT_C, nullable=False),
    Column("author", TEXT_C, nullable=False),
    Column("message", TEXT_C, nullable=False),
    Column("metadata", TEXT_C, nullable=False),
    Column("size", BigInteger, nullable=False),
    # 0: no; 1: yes, and it can come back; 2: its bytes were collected.
    Column("deleted", Integer, nullable=False),
    Column("derivation", TEXT_C),
    # Covers the sums of a listing of repos.
    Index(None, "repo_id", "deleted", "number", "size", "created_at"),
    UniqueConstraint("repo_id", "number"),
    UniqueConstraint("repo_id", "id"),
    Index(None, "id"),
)

version_files = Table(
    "version_files",
    metadata,
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("path", TEXT_C, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("blake3", TEXT_C, nullable=False),
    Column("sha256", TEXT_C, nullable=False),
    Column("git_blob", TEXT_C),
    PrimaryKeyConstraint("version_seq", "position"),
    Index(None, "blake3"),
)

lineage = Table(
    "lineage",
    metadata,
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("type", TEXT_C, nullable=False),
    Column("target", TEXT_C, nullable=False),
    PrimaryKeyConstraint("version_seq", "position"),
    Index(None, "target"),
)

version_metadata = Table(
    "version_metadata",
    metadata,
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    Column("key", TEXT_C, nullable=False),
    Column("value", TEXT_C, nullable=False),
    PrimaryKeyConstraint("version_seq", "key"),
    Index(None, "key", "value"),
)

files = Table(
    "files",
    metadata,
    Column("digest", TEXT_C, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", TEXT_C, nullable=False),
    Column("git_blob", TEXT_C),
    Column("cut", TEXT_C),
    Column("whole", Integer, nullable=False),
    Column("used_at", TEXT_C),
    # How many elements of its tensors are NaN or infinite; NULL until somebody looked.
    Column("nonfinite", BigInteger),
)

segments = Table(
    "segments",
    metadata,
    Column("digest", TEXT_C, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("encoding", TEXT_C),
    Column("pack", TEXT_C),
    Column("offset", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("params", TEXT_C, nullable=False),
    Column("depth", Integer, nullable=False),
    Index(None, "pack"),
    CheckConstraint("encoding IN ('raw', 'packed', 'delta', 'derived')", name="encoding"),
)

file_segments = Table(
    "file_segments",
    metadata,
    Column("file", TEXT_C, ForeignKey("files.digest"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("segment", TEXT_C, ForeignKey("segments.digest"), nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    PrimaryKeyConstraint("file", "position"),
    Index(None, "segment"),
)

segment_inputs = Table(
    "segment_inputs",
    metadata,
    Column("segment", TEXT_C, ForeignKey("segments.digest"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("input", TEXT_C, ForeignKey("segments.digest"), nullable=False),
    PrimaryKeyConstraint("segment", "position"),
    Index(None, "input"),
)

packs = Table(
    "packs",
    metadata,
    Column("digest", TEXT_C, primary_key=True),
    Column("size", BigInteger, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("area", TEXT_C, nullable=False),
    Column("name", TEXT_C, nullable=False),
    Column("marked_seq", BigInteger, nullable=False),
    Column("marked_at", TEXT_C, nullable=False),
    PrimaryKeyConstraint("area", "name"),
)

refs = Table(
    "refs",
    metadata,
    Column("repo_id", BigInteger, ForeignKey("repos.id"), nullable=False),
    Column("name", TEXT_C, nullable=False),
    Column("type", TEXT_C, nullable=False),
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    PrimaryKeyConstraint("repo_id", "name"),
    Index(None, "version_seq"),
    CheckConstraint("type IN ('branch', 'tag', 'alias')", name="type"),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("repo_id", BigInteger, ForeignKey("repos.id"), nullable=False),
    Column("alias", TEXT_C, nullable=False),
    Column("position", Integer, nullable=False),
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    PrimaryKeyConstraint("repo_id", "alias", "position"),
    Index(None, "version_seq"),
)

gates = Table(
    "gates",
    metadata,
    Column("repo_id", BigInteger, ForeignKey("repos.id"), nullable=False),
    Column("alias", TEXT_C, nullable=False),
    Column("gate", TEXT_C, nullable=False),
    PrimaryKeyConstraint("repo_id", "alias"),
)

reports = Table(
    "reports",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    Column("digest", TEXT_C, nullable=False),
    Column("dataset", TEXT_C),
    Column("task", TEXT_C, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("metrics", TEXT_C, nullable=False),
    Column("created_at", TEXT_C, nullable=False),
    UniqueConstraint("version_seq", "digest"),
    Index(None, "digest"),
)

runs = Table(
    "runs",
    metadata,
    Column("key", TEXT_C, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("step", TEXT_C, nullable=False),
    Column("state", TEXT_C, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("owner", TEXT_C, nullable=False),
    Column("inputs", TEXT_C, nullable=False),
    Column("outputs", TEXT_C, nullable=False),
    Column("error", TEXT_C),
    Column("started_at", TEXT_C, nullable=False),
    Column("finished_at", TEXT_C),
    CheckConstraint("state IN ('running', 'finished', 'failed')", name="state"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", TEXT_C, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("reference", TEXT_C, nullable=False),
    Column("version_seq", BigInteger, ForeignKey("versions.seq"), nullable=False),
    Column("owner", TEXT_C, nullable=False),
    Column("address", TEXT_C, nullable=False),
    Column("info", TEXT_C, nullable=False),
    Column("started_at", TEXT_C, nullable=False),
    Column("heartbeat_at", TEXT_C, nullable=False),
    Index(None, "version_seq"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", TEXT_C, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("purpose", TEXT_C, nullable=False),
    Column("owner", TEXT_C, nullable=False),
    Column("heartbeat_seq", BigInteger, nullable=False),
    Column("acquired_at", TEXT_C, nullable=False),
    Column("observed_seq", BigInteger),
    Column("observed_at", TEXT_C),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", TEXT_C, nullable=False),
    Column("author", TEXT_C, nullable=False),
    Column("action", TEXT_C, nullable=False),
    Column("repo_id", BigInteger, ForeignKey("repos.id")),
    Column("ref", TEXT_C),
    Column("version_id", TEXT_C),
    Column("previous_id", TEXT_C),
    Column("detail", TEXT_C, nullable=False),
    Index(None, "repo_id", "seq"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", BigInteger, ForeignKey("audit.seq"), primary_key=True, autoincrement=False),
    Column("entry", TEXT_C, nullable=False),
)
