"""Questions about tables (TAPAS): which cells answer, and what is to be done with them (sum, average, count).

The tokenizer of these models takes a data frame of pandas; nothing else here does.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import RequestError
from modelyard.weights.predict.batching import forward, refuse_windows, sorted_batches, to_numpy
from modelyard.weights.predict.encoding import check_text, core, find_limit, find_tokenizer
from modelyard.weights.predict.results import CellAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["TableOptions", "answer"]


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What `table-question-answering` takes.

    Attributes:
        threshold: A cell answers when its mean probability is above this.
    """

    threshold: float = 0.5


Table = dict[str, list[str]]


def answer(model: Model, rows: list[Any], options: PredictOptions) -> list[CellAnswer]:
    """The cells that answer each `{"table": {column: [cell, ...]}, "query": text}`.

    Where something may be cut (`truncation="end"`), it is the table's last rows, and of a single row the ends of its cells.

    Raises:
        RequestError: An option, a row of another form, a table with columns of unequal length, or one that is too long.
    """
    chosen = options.take(TableOptions)
    refuse_windows(options)
    questions = [_read_question(value, row) for row, value in enumerate(rows)]
    items = [_encode(model, table, query, row, options) for row, (table, query) in enumerate(questions)]
    found: dict[int, CellAnswer] = {}
    for places in sorted_batches(items, options.batch_size, lambda item: len(item["input_ids"])):
        outputs = forward(model, _collate(model, [items[at] for at in places]))
        chances = to_numpy(outputs.logits.float().sigmoid())
        ways = getattr(outputs, "logits_aggregation", None)
        kinds = [None] * len(places) if ways is None else [int(kind) for kind in ways.argmax(-1)]
        for at, values, kind in zip(places, chances, kinds, strict=True):
            cells = _select(items[at]["token_type_ids"], values, chosen.threshold)
            found[at] = _describe(model, questions[at][0], cells, kind)
    return [found[at] for at in range(len(rows))]


def _read_question(value: Any, row: int) -> tuple[Table, str]:
    if not isinstance(value, Mapping) or set(value) != {"table", "query"} or not isinstance(value["table"], Mapping):
        raise RequestError(
            f"row {row} is no question about a table",
            hint='give {"table": {"column": ["cell", ...], ...}, "query": "..."}',
            field="inputs",
            row=row,
        )
    table = {str(name): [str(cell) for cell in cells] for name, cells in value["table"].items()}
    sizes = {name: len(cells) for name, cells in table.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise RequestError(
            f"row {row}: its columns have {sizes or 'no'} cells", hint="as many each", field="inputs", row=row
        )
    query = check_text(value["query"], row, "`query`")
    if not query.strip():
        raise RequestError(f"row {row} has no query", field="inputs", row=row)
    return table, query


def _encode(model: Model, table: Table, query: str, row: int, options: PredictOptions) -> dict[str, Any]:
    pandas: Any = importlib.import_module("pandas")  # it publishes no types
    tokenizer, limit = find_tokenizer(model), find_limit(model)
    frame = pandas.DataFrame({name: np.array(cells, dtype=object) for name, cells in table.items()})
    item: dict[str, Any] = dict(tokenizer(table=frame, queries=query, truncation="do_not_truncate", padding=False))
    count = len(item["input_ids"])
    if limit is None or count <= limit:
        return item
    if options.truncation != "end":
        raise RequestError(
            f"row {row} has {count} tokens and the model takes {limit}",
            hint='give fewer rows, or pass truncation="end" to leave the last ones out',
            field="inputs",
            row=row,
            tokens=count,
            limit=limit,
        )
    try:
        item = dict(
            tokenizer(table=frame, queries=query, truncation="drop_rows_to_fit", max_length=limit, padding=False)
        )
    except ValueError as error:  # the tokenizer's word for a query that leaves no room
        raise _no_room(row, limit) from error
    if not any(kinds[2] for kinds in item["token_type_ids"]) or len(item["input_ids"]) > limit:
        raise _no_room(row, limit)
    return item


def _no_room(row: int, limit: int) -> RequestError:
    return RequestError(
        f"row {row}: not even one row of its table fits into {limit} tokens", hint="shorten it", field="inputs", row=row
    )


def _collate(model: Model, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tensors padded on the right: ids and mask (rows, tokens), token types (rows, tokens, 7)."""
    import torch

    width = max(len(item["input_ids"]) for item in items)
    padding = core(model.model).config.pad_token_id or 0
    fillers: dict[str, Any] = {"input_ids": padding, "attention_mask": 0, "token_type_ids": [0] * 7}
    return {
        name: torch.tensor([[*item[name], *[filler] * (width - len(item[name]))] for item in items], dtype=torch.long)
        for name, filler in fillers.items()
    }


def _select(types: Sequence[Sequence[int]], chances: Any, threshold: float) -> list[tuple[int, int]]:
    """Row and column of each cell whose tokens' mean probability passes the threshold."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (segment, column, row, *_), chance in zip(types, chances, strict=False):  # padding has no token types here
        if segment == 1 and column > 0 and row > 0:
            cells[row - 1, column - 1].append(float(chance))
    return sorted(place for place, values in cells.items() if np.mean(values) > threshold)


def _describe(model: Model, table: Table, places: list[tuple[int, int]], kind: int | None) -> CellAnswer:
    config = core(model.model).config
    columns = list(table.values())
    cells = tuple(columns[column][row] for row, column in places)
    text = ", ".join(cells)
    if kind is None:
        return CellAnswer(text, cells, tuple(places))
    labels = config.aggregation_labels or {}
    name = str(labels.get(kind, labels.get(str(kind), kind)))
    shown = text if kind == config.no_aggregation_label_index else f"{name} > {text}"
    return CellAnswer(shown, cells, tuple(places), name)
