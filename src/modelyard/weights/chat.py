"""Messages to token ids, by the model's own chat template.

The template is the checkpoint's, so it runs in the sandbox of transformers. Messages are the user's, so control tokens
spelled out in them (`<|im_end|>`) are encoded as text: they can never end a turn or open another role. The template's
own control tokens stay what they are, and no second BOS is put in front.

Limits: messages and what the template makes of them are at most `MOST_BYTES` each. A template's run time is not
bounded here (its loops are, by the sandbox's range limit); a server renders in the worker of the one model it belongs to.

Knows a tokenizer; knows no model and no sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelyard.errors import ModelError, RequestError, near_match

__all__ = [
    "MEDIA",
    "MOST_BYTES",
    "ROLES",
    "apply",
    "check_messages",
    "encode_text",
    "has_template",
    "render",
    "spells_control",
    "turn_end_ids",
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
    text = apply(tokenizer, plain, add_generation_prompt=add_generation_prompt, tokenize=False)
    if len(text.encode()) > MOST_BYTES:
        raise ModelError(f"the chat template makes more than {MOST_BYTES} bytes of these messages")
    if spells_control(tokenizer, plain):
        ids = apply(
            tokenizer,
            plain,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
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
        text = apply(tokenizer, turns, add_generation_prompt=False, tokenize=False)
    except (ModelError, RequestError):
        return frozenset()  # a template that refuses this conversation tells nothing about its end
    behind = text.rpartition(said)[2].lstrip()
    ids = tokenizer.encode(behind, add_special_tokens=False) if behind else []
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return frozenset(ids[:1]) & frozenset(control)


def apply(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    """`apply_chat_template` of a tokenizer or a processor, with what it raises as errors of ours.

    Raises:
        RequestError: The template refuses these messages.
        ModelError: The template, or the processor behind it, fails.
    """
    import jinja2

    try:
        return tokenizer.apply_chat_template(messages, **options)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ModelError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from error
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:  # the template's own `raise_exception`
            raise RequestError(f"the chat template refuses these messages: {error!s:.500}", field="messages") from error
        raise ModelError(f"the chat template fails: {error!s:.500}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
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
