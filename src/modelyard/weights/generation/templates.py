"""Chat templates, rendered within bounds: processor time, sizes, and nothing outside the sandbox.

A template is code that came with the weights, and it runs wherever a conversation is rendered, a server included. It is
rendered here in jinja2's sandbox, in the same thread and process, so that the normal case costs no process. Time is looked at
by a trace function between the lines of the template; what one operation makes (`'a' * 10**9`, `'%1000000000d'`, `**`,
padding, replacing, joining) is weighed before it is made, and nothing is computed while the template is compiled.

What a template may count on is what transformers gives it: `raise_exception`, `strftime_now`, `tojson`, `namespace`, `dict`,
the tags `generation`, `break` and `continue`. Filters that no conversation needs (`urlize`, `wordwrap`, ...) are left out.
Knows templates and plain values; knows no tokenizer and no model.

>>> render("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", {"messages": [{"role": "user", "content": "hi"}]})
'[user]hi'
"""

from __future__ import annotations

import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOST_CHARACTERS", "MOST_SECONDS", "literal_text", "render"]

MOST_SECONDS = 1.0
"""The most processor time of one rendering."""

MOST_CHARACTERS = 8 << 20
"""The most characters of one value, and of everything that is rendered."""

_MOST_SOURCE = 4 << 20
_LINES = 16  # of the template, between two looks at the clock


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of `variables` (plain values).

    Raises:
        ModelError: It takes more than `MOST_SECONDS` of processor time, makes more than `MOST_CHARACTERS`, or is larger
            than 4 MB (code `template_limit`).
        jinja2.exceptions.TemplateError: As the template, or its syntax, raises it.
    """
    template = _compiled(source)
    with _Clock():
        return str(template.render(**variables))


@lru_cache(maxsize=64)
def literal_text(source: str) -> str:
    """All text that is written out in a template, its string constants included, with NUL between the pieces."""
    from jinja2 import nodes

    tree = _compiled(source).environment.parse(source)
    found = {node.data for node in tree.find_all(nodes.TemplateData)}
    found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(found))


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    from modelyard.weights.generation.template_sandbox import make_environment

    if len(source) > _MOST_SOURCE:
        raise limit_passed(f"is larger than {_MOST_SOURCE} characters")
    return make_environment(MOST_CHARACTERS).from_string(source)


def limit_passed(what: str) -> ModelError:
    """The error of a template that asks for too much."""
    return ModelError(
        f"the chat template {what}",
        hint="the template is at fault: `yard doctor` examines it",
        code="template_limit",
    )


class _Clock:
    """Ends a rendering in this thread that takes too much processor time; other threads are not looked at.

    A trace function is called before each line of the template, so a loop ends wherever it stands. One that a debugger or
    a coverage tool had set is put back afterwards.
    """

    def __enter__(self) -> None:
        self._until = time.thread_time() + MOST_SECONDS
        self._lines = 0
        self._before = sys.gettrace()
        sys.settrace(self._look)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _look(self, frame: Any, _event: str, _value: Any) -> Any:
        self._lines += 1
        if self._lines % _LINES == 0 and time.thread_time() > self._until:
            raise limit_passed(f"takes more than {MOST_SECONDS:g} s of processor time")
        # Frames of the template are followed line by line, those that it calls are only counted.
        return self._look if frame.f_code.co_filename == "<template>" else None
