"""The first revision: every table.

A published revision never changes, so nothing here refers to `modelyard.catalog.schema`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")
_COUNTERS = ("seq", "repo", "version", "report", "run", "deployment", "lease")


def upgrade() -> None:
    """Apply the revision."""
    _repos()
    _contents()
    _refs()
    _reports()
    _work()
    _history()
    counters = sa.table("counters", sa.column("name", sa.String), sa.column("value", sa.BigInteger))
    op.bulk_insert(counters, [{"name": name, "value": 0} for name in _COUNTERS])


def _repos() -> None:
    op.create_table(
        "counters",
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "repos",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("type", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TEXT, nullable=False),
        sa.CheckConstraint("type IN ('model', 'dataset')", name=op.f("ck_repos_type")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repos")),
        sa.UniqueConstraint("type", "name", name=op.f("uq_repos_type_name")),
    )
    op.create_table(
        "versions",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("kind", _TEXT, nullable=True),
        sa.Column("parent", _TEXT, nullable=True),
        sa.Column("inputs", _TEXT, nullable=True),
        sa.Column("created_at", _TEXT, nullable=False),
        sa.Column("author", _TEXT, nullable=False),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("metadata", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repos.id"], name=op.f("fk_versions_repo_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_versions")),
        sa.UniqueConstraint("repo_id", "id", name=op.f("uq_versions_repo_id_id")),
        sa.UniqueConstraint("repo_id", "number", name=op.f("uq_versions_repo_id_number")),
    )
    op.create_index(op.f("ix_versions_id"), "versions", ["id"], unique=False)
    op.create_index(
        op.f("ix_versions_repo_id_deleted_number_size_created_at"),
        "versions",
        ["repo_id", "deleted", "number", "size", "created_at"],
        unique=False,
    )


def _contents() -> None:
    op.create_table(
        "version_files",
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("path", _TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("blake3", _TEXT, nullable=False),
        sa.Column("sha256", _TEXT, nullable=False),
        sa.Column("git_blob", _TEXT, nullable=True),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_version_files_version_seq")),
        sa.PrimaryKeyConstraint("version_seq", "position", name=op.f("pk_version_files")),
    )
    op.create_index(op.f("ix_version_files_blake3"), "version_files", ["blake3"], unique=False)
    op.create_table(
        "lineage",
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("type", _TEXT, nullable=False),
        sa.Column("target", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_lineage_version_seq")),
        sa.PrimaryKeyConstraint("version_seq", "position", name=op.f("pk_lineage")),
    )
    op.create_index(op.f("ix_lineage_target"), "lineage", ["target"], unique=False)


def _refs() -> None:
    op.create_table(
        "refs",
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("type", _TEXT, nullable=False),
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("type IN ('branch', 'tag', 'alias')", name=op.f("ck_refs_type")),
        sa.ForeignKeyConstraint(["repo_id"], ["repos.id"], name=op.f("fk_refs_repo_id")),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_refs_version_seq")),
        sa.PrimaryKeyConstraint("repo_id", "name", name=op.f("pk_refs")),
    )
    op.create_index(op.f("ix_refs_version_seq"), "refs", ["version_seq"], unique=False)
    op.create_table(
        "alias_history",
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("alias", _TEXT, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repos.id"], name=op.f("fk_alias_history_repo_id")),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_alias_history_version_seq")),
        sa.PrimaryKeyConstraint("repo_id", "alias", "position", name=op.f("pk_alias_history")),
    )
    op.create_index(op.f("ix_alias_history_version_seq"), "alias_history", ["version_seq"], unique=False)
    op.create_table(
        "gates",
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("alias", _TEXT, nullable=False),
        sa.Column("gate", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repos.id"], name=op.f("fk_gates_repo_id")),
        sa.PrimaryKeyConstraint("repo_id", "alias", name=op.f("pk_gates")),
    )


def _reports() -> None:
    op.create_table(
        "reports",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("dataset", _TEXT, nullable=True),
        sa.Column("task", _TEXT, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("metrics", _TEXT, nullable=False),
        sa.Column("created_at", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_reports_version_seq")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_reports")),
        sa.UniqueConstraint("version_seq", "digest", name=op.f("uq_reports_version_seq_digest")),
    )
    op.create_index(op.f("ix_reports_digest"), "reports", ["digest"], unique=False)
    op.create_table(
        "runs",
        sa.Column("key", _TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("step", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("inputs", _TEXT, nullable=False),
        sa.Column("outputs", _TEXT, nullable=False),
        sa.Column("error", _TEXT, nullable=True),
        sa.Column("started_at", _TEXT, nullable=False),
        sa.Column("finished_at", _TEXT, nullable=True),
        sa.CheckConstraint("state IN ('running', 'finished', 'failed')", name=op.f("ck_runs_state")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_runs")),
    )


def _work() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("reference", _TEXT, nullable=False),
        sa.Column("version_seq", sa.BigInteger(), nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("address", _TEXT, nullable=False),
        sa.Column("info", _TEXT, nullable=False),
        sa.Column("started_at", _TEXT, nullable=False),
        sa.Column("heartbeat_at", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["version_seq"], ["versions.seq"], name=op.f("fk_deployments_version_seq")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
    )
    op.create_index(op.f("ix_deployments_version_seq"), "deployments", ["version_seq"], unique=False)
    op.create_table(
        "leases",
        sa.Column("id", _TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("purpose", _TEXT, nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("heartbeat_seq", sa.BigInteger(), nullable=False),
        sa.Column("acquired_at", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
    )


def _history() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", _TEXT, nullable=False),
        sa.Column("author", _TEXT, nullable=False),
        sa.Column("action", _TEXT, nullable=False),
        sa.Column("repo_id", sa.BigInteger(), nullable=True),
        sa.Column("ref", _TEXT, nullable=True),
        sa.Column("version_id", _TEXT, nullable=True),
        sa.Column("previous_id", _TEXT, nullable=True),
        sa.Column("detail", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repos.id"], name=op.f("fk_audit_repo_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_repo_id_seq"), "audit", ["repo_id", "seq"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entry", _TEXT, nullable=False),
        sa.ForeignKeyConstraint(["seq"], ["audit.seq"], name=op.f("fk_outbox_seq")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_outbox")),
    )
