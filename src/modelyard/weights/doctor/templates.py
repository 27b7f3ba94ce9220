"""The chat template: is there one, is it the base's, does it render within bounds, and does it ever end an answer.

A template is a program of a stranger. It is rendered in a process of its own (`_template_worker.py`), with `LIMITS`, and never
in this one. Knows text; loads no tokenizer.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import YardError
from modelyard.weights.checks import read_json
from modelyard.weights.doctor.findings import make
from modelyard.weights.files import show_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelyard.weights.doctor.case import Case
    from modelyard.weights.doctor.findings import Finding
    from modelyard.weights.doctor.vocabulary import Vocabulary
    from modelyard.weights.files import Files

__all__ = ["LIMITS", "Rendered", "answer_end", "examine_templates", "find_templates", "render_template"]

LIMITS: Mapping[str, int] = {"seconds": 1, "memory": 512 << 20, "output": 8 << 20}
"""What rendering may take: processor seconds, bytes of address space, bytes of text."""

_WORKER = Path(__file__).parent.parent / "generation" / "_template_worker.py"
_CLOCK = 60.0  # seconds on the clock: a busy machine is no fault of the template
_TEXT_LIMIT = 4 << 20
_MOST = 16  # templates that are rendered, of one checkpoint
_ANSWER = "modelyard answer"
_ROLE_MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "[INST]",
    "<|turn>",
)
_REFUSALS = {"TemplateError"}  # the template's own raise_exception
_UNSAFE = {"SecurityError", "MemoryError", "OutputLimit", "OverflowError", "RecursionError"}


@dataclass(frozen=True)
class Rendered:
    """`text`, or what went wrong: `error` is an exception's kind or a limit, `message` its words."""

    text: str | None
    error: str | None = None
    message: str = ""

    @property
    def unsafe(self) -> bool:
        """Whether it left its bounds."""
        return self.error in _UNSAFE or self.error == "Limit"


def find_templates(files: Files) -> dict[str, tuple[str, str]]:
    """Name of a template (`default` for the usual one) to its file and text, as transformers takes them.

    Raises:
        ModelError: A file is too large or no JSON.
    """
    names = set(files.names())
    found: dict[str, tuple[str, str]] = {}

    def add(value: Any, file: str) -> None:
        if isinstance(value, str) and value:
            found["default"] = (file, value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict) and isinstance(item.get("template"), str):
                    found[str(item.get("name"))] = (file, item["template"])
        elif isinstance(value, dict):
            found.update({str(name): (file, text) for name, text in value.items() if isinstance(text, str)})

    for file in ("tokenizer_config.json", "chat_template.json"):
        if file in names:
            add(read_json(files, file).get("chat_template"), file)
    for name in sorted(names):
        if name == "chat_template.jinja":
            add(files.read(name, _TEXT_LIMIT).decode("utf-8", "replace"), name)
        elif name.startswith("additional_chat_templates/") and name.endswith(".jinja"):
            found[name.rpartition("/")[2][:-6]] = (name, files.read(name, _TEXT_LIMIT).decode("utf-8", "replace"))
    return found


def render_template(text: str, variables: Mapping[str, Any]) -> Rendered:
    """What the template makes of one question and its answer, within `LIMITS`."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _ANSWER}]
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    request = {"template": text, "conversations": [turns, parts], "variables": dict(variables), **LIMITS}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(_WORKER)],
            input=json.dumps(request).encode(),
            env={},
            capture_output=True,
            timeout=_CLOCK,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Rendered(None, "Limit", f"it was not done after {_CLOCK:.0f} seconds")
    if done.returncode == -signal.SIGPROF:
        return Rendered(None, "Limit", f"it takes more than {LIMITS['seconds']} s of processor time")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return Rendered(
            None, "Limit", f"it takes more than {LIMITS['memory'] >> 20} MiB of memory, or ends its process"
        )
    if not isinstance(answer, dict) or not answer:
        return Rendered(None, "Limit", "it ends its process")
    if isinstance(answer.get("text"), str):
        return Rendered(answer["text"])
    return Rendered(None, str(answer.get("error")), str(answer.get("message")))


def answer_end(rendered: str) -> str | None:
    """What a rendered conversation has behind the assistant's answer; None where the answer is not in it."""
    before, found, behind = rendered.rpartition(_ANSWER)
    return behind if found or before else None


def examine_templates(case: Case, vocabulary: Vocabulary | None, base: Files | None) -> Iterator[Finding]:
    """Every template of the checkpoint; `base` is what it came from, if that is known."""
    try:
        templates = find_templates(case.files)
    except YardError:
        return  # the file is broken, which was said
    default = templates.get("default") or next(iter(templates.values()), None)
    yield from _against_base(case, vocabulary, default, base)
    variables = vocabulary.named if vocabulary else {}
    if len(templates) > _MOST:
        what = f"there are {len(templates)} chat templates, and {_MOST} were looked at: no model needs so many"
        yield make("template_unsafe", what, _replace(case, base))
    for name, (file, text) in list(templates.items())[:_MOST]:
        done = render_template(text, variables)
        if done.unsafe:
            what = f"the chat template `{show_name(name)}` in `{show_name(file)}` is not safe to render: {_words(done)}"
            yield make("template_unsafe", what, _replace(case, base))
        elif done.error is not None and done.error not in _REFUSALS:
            what = f"the chat template `{show_name(name)}` in `{show_name(file)}` fails: {_words(done)}"
            yield make("template_broken", what, _replace(case, base))
        elif done.text is not None and (file, text) == default:
            yield from _end(case, vocabulary, done.text)


def _against_base(
    case: Case, vocabulary: Vocabulary | None, own: tuple[str, str] | None, base: Files | None
) -> Iterator[Finding]:
    theirs = _default(base) if base is not None else None
    if own is None and theirs is not None and case.generates:
        what = f"there is no chat template, and its base `{base.label if base else ''}` has one: messages cannot be rendered"
        yield make("no_chat_template", what, _replace(case, base), level="warning")
    elif own is None and case.kind == "model" and case.task is not None and case.task.name == "text-generation":
        marks = [mark for mark in _ROLE_MARKS if vocabulary is not None and mark in vocabulary.added]
        if marks:
            what = f"there is no chat template, and the tokenizer has words of one ({', '.join(marks)}); prompts work"
            yield make("no_chat_template", what, _replace(case, None))
    elif own is not None and theirs is not None and own[1].strip() != theirs.strip():
        what = f"the chat template in `{show_name(own[0])}` is not that of its base `{base.label if base else ''}`"
        yield make("template_changed", what, _replace(case, base))


def _default(base: Files) -> str | None:
    try:
        templates = find_templates(base)
    except YardError:
        return None
    return templates["default"][1] if "default" in templates else None


def _end(case: Case, vocabulary: Vocabulary | None, text: str) -> Iterator[Finding]:
    """Whether the template writes, behind an answer, one of the tokens that end it."""
    if vocabulary is None or not case.generates:
        return
    ending = vocabulary.ending(case)
    behind = answer_end(text)
    if behind is None or not ending or any(word in behind for word in ending.values()):
        return
    said = ", ".join(f"`{show_name(word)}` ({number})" for number, word in sorted(ending.items()))
    writes = f"`{show_name(behind.strip()[:40])}`" if behind.strip() else "nothing"
    what = f"the chat template never writes a token that ends an answer: these are {said}, and it writes {writes}"
    known = vocabulary.first_special(behind) is not None
    yield make(
        "eos_not_in_template", what, case.mend if known else "let the template write `eos_token` after an answer"
    )


def _replace(case: Case, base: Files | None) -> str:
    """The command that puts the base's template in its place."""
    return f"yard doctor {case.path} --base {base.label if base is not None else 'BASE'} --fix --to ./MENDED"


def _words(done: Rendered) -> str:
    return show_name(done.message or str(done.error))
