"""Deployments as rows: what a server keeps loaded, where it answers and when it last said so. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, insert, select, update

from modelyard.catalog.schema import deployments, repos, versions

if TYPE_CHECKING:
    from modelyard.catalog.transaction import Transaction

__all__ = ["DeploymentRecord", "beat", "find", "listing", "of_version", "remove", "save"]


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """A deployment; `info` is JSON text."""

    id: str
    reference: str
    version_seq: int
    version_id: str
    version_name: str
    owner: str
    address: str
    info: str
    started_at: str
    heartbeat_at: str


def save(
    tx: Transaction, deployment_id: str, *, reference: str, version_seq: int, owner: str, address: str, info: str
) -> None:
    """Write a deployment over the one of the same id, if there was one."""
    tx.connection.execute(delete(deployments).where(deployments.c.id == deployment_id))
    row = {
        "id": deployment_id,
        "seq": tx.next("deployment"),
        "reference": reference,
        "version_seq": version_seq,
        "owner": owner,
    }
    tx.connection.execute(
        insert(deployments).values(**row, address=address, info=info, started_at=tx.at, heartbeat_at=tx.at)
    )


def beat(tx: Transaction, deployment_id: str) -> bool:
    """Note that the deployment is alive; False when there is none of this id."""
    query = update(deployments).where(deployments.c.id == deployment_id).values(heartbeat_at=tx.at)
    return tx.connection.execute(query).rowcount == 1


def remove(tx: Transaction, deployment_id: str) -> bool:
    """Remove a deployment; False when there is none of this id."""
    return tx.connection.execute(delete(deployments).where(deployments.c.id == deployment_id)).rowcount == 1


def find(connection: Connection, deployment_id: str) -> DeploymentRecord | None:
    """The deployment of this id, or None."""
    return next((record for record in listing(connection) if record.id == deployment_id), None)


def listing(connection: Connection) -> list[DeploymentRecord]:
    """Every deployment, the first recorded first."""
    query = (
        select(deployments, versions.c.id.label("version_id"), versions.c.number, repos.c.name, repos.c.type)
        .join(versions, versions.c.seq == deployments.c.version_seq)
        .join(repos, repos.c.id == versions.c.repo_id)
        .order_by(deployments.c.seq)
    )
    return [
        DeploymentRecord(
            row.id,
            row.reference,
            row.version_seq,
            row.version_id,
            f"{'datasets/' if row.type == 'dataset' else ''}{row.name}@v{row.number}",
            row.owner,
            row.address,
            row.info,
            row.started_at,
            row.heartbeat_at,
        )
        for row in connection.execute(query)
    ]


def of_version(connection: Connection, version_seq: int) -> list[str]:
    """The ids of the deployments that keep this version loaded."""
    query = select(deployments.c.id).where(deployments.c.version_seq == version_seq)
    return sorted(connection.execute(query).scalars())
