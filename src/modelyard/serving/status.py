"""What a running server says of itself, for `yard ps`. Knows an address, and nothing of yards."""

from __future__ import annotations

from typing import Any

__all__ = ["read_status"]


def read_status(address: str, token: str | None = None, seconds: float = 1.0) -> list[dict[str, Any]] | None:
    """The deployments of the server at `address`, as its `/ready` describes them now.

    Each has `reference`, `ref`, `version`, `state`, `pid`, `memory_bytes`, `in_flight`, `queued`, `restarts`, `since`,
    `moving_to` and `error`. The list is empty when the server tells strangers nothing and `token` is not its token.

    Returns:
        None when nobody answers at `address` within `seconds`.
    """
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        answer = httpx.get(f"{address}/ready", headers=headers, timeout=seconds, trust_env=False)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    found = body.get("deployments", []) if isinstance(body, dict) else []
    return [item for item in found if isinstance(item, dict)]
