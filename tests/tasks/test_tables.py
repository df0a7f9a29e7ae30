"""Tables as people have them: each kind of file goes in as it is, and what is found out is said."""

from __future__ import annotations

import gzip
import io
import json
import logging
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from softprompt import SoftPromptError, Task, load_rows
from softprompt.tasks import rows_from
from softprompt.tasks.forms import FORMS
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import read_entries

TASK = Task(template="{text}", labels=["negative", "positive"])
CSV = "text,label\na joy,positive\nbad,negative\n"
PAIRS = [("a joy", "positive"), ("bad", "negative")]
OBJECTS = [{"text": text, "label": label} for text, label in PAIRS]
LINES = "".join(json.dumps(one) + "\n" for one in OBJECTS)


@pytest.fixture(autouse=True)
def _said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "softprompt")


def pairs(source: Any, task: Task = TASK, **options: Any) -> list[tuple[str, str | None]]:
    rows = load_rows(source, task, **options)
    return [(" ".join(row.columns.values()), (row.target or "").strip()) for row in rows]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def line_of(source: Any, task: Task = TASK, **options: Any) -> str:
    with pytest.raises(SoftPromptError) as raised:
        load_rows(source, task, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def packed(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as found:
        found.writestr(name, content)
    return buffer.getvalue()


PLAIN = {
    "semicolons.csv": (CSV.replace(",", ";"), "delimited by ';'"),
    "commas within.csv": ("text;label\na, joy;positive\nb, a, d;negative\n", "delimited by ';'"),
    "pipes.csv": (CSV.replace(",", "|"), "delimited by '|'"),
    "tabs.csv": (CSV.replace(",", "\t"), "delimited by tabs"),
    "commas.tsv": (CSV, "delimited by ','"),
    "sep.csv": ("sep=;\n" + CSV.replace(",", ";"), "delimited by ';'"),
    "quoted sep.csv": ('"sep=;"\r\n' + CSV.replace(",", ";"), "delimited by ';'"),
    "utf16.tsv": (CSV.replace(",", "\t").encode("utf-16"), "is UTF-16"),
    "big utf16.csv": (b"\xfe\xff" + CSV.encode("utf-16-be"), "is UTF-16"),
    "utf32.csv": (CSV.encode("utf-32"), "is UTF-32"),
    "commas at the end.csv": (CSV + ",\n,\n", "2 rows at its end have no values"),
    "empty names.csv": (",text,label,,\n0,a joy,positive,,\n1,bad,negative,,\n", ""),
    "trailing commas.csv": ("text,label,\na joy,positive,\nbad,negative,\n", ""),
    "trailing commas in rows.csv": ("text,label\na joy,positive,\nbad,negative,,\n", ""),
    "twice unused.csv": ("id,text,id,label\n1,a joy,2,positive\n1,bad,2,negative\n", ""),
    "blanks in the header.csv": ("text , label\na joy,positive\nbad,negative\n", ""),
    "array.json": (json.dumps(OBJECTS), ""),
    "within.json": (json.dumps({"data": OBJECTS}), ""),
    "lines.json": (LINES, ""),
    "lines.ndjson": (LINES, ""),
    "rows.csv.gz": (gzip.compress(CSV.encode()), ""),
    "rows.zip": (packed("inner.csv", CSV), ""),
    "gzip.csv": (gzip.compress(CSV.encode()), "is packed with gzip"),
    "zip.xlsx": (packed("inner.csv", CSV), "is a zip of one file, inner.csv"),
    "zip.jsonl": (packed("inner.csv", CSV), "is a zip of one file, inner.csv"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_plain_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    content, said = PLAIN[name]
    found = pairs(write(tmp_path / name, content))
    assert found == ([("a, joy", "positive"), ("b, a, d", "negative")] if "within.csv" in name else PAIRS)
    assert said in caplog.text
    assert len(caplog.records) == bool(said)


@pytest.mark.parametrize("text", ["café “nice”", "naïve – 5 €", "Grüße aus Köln"])
def test_windows_1252_is_read_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    path = write(tmp_path / "a.csv", f"text,label\nplain,negative\n{text},positive\n".encode("cp1252"))
    assert pairs(path)[1] == (text, "positive")
    assert "read as Windows-1252, which 1 line needs (the first is line 3)" in caplog.text


def test_an_encoding_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nпривет,positive\n".encode("cp1251"))
    assert pairs(path, reading=Reading(encoding="cp1251")) == [("привет", "positive")]
    assert "give data.encoding" in line_of(path)
    assert "give data.encoding" in line_of(path, reading=Reading(encoding="utf-8"))


GLUED = {
    "glue.tsv": 'text\tlabel\nok\tpositive\n"Great film\tpositive\nbad film"\tnegative\nfine\tpositive\n',
    "longer.tsv": 'text\tlabel\nok\tpositive\n"Great\tpositive\nso so\tnegative\nbad"\tnegative\nfine\tpositive\n',
}


@pytest.mark.parametrize("name", GLUED)
def test_quotes_do_not_glue_the_rows_of_a_tsv(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    lines = GLUED[name].splitlines()[1:]
    expected = [tuple(line.split("\t")) for line in lines]
    assert pairs(write(tmp_path / name, GLUED[name])) == expected
    as_csv = write(tmp_path / "glue.csv", GLUED[name].replace("\t", ","))
    assert "look like whole rows" in line_of(as_csv)
    assert len(load_rows(as_csv, TASK, reading=Reading(quoting=False))) == len(expected)
    labels_first = "".join(",".join(reversed(line.split("\t"))) + "\n" for line in GLUED[name].splitlines())
    turned = write(tmp_path / "turned.csv", labels_first)
    load_rows(turned, TASK)  # no line of it shows that "negative" is a label: at least it is said
    assert "1 value holds line ends, 1 of them the delimiter too" in caplog.text


def test_quotes_in_a_tsv_are_text_unless_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "q.tsv", 'text\tlabel\n"a joy" to watch\tpositive\n"all of it"\tnegative\n')
    assert [text for text, _ in pairs(path)] == ['"a joy" to watch', '"all of it"']
    assert "1 value stands in double quotes" in caplog.text
    told = write(tmp_path / "told.tsv", 'text\tlabel\n"a ""joy"""\tpositive\nb\tnegative\n')
    assert pairs(told, reading=Reading(quoting=True))[0] == ('a "joy"', "positive")
    held = write(tmp_path / "held.tsv", 'text\tlabel\n"a\nb\tc"\tpositive\nd\tnegative\n')
    assert pairs(held)[0] == ("a\nb\tc", "positive")
    assert "double quotes hold values together" in caplog.text


def test_values_of_several_lines_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",positive\n"one,\ntwo",negative\nc,negative\n')
    assert len(load_rows(path, TASK)) == 3
    assert "2 values hold line ends, 1 of them the delimiter too (the first in row 2 (line 4))" in caplog.text


def test_an_empty_line_of_one_column_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\na\n\nb\n\n")
    entries = list(read_entries(path, TASK, need_targets=False))
    assert [entry.row and entry.row.columns["text"] for entry in entries] == ["a", None, "b"]
    assert line_of(path, need_targets=False).startswith(f"{path}: row 2 (line 3): column 'text' is empty")


def test_blank_lines_of_several_columns_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert pairs(write(tmp_path / "a.csv", "text,label\na joy,positive\n\nbad,negative\n\n")) == PAIRS
    assert "1 blank line between rows is left out" in caplog.text


@pytest.mark.parametrize("name", ["#1 String", "a/b", "Der Text", "text.1", "{x}", "Was: sonst?"])
def test_columns_of_any_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.csv", CSV.replace("text,label", f"{name},what was meant"))
    reading = Reading(columns={"text": name, "label": "what was meant"})
    rows = load_rows(path, TASK, reading=reading)
    assert [row.label for row in rows] == [1, 0]
    assert rows[0].columns == {"text": "a joy"}


def test_columns_within_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"in": {"text": "a joy"}, "out": {"label": "positive"}}\n')
    reading = Reading(columns={"text": "in.text", "label": "out.label"})
    assert pairs(path, reading=reading) == [("a joy", "positive")]


def test_a_file_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a joy,positive\nbad,negative\n")
    assert "if the first line is a row, name the columns: data.header: [text, label]" in line_of(path)
    assert pairs(path, reading=Reading(header=["text", "label"])) == PAIRS
    numbered = Reading(header=False, columns={"text": "column_1", "label": "column_2"})
    assert pairs(path, reading=numbered) == PAIRS
    spam = write(tmp_path / "SMSSpamCollection", "positive\ta joy\nnegative\tbad\n")
    assert pairs(spam, reading=Reading(header=["label", "text"])) == PAIRS


@pytest.mark.parametrize(
    ("labels", "task_labels", "asked"),
    [
        (["Positive", "positive ", "negative"], ["negative", "positive"], "did you mean 'positive'?"),
        (["1.0", "0.0", "1"], ["0", "1"], "did you mean '1'?"),
        (["TRUE", "FALSE", "true"], ["false", "true"], "did you mean 'true'?"),
        (["cafe\u0301", "té", "té"], ["caf\u00e9", "té"], "did you mean 'café'?"),
        (["positve", "positve", "negative"], ["negative", "positive"], "did you mean 'positive'?"),
    ],
)
def test_labels_that_are_nearly_right(tmp_path: Path, labels: list[str], task_labels: list[str], asked: str) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"row {i},{label}\n" for i, label in enumerate(labels)))
    task = Task(template="{text}", labels=task_labels)
    line = line_of(path, task)
    assert asked in line
    assert "data.labels" in line
    mapping = {label: next(one for one in task_labels if one in line and one != label) for label in labels[:1]}
    if labels[0] == "Positive":
        assert "2 of 3 rows cannot be used: the labels 'Positive' (1), 'positive ' (1): did you mean" in line
        mapping = {"Positive": "positive", "positive ": "positive"}
        assert [row.label for row in load_rows(path, task, reading=Reading(labels=mapping))] == [1, 1, 0]


def test_bad_rows_are_counted_by_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n,positive\n ,negative\na,b,c\na,maybe\nfine,positive\n")
    line = line_of(path)
    assert "4 of 5 rows cannot be used: 2 times column 'text' is empty; 1 times 3 values, but 2 columns" in line
    assert "the labels 'maybe' (1): none of the labels ['negative', 'positive']" in line
    assert "the first are row 1 (line 2); row 2 (line 3); row 3 (line 4)" in line


def test_several_files_patterns_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("a", "one"), ("b", "two")):
        write(tmp_path / f"part-{name}.csv", f"text,label\n{text},positive\n")
    assert pairs(tmp_path / "part-*.csv") == [("one", "positive"), ("two", "positive")]
    files = [tmp_path / "part-b.csv", str(tmp_path / "part-a.csv")]
    assert pairs(files) == [("two", "positive"), ("one", "positive")]
    assert [row.source for row in load_rows(files, TASK)] == [str(file) for file in files]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pairs("~/part-a.csv") == [("one", "positive")]
    assert "no file matches" in line_of(tmp_path / "other-*.csv")
    assert pairs(write(tmp_path / "odd[1].csv", CSV)) == PAIRS


def test_forms_with_a_name(tmp_path: Path) -> None:
    def task(name: str) -> Task:
        return Task(template=FORMS[name].template, target=FORMS[name].target)

    alpaca = write(
        tmp_path / "a.jsonl",
        '{"instruction": "Say", "input": "", "output": "x"}\n{"instruction": "b", "output": "c"}\n',
    )
    rows = load_rows(alpaca, task("alpaca"), reading=Reading(empty=FORMS["alpaca"].empty))
    assert [(row.columns, row.target) for row in rows][1] == ({"instruction": "b", "input": ""}, "c")
    assert "column 'input' is empty" in line_of(alpaca, task("alpaca"))
    said = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    for record in ({"messages": said}, {"custom_id": "1", "body": {"messages": said}}):
        (row,) = load_rows(write(tmp_path / "m.jsonl", json.dumps(record)), task("messages"))
        assert row.columns == {"conversation": "System: Be kind\nUser: hi"}
        assert row.target == " yo"
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    (asked,) = load_rows(
        write(tmp_path / "m.jsonl", json.dumps({"messages": parts})), task("messages"), need_targets=False
    )
    assert asked.columns == {"conversation": "User: hi"}
    completion = write(tmp_path / "c.jsonl", '{"prompt": "a", "completion": " b"}\n')
    assert load_rows(completion, task("completion"))[0].target == " b"


def test_parts_of_a_json_document(tmp_path: Path) -> None:
    clinc = write(
        tmp_path / "clinc.json", json.dumps({"train": [list(pair) for pair in PAIRS], "val": [["c", "positive"]]})
    )
    assert "holds the parts ['train', 'val']: name one as" in line_of(clinc)
    reading = Reading(header=["text", "label"])
    assert pairs(f"{clinc}#train", reading=reading) == PAIRS
    assert pairs(f"{clinc}#val", reading=reading) == [("c", "positive")]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
WRONG = {
    "page.csv": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
    "pointer.parquet": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a pointer of Git LFS",
    ),
    "pointer.csv": (POINTER, "is a pointer of Git LFS"),
    "old.xls": (b"\xd0\xcf\x11\xe0" + bytes(100), "workbook of old Excel"),
    "page.pdf": (b"%PDF-1.7", "is a PDF"),
    "cut.csv.gz": (gzip.compress(CSV.encode())[:-9], "cannot be unpacked by gzip"),
    "text.xlsx": (CSV.encode(), "is no workbook"),
    "bad.json": (b'[{"text": "a",}]', "line 1: not JSON"),
    "number.json": (b"3", "not an array of rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_inside_is_named(tmp_path: Path, name: str) -> None:
    content, says = WRONG[name]
    line = line_of(write(tmp_path / name, content))
    assert says in line
    assert line.startswith(str(tmp_path / name))


def test_a_zip_of_several_files(tmp_path: Path) -> None:
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as found:
        found.writestr("a.csv", CSV)
        found.writestr("b.csv", "text,label\nc,positive\n")
        found.writestr("__MACOSX/a.csv", "x")
    assert "holds 2 files, ['a.csv', 'b.csv']: name one as" in line_of(path)
    assert pairs(f"{path}#b.csv") == [("c", "positive")]


def test_sheets(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for line in (["text", "label", None], ["a joy", "positive", 3], [None, None, None], ["bad", "negative", 0.5]):
        book.active.append(line)
    book.save(tmp_path / "a.xlsx")
    assert pairs(tmp_path / "a.xlsx") == PAIRS
    other = book.create_sheet("other")
    other.append(["text", "label"])
    other.append([7, "positive"])
    book.save(tmp_path / "a.xlsx")
    assert "holds the sheets ['Sheet', 'other']: name one" in line_of(tmp_path / "a.xlsx")
    assert pairs(f"{tmp_path / 'a.xlsx'}#other") == [("7", "positive")]


def test_a_sheet_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = write(tmp_path / "a.xlsx", packed("xl/workbook.xml", ""))
    assert 'pip install "softprompt[tables]"' in line_of(path)


def test_arrow_and_saved_folders(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    found = datasets.Dataset.from_dict({"text": ["a joy", "bad"], "label": [1, 0]}, features=features)
    assert pairs(found) == PAIRS
    found.save_to_disk(tmp_path / "saved")
    assert pairs(tmp_path / "saved") == PAIRS
    assert pairs(next((tmp_path / "saved").glob("*.arrow"))) == PAIRS
    datasets.DatasetDict({"train": found}).save_to_disk(tmp_path / "splits")
    assert "holds the splits ['train']: name one as" in line_of(tmp_path / "splits")
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink:
        table = pyarrow.table({"text": ["a joy", "bad"], "label": ["positive", "negative"]})
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert pairs(tmp_path / "file.arrow") == PAIRS


@pytest.mark.parametrize("missing", [float("nan"), None, pandas.NA, pandas.NaT])
def test_missing_values_are_not_text(missing: object) -> None:
    for label, text in (("positive", missing), (missing, "a")):
        line = line_of([{"text": text, "label": label}])
        assert "is empty" in line


def test_nan_in_parquet_is_not_text(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [1.5, float("nan")], "label": ["positive"] * 2})  # pandas would write a null
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert line_of(tmp_path / "a.parquet").startswith(f"{tmp_path / 'a.parquet'}: row 2: column 'text' is empty")


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("content", [CSV, CSV.replace(",", ";"), LINES, json.dumps(OBJECTS)])
def test_stdin(monkeypatch: pytest.MonkeyPatch, name: str, content: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert pairs(name) == PAIRS


def test_tables_in_memory() -> None:
    frame = pandas.DataFrame(PAIRS, columns=["text", "label"])
    mappings = [{"text": text, "label": label} for text, label in PAIRS]
    for source in (frame, mappings, tuple(mappings), datasets.Dataset.from_pandas(frame), pyarrow.table(frame)):
        assert pairs(source) == PAIRS
        assert [row.columns["text"] for row in rows_from(source, TASK)] == ["a joy", "bad"]


@pytest.mark.parametrize("source", [3, None, b"text", {"text": ["a"]}, object(), [1, 2]])
def test_what_is_no_table_is_refused(source: object) -> None:
    assert "is no table: give a file, a list of files" in line_of(source)


@pytest.mark.parametrize("inputs", ["joy", b"joy", 3, {"text": "joy"}, [["joy"]], [3]])
def test_what_are_no_inputs_is_refused(inputs: Any) -> None:
    with pytest.raises(SoftPromptError, match=r"give|put"):
        rows_from(inputs, TASK)


def test_inputs_from_a_file(tmp_path: Path) -> None:
    assert [row.columns["text"] for row in rows_from(write(tmp_path / "a.csv", CSV), TASK)] == ["a joy", "bad"]


@pytest.mark.parametrize(
    "options",
    [{"delimiter": ",,"}, {"delimiter": '"'}, {"encoding": "utf-9"}, {"header": ["a", "a"]}, {"separator": ";"}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needed|no encoding|more than once|Extra"):
        Reading(**options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_memory_does_not_grow_with_a_file(tmp_path: Path, suffix: str) -> None:
    texts = [f"{i} {'a joy ' * 150}" for i in range(4000)]
    if suffix == ".jsonl":
        content = "".join(json.dumps({"text": text, "label": "positive"}) + "\n" for text in texts)
    else:
        content = "".join(
            f"{label}{',' if suffix == '.csv' else chr(9)}{text}\n"
            for label, text in [("label", "text"), *(("positive", text) for text in texts)]
        )
    path = write(tmp_path / f"a{suffix}", content)
    tracemalloc.start()
    try:
        assert sum(entry.row is not None for entry in read_entries(path, TASK)) == len(texts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(content) / 2
