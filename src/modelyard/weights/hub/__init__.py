"""A hub's files: which repo a source names, its files in the cache that every tool shares, or read in place by ranges."""

from modelyard.weights.hub.repos import (
    HubSource,
    Token,
    fetch,
    is_hub_id,
    named_base,
    open_folder,
    open_remote,
    parse,
)

__all__ = ["HubSource", "Token", "fetch", "is_hub_id", "named_base", "open_folder", "open_remote", "parse"]
