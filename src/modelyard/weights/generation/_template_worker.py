"""Renders one chat template in a process of its own, limited in time, memory and output.

Started by `weights.doctor.templates` as `python -I _template_worker.py` and not imported by it. Reads one JSON object from stdin:
`template`, `conversations` (lists of messages, tried in order), `variables`, and the limits `seconds` (of processor time), `memory` and
`output` (bytes). Writes one JSON object to stdout: `text`, or `error` (the exception's kind) and `message`. A template that
passes a limit of the kernel ends the process, which is the answer.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.sandbox

if TYPE_CHECKING:
    from collections.abc import Callable


class Generation(jinja2.ext.Extension):
    """The tag with which templates mark what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        """The block as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("say"), [], [], body).set_lineno(line)

    def say(self, caller: Callable[[], str]) -> str:
        """What is inside."""
        return caller()


def main() -> int:
    """Answer one request; 0 also when the answer is an error."""
    request = json.load(sys.stdin)
    limit(request["seconds"], request["memory"])
    answer: dict[str, Any] = {}
    try:
        environment = make_environment()
        refuse_internals(environment.parse(request["template"]))
        template = environment.from_string(request["template"])
        for messages in request["conversations"]:
            answer = render(template, messages, request)
            if "text" in answer:
                break
    except Exception as error:  # noqa: BLE001  # a stranger's template may raise anything: the parent tells the kinds apart
        answer = describe(error)
    json.dump(answer, sys.stdout)
    return 0


def limit(seconds: float, memory: int) -> None:
    """Bound this process from here on; what it used before is not counted."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    # The default action ends the process even inside one long operation of C, where no Python handler would run.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def make_environment() -> Any:
    """The sandbox with what chat templates may count on."""

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def refuse_internals(tree: Any) -> None:
    """Refuse names such as `__globals__`, which the sandbox makes empty: no template has a use for one but to break out."""
    nodes = jinja2.nodes
    used = [node.attr for node in tree.find_all(nodes.Getattr)]
    used += [node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)]
    used += [
        part.value for node in tree.find_all(nodes.Filter) if node.name == "attr" for part in node.find_all(nodes.Const)
    ]
    inner = next(
        (name for name in used if isinstance(name, str) and name.startswith("__") and name.endswith("__")), None
    )
    if inner is not None:
        raise jinja2.exceptions.SecurityError(f"it reaches for `{inner}`")


def render(template: Any, messages: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The text of one conversation, cut off where it grows beyond the limit."""
    made, size = [], 0
    try:
        given = {"messages": messages, "add_generation_prompt": False, "tools": None, "documents": None}
        for block in template.generate(**given, **request["variables"]):
            size += len(block.encode("utf-8", "surrogatepass"))
            if size > request["output"]:
                return {"error": "OutputLimit", "message": f"it makes more than {request['output']} bytes"}
            made.append(block)
    except Exception as error:  # noqa: BLE001  # as above
        return describe(error)
    return {"text": "".join(made)}


def describe(error: Exception) -> dict[str, str]:
    """An exception as plain words."""
    return {"error": type(error).__name__, "message": str(error)[:500]}


if __name__ == "__main__":
    sys.exit(main())
