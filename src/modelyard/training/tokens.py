"""Tokens: rows through a base's tokenizer and chat template, with every token marked as trained or not.

In a conversation the assistant's turns are trained, each up to and including its stop token, and nothing else; in a
document every token is. The ids are those of the complete rendering, so they are what the server will see. Where a turn
begins is found by rendering the conversation up to it with the generation prompt, which must be a prefix of the whole.

Knows no model weights and no training loop.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelyard.errors import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from modelyard.training.data import Example, Rows

__all__ = ["Encoded", "EncodedRow", "encode_rows", "load_tokenizer", "stop_tokens"]

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as tokens.

    Attributes:
        index: Number of the example in its `Rows`, from 0.
        ids: Token ids; int32, shape (length,).
        trained: Whether each token counts in the loss; bool, shape (length,).
    """

    index: int
    ids: np.ndarray[Any, np.dtype[np.int32]]
    trained: np.ndarray[Any, np.dtype[np.bool_]]

    def trained_count(self) -> int:
        """Tokens that are predicted and counted; the first token of a row has nothing before it."""
        return int(self.trained[1:].sum())


@dataclass
class Encoded:
    """All rows as tokens, and what was noticed on the way; the lists hold numbers of examples.

    Attributes:
        rows: The rows that can be trained on, in order.
        empty: Rows in which no token is trained (left out of `rows`).
        truncated: Rows longer than the limit; they were cut at the end.
        cut_tokens: How many tokens were cut from them.
        without_stop: Trained rows whose labels hold no stop token: they do not teach the model to stop.
        crossing: Rows in which a token straddles the beginning of an answer, so that its first token is not trained.
        injected: Rows whose content contains the text of a special token.
    """

    rows: list[EncodedRow] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    cut_tokens: int = 0
    without_stop: list[int] = field(default_factory=list)
    crossing: list[int] = field(default_factory=list)
    injected: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens in all usable rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(row.trained_count() for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text to tokenize and the character ranges [start, end) to train; or ids that are ready."""

    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    ids: tuple[list[int], list[bool]] | None = None


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer, from its folder alone; `ModelError` when there is none that can be used."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{base.name}: no usable tokenizer: {error}", hint=f"yard doctor {base}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{base.name}: its tokenizer has no tokenizer.json, which is needed to mark trained tokens",
            hint="save it again with a current transformers",
        )
    return tokenizer


def stop_tokens(base: Path, tokenizer: Any) -> list[int]:
    """Ids that end a generation: the tokenizer's end token and those in generation_config.json."""
    stops: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    path = base / "generation_config.json"
    if path.is_file():
        try:
            named = json.loads(path.read_text("utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{base.name}: generation_config.json is not a JSON object: {error}") from error
        stops += [int(token) for token in (named if isinstance(named, list) else [named]) if token is not None]
    return list(dict.fromkeys(stops))


def encode_rows(rows: Rows, tokenizer: Any, *, stops: Sequence[int], limit: int | None) -> Encoded:
    """Tokenize rows and mark what is trained.

    Args:
        rows: The rows.
        tokenizer: A fast transformers tokenizer.
        stops: Ids that end a generation.
        limit: Longest row in tokens; longer ones are cut at the end. None for no limit.

    Raises:
        DataError: The chat template refuses a row or rewrites what came before an answer; the row is named.
        ModelError: Rows are conversations and the base has no chat template.
    """
    # numpy costs a tenth of a second, which `yard --help` must not pay.
    import numpy as np

    encoded = Encoded()
    stop_texts = [text for stop in stops if (text := tokenizer.convert_ids_to_tokens(stop))]
    special = _special_pattern(tokenizer)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows.examples[start : start + _CHUNK]
        pieces = [_prepare(example, tokenizer, stop_texts) for example in chunk]
        texts = [piece.text for piece in pieces if piece.ids is None]
        batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False) if texts else {}
        ready = iter(zip(batch["input_ids"], batch["offset_mapping"], strict=True)) if texts else iter(())
        for offset, (example, piece) in enumerate(zip(chunk, pieces, strict=True)):
            index = start + offset
            if piece.ids is not None:
                ids, trained = piece.ids
            else:
                ids, offsets = next(ready)
                trained, crossing = _mark(offsets, piece.spans)
                if crossing:
                    encoded.crossing.append(index)
            if special and example.messages and any(special.search(turn["content"]) for turn in example.messages):
                encoded.injected.append(index)
            row = EncodedRow(index, np.asarray(ids, dtype=np.int32), np.asarray(trained, dtype=np.bool_))
            _add(encoded, row, stops=stops, limit=limit)
    return encoded


def _special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    texts = [re.escape(text) for text in tokenizer.all_special_tokens if text]
    return re.compile("|".join(texts)) if texts else None


def _add(encoded: Encoded, row: EncodedRow, *, stops: Sequence[int], limit: int | None) -> None:
    """Cut a row to the limit and sort it into the lists that it belongs to."""
    import numpy as np

    # Nothing learns from what follows the last trained token, such as the line end after a turn.
    end = int(np.flatnonzero(row.trained)[-1]) + 1 if row.trained.any() else len(row.ids)
    index, ids, trained = row.index, row.ids[:end], row.trained[:end]
    if limit is not None and len(ids) > limit:
        encoded.truncated.append(index)
        encoded.cut_tokens += len(ids) - limit
        ids, trained = ids[:limit], trained[:limit]
    row = EncodedRow(index, ids, trained)
    if row.trained_count() == 0:
        encoded.empty.append(index)
        return
    encoded.rows.append(row)
    if not np.isin(row.ids[row.trained], stops).any():
        encoded.without_stop.append(index)


def _mark(offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> tuple[list[bool], bool]:
    """Which tokens begin inside a span, and whether one straddles the beginning of one."""
    trained = [False] * len(offsets)
    crossing = False
    for start, end in spans:
        for position, (left, right) in enumerate(offsets):
            if start <= left < end:
                trained[position] = True
            elif left < start < right:
                crossing = True
    return trained, crossing


def _prepare(example: Example, tokenizer: Any, stop_texts: list[str]) -> _Piece:
    if example.text is not None:
        ids = list(tokenizer(example.text, verbose=False)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        return _Piece(ids=(ids, [True] * len(ids)))
    if tokenizer.chat_template:
        return _render_chat(example, tokenizer, stop_texts)
    if example.prompt is not None and example.completion is not None:
        return _join_pair(example, tokenizer)
    raise ModelError(
        f"the base has no chat template, and {example.source} is a conversation",
        hint="use a base with a chat template, or rows of `prompt` and `completion`",
    )


def _join_pair(example: Example, tokenizer: Any) -> _Piece:
    """A base without a chat template continues the prompt; the pieces are tokenized as generation will see them."""
    if example.messages and example.messages[0]["role"] == "system":
        raise ModelError(f"the base has no chat template, and {example.source} has a system message")
    prompt = list(tokenizer(example.prompt, verbose=False)["input_ids"])
    if prompt[-1:] == [tokenizer.eos_token_id]:
        prompt.pop()
    completion = list(tokenizer(example.completion, add_special_tokens=False, verbose=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        completion.append(tokenizer.eos_token_id)
    return _Piece(ids=(prompt + completion, [False] * len(prompt) + [True] * len(completion)))


def _render(tokenizer: Any, messages: list[dict[str, Any]], source: str, *, prompt: bool) -> str:
    from jinja2 import TemplateError

    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError, KeyError) as error:
        raise DataError(f"{source}: the base's chat template refuses the row: {error}", row=source) from error
    return str(text)


def _render_chat(example: Example, tokenizer: Any, stop_texts: list[str]) -> _Piece:
    messages = example.messages or []
    whole = _render(tokenizer, messages, example.source, prompt=False)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        before = _render(tokenizer, messages[:number], example.source, prompt=True)
        if not whole.startswith(before):
            raise DataError(
                f"{example.source}: the base's chat template changes what came before message {number} once the answer is"
                " there, so the answer's tokens cannot be told apart",
                hint="split the conversation into one row for each answer, or repair the template's generation prompt",
                row=example.source,
            )
        end = len(whole) if number == len(messages) - 1 else _through(example, tokenizer, whole, number)
        content = min(len(before) + len(message["content"].strip()), len(whole))
        spans.append((len(before), _end_of_turn(whole[:end], content, whole, stop_texts)))
        if spans[-1][1] == 0:
            raise DataError(
                f"{example.source}: the end of message {number} cannot be found in the base's chat template",
                row=example.source,
            )
    return _Piece(whole, tuple(spans))


def _through(example: Example, tokenizer: Any, whole: str, number: int) -> int:
    """Length of the rendering up to and with message `number`; 0 where a template writes a last answer differently."""
    text = _render(tokenizer, (example.messages or [])[: number + 1], example.source, prompt=False)
    return len(text) if whole.startswith(text) else 0


def _end_of_turn(through: str, content: int, whole: str, stop_texts: list[str]) -> int:
    """Where a turn ends: after its first stop token, so that what a template puts between turns is not trained.

    Args:
        through: The rendering up to the end of the turn, empty if that is not known; then the stop token decides alone.
        content: Where the turn's own text ends at the earliest.
        whole: The whole rendering.
        stop_texts: The texts of the stop tokens.

    Returns 0 when neither tells.
    """
    ends = [found + len(text) for text in stop_texts if (found := whole.find(text, content)) >= 0]
    first = min(ends, default=0)
    return first if not through or 0 < first <= len(through) else len(through)
