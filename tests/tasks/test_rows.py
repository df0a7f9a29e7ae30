"""Rows from files, the hub and memory; what is refused, and with which line."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.errors import SoftPromptError
from softprompt.tasks import Row, Task, check_trainable, load_rows, rows_from, split_rows, with_validation
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import as_rows

TASK = Task(template="{text} =>", labels=["negative", "positive"])
MANY = Task(template="{text} =>", labels=[f"label {i}" for i in range(30)])
ANSWER = Task(template="{question}", target=" {answer}")
# What a tokenizer can read, what is not empty, and what Python 3.10's csv knows.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """The same columns in the format that the path's suffix names."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


def line_of(source: str | Path, task: Task = TASK, *, need_targets: bool = True) -> str:
    """The one line that loading ends with, after the source's name."""
    with pytest.raises(SoftPromptError) as raised:
        load_rows(source, task, need_targets=need_targets)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"{source}: ")
    return line.removeprefix(f"{source}: ")


FORMATS = pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])


class TestFormats:
    @FORMATS
    def test_a_row_is_what_the_file_says(self, tmp_path: Path, suffix: str) -> None:
        columns = {"id": ["1", "2"], "text": ["bad", "good"], "label": ["negative", "positive"]}
        path = write_table(tmp_path / f"train{suffix}", columns)
        assert load_rows(path, TASK) == [
            Row({"text": "bad"}, 0, " negative", str(path), 1),
            Row({"text": "good"}, 1, " positive", str(path), 2),
        ]
        assert load_rows(path, TASK)[1].place == f"{path}: row 2"

    @FORMATS
    def test_text_stays_as_it_is(self, tmp_path: Path, suffix: str) -> None:
        texts = ["NA", "null", "None", "nan", "007", "1.0", "1e5", "true", "2020-01-01", '"', 'a "b" c', "a,b"]
        texts += ["a\tb", "a\nb", "a\r\nb", "a\rb", " a ", "#a", "'", "\\n", "ü€😀", "a\u2028b", "\ufeffa", "{text}"]
        path = write_table(tmp_path / f"odd{suffix}", {"text": texts, "label": ["positive"] * len(texts)})
        assert [row.columns["text"] for row in load_rows(path, TASK)] == texts

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
    @given(texts=st.lists(TEXT, min_size=1, max_size=4), suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]))
    def test_round_trip(self, tmp_path: Path, texts: list[str], suffix: str) -> None:
        path = write_table(tmp_path / f"any{suffix}", {"text": texts, "label": ["positive"] * len(texts)})
        rows = load_rows(path, TASK, reading=Reading(quoting=True))
        assert [row.columns["text"] for row in rows] == texts

    @FORMATS
    @pytest.mark.parametrize("texts", [["a" * 100_000, "b"], ["ab " * 100_000, "c"]])
    def test_long_rows(self, tmp_path: Path, suffix: str, texts: list[str]) -> None:
        path = write_table(tmp_path / f"long{suffix}", {"text": texts, "label": ["negative", "positive"]})
        assert [row.columns["text"] for row in load_rows(path, TASK)] == texts

    @FORMATS
    def test_numbers_are_labels_as_text(self, tmp_path: Path, suffix: str) -> None:
        path = write_table(tmp_path / f"n{suffix}", {"text": ["a", "b", "c"], "label": [1, 0, 1]})
        rows = load_rows(path, Task(template="{text}", labels=["0", "1"]))
        assert [(row.label, row.target) for row in rows] == [(1, " 1"), (0, " 0"), (1, " 1")]

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    def test_booleans_are_labels_as_text(self, tmp_path: Path, suffix: str) -> None:
        path = write_table(tmp_path / f"b{suffix}", {"text": ["a", "b"], "label": [True, False]})
        assert [row.label for row in load_rows(path, Task(template="{text}", labels=["false", "true"]))] == [1, 0]

    def test_numbers_in_json_stay_as_written(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"question": 1.50, "answer": 1e3}\n')
        assert load_rows(path, ANSWER)[0].target == " 1e3"
        assert load_rows(path, ANSWER)[0].columns == {"question": "1.50"}

    def test_a_class_label_of_datasets_is_its_name(self, tmp_path: Path) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
        )
        table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
        pyarrow.parquet.write_table(table.data.table, tmp_path / "c.parquet")
        assert [row.label for row in load_rows(tmp_path / "c.parquet", TASK)] == [1, 0]

    @pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path, name: str) -> None:
        content = "text,label\na,positive\n" if name == "a.csv" else '{"text": "a", "label": "positive"}\n'
        path = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
        assert load_rows(path, TASK)[0].columns == {"text": "a"}

    def test_blank_lines_and_windows_line_ends(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.CSV", "text,label\r\n\r\na,positive\r\n\r\n")
        assert [row.columns["text"] for row in load_rows(path, TASK)] == ["a"]
        path = write(tmp_path / "a.jsonl", '\n{"text": "a", "label": "positive"}\r\n\n')
        assert [row.columns["text"] for row in load_rows(path, TASK)] == ["a"]

    def test_relative_to_root(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "text,label\na,positive\n")
        assert load_rows("a.csv", TASK, root=tmp_path)[0].source == str(tmp_path / "a.csv")
        assert load_rows(tmp_path / "a.csv", TASK, root="elsewhere")[0].label == 1

    def test_nothing_stale(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        for text in ("old", "new"):
            write_table(path, {"text": [text], "label": ["positive"]})
            assert load_rows(path, TASK)[0].columns["text"] == text

    def test_quick(self, tmp_path: Path) -> None:
        n = 10_000
        path = write_table(tmp_path / "a.csv", {"text": ["some words"] * n, "label": ["positive"] * n})
        start = time.perf_counter()
        assert len(load_rows(path, TASK)) == n
        assert time.perf_counter() - start < 2

    def test_free_text(self, tmp_path: Path) -> None:
        path = write_table(tmp_path / "a.csv", {"question": ["1+1"], "answer": ["2"]})
        assert load_rows(path, ANSWER) == [Row({"question": "1+1"}, None, " 2", str(path), 1)]

    @FORMATS
    def test_without_targets(self, tmp_path: Path, suffix: str) -> None:
        path = write_table(tmp_path / f"a{suffix}", {"text": ["a"]})
        assert load_rows(path, TASK, need_targets=False) == [Row({"text": "a"}, None, None, str(path), 1)]


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        assert line_of(tmp_path / "a.csv") == "no such file"

    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").mkdir()
        assert line_of(tmp_path / "a.csv").startswith("cannot be read: Is a directory; give a file")

    @pytest.mark.parametrize("name", ["a.text", "a.txt", "a.txt.gz", "a"])
    def test_suffix(self, tmp_path: Path, name: str) -> None:
        assert "give a .csv, .tsv, .jsonl" in line_of(write(tmp_path / name, "text,label\na,positive\n"))

    @FORMATS
    def test_empty(self, tmp_path: Path, suffix: str) -> None:
        assert line_of(write(tmp_path / f"a{suffix}", "")) == "the file is empty"

    @pytest.mark.parametrize("content", ["\n \r\n", "\ufeff", "\ufeff\n"])
    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
    def test_blank(self, tmp_path: Path, suffix: str, content: str) -> None:
        assert line_of(write(tmp_path / f"a{suffix}", content)) == "the file is empty"

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_header_only(self, tmp_path: Path, suffix: str) -> None:
        path = write_table(tmp_path / f"a{suffix}", {"text": [], "label": []})
        assert line_of(path) == "there are no rows of data"

    @pytest.mark.parametrize(
        ("data", "where"),
        [
            (
                "text,label\ncaf\xe9,x\n".encode() + b"caf\xe9,positive\n",
                "line 3 is not UTF-8 (byte 0xe9 at offset 22)",
            ),
            (b"\xef\xbb\xbftext,label\n\xff", "line 2 is not UTF-8 (byte 0xff at offset 14)"),
            ("text,label\nпривет,positive\n".encode("cp1251"), "line 2 is not UTF-8 (byte 0xef at offset 11)"),
            ("text,label\na,b\n".encode("utf-16-le"), "line 1 holds null bytes"),
        ],
    )
    def test_not_utf8(self, tmp_path: Path, data: bytes, where: str) -> None:
        assert line_of(write(tmp_path / "a.csv", data)).startswith(where)

    @FORMATS
    def test_missing_column(self, tmp_path: Path, suffix: str) -> None:
        path = write_table(tmp_path / f"a{suffix}", {"review": ["a"], "label": ["positive"]})
        assert "no column 'text'; the columns are ['review', 'label']: name it, data.columns" in line_of(path)
        path = write_table(tmp_path / f"a{suffix}", {"text": ["a"]})
        assert "no column 'label'; the columns are ['text']" in line_of(path)

    def test_missing_column_of_one_object(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a", "label": "positive"}\n\n{"text": "b"}\n')
        assert line_of(path).startswith("row 2 (line 3): no column 'label'; the columns are ['text']: ")

    def test_duplicate_columns(self, tmp_path: Path) -> None:
        expected = "the column 'text' is there more than once; rename one"
        assert line_of(write(tmp_path / "a.csv", "text,label,text\na,positive,b\n")) == expected
        path = write(tmp_path / "a.jsonl", '{"text": "a", "text": "b", "label": "positive"}\n')
        assert line_of(path) == f"row 1 (line 1): {expected}"
        table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert line_of(tmp_path / "a.parquet") == expected

    @pytest.mark.parametrize("row", ["a,positive,c", "a"])
    def test_ragged(self, tmp_path: Path, row: str) -> None:
        path = write(tmp_path / "a.csv", f'text,label\n"a\nb",positive\n{row}\n')
        assert line_of(path).startswith(f"row 2 (line 4): {row.count(',') + 1} values, but 2 columns")

    @pytest.mark.parametrize(
        ("content", "where"),
        [
            ('text,label\na,positive\n"b,positive\nc,positive\n', "row 2 (line 3): unexpected end of data"),
            ('text,label\n"a" b,positive\n', "row 1 (line 2): ',' expected after '\"'"),
            ('"text,label\n', "line 1: unexpected end of data"),
        ],
    )
    def test_stray_quotes(self, tmp_path: Path, content: str, where: str) -> None:
        assert line_of(write(tmp_path / "a.csv", content)).startswith(f"{where}; check the quotes, or set data.quoting")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ('{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
            ('{"text": "a"} {}', "not JSON: Extra data at column 15"),
            ('["a", "positive"]', """not an object such as {"text": "..."} but ['a', 'positive']"""),
            ('"a"', """not an object such as {"text": "..."} but 'a'"""),
            ("[" * 100_000, "nested too deeply"),
        ],
    )
    def test_bad_json(self, tmp_path: Path, content: str, problem: str) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a", "label": "positive"}\n' + content + "\n")
        assert line_of(path) == f"row 2 (line 2): {problem}"

    def test_not_parquet(self, tmp_path: Path) -> None:
        assert line_of(write(tmp_path / "a.parquet", "text,label\n")).startswith("cannot be read as Parquet: ")

    def test_truncated_parquet(self, tmp_path: Path) -> None:
        path = write_table(tmp_path / "a.parquet", {"text": ["a"], "label": ["positive"]})
        assert line_of(write(path, path.read_bytes()[:-20])).startswith("cannot be read as Parquet: ")

    def test_parquet_that_is_not_utf8(self, tmp_path: Path) -> None:
        texts = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"]).buffers())
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": ["positive"]}), tmp_path / "a.parquet")
        assert "Invalid UTF8 sequence" in line_of(tmp_path / "a.parquet")


class TestBadRows:
    @FORMATS
    @pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
    def test_empty_text(self, tmp_path: Path, suffix: str, text: str) -> None:
        path = write_table(tmp_path / f"a{suffix}", {"text": ["a", text], "label": ["positive"] * 2})
        line = line_of(path)
        assert line.startswith("row 2")
        assert line.endswith("column 'text' is empty; fill it in or leave the row out")

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    @pytest.mark.parametrize("task", [TASK, ANSWER])
    def test_null(self, tmp_path: Path, suffix: str, task: Task) -> None:
        columns = {task.columns[0]: ["a", "b"], task.target_columns[0]: ["positive", None]}
        line = line_of(write_table(tmp_path / f"a{suffix}", columns), task)
        assert line.startswith("row 2")
        assert f"column '{task.target_columns[0]}' is empty" in line

    def test_nan_in_json_is_empty(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": NaN, "label": "positive"}\n')
        assert "column 'text' is empty" in line_of(path)

    @FORMATS
    def test_unknown_label(self, tmp_path: Path, suffix: str) -> None:
        path = write_table(tmp_path / f"a{suffix}", {"text": ["a", "b"], "label": ["positive", "Positive"]})
        line = line_of(path)
        assert line.startswith("row 2")
        assert "label 'Positive' is not one of the task's 2 labels: ['negative', 'positive']; did you mean" in line
        assert "'positive'? map it in data.labels" in line

    def test_many_labels_are_shortened(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", f"text,label\na,{'x' * 1000}\n")
        line = line_of(path, Task(template="{text}", labels=[f"label number {i}" for i in range(1000)]))
        assert "one of the task's 1000 labels: ['label number 0', " in line
        assert len(line) < 400

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    @pytest.mark.parametrize("value", [["a", "b"], {"a": "b"}])
    def test_nested(self, tmp_path: Path, suffix: str, value: object) -> None:
        path = write_table(tmp_path / f"a{suffix}", {"text": [value], "label": ["positive"]})
        assert f"column 'text' holds {value}, which is not text; " in line_of(path)

    def test_binary(self, tmp_path: Path) -> None:
        path = write_table(tmp_path / "a.parquet", {"text": [b"a"], "label": ["positive"]})
        assert line_of(path).startswith("row 1: column 'text' holds b'a', which is not text; ")

    def test_half_a_character(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a\\ud83d", "label": "positive"}\n')
        assert line_of(path).startswith("row 1 (line 1): column 'text' holds half a surrogate pair; ")

    def test_columns_that_the_task_does_not_name_may_hold_anything(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a", "label": "positive", "x": [1], "y": null}\n')
        assert load_rows(path, TASK)[0].columns == {"text": "a"}


class TestHub:
    def test_a_split(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
        )
        asked = []

        def load_dataset(name: str, *, split: str) -> datasets.Dataset:
            asked.append((name, split))
            return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        rows = load_rows("hub:some/reviews:train[:2]", TASK, need_targets=False)
        assert [row.columns["text"] for row in rows] == ["a", "b"]
        assert asked == [("some/reviews", "train[:2]")]
        assert line_of("hub:some/reviews:test").startswith("row 2: column 'label' is empty")

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
        assert "the hub cannot be reached" in line_of("hub:some/reviews:train")

    @pytest.mark.parametrize("source", ["hub:reviews:train", "hub:some/reviews", "hub:", "hub:a/b/c/d:train"])
    def test_spelling(self, source: str) -> None:
        assert line_of(source).startswith("write a hub data set as hub:OWNER/NAME:SPLIT")


class TestMemory:
    def test_texts_and_mappings(self) -> None:
        rows = rows_from(["a", {"text": "b", "x": 1}], TASK, source="request")
        assert rows == [Row({"text": "a"}, source="request"), Row({"text": "b"}, source="request", number=2)]

    @pytest.mark.parametrize(
        ("inputs", "line"),
        [
            (["a", ""], "input: row 2: column 'text' is empty; fill it in or leave the row out"),
            (
                [{"txt": "a"}],
                "input: row 1: no column 'text'; the columns are ['txt']: did you mean 'txt'? name it, "
                "data.columns: {text: txt}, or rename the column",
            ),
        ],
    )
    def test_refused(self, inputs: list[Any], line: str) -> None:
        with pytest.raises(SoftPromptError) as raised:
            rows_from(inputs, TASK)
        assert str(raised.value) == line

    def test_a_text_for_two_columns(self) -> None:
        with pytest.raises(SoftPromptError, match=r"row 1: the template needs the columns \['a', 'b'\]"):
            rows_from(["x"], Task(template="{a} {b}", labels=["x", "y"]))


def labelled(*labels: int) -> list[Row]:
    return [Row({"text": str(i)}, label, "", "a.csv", i + 1) for i, label in enumerate(labels)]


class TestTrainable:
    def test_one_label_only(self) -> None:
        with pytest.raises(SoftPromptError, match=r"^a\.csv: all 3 rows have the label \['positive'\]"):
            check_trainable(labelled(1, 1, 1), TASK)

    def test_two_labels_or_free_text(self) -> None:
        check_trainable(labelled(1, 0), TASK)
        check_trainable([Row({"question": "a"}, None, " b")], ANSWER)


class TestSplit:
    def test_stratified_and_whole(self) -> None:
        rows = labelled(*[0] * 60, *[1] * 30, *[2] * 10)
        train, validation = split_rows(rows, 0.1, seed=0)
        assert [sum(row.label == label for row in validation) for label in range(3)] == [6, 3, 1]
        assert sorted(train + validation, key=lambda row: row.number) == rows
        assert train == sorted(train, key=lambda row: row.number)

    def test_the_seed_decides(self) -> None:
        rows = labelled(*[0, 1] * 50)
        assert split_rows(rows, 0.2, seed=3) == split_rows(rows, 0.2, seed=3)
        assert split_rows(rows, 0.2, seed=3) != split_rows(rows, 0.2, seed=4)

    def test_free_text(self) -> None:
        rows = [Row({"question": str(i)}, None, " a") for i in range(10)]
        assert [len(part) for part in split_rows(rows, 0.3, seed=0)] == [7, 3]

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2, float("nan")])
    def test_not_a_fraction(self, fraction: float) -> None:
        with pytest.raises(SoftPromptError, match=r"^validation: a fraction is between 0 and 1"):
            split_rows(labelled(0, 1, 0, 1), fraction, seed=0)

    @pytest.mark.parametrize("rows", [[], labelled(0), labelled(0, 1, 0, 1), labelled(*range(6))])
    def test_too_few_rows(self, rows: list[Row]) -> None:
        with pytest.raises(SoftPromptError, match=r"^validation: 0\.2 of \d rows is too little for \d labels"):
            split_rows(rows, 0.2, seed=0)

    def test_a_label_of_one_row(self) -> None:
        with pytest.raises(SoftPromptError, match=r"^a\.csv: row 21: the only row of its label"):
            split_rows(labelled(*[0] * 20, 1), 0.2, seed=0)


class TestSetAside:
    def test_a_tenth_of_all_labels_alike_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "softprompt")
        given = labelled(*[0] * 60, *[1] * 40)
        train, held = with_validation(given, "auto", MANY, 0)
        assert [sum(row.label == label for row in held or []) for label in (0, 1)] == [6, 4]
        assert sorted([*train, *(held or [])], key=lambda row: row.number) == given
        assert "10 of the 100 training rows are set aside, of all labels alike" in caplog.text

    def test_a_label_of_one_row_is_learned(self) -> None:
        train, held = with_validation(labelled(*[0] * 20, *[1] * 20, 2), "auto", MANY, 0)
        assert 2 in {row.label for row in train}
        assert 2 not in {row.label for row in held or []}

    def test_one_of_each_of_many_labels(self) -> None:
        _, held = with_validation(labelled(*range(20), *range(20), *range(20)), "auto", MANY, 0)
        assert sorted(row.label for row in held or []) == list(range(20))

    @pytest.mark.parametrize("rows", [labelled(0, 1, 0, 1), labelled(*range(30))])
    def test_too_few_are_all_learned(self, rows: list[Row], caplog: pytest.LogCaptureFixture) -> None:
        assert with_validation(rows, "auto", MANY, 0) == (rows, None)
        assert "too few to set some aside: nothing is validated" in caplog.text


class TestUnusable:
    def test_they_are_left_out_and_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,positive\n,negative\nb,odd\nc,negative\n")
        rows = load_rows(path, TASK, reading=Reading(unusable="skip"))
        assert [(row.columns["text"], row.number) for row in rows] == [("a", 1), ("c", 4)]
        assert "2 of 4 rows cannot be used" in caplog.text
        assert "they are left out" in caplog.text
        assert line_of(path).endswith("mend them, or leave them out with data.unusable: skip")

    def test_a_file_of_nothing_else_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\n,positive\n,negative\n")
        with pytest.raises(SoftPromptError, match="2 of 2 rows cannot be used"):
            load_rows(path, TASK, reading=Reading(unusable="skip"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"label": "positive"}, "a Row has columns, not {}: write Row({'text': '...'})"),
        ({"columns": "a joy"}, "a Row has columns, not 'a joy'"),
        ({"columns": {"text": 3}}, "input: row 1: column 'text' is 3, which is not text"),
        ({"columns": {"text": "a joy"}, "label": "positive"}, "an index into the task's labels, not 'positive'"),
    ],
)
def test_a_row_of_ones_own_says_what_it_takes(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(SoftPromptError) as caught:
        Row(**arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize("label", [-1, 2, None])
def test_a_row_of_ones_own_has_one_of_the_labels(label: int | None) -> None:
    rows = [Row({"text": "a joy"}, 0), Row({"text": "bad"}, label, number=2)]
    with pytest.raises(SoftPromptError, match=f"input: row 2: its label is {label}: give an index .* from 0 to 1"):
        as_rows(rows, TASK)
    assert as_rows(rows, TASK, need_targets=False) is rows


def test_a_row_takes_the_labels_of_other_libraries() -> None:
    assert Row({"text": "a joy"}, numpy.int64(1)).label == 1
