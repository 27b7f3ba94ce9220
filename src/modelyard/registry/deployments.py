"""Deployments: what servers keep loaded, for `yard ps` and for deletion to respect. Knows no engine and no socket."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from modelyard.catalog import deployments, removal, versions
from modelyard.catalog.transaction import dump
from modelyard.digest import Digest
from modelyard.errors import InputError, NotFoundError
from modelyard.registry.leases import is_alive, owner
from modelyard.registry.model import Deployment, Version, moment
from modelyard.registry.resolve import record_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.catalog.deployments import DeploymentRecord
    from modelyard.registry.context import Context

__all__ = ["beat", "drop", "listing", "record"]


def record(
    context: Context,
    reference: str,
    version: str | Version,
    *,
    address: str,
    info: Mapping[str, Any] | None,
    deployment_id: str | None,
) -> Deployment:
    """Record a deployment, or what it serves from now on; see `Yard.record_deployment`."""
    identity = deployment_id or uuid.uuid4().hex[:12]
    try:
        text = dump(dict(info or {}))
    except (TypeError, ValueError) as error:
        raise InputError(f"a deployment keeps plain JSON values only: {error}") from error
    with context.change() as tx:
        served = record_of(tx.connection, version)
        before = deployments.find(tx.connection, identity)
        if before is not None:
            removal.release(tx, [before.version_seq])
        deployments.save(
            tx, identity, reference=reference, version_seq=served.seq, owner=owner(), address=address, info=text
        )
        tx.record(
            "deploy",
            repo=served.repo.key,
            version=served.id,
            previous=before.version_id if before else None,
            detail={"deployment": identity, "reference": reference, "address": address},
        )
        found = deployments.find(tx.connection, identity)
    if found is None:
        raise NotFoundError(f"deployment `{identity}` was dropped meanwhile")
    return _deployment(found)


def beat(context: Context, deployment_id: str) -> None:
    """Say that a deployment lives; see `Yard.beat_deployment`."""
    with context.change() as tx:
        if not deployments.beat(tx, deployment_id):
            raise NotFoundError(f"there is no deployment `{deployment_id}`", hint="yard ps")


def drop(context: Context, deployment_id: str) -> bool:
    """Forget a deployment; see `Yard.drop_deployment`."""
    with context.change() as tx:
        found = deployments.find(tx.connection, deployment_id)
        if found is None:
            return False
        deployments.remove(tx, deployment_id)
        # The deployment may have been all that kept a deleted version.
        removal.release(tx, [found.version_seq])
        served = versions.load(tx.connection, [found.version_seq])[0]
        detail = {"deployment": deployment_id, "reference": found.reference}
        tx.record("undeploy", repo=served.repo.key, previous=served.id, detail=detail)
    return True


def listing(context: Context) -> list[Deployment]:
    """Every deployment; see `Yard.deployments`."""
    with context.catalog.read() as connection:
        return [_deployment(found) for found in deployments.listing(connection)]


def _deployment(found: DeploymentRecord) -> Deployment:
    return Deployment(
        id=found.id,
        reference=found.reference,
        version=Digest(found.version_id),
        version_name=found.version_name,
        address=found.address,
        owner=found.owner,
        info=json.loads(found.info),
        started_at=moment(found.started_at),
        heartbeat_at=moment(found.heartbeat_at),
        alive=is_alive(found.owner),
    )
