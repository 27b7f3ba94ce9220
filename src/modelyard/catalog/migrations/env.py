"""What Alembic runs: the revisions, on the connection (and in the transaction) that it was given.

It knows no URL and reads no configuration file: `modelyard.catalog.revision` hands the connection over.
"""

from __future__ import annotations

from alembic import context

from modelyard.catalog.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
