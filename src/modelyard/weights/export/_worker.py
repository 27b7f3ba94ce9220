"""The process of one export: `python -P -m modelyard.weights.export._worker`, a job in, events out.

The job is one line of JSON on standard input, which stays open: when it ends, so does this process, whatever it is doing. Events are lines of
JSON on standard output; what libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import warnings
from typing import Any

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000


def main() -> int:
    """Do the job that standard input names; 0 when it was done, 1 when the last event is an error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _prepare(job["threads"])

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    from modelyard.errors import YardError
    from modelyard.weights.export.steps import Job, run_job

    try:
        tell({"result": run_job(Job(**job), tell)})
    except YardError as error:
        tell(
            {"error": {"message": error.message, "hint": error.hint, "code": error.code, "kind": type(error).__name__}}
        )
        return 1
    except Exception as error:  # noqa: BLE001  the parent raises it as its own
        from modelyard.weights.export.tracing import explain

        tell({"error": {"message": explain(error), "hint": None, "code": "not_exportable", "kind": "ModelError"}})
        return 1
    return 0


def _prepare(threads: int) -> None:
    """Threads, quiet, and no network: an export reads files that are here."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is not None and unshare(_NEW_NET) != 0:
        unshare(_NEW_USER | _NEW_NET)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # exporters warn of their own deprecated calls at every graph


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # with what it started


def _end(code: int) -> None:
    """Without the seconds that torch takes to tidy up."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
