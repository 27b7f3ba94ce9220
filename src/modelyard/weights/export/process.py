"""An export in a process of its own: starting `_worker`, following its events, ending it whatever happens here.

What it uses comes back to the system with its end, and what the exporters patch never reaches this process. Knows the worker's
lines; knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelyard.weights.export.steps import Job

__all__ = ["run_in_process"]

_WORKER = "modelyard.weights.export._worker"


def run_in_process(job: Job, heard: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do `job` in a fresh process, to its end.

    Args:
        job: What to do.
        heard: Called with each event as it comes.

    Returns:
        What `steps.run_job` gave.

    Raises:
        ModelError: What went wrong there; `export_failed`: the process ended without saying (out of memory, killed).
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            result = _follow(process, job, heard)
            if result is not None:
                process.wait()
                return result
            raise ModelError(
                f"the export of `{job.source}` ended without a result{_how(process.wait(), stderr)}",
                code="export_failed",
                hint="it may need more memory than there is: about five times the float32 weights",
            )
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _follow(
    process: subprocess.Popen[bytes], job: Job, heard: Callable[[dict[str, Any]], None]
) -> dict[str, Any] | None:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise AssertionError("both are pipes")
    try:
        stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        stdin.flush()
    except BrokenPipeError:
        return None  # it died at once: its standard error says of what
    for line in stdout:
        event: dict[str, Any] = json.loads(line)
        if "result" in event:
            result: dict[str, Any] = event["result"]
            return result
        if "error" in event:
            said = event["error"]
            raise ModelError(said["message"], code=said["code"], hint=said["hint"])
        heard(event)
    return None


def _how(code: int, stderr: IO[bytes]) -> str:
    stderr.seek(0, 2)
    stderr.seek(max(stderr.tell() - 2000, 0))
    lines = stderr.read().decode("utf-8", "replace").strip().splitlines()
    how = f" (signal {-code})" if code < 0 else ""
    return how + (f": {show_name(lines[-1])}" if lines else "")
