"""The inference server: OpenAI's API over one worker process per loaded version.

The router (`router`, `guard`, `inference`) owns HTTP, limits, queues and metrics and never imports torch; `deployments`
follows aliases; `replicas` and `process` keep workers running; `worker` is the other end. Start it with `serve`, or
with `Server` from a test or a script.
"""

import logging

from modelyard.serving.guard import Limits
from modelyard.serving.replicas import WorkerOptions
from modelyard.serving.server import Server, serve
from modelyard.serving.status import read_status

__all__ = ["Limits", "Server", "WorkerOptions", "read_status", "serve"]

# Silent until the application configures logging; uvicorn's warnings about malformed requests too.
for _name in (__name__, "uvicorn"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
