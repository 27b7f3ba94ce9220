"""MLflow as a peer of `benchmarks/store.py`: its environment, its server, and its calls in processes of their own.

It is installed into a virtual environment under `build/benchmarks`, once. Knows nothing of this project.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import Call, call

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mlflow", "mlflow_home", "mlflow_server"]

_BUILD = Path(__file__).parents[1] / "build" / "benchmarks"
_CALLS = str(Path(__file__).with_name("store_calls.py"))
_MLFLOW = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def mlflow(*arguments: object) -> Call:
    """One of MLflow's calls, with its interpreter."""
    home = mlflow_home()
    return call([str(home / "bin" / "python"), _CALLS, *map(str, arguments)], **_MLFLOW)


def mlflow_home() -> Path:
    """The virtual environment of MLflow, made when it is not there or has no server."""
    home = _BUILD / "mlflow"
    if not (home / "bin" / "uvicorn").exists():
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", "mlflow"], check=True, capture_output=True)
    return home


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """MLflow's server on a free port of the loopback interface, which keeps artifacts in `folder`; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    command = [
        str(mlflow_home() / "bin" / "mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--serve-artifacts",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'runs.db'}",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "log").open("wb") as log:
        # A session of its own, so that its workers end with it.
        server = subprocess.Popen(
            command, env=os.environ | _MLFLOW, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _await(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    # An address of this machine: no proxy that the environment names is asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        try:
            with opener.open(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(0.5)
    raise SystemExit(f"MLflow's server did not start:\n{log.read_text('utf-8', 'replace')[-4000:]}")
