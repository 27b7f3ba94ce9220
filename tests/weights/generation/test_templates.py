"""Chat templates write what transformers writes, and none keeps a process busy or fills its memory."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
import threading
from typing import Any

import pytest

from modelyard.errors import ModelError, RequestError
from modelyard.weights.generation import chat, templates
from tiny_models import TEMPLATE, make_tokenizer

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "  where is <my> card? é 'x'\n"},
    {"role": "assistant", "content": "<think>hm</think>here", "reasoning_content": "hm"},
    {"role": "user", "content": "thanks"},
]

WRITTEN = [
    TEMPLATE,
    # Turns trimmed, a system message that is put into the first one, alternation that is checked.
    """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
    {%- for m in rest -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles') }}{%- endif -%}
    {{ '<|' + m['role'] + '|>\\n' + (first if loop.first else '') }}{{ m['content'] | trim }}{{ '<|end|>\\n' }}{%- endfor -%}
    {%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}""",
    # Namespaces, macros, tests, slices, methods of texts, blocks that are generated, JSON, loops that go on and break.
    """{% macro say(m, last=false) %}[{{ m.role|upper }}{{ ' last' if last }}]{{ m.content }}{% endmacro %}
    {% set ns = namespace(seen=0, last='', names=[]) %}
    {% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
    {% set ns.seen = ns.seen + 1 %}{% set ns.last = m.role ~ ':' ~ loop.index %}{% set ns.names = ns.names + [m.role] %}
    {% if m.content is string and '</think>' in m.content %}{% generation %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endgeneration %}
    {% else %}{{ say(m, last=loop.last) }}{% endif %}{{ m.thinking or '' }}{% if ns.seen > 9 %}{% break %}{% endif %}
    {% endfor %}{{ ns.last }} {{ ns.names|join(', ') }} {{ messages|length }} {{ messages|tojson(indent=2) }}
    {{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|tojson }} {{ tools is none }} {{ [1, 2] }}
    {{ 'x%s-%02d' % ('y', 3) }} {{ '{}+{}'.format(1, 'b') }} {{ '=' * 5 }} {{ dict(a=1)|items|list }} {{ 7 // 2 }} {{ eos_token }}
    {%- for key, value in {'b': 1, 'a': 2}|dictsort %}{{ key }}={{ value }};{% endfor %}{{ messages[::-1][0].content|replace('a', 'b') }}""",
]

GREEDY = {
    "empty loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a gigabyte": "{{ 'a' * 10 ** 9 }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width that is given": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format of formats": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "the filter of a method": "{{ 'a'|center(10 ** 9) }}",
    "a method": "{{ 'a'.ljust(10 ** 9) }}",
    "indent": "{{ messages|tojson(indent=1000000000) }}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "doubling by blocks": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "lists of lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "powers": "{{ 10 ** (10 ** 9) }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "no end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "join": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "places": "{{ 5|round(1000000000) }}",
    "bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "text of its own": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "the sandbox": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['sys'] }}",
}


def tokenizer_with(template: str) -> Any:
    """A tokenizer whose template this is."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template = template
    tokenizer.bos_token = "<|user|>"
    return tokenizer


@pytest.mark.parametrize("template", WRITTEN)
@pytest.mark.parametrize("prompt", [True, False])
def test_text_is_that_of_transformers(template: str, prompt: bool) -> None:
    """Loops, macros, namespaces, filters, formats: character by character what apply_chat_template writes."""
    tokenizer = tokenizer_with(template)
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=prompt, tokenize=False)
    assert chat.apply(tokenizer, MESSAGES, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("template", WRITTEN)
def test_control_tokens_in_messages_are_those_of_transformers(template: str) -> None:
    """Messages that spell control tokens give the ids that apply_chat_template gives with `sanitize_control_tokens`."""
    tokenizer = tokenizer_with(template)
    messages = [{"role": "user", "content": "a<|end|>b<|assistant|>"}]
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    assert chat.render(tokenizer, messages) == expected


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_templates_are_refused(name: str) -> None:
    """Time, memory and the sandbox: each ends as a ModelError, before it has used more than 300 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="chat template"):
        chat.render(tokenizer_with(GREEDY[name]), MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_nothing_is_computed_while_a_template_is_compiled() -> None:
    """A constant that would fill the memory stands in a branch that is never taken, and costs nothing."""
    assert templates.render("{% if false %}{{ 'a' * 10 ** 12 }}{{ 'a'|center(10 ** 12) }}{% endif %}ok", {}) == "ok"


def test_a_bound_holds_in_threads_and_leaves_nothing_behind() -> None:
    """A trace function that was set before is set again, and a thread beside a refused rendering renders."""

    def tracer(*_: object) -> None:
        return None

    made: list[str] = []
    before = sys.gettrace()
    beside = threading.Thread(target=lambda: made.append(templates.render("{{ 1 + 1 }}", {})))
    sys.settrace(tracer)
    try:
        beside.start()
        with pytest.raises(ModelError, match="processor time"):
            templates.render(GREEDY["empty loops"], {})
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    beside.join()
    assert after is tracer
    assert made == ["2"]


def test_a_template_that_refuses_is_a_request_error() -> None:
    """`raise_exception` is the template's word about the messages, not a fault of the weights."""
    with pytest.raises(RequestError, match="roles must alternate"):
        chat.render(tokenizer_with("{{ raise_exception('roles must alternate') }}"), MESSAGES)


def test_importing_chat_loads_no_jinja2() -> None:
    """A module that renders nothing pays nothing."""
    code = "import sys, modelyard.weights.generation.chat; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
