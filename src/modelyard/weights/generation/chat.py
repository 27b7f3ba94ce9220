"""Messages to token ids, by the model's own chat template.

The template is the checkpoint's, so it runs in a sandbox with bounds (`templates`). Messages are the user's, so control tokens
spelled out in them (`<|im_end|>`) are encoded as text: they can never end a turn or open another role. The template's
own control tokens stay what they are, and no second BOS is put in front.

Limits: messages and what the template makes of them are at most `MOST_BYTES` each.

Knows a tokenizer; knows no model and no sampling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from modelyard.errors import ModelError, RequestError, near_match
from modelyard.weights.generation import templates

__all__ = [
    "MEDIA",
    "MOST_BYTES",
    "ROLES",
    "apply",
    "check_messages",
    "encode_text",
    "has_template",
    "process",
    "render",
    "spells_control",
    "turn_end_ids",
    "write",
]

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak."""

MEDIA = ("image", "audio", "video")
"""Types of parts that are no text."""

MOST_BYTES = 8 << 20
"""The most UTF-8 bytes of all messages together, and of the text that the template makes of them."""

_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_MARKERS = ("\U000f0000", "\U000f0001")  # private-use characters that transformers marks control tokens with


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer knows how a conversation is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def check_messages(messages: object, *, media: bool = False) -> list[dict[str, Any]]:
    """`messages` as plain dicts with text contents (parts joined), or `RequestError` naming the field that is wrong.

    With `media`, contents are lists of parts, and parts may be of the types `image`, `audio` and `video`, too.

    >>> check_messages([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    [{'role': 'user', 'content': 'hi'}]
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("`messages` is no list of messages, or an empty one", field="messages")
    plain = [_check_message(message, f"messages[{at}]", media=media) for at, message in enumerate(messages)]
    total = 0
    for text in _strings(plain):
        try:
            total += len(text.encode())
        except UnicodeEncodeError as error:
            raise RequestError(
                "`messages` holds a lone surrogate, which is no character", hint="send valid Unicode", field="messages"
            ) from error
    if total > MOST_BYTES:
        raise RequestError(f"the messages have {total} bytes; the limit is {MOST_BYTES}", field="messages")
    return plain


def render(tokenizer: Any, messages: object, *, add_generation_prompt: bool = True) -> list[int]:
    """The token ids of a conversation.

    Args:
        tokenizer: A tokenizer of transformers with a chat template.
        messages: Dicts with `role` (one of `ROLES`) and `content` (text, or a list of `{"type": "text"}` parts).
        add_generation_prompt: Whether the ids end where the assistant's answer begins.

    Raises:
        RequestError: The messages are malformed, too large, or the template refuses them.
        ModelError: The template itself fails, or makes more text than the limit.
    """
    if not has_template(tokenizer):
        raise RequestError(
            "this model has no chat template, so it takes text and no messages",
            hint="pass a plain string, or add `chat_template.jinja` to the model's folder",
            field="messages",
        )
    plain = check_messages(messages)
    text, marked = write(tokenizer, tokenizer, plain, add_generation_prompt=add_generation_prompt)
    if len(text.encode()) > MOST_BYTES:
        raise ModelError(f"the chat template makes more than {MOST_BYTES} bytes of these messages")
    if marked:
        with _explained():
            ids = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"]
        return [int(token) for token in ids]
    return encode_text(tokenizer, text, special=False)


def encode_text(tokenizer: Any, text: object, *, special: bool = True) -> list[int]:
    """The token ids of raw text; with `special`, behind the BOS that the tokenizer adds by itself, if it does.

    Control tokens that are spelled out in raw text are control tokens: whoever sends raw text writes the template.

    Raises:
        RequestError: No string, more than `MOST_BYTES`, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise RequestError(f"the prompt is a {type(text).__name__}, no text", field="prompt")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError("the prompt holds a lone surrogate, which is no character", field="prompt") from error
    if size > MOST_BYTES:
        raise RequestError(f"the prompt has {size} bytes; the limit is {MOST_BYTES}", field="prompt")
    # No warning about long texts: the context is checked against the model, with both numbers.
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=special, verbose=False)]


def turn_end_ids(tokenizer: Any) -> frozenset[int]:
    """The control token that the template writes right behind an assistant's answer, if there is one.

    Checkpoints forget to list it among their EOS ids, and then answers never stop.
    """
    if not has_template(tokenizer):
        return frozenset()
    said = "modelyard"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}]
    try:
        text = apply(tokenizer, turns, add_generation_prompt=False)
    except (ModelError, RequestError):
        return frozenset()  # a template that refuses this conversation tells nothing about its end
    behind = text.rpartition(said)[2].lstrip()
    ids = tokenizer.encode(behind, add_special_tokens=False) if behind else []
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return frozenset(ids[:1]) & frozenset(control)


def apply(holder: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
    """The text that the template of a tokenizer or a processor makes of a conversation, within `templates`' bounds.

    Raises:
        RequestError: The template refuses these messages.
        ModelError: The template fails, or passes a bound (`template_limit`).
    """
    tokenizer = getattr(holder, "tokenizer", holder)
    with _explained():
        return templates.render(
            _source(holder),
            {
                "messages": [_plain(message) for message in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **_plain(tokenizer.special_tokens_map),
            },
        )


def write(
    holder: Any, tokenizer: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True
) -> tuple[str, bool]:
    """As `apply`, and whether control tokens that the messages spell out stand between transformers' markers in it.

    Such a text is for a call with `sanitize_control_tokens`, which makes characters of them.
    """
    spelled = spells_control(tokenizer, messages)
    given = _marked(holder, tokenizer, messages) if spelled else messages
    return apply(holder, given, add_generation_prompt=add_generation_prompt), spelled


def process(
    processor: Any, tokenizer: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True
) -> dict[str, Any]:
    """What a processor makes of a conversation with media, a batch of one: tensors by name.

    Control tokens that a message spells out are text, as in `render`.

    Raises:
        RequestError: The template refuses these messages.
        ModelError: The template, or the processor behind it, fails.
    """
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    text, marked = write(processor, tokenizer, messages, add_generation_prompt=add_generation_prompt)
    given: dict[str, Any]
    if _own_way(processor):  # its class renders by itself: what passes a bound was refused above
        given = {
            "add_generation_prompt": add_generation_prompt,
            **({"sanitize_control_tokens": True} if marked else {}),
        }
    else:
        # The processor gets the finished text in the place of a template; the messages tell it where the media are.
        given = {"chat_template": "{{ modelyard_text }}", "modelyard_text": text}
        if marked:
            given["processor_kwargs"] = {"sanitize_control_tokens": True}
    with _explained():
        return dict(processor.apply_chat_template(messages, **options, **given))


def _own_way(processor: Any) -> bool:
    """Whether the processor's class has a way of its own with templates."""
    from transformers import ProcessorMixin

    return getattr(type(processor), "apply_chat_template", None) is not ProcessorMixin.apply_chat_template


def _source(holder: Any) -> str:
    """The template that a tokenizer or a processor uses where none is named."""
    found = holder.chat_template
    if isinstance(found, Mapping):
        if "default" not in found:
            raise ModelError(
                f"there are several chat templates and none is the default: {', '.join(sorted(found))}",
                hint="name one of them `default` in the model's folder",
            )
        found = found["default"]
    return str(found)


def _plain(value: Any) -> Any:
    """What a template sees: plain values; a picture or an array is the name of its type, as in transformers."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        if "role" in plain and plain.get("reasoning_content") is not None:
            plain = {"thinking": plain["reasoning_content"], **plain}  # the name that gpt-oss reads
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else f"<{type(value).__name__}>"


def _marked(holder: Any, tokenizer: Any, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the control tokens that they spell out between transformers' markers."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    written = templates.literal_text(_source(holder))
    known = getattr(tokenizer, "chat_control_tokens", None)
    words = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (token.content in known if known is not None else token.content in written and not token.content.isspace())
    ]
    longest_first = sorted(words, key=len, reverse=True)
    marked: list[dict[str, Any]] = mark_control_tokens(
        [_plain(message) for message in messages], re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    )
    return marked


@contextmanager
def _explained() -> Iterator[None]:
    """What a template or a processor raises, as errors of ours."""
    import jinja2

    try:
        yield
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ModelError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from error
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:  # the template's own `raise_exception`
            raise RequestError(f"the chat template refuses these messages: {error!s:.500}", field="messages") from error
        raise ModelError(f"the chat template fails: {error!s:.500}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ModelError(f"the chat template fails: {error!s:.500}") from error


def spells_control(tokenizer: Any, messages: list[dict[str, Any]]) -> bool:
    """Whether a message holds the text of an added token (or transformers' markers), as is or once normalized."""
    words = [word for word in tokenizer.added_tokens_encoder if not word.isspace()]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = getattr(backend, "normalizer", None)
    for text in _strings(messages):
        if any(word in text for word in words) or any(marker in text for marker in _MARKERS):
            return True
        if normalizer is not None and any(word in normalizer.normalize_str(text) for word in words):
            _refuse_hidden(tokenizer, text)
    return False


def _refuse_hidden(tokenizer: Any, text: str) -> None:
    """Refuse a text in which the normalizer, rather than the user, spells a control token."""
    hidden = set(tokenizer.encode(text, add_special_tokens=False)) & set(tokenizer.all_special_ids)
    if hidden:
        word = tokenizer.convert_ids_to_tokens(min(hidden))
        raise RequestError(f"a message turns into the control token `{word}` when it is normalized", field="messages")


def _check_message(message: object, where: str, *, media: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"`{where}` is a {type(message).__name__}, no object", field=where)
    for key in message:
        if key not in _KEYS:
            meant = near_match(str(key), _KEYS)
            hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(_KEYS)}"
            raise RequestError(f"`{where}` has an unknown field `{key}`", hint=hint, field=f"{where}.{key}")
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"`{where}.role` is {role!r}", hint=f"one of {', '.join(ROLES)}", field=f"{where}.role")
    plain = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return plain
    parts = _check_content(content, f"{where}.content", media=media)
    plain["content"] = parts if media else "".join(part["text"] for part in parts)
    return plain


def _check_content(content: object, where: str, *, media: bool) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise RequestError(f"`{where}` is no text", hint="a string, or a list of text parts", field=where)
    parts: list[dict[str, Any]] = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif media and isinstance(part, Mapping) and kind in MEDIA:
            parts.append(dict(part))
        elif media:
            raise RequestError(
                f"`{where}[{at}]` is {kind!r}",
                hint='parts are {"type": "text", "text": "..."}, {"type": "image", "image": ...}, and `audio` and `video`',
                field=f"{where}[{at}]",
            )
        else:
            raise RequestError(
                f"`{where}[{at}]` is {kind!r}, and this model reads text only",
                hint='parts are {"type": "text", "text": "..."}',
                field=f"{where}[{at}]",
            )
    return parts


def _strings(value: object) -> Iterator[str]:
    """Every string in a plain value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
