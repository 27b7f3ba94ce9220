"""The catalog: repos, versions, refs, lineage, reports, runs, deployments, leases and the audit log, in SQL.

SQLite by default, PostgreSQL by URL. Modules are nouns and their functions work inside a transaction::

    with catalog.write(author="ana", at=clock()) as tx:
        repo = repos.ensure(tx, "model", "team/intents")

Knows no tensors, no bytes and no folders; the registry puts it together with a store.
"""

from modelyard.catalog.catalog import Catalog
from modelyard.catalog.transaction import Entry, Transaction

__all__ = ["Catalog", "Entry", "Transaction"]
