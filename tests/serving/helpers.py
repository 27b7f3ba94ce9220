"""What the serving tests share: the fake worker's options, models that it takes, and questions to a server."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from modelyard.catalog import Catalog
from modelyard.registry import Version, Yard
from modelyard.serving import Server, WorkerOptions
from modelyard.store import LocalStore

FAKE = WorkerOptions(
    command=(sys.executable, str(Path(__file__).parent / "fake_worker.py")),
    queue=4,
    restart_delay=0.05,
    ping_interval=0.2,
    drain_timeout=10,
)

CommitWord = Callable[..., Version]
Serve = Callable[..., Server]


def write_model(folder: Path, word: str) -> Path:
    """The smallest folder that the registry takes for a complete model, with the fake worker's word beside it."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    head += b" " * (-len(head) % 8)
    data = struct.pack("<f", float(sum(word.encode())))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    (folder / "word.txt").write_text(word, "utf-8")
    return folder


def open_yard(folder: Path) -> Yard:
    """The yard in a folder, its catalog not yet looked at."""
    store = LocalStore(folder).open()
    return Yard(store, Catalog(f"sqlite:///{folder / 'catalog.db'}"), links=folder / "links")


def wait_until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until `what` is true; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def get(server: Server, path: str, **options: Any) -> httpx.Response:
    """GET a path; without loading certificates, which takes httpx longer than the request."""
    return httpx.get(f"{server.url}{path}", verify=False, timeout=10, **options)


def deployment_of(server: Server) -> dict[str, Any]:
    """The state of the first deployment, as `/ready` shows it."""
    state: dict[str, Any] = get(server, "/ready").json()["deployments"][0]
    return state


def ask(server: Server, prompt: str = "hello there", **fields: Any) -> httpx.Response:
    """One chat request; `fields` are added to its body."""
    body = {"model": "team/bot", "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20, verify=False)
