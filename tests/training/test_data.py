"""Training data: what is recognised, and how what is wrong is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import DataError, NotFoundError, RecipeError
from modelyard.training.data import Rows, files, load_rows

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def write(path: Path, text: str | bytes) -> Path:
    """Write a data file."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def jsonl(folder: Path, *rows: Any) -> Path:
    """Write rows as JSONL."""
    return write(folder / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def refused(path: Path, **options: Any) -> DataError:
    """The `DataError` that loading raises."""
    with pytest.raises(DataError) as caught:
        load_rows(path, **options)
    return caught.value


@pytest.mark.parametrize(
    ("row", "name", "prompt", "answer"),
    [
        ({"messages": CHAT}, "messages", "hello", "hi"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "conversations",
            "q",
            "a",
        ),
        ({"instruction": "add", "input": "1 2", "output": "3"}, "alpaca", "add\n\n1 2", "3"),
        ({"instruction": "add", "input": "", "output": "3"}, "alpaca", "add", "3"),
        ({"instruction": "sum", "context": "1 2", "response": "3"}, "alpaca", "sum\n\n1 2", "3"),
        ({"prompt": "p", "completion": "c"}, "prompt-completion", "p", "c"),
        ({"question": "q", "answer": "a"}, "question-answer", "q", "a"),
    ],
)
def test_format_is_recognised(tmp_path: Path, row: dict[str, Any], name: str, prompt: str, answer: str) -> None:
    """Every conversational format is recognised by its columns and becomes the same kind of messages."""
    rows = load_rows(jsonl(tmp_path, row))
    messages = rows.examples[0].messages
    assert messages is not None
    assert rows.format == name
    assert [(turn["role"], turn["content"]) for turn in messages] == [("user", prompt), ("assistant", answer)]


def test_text_documents(tmp_path: Path) -> None:
    """A text file is one document for each block between blank lines, named by the line it begins on."""
    rows = load_rows(write(tmp_path / "book.txt", "\none\ntwo\n\n\nthree\n"))
    assert [(example.text, example.source) for example in rows] == [("one\ntwo", "book.txt:2"), ("three", "book.txt:6")]


def test_columns_are_mapped(tmp_path: Path) -> None:
    """`columns` says which column is what, and the rest is listed as ignored."""
    path = write(tmp_path / "a.csv", 'text,category,id\n"Where, is it?",card,1\n')
    rows = load_rows(path, columns={"prompt": "text", "completion": "category"})
    assert (rows.examples[0].prompt, rows.examples[0].completion) == ("Where, is it?", "card")
    assert (rows.used_columns, rows.ignored_columns) == (("text", "category"), ("id",))


def test_same_rows_from_every_file_format(tmp_path: Path) -> None:
    """The digest depends on what the rows say, not on the file's format, name or compression."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [{"prompt": f"p{n}", "completion": 'c,"é"\n' + str(n)} for n in range(5)]
    line_json = jsonl(tmp_path, *data)
    table = [["prompt", "completion"], *([row["prompt"], row["completion"]] for row in data)]
    delimited = {
        mark: mark.join(table[0])
        + "\n"
        + "".join(f'{a}{mark}"{b.replace(chr(34), chr(34) * 2)}"\r\n' for a, b in table[1:])
        for mark in (",", "\t")
    }
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "d.parquet")
    loaded = [
        load_rows(line_json),
        load_rows(write(tmp_path / "d.json", json.dumps(data, indent=1))),
        load_rows(write(tmp_path / "lines.json", line_json.read_bytes())),
        load_rows(write(tmp_path / "d.csv", delimited[","])),
        load_rows(write(tmp_path / "d.tsv", "\ufeff" + delimited["\t"])),
        load_rows(tmp_path / "d.parquet"),
        load_rows(write(tmp_path / "d.jsonl.gz", gzip.compress(line_json.read_bytes()))),
    ]
    assert len({rows.digest for rows in loaded}) == 1
    assert loaded[0].counts == {"rows": 5, "messages": 10, "assistant_messages": 5, "characters": 45}


def test_digest_depends_on_order_and_content(tmp_path: Path) -> None:
    """Other content, and the same content in another order, have other digests."""
    a, b = {"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "x"}
    digests = {load_rows(jsonl(tmp_path, *rows)).digest for rows in ([a, b], [b, a], [a], [a, a])}
    assert len(digests) == 4


def test_folder_splits(tmp_path: Path) -> None:
    """A folder's files of one split are read in order of name; another split is not mixed in."""
    for name, word in (("train-00001", "b"), ("train-00000", "a"), ("test", "t")):
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": word}) + "\n")
    assert [example.text for example in load_rows(tmp_path)] == ["a", "b"]
    assert [example.text for example in load_rows(tmp_path, split_name="test")] == ["t"]
    with pytest.raises(NotFoundError, match=r"split `tset`; did you mean `test`\?"):
        load_rows(tmp_path, split_name="tset")


def test_system_message(tmp_path: Path) -> None:
    """`system` is put first where a row has no system message, and only there."""
    own = [{"role": "system", "content": "own"}, *CHAT]
    rows = load_rows(jsonl(tmp_path, {"messages": CHAT}, {"messages": own}), system="given")
    assert [example.messages and example.messages[0]["content"] for example in rows] == ["given", "own"]


def test_optional_columns_vary_by_row(tmp_path: Path) -> None:
    """An optional column that only some JSONL rows have is used where it is."""
    rows = load_rows(
        jsonl(tmp_path, {"instruction": "a", "output": "x"}, {"instruction": "a", "input": "b", "output": "x"})
    )
    assert [example.prompt for example in rows] == ["a", "a\n\nb"]


def test_missing_file_names_the_near_one(tmp_path: Path) -> None:
    """A file that is not there is answered with the one that was probably meant."""
    jsonl(tmp_path, {"text": "a"})
    with pytest.raises(NotFoundError) as caught:
        load_rows(tmp_path / "trian.jsonl")
    assert caught.value.hint == "did you mean `train.jsonl`?"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl is empty: it holds no row"),
        ("a.csv", b"text,category\n", "a.csv is empty: it holds no row"),
        ("a.xlsx", b"PK", "a.xlsx: not a known data format"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n', r"line 2 is not UTF-8 \(byte 0xff at offset 25\)"),
        ("a.json", b'[{"text":\n "b\xff"}]', r"line 2 is not UTF-8 \(byte 0xff at offset 13\)"),
        ("a.csv", b"text\r\nab\r\n\xe9\r\n", r"line 3 is not UTF-8 \(byte 0xe9 at offset 10\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": NaN}\n', "a.jsonl:1: not JSON: NaN is no JSON value"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1: (JSON nested too deep|not JSON)"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: a row must be a JSON object, not a list"),
        ("a.json", b'{"data": [\n]}', "holds one JSON object, not a list"),
        ("a.csv", b"text,label\na,b\na,b,c\n", "a.csv:3: 3 fields where the header has 2"),
        ("a.csv", b'text\n"open\n', "a.csv:2: not a sound row"),
        ("a.csv", b"text;label\na;b\n", "it seems separated by semicolons"),
        ("a.csv", b"text,text\na,b\n", "names a column twice: 'text'"),
        ("a.parquet", b"PAR1 not really", "a.parquet: not a sound Parquet file"),
        ("a.jsonl.gz", b"not gzip", "not a sound gzip file"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """A file that is not what its suffix says is refused with the place of the fault."""
    with pytest.raises(DataError, match=message):
        load_rows(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("row", "message", "column"),
    [
        ({"messages": None}, "`messages` is null", "messages"),
        ({"messages": []}, "`messages` is an empty list", "messages"),
        ({"messages": "hello"}, "not a list of messages", "messages"),
        ({"messages": ["hello"]}, r"`messages\[0\]` is 'hello', not an object", "messages"),
        ({"messages": [{"role": "usr", "content": "a"}]}, r"is 'usr'; did you mean `user`\?", "messages[0].role"),
        ({"messages": [{"content": "a"}]}, r"`messages\[0\]` has no `role`; it has `content`", "messages[0]"),
        ({"messages": [{"role": "user"}]}, r"`messages\[0\]` has no `content`", "messages[0]"),
        ({"messages": [CHAT[0]]}, r"no assistant message, so nothing to learn \(user\)", "messages"),
        ({"messages": [CHAT[1]]}, "begins with an assistant message", "messages"),
        ({"messages": [*CHAT, {"role": "system", "content": "s"}]}, "a system message after the first", "messages"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "content` is null", "messages[1].content"),
        ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [1]}]}, "tool_calls` is not read", "messages[1]"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 2}]}, "weight` is 2; it is 0 or 1", "messages[1]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]},
            "only text parts",
            "messages[0].content",
        ),
        (
            {"conversations": [{"from": "bot", "value": "a"}]},
            "`conversations.0..from` is 'bot'",
            "conversations[0].from",
        ),
        ({"prompt": "a", "completion": None}, "`completion` is null", "completion"),
        ({"prompt": "a", "completion": " \n"}, "`completion` is empty", "completion"),
        ({"prompt": "a", "completion": 7}, "`completion` is 7, not text", "completion"),
        ({"prompt": "a\ud800", "completion": "b"}, "half of a surrogate pair", "prompt"),
        ({"promt": "a", "completion": "b"}, r"is `promt` meant to be `prompt`\?", None),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str, column: str | None) -> None:
    """A row that cannot be used is refused with file, line and column."""
    with pytest.raises(DataError, match=message) as caught:
        load_rows(jsonl(tmp_path, row))
    assert caught.value.message.startswith("train.jsonl:1: ")
    assert caught.value.details.get("column") == column


def test_later_row_without_the_column(tmp_path: Path) -> None:
    """A column that vanishes later is named with the row's line, what is there, and the near match."""
    path = write(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "b"}\n\n{"prompt": "a", "completions": "b"}\n')
    error = refused(path)
    assert (
        error.message == "a.jsonl:3: no column `completion`; did you mean `completions`? Found: `prompt`, `completions`"
    )


def test_given_format_and_columns_are_checked(tmp_path: Path) -> None:
    """A format, part or column that does not exist is answered with what was probably meant."""
    path = jsonl(tmp_path, {"question": "a", "reply": "b"})
    with pytest.raises(RecipeError, match=r"`sharegtp` is not a data format; did you mean `sharegpt`\?"):
        load_rows(path, format="sharegtp")
    with pytest.raises(RecipeError, match=r"`promt` is not a part of a row; did you mean `prompt`\?"):
        load_rows(path, columns={"promt": "question"})
    assert "no column `repl`; did you mean `reply`?" in refused(path, columns={"completion": "repl"}).message
    assert "no column `answer`" in refused(path, format="question-answer").message


def test_a_row_may_not_be_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line above the limit is refused before it is parsed."""
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1 << 10)
    assert (
        "line 2 is longer"
        in refused(write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "' + "x" * 2000 + '"}\n')).message
    )


def test_csv_row_is_its_first_line(tmp_path: Path) -> None:
    """With quoted line ends the row is named by the line it begins on."""
    path = write(tmp_path / "a.csv", 'prompt,completion\n"a\nb",c\nd,\n')
    assert refused(path).message.startswith("a.csv:4: `completion` is empty")


def test_long_csv_field(tmp_path: Path) -> None:
    """A field longer than the csv module's own limit is read, and that global limit is left as it was."""
    import csv

    before = csv.field_size_limit()
    rows = load_rows(write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n"))
    assert len(rows.examples[0].text or "") == 200_000
    assert csv.field_size_limit() == before


def test_weight_zero_is_kept(tmp_path: Path) -> None:
    """An assistant message of weight 0 keeps it; the weight 1 that is the default is left out."""
    rows = load_rows(
        jsonl(tmp_path, {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[0], {**CHAT[1], "weight": 1}]})
    )
    assert rows.examples[0].messages == [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[0], CHAT[1]]


def test_banking77(shared_data: Path) -> None:
    """The real banking77 CSV is read with a column mapping."""
    rows = load_rows(shared_data / "banking77" / "train.csv", columns={"prompt": "text", "completion": "category"})
    assert (len(rows), rows.format, rows.examples[0].completion) == (10_003, "prompt-completion", "card_arrival")


def test_gsm8k(shared_data: Path) -> None:
    """The real GSM8K JSONL is recognised as questions and answers."""
    rows: Rows = load_rows(shared_data / "gsm8k" / "test.jsonl")
    assert (len(rows), rows.format, rows.examples[0].source) == (1_319, "question-answer", "test.jsonl:1")
