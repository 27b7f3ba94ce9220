"""Questions about tables, against transformers' pipeline on the same tiny TAPAS."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.errors import RequestError
from modelyard.weights.predict import predict
from task_models.opened import open_tiny, pipeline
from task_models.text import TABLE

TASK = "table-question-answering"
ROWS = [
    {"table": TABLE, "query": "how many films has anna smith?"},
    {"table": {name: cells[:1] for name, cells in TABLE.items()}, "query": "how old?"},
    {"table": {"city": ["Berlin", "Paris"]}, "query": "which city is in Germany?"},
]


def test_cells_are_the_pipelines() -> None:
    """Cells, their places, the aggregation and the text are the pipeline's, for each table of a batch."""
    model = open_tiny(TASK)
    for row, found in zip(ROWS, predict(model, ROWS), strict=True):
        theirs = pipeline(TASK, model)(dict(row))  # it replaces the table in what it is given
        assert list(found.cells) == theirs["cells"]
        assert list(found.coordinates) == theirs["coordinates"]
        assert found.text == theirs["answer"]
        assert found.aggregation == theirs["aggregator"]
        assert predict(model, row) == found


def test_the_threshold_decides_which_cells_answer() -> None:
    """With a threshold of 0 every cell of the column that the model chose answers, with 1 none."""
    model = open_tiny(TASK)
    places = predict(model, ROWS[0], threshold=0.0).coordinates
    assert [row for row, _ in places] == [0, 1, 2]
    assert len({column for _, column in places}) == 1
    assert predict(model, ROWS[0], threshold=1.0).cells == ()


def test_long_tables_are_refused_or_lose_their_last_rows() -> None:
    """Nothing is left out unasked; asked, the last rows are, and answers come from the others."""
    model = open_tiny(TASK)
    row = {"table": {name: cells * 5 for name, cells in TABLE.items()}, "query": "how many films?"}
    with pytest.raises(RequestError, match="row 1 has"):
        predict(model, [ROWS[0], row])
    found = predict(model, row, truncation="end", threshold=0.0)
    assert 0 < len(found.cells) < 45
    with pytest.raises(RequestError, match="not even one row"):
        predict(model, {"table": TABLE, "query": "where? " * 80}, truncation="end")


@pytest.mark.parametrize(
    "row",
    [
        "a text",
        {"table": TABLE},
        {"table": {"a": ["1"], "b": ["1", "2"]}, "query": "?"},
        {"table": {}, "query": "?"},
        {"table": {"a": []}, "query": "?"},
        {"table": TABLE, "query": " "},
    ],
)
def test_rows_of_another_form_are_named(row: Any) -> None:
    """The error names the row that is no question about a table."""
    with pytest.raises(RequestError, match="row 1"):
        predict(open_tiny(TASK), [ROWS[0], row])
