"""Certificates: how a version's weights were made and what was measured of them, stored by digest beside its reports.

A certificate holds measurements, so it is no file of the version: the same merge on another machine is the same version. It is
kept as a report whose task is `certificate`, and so it is journalled, packed into bundles, collected and rebuilt as reports are;
it is none for a gate. Knows no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import InputError
from modelyard.registry import reports
from modelyard.registry.resolve import record_of, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelyard.digest import Digest
    from modelyard.registry.context import Context
    from modelyard.registry.model import Version

__all__ = ["FORMAT", "add", "of_version"]

FORMAT = "modelyard/certificate/1"


def add(context: Context, reference: str | Version, certificate: Mapping[str, Any]) -> Digest:
    """Store a certificate and note it beside its version; see `Yard.add_certificate`."""
    if certificate.get("format") != FORMAT:
        raise InputError(f"not a certificate: its format is {str(certificate.get('format'))[:40]!r}, not {FORMAT!r}")
    version = resolve(context, reference)
    return reports.add(
        context,
        version,
        {
            "format": reports.FORMAT,
            "model": str(version.id),
            "task": {"name": reports.CERTIFICATE},
            "metrics": {},
            "n": 0,
            "certificate": dict(certificate),
        },
    )


def of_version(context: Context, reference: str | Version) -> list[dict[str, Any]]:
    """A version's certificates in the order they were made; see `Yard.certificates`."""
    with context.catalog.read() as connection:
        record = record_of(connection, reference)
    return [dict(report["certificate"]) for report in reports.of_record(context, record, certificates=True)]
