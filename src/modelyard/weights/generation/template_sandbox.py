"""The jinja2 environment in which chat templates run: what they may call, and how large what they make may be.

Every operation that makes something larger than what it is given is weighed before it is done. Knows jinja2; knows no
conversations and no clock (`templates`).
"""

from __future__ import annotations

import functools
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

from modelyard.weights.generation.templates import limit_passed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["make_environment"]

_LEFT_OUT = ("urlize", "wordwrap", "xmlattr", "striptags", "pprint", "random", "wordcount", "filesizeformat")
_MOST_BITS = 4096
_NUMBER = re.compile(r"\d+")


class _Generation(jinja2.ext.Extension):
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


class _Namespace(jinja2.utils.Namespace):
    """jinja2's, without names that begin with an underscore."""

    def __init__(*args: Any, **given: Any) -> None:
        self, *rest = args
        found = dict(*rest, **given)
        for name in found:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict` without its class, which would lead out of the sandbox."""

    def __call__(self, *args: Any, **given: Any) -> dict[Any, Any]:
        return dict(*args, **given)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Generator(jinja2.compiler.CodeGenerator):
    """Code in which `~`, lists, tuples and dicts are weighed, too."""

    def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802  # jinja2's name
        """`a ~ b ~ c`."""
        self.write("environment.join_texts((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: Any, frame: Any) -> None:  # noqa: N802
        """`[a, b]`."""
        self._weighed(super().visit_List, node, frame)

    def visit_Dict(self, node: Any, frame: Any) -> None:  # noqa: N802
        """`{a: b}`."""
        self._weighed(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: Any, frame: Any) -> None:  # noqa: N802
        """`(a, b)`; a tuple of targets (`for a, b in ...`) holds nothing."""
        if node.ctx == "load":
            self._weighed(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _weighed(self, visit: Callable[[Any, Any], None], node: Any, frame: Any) -> None:
        self.write("environment.weighed(")
        visit(node, frame)
        self.write(")")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with a scale in front of whatever makes values larger."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    most = 0

    def weighed(self, value: Any) -> Any:
        """`value`, if it is not too large."""
        weigh(value, self.most)
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """The pieces of a block of text as one."""
        made, total = [], 0
        for piece in pieces:
            total += len(piece)
            self.check(total)
            made.append(piece)
        return "".join(made)

    def join_texts(self, items: Iterable[Any]) -> str:
        """`~`: the items' texts as one."""
        return self.concat(str(self.weighed(item)) for item in items)

    def check(self, size: float) -> None:
        """Refuse what would have more than `most` characters."""
        if size > self.most:
            raise limit_passed(f"makes more than {self.most} characters")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """One of `intercepted_binops`."""
        if operator == "%" and isinstance(left, str | bytes):
            self.check_format(left, (right,))
        elif isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 1)}
            if bits.get(operator, 0) > _MOST_BITS:
                raise limit_passed(f"computes with numbers of more than {_MOST_BITS} bits")
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.check(weigh(value, self.most) * max(int(times), 0))
        elif operator == "+":
            self.check(weigh(left, self.most) + weigh(right, self.most))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **given: Any) -> Any:  # noqa: N805  # as jinja2's
        """Call something from a template."""
        name, text = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if text is None:  # `format` comes wrapped
            text = getattr(getattr(__obj, "__wrapped__", None), "__self__", None)
        if name == "to_bytes":
            raise limit_passed("makes bytes of numbers")
        if name == "join" and isinstance(text, str | bytes) and len(args) == 1:
            args = (list(args[0]),)
        if isinstance(text, str | bytes):
            __self.check_method(text, name, (*args, *given.values()))
        return __self.weighed(super().call(__context, __obj, *args, **given))

    def check_method(self, text: str | bytes, name: str, args: tuple[Any, ...]) -> None:
        """Refuse a method of a text whose result would be too large; also a filter of the same name."""
        numbers = [abs(item) for item in args if isinstance(item, int)]
        texts = [len(item) for item in args if isinstance(item, str | bytes)]
        if name == "join":
            self.check(sum(weigh(item, self.most) for item in args) + len(text) * len(args[0] if args else ()))
        elif name == "replace" and len(texts) >= 2:
            found = _count(text, args[0])
            self.check(len(text) + found * texts[1])
        elif name in ("center", "ljust", "rjust", "zfill"):
            self.check(sum(numbers))
        elif name in ("expandtabs", "indent"):
            lines = text.count("\t") + text.count("\n") + 1 if isinstance(text, str) else len(text)
            self.check(len(text) + lines * (sum(numbers) + sum(texts)))
        elif name in ("format", "format_map"):
            self.check_format(text, args)
        elif name in ("split", "rsplit", "splitlines"):
            parts = _count(text, args[0]) if texts and args[0] else len(text) // 2
            self.check(len(text) + 8 * parts)
        elif name == "translate":
            self.check(len(text) * (1 + sum(weigh(item, self.most) for item in args)))

    def check_format(self, text: str | bytes, args: tuple[Any, ...]) -> None:
        """Refuse a format whose widths, or how often it takes its arguments, make too much."""
        form = text.decode("latin-1") if isinstance(text, bytes) else text
        widths = [int(digits) if len(digits) < 12 else self.most + 1 for digits in _NUMBER.findall(form)]
        given = [abs(item) for value in args for item in _flat(value) if isinstance(item, int)]
        stars = "*" in form or "{" in form.partition("{")[2]
        places = form.count("%") + form.count("{")
        widest = max(widths, default=0) + (max(given, default=0) if stars else 0)
        self.check(len(form) + places * (widest + sum(weigh(value, self.most) for value in args)))


def make_environment(most: int) -> Any:
    """The sandbox with what chat templates may count on.

    Args:
        most: Characters that a value, or all that is rendered, may have.
    """
    # A finalizer that asks for the context is not called while a template is compiled: nothing is computed there.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=jinja2.pass_context(_finalize),
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.most = most
    environment.filters["tojson"] = _to_json
    for name in _LEFT_OUT:
        del environment.filters[name]
    for name, function in list(environment.filters.items()):
        environment.filters[name] = _weighed_filter(environment, name, function)
    del environment.globals["lipsum"]
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace)
    return environment


def _weighed_filter(environment: _Environment, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja2's context or environment comes first

    @functools.wraps(function)
    def weighed(*args: Any, **given: Any) -> Any:
        head, rest = args[:passed], args[passed:]
        value: Any = rest[0] if rest else None
        more = (*rest[1:], *given.values())
        if name == "join" and not isinstance(value, str | list | tuple | dict):
            value = list(() if value is None else value)
        numbers = [abs(item) for item in more if isinstance(item, int)]
        if name == "round" and max(numbers, default=0) > 64:
            raise limit_passed("rounds to more than 64 places")
        if name == "join":
            seam = next((len(item) for item in more if isinstance(item, str)), 0)
            environment.check(weigh(value, environment.most) + seam * len(value))
        elif name in ("batch", "slice"):
            environment.check(8 * sum(numbers))
        elif name == "tojson":
            environment.check(weigh(value, environment.most) * (1 + 4 * sum(numbers)))
        elif isinstance(value, str):
            environment.check_method(value, name, more)
        elif isinstance(value, list | tuple | dict):
            weigh(value, environment.most)
            if name in ("center", "indent", "format", "replace", "string", "escape"):
                environment.check_method(str(value), name, more)
        return environment.weighed(function(*head, value, *rest[1:], **given))

    return weighed


def _count(text: str | bytes, part: Any) -> int:
    """How often `part` stands in `text`, at most."""
    if isinstance(text, str) and isinstance(part, str):
        return text.count(part)
    return text.count(part) if isinstance(text, bytes) and isinstance(part, bytes) else len(text)


def weigh(value: Any, most: int) -> int:
    """About how many characters `value` has when it is written out; containers count with all that they hold.

    What a container holds twice counts twice, as it does in its text.

    Raises:
        ModelError: More than `most`.
    """
    if isinstance(value, str | bytes):
        total = len(value)
    else:
        total, left = 0, [value]
        while left and total <= most:
            item = left.pop()
            total += len(item) if isinstance(item, str | bytes) else 8
            left.extend(_inside(item))
    if total > most:
        raise limit_passed(f"makes more than {most} characters")
    return total


def _inside(item: Any) -> Iterator[Any]:
    if isinstance(item, list | tuple | set | frozenset):
        yield from item
    elif isinstance(item, dict):
        yield from item
        yield from item.values()
    elif isinstance(item, jinja2.utils.Namespace):
        yield from object.__getattribute__(item, "_Namespace__attrs").values()


def _finalize(context: Any, value: Any) -> Any:
    """What is about to be written."""
    return context.environment.weighed(value)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  # the local time, as templates mean it


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name such as {name!r}")


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    else:
        yield value
