"""Row formats: which columns make a conversation or a document, and what each must hold.

=================  =====================================================================  =========================
format             columns (first match of each)                                          becomes
=================  =====================================================================  =========================
messages           messages: list of {role, content}                                      the conversation
conversations      conversations: list of {from, value}; system (optional)                the conversation
prompt-completion  prompt, completion; system (optional)                                  a question, its answer
alpaca             instruction, output | response; input | context, system (optional)     a question, its answer
question-answer    question, answer; system (optional)                                    a question, its answer
text               text                                                                   a document, all trained
=================  =====================================================================  =========================

Knows no files and no tokenizer. Every refusal is a `DataError` that names the place and the column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import DataError, RecipeError, near_match
from modelyard.training.data.rows import ROLES, Example

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FORMATS", "Format", "Shape", "recognise"]

SYNONYMS = {"chat": "messages", "openai": "messages", "sharegpt": "conversations"}

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        needs: For each part of a row that must be there, the column names it may have.
        may: The same for the optional parts.
        build: Makes the example from the parts.
    """

    needs: Mapping[str, tuple[str, ...]]
    may: Mapping[str, tuple[str, ...]]
    build: Callable[[Mapping[str, Any], str, Mapping[str, str]], Example]


@dataclass(frozen=True)
class Shape:
    """A format matched with a file's columns.

    Attributes:
        format: A key of `FORMATS`.
        columns: Part of a row to the column that holds it, for the parts that every row must have.
        optional: The names that each optional part may have; a row has any or none of them.
    """

    format: str
    columns: Mapping[str, str]
    optional: Mapping[str, tuple[str, ...]]

    def example(self, values: Mapping[str, Any], where: str, system: str | None) -> Example:
        """Check one row and make it an `Example`; `system` is used where the row brings no system message."""
        columns = dict(self.columns)
        for column in columns.values():
            if column not in values:
                raise _missing(column, list(values), where)
        for part, names in self.optional.items():
            for name in names:
                if name in values:
                    columns.setdefault(part, name)
        parts = {part: values[column] for part, column in columns.items()}
        if system is not None and not parts.get("system"):
            parts["system"] = system
        return FORMATS[self.format].build(parts, where, columns)

    def reads(self, column: str) -> bool:
        """Whether the format takes anything from the column."""
        return column in self.columns.values() or any(column in names for names in self.optional.values())


def recognise(found: list[str], where: str, name: str = "auto", columns: Mapping[str, str] | None = None) -> Shape:
    """Match a file's columns with a format.

    Args:
        found: The columns of the first row.
        where: Named in messages.
        name: A key of `FORMATS`, or `auto` for the first that matches.
        columns: Part of a row (`prompt`, `completion`, `messages`, `text`, ...) to the file's own column name.

    Raises:
        RecipeError: The format, or a part in `columns`, does not exist.
        DataError: A column is missing; the message lists those found and the near match.
    """
    asked, name = name, SYNONYMS.get(name, name)
    if name != "auto" and name not in FORMATS:
        meant = near_match(asked, [*FORMATS, *SYNONYMS])
        raise RecipeError(
            f"`{asked}` is not a data format" + (f"; did you mean `{meant}`?" if meant else ""),
            hint="formats: auto, " + ", ".join(FORMATS),
        )
    mapping = dict(columns or {})
    _check_mapping(mapping, found, where)
    tried = FORMATS if name == "auto" else {name: FORMATS[name]}
    for candidate, definition in tried.items():
        if name == "auto" and mapping and not set(mapping) <= {*definition.needs, *definition.may}:
            continue
        matched = _match(definition, found, mapping)
        if matched is not None:
            optional = {part: (mapping[part],) if part in mapping else names for part, names in definition.may.items()}
            return Shape(candidate, matched, optional)
    raise _unmatched(found, where, tried, mapping)


def _check_mapping(mapping: Mapping[str, str], found: list[str], where: str) -> None:
    parts = sorted({part for definition in FORMATS.values() for part in (*definition.needs, *definition.may)})
    for part, column in mapping.items():
        if part not in parts:
            meant = near_match(part, parts)
            raise RecipeError(
                f"columns: `{part}` is not a part of a row" + (f"; did you mean `{meant}`?" if meant else ""),
                hint="parts: "
                + ", ".join(parts)
                + '; for example columns: {"prompt": "text", "completion": "category"}',
            )
        if column not in found:
            raise _missing(column, found, where)


def _missing(column: str, found: list[str], where: str) -> DataError:
    meant = near_match(column, found)
    return DataError(
        f"{where}: no column `{column}`"
        + (f"; did you mean `{meant}`?" if meant else "")
        + f" Found: {_quoted(found)}",
        **_details(where, column),
    )


def _match(definition: Format, found: list[str], mapping: Mapping[str, str]) -> dict[str, str] | None:
    matched: dict[str, str] = {}
    for part, names in definition.needs.items():
        column = mapping.get(part) or next((name for name in names if name in found), None)
        if column is None:
            return None
        matched[part] = column
    return matched


def _unmatched(found: list[str], where: str, tried: Mapping[str, Format], mapping: Mapping[str, str]) -> DataError:
    if len(tried) == 1:
        ((name, definition),) = tried.items()
        for part, names in definition.needs.items():
            if part not in mapping and not any(column in found for column in names):
                error = _missing(names[0], found, where)
                return DataError(f"{error.message} (format {name})", hint=error.hint, **error.details)
    known = {name for definition in tried.values() for names in definition.needs.values() for name in names}
    near = {column: meant for column in found if column not in known and (meant := near_match(column, known))}
    guesses = "; ".join(f"is `{column}` meant to be `{meant}`?" for column, meant in near.items())
    return DataError(
        f"{where}: no format fits the columns {_quoted(found)}" + (f"; {guesses}" if guesses else ""),
        hint='say which column is what: columns: {"prompt": "<column>", "completion": "<column>"}, or {"text": "<column>"}',
        columns=found,
    )


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _listed(values: Mapping[str, Any]) -> str:
    return _quoted(list(values)) or "no columns"


def _details(where: str, column: str) -> dict[str, str]:
    return {"row": where, "column": column}


def _text(value: object, where: str, column: str, *, empty: bool = False) -> str:
    """The value as text, or a `DataError`; only `empty` allows text without a visible character."""
    if value is None:
        raise DataError(f"{where}: `{column}` is null", **_details(where, column))
    if not isinstance(value, str):
        raise DataError(f"{where}: `{column}` is {value!r:.40}, not text", **_details(where, column))
    if not empty and not value.strip():
        raise DataError(f"{where}: `{column}` is empty", **_details(where, column))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: `{column}` holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character",
            **_details(where, column),
        ) from error
    return value


def _content(value: object, where: str, column: str, *, empty: bool) -> str:
    """Message content: text, or a list of text parts as OpenAI's format has them."""
    if isinstance(value, list) and value:
        texts = []
        for index, part in enumerate(value):
            if not isinstance(part, dict) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise DataError(
                    f"{where}: `{column}[{index}]` is of type {kind!r}; only text parts are read",
                    **_details(where, column),
                )
            texts.append(_text(part.get("text"), where, f"{column}[{index}].text"))
        return "".join(texts)
    return _text(value, where, column, empty=empty)


def _turns(value: object, where: str, column: str) -> list[dict[str, Any]]:
    if value is None:
        raise DataError(f"{where}: `{column}` is null", **_details(where, column))
    if not isinstance(value, list):
        raise DataError(f"{where}: `{column}` is {value!r:.40}, not a list of messages", **_details(where, column))
    if not value:
        raise DataError(f"{where}: `{column}` is an empty list", **_details(where, column))
    for index, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise DataError(f"{where}: `{column}[{index}]` is {turn!r:.40}, not an object", **_details(where, column))
    return value


def _role(turn: Mapping[str, Any], key: str, names: Mapping[str, str], where: str, at: str) -> str:
    role = turn.get(key)
    if role is None:
        raise DataError(f"{where}: `{at}` has no `{key}`; it has {_listed(turn)}", **_details(where, at))
    if not isinstance(role, str) or role not in names:
        meant = near_match(str(role), names)
        raise DataError(
            f"{where}: `{at}.{key}` is {role!r}" + (f"; did you mean `{meant}`?" if meant else ""),
            hint="known: " + ", ".join(names),
            **_details(where, f"{at}.{key}"),
        )
    return names[role]


def _check_order(messages: list[dict[str, Any]], where: str, column: str) -> list[dict[str, Any]]:
    """A system message may only come first, and something must be there to be learned."""
    for index, message in enumerate(messages):
        if message["role"] == "system" and index:
            raise DataError(
                f"{where}: `{column}[{index}]` is a system message after the first", **_details(where, column)
            )
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{where}: `{column}` has no assistant message, so nothing to learn ({roles})", **_details(where, column)
        )
    if messages[0]["role"] == "assistant":
        raise DataError(f"{where}: `{column}` begins with an assistant message", **_details(where, column))
    return messages


def _with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    if system and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def _optional(parts: Mapping[str, Any], part: str, where: str, columns: Mapping[str, str]) -> str | None:
    value = parts.get(part)
    return None if value is None else _text(value, where, columns.get(part, part), empty=True)


def _build_messages(parts: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> Example:
    column = columns["messages"]
    roles = {role: role for role in ROLES} | {"developer": "system"}
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(_turns(parts["messages"], where, column)):
        at = f"{column}[{index}]"
        role = _role(turn, "role", roles, where, at)
        # A value that training would not see must not be dropped in silence; exporters fill the unused with null.
        extra = [key for key, value in turn.items() if key not in ("role", "content", "weight") and value is not None]
        if extra:
            raise DataError(f"{where}: `{at}.{extra[0]}` is not read by supervised training", **_details(where, at))
        if "content" not in turn:
            raise DataError(f"{where}: `{at}` has no `content`; it has {_listed(turn)}", **_details(where, at))
        content = _content(turn["content"], where, f"{at}.content", empty=role == "system")
        message: dict[str, Any] = {"role": role, "content": content}
        weight = turn.get("weight")
        if weight is not None:
            if weight not in (0, 1) or role != "assistant":
                raise DataError(
                    f"{where}: `{at}.weight` is {weight!r}; it is 0 or 1, on assistant messages", **_details(where, at)
                )
            if weight == 0:
                message["weight"] = 0
        messages.append(message)
    messages = _with_system(messages, parts.get("system"))
    return Example(messages=_check_order(messages, where, column), source=where)


def _build_conversations(parts: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> Example:
    column = columns["conversations"]
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(_turns(parts["conversations"], where, column)):
        at = f"{column}[{index}]"
        role = _role(turn, "from", _SHAREGPT_ROLES, where, at)
        if "value" not in turn:
            raise DataError(f"{where}: `{at}` has no `value`; it has {_listed(turn)}", **_details(where, at))
        content = _text(turn["value"], where, f"{at}.value", empty=role == "system")
        messages.append({"role": role, "content": content})
    messages = _with_system(messages, _optional(parts, "system", where, columns))
    return Example(messages=_check_order(messages, where, column), source=where)


def _build_pair(parts: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> Example:
    prompt = _text(parts["prompt"], where, columns["prompt"])
    extra = _optional(parts, "input", where, columns)
    if extra and extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    completion = _text(parts["completion"], where, columns["completion"])
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    messages = _with_system(messages, _optional(parts, "system", where, columns))
    return Example(messages=messages, prompt=prompt, completion=completion, source=where)


def _build_text(parts: Mapping[str, Any], where: str, columns: Mapping[str, str]) -> Example:
    return Example(text=_text(parts["text"], where, columns["text"]), source=where)


_SYSTEM = {"system": ("system", "system_prompt")}

FORMATS: dict[str, Format] = {
    "messages": Format({"messages": ("messages",)}, {}, _build_messages),
    "conversations": Format({"conversations": ("conversations",)}, _SYSTEM, _build_conversations),
    "prompt-completion": Format({"prompt": ("prompt",), "completion": ("completion",)}, _SYSTEM, _build_pair),
    "alpaca": Format(
        {"prompt": ("instruction",), "completion": ("output", "response")},
        {"input": ("input", "context"), **_SYSTEM},
        _build_pair,
    ),
    "question-answer": Format({"prompt": ("question",), "completion": ("answer",)}, _SYSTEM, _build_pair),
    "text": Format({"text": ("text",)}, {}, _build_text),
}
"""In order of preference: the first whose columns are there is taken."""
