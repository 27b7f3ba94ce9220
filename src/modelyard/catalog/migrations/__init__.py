"""Alembic's folder: the catalog's revisions, oldest first. `modelyard.catalog.revision` runs them."""
