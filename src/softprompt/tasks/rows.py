"""Labelled rows: read from files and the hub, checked against a task, split.

Owns the file formats and what a row must hold. Knows nothing of tokens or models. CSV, TSV and JSONL are
read by the standard library and not by `datasets`, which guesses types ("007" becomes 7, "NA" nothing), has
no line numbers for its errors and keeps a copy of each file in a cache; Parquet and hub data sets carry
their types and go through `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.errors import SoftPromptError
from softprompt.tasks.task import LABEL_COLUMN, Task
from softprompt.text import shown

if TYPE_CHECKING:
    from datasets import Dataset

_HUB = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+):(?P<split>\S+)")


@dataclass(frozen=True)
class Row:
    """One row of a task's data.

    Attributes:
        columns: The template's columns and their text.
        label: Index into the task's labels; None for free text, or where targets were not asked for.
        target: The rendered target; None where targets were not asked for.
        source: File or hub data set that it comes from.
        number: Its number there, from 1, the header not counted.
    """

    columns: dict[str, str]
    label: int | None = None
    target: str | None = None
    source: str = "input"
    number: int = 1

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"{self.source}: row {self.number}"


Rows = str | Path | Sequence[Row]


def load_rows(
    source: str | Path, task: Task, *, root: str | Path | None = None, need_targets: bool = True
) -> list[Row]:
    """Read the rows that a task learns from or is applied to.

    CSV and TSV follow RFC 4180 (double quotes around a value that holds the delimiter, a quote or a line end)
    and have a header; a JSONL line is an object. Text is UTF-8, with or without a byte-order mark, and is
    kept as it stands: "NA", "null", "007" and "true" are text. Numbers and booleans become the text that JSON
    has for them. Labels are compared as text. Columns that the task does not name are ignored.

    Args:
        source: A .csv, .tsv, .jsonl or .parquet file, or `hub:OWNER/NAME:SPLIT`.
        task: Names the columns and the labels.
        root: Folder that a relative path starts from; default the working folder.
        need_targets: False to predict: the target's columns are neither needed nor read.

    Raises:
        SoftPromptError: The source cannot be read, is empty, lacks a column, or a row is unusable; one line
            names the file with the row or the column.
    """
    needed = list(dict.fromkeys(task.columns + (task.target_columns if need_targets else [])))
    if str(source).startswith("hub:"):
        name = str(source)
        records = _read_hub(name, needed)
    else:
        path = Path(root or "") / source
        name = str(path)
        records = _read_file(path, needed)
    rows = _make_rows(records, task, name, need_targets)
    if not rows:
        raise SoftPromptError(f"{name}: there are no rows of data")
    return rows


def rows_from(inputs: Iterable[str | Mapping[str, object]], task: Task, *, source: str = "input") -> list[Row]:
    """Rows without targets from memory, to predict.

    Args:
        inputs: Texts, where the template has one column, or a mapping of the template's columns for each row.
        task: Names the columns.
        source: What messages call the inputs.

    Raises:
        SoftPromptError: A column is missing, or a text empty; one line names the row.
    """

    def records() -> Iterator[tuple[str, Mapping[str, object]]]:
        for number, given in enumerate(inputs, 1):
            place = f"{source}: row {number}"
            if isinstance(given, str):
                if len(task.columns) > 1:
                    raise SoftPromptError(f"{place}: the template needs the columns {shown(task.columns)}")
                given = {task.columns[0]: given}
            _require(task.columns, given, place)
            yield place, given

    return _make_rows(records(), task, source, need_targets=False)


def check_trainable(rows: Sequence[Row], task: Task) -> None:
    """Refuse training rows that show one label only.

    Raises:
        SoftPromptError: All rows of a classification task have the same label.
    """
    seen = {row.label for row in rows if row.label is not None}
    if task.labels is not None and len(seen) < 2:
        raise SoftPromptError(
            f"{rows[0].source}: all {len(rows)} rows have the label {shown([task.labels[i] for i in seen])}; "
            "training needs rows of two labels or more"
        )


def as_rows(data: Rows, task: Task, *, need_targets: bool = True) -> Sequence[Row]:
    """`data` itself where it is rows, else what `load_rows` reads, also for what it raises."""
    return load_rows(data, task, need_targets=need_targets) if isinstance(data, str | Path) else data


def with_validation(
    train: Rows, validation: Rows | float | None, task: Task, seed: int
) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """The training and the validation rows.

    Args:
        train: Labelled rows, or where they are read from.
        validation: Likewise, or the fraction of the training rows to set aside; None: there are none.
        task: What is learned.
        seed: Of the split.

    Raises:
        SoftPromptError: As `load_rows` and `split_rows`.
    """
    rows = as_rows(train, task)
    if isinstance(validation, float):
        return split_rows(rows, validation, seed)
    return rows, None if validation is None else as_rows(validation, task)


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and validation, the labels in the same proportions in both.

    Args:
        rows: The rows; their order is kept within both parts.
        fraction: Share of the rows for validation, between 0 and 1; at least one row.
        seed: The same seed and rows give the same split.

    Raises:
        SoftPromptError: The fraction is not between 0 and 1, a part would have fewer rows than there are
            labels, or a label has one row only.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise SoftPromptError(f"validation: a fraction is between 0 and 1, not {fraction}")
    labels = [row.label for row in rows]
    counts = Counter(labels)
    held = max(1, round(len(rows) * fraction))
    if min(held, len(rows) - held) < len(counts):
        raise SoftPromptError(
            f"validation: {fraction} of {len(rows)} rows is too little for {len(counts)} labels; "
            "give more rows, another fraction or a file"
        )
    if len(counts) > 1 and min(counts.values()) < 2:
        alone = next(row for row in rows if counts[row.label] == 1)
        raise SoftPromptError(
            f"{alone.place}: the only row of its label cannot be in training and validation alike; "
            "add rows, or give a file for validation"
        )
    train, validation = train_test_split(
        range(len(rows)), test_size=held, random_state=seed, stratify=labels if len(counts) > 1 else None
    )
    return [rows[i] for i in sorted(train)], [rows[i] for i in sorted(validation)]


def _make_rows(
    records: Iterable[tuple[str, Mapping[str, object]]], task: Task, source: str, need_targets: bool
) -> list[Row]:
    index = {label: i for i, label in enumerate(task.labels or [])}
    rows = []
    for number, (place, record) in enumerate(records, 1):
        columns = {name: _text(record[name], name, place) for name in task.columns}
        label = target = None
        if need_targets:
            wanted = {name: _text(record[name], name, place) for name in task.target_columns}
            target = task.render_target(wanted)
            if task.labels is not None:
                label = index.get(wanted[LABEL_COLUMN])
                if label is None:
                    raise SoftPromptError(
                        f"{place}: label {shown(wanted[LABEL_COLUMN])} is not one of the task's "
                        f"{len(task.labels)} labels: {shown(task.labels)}"
                    )
        rows.append(Row(columns, label, target, source, number))
    return rows


def _text(value: object, column: str, place: str) -> str:
    """A value as text that a tokenizer can read, never empty."""
    if isinstance(value, (list, dict, bytes)):
        raise SoftPromptError(f"{place}: column {shown(column)} holds {shown(value)}, which is not text")
    if isinstance(value, bool):
        value = "true" if value else "false"
    text = "" if value is None else str(value)
    if not text.strip():
        raise SoftPromptError(f"{place}: column {shown(column)} is empty; fill it in or leave the row out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SoftPromptError(f"{place}: column {shown(column)} holds half a surrogate pair") from None
    return text


def _require(needed: Sequence[str], present: Iterable[str], place: str) -> None:
    names = list(present)
    for column in needed:
        if column not in names:
            raise SoftPromptError(f"{place}: no column {shown(column)}; the columns are {shown(names)}")


def _refuse_duplicates(names: Sequence[str], place: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SoftPromptError(f"{place}: the column {shown(repeated[0])} is there more than once; rename one")


def _read_file(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".parquet"):
        raise SoftPromptError(
            f"{path}: cannot read {suffix or 'a file without a suffix'}; "
            "give a .csv, .tsv, .jsonl or .parquet file, or hub:OWNER/NAME:SPLIT"
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be read: {error.strerror}") from None
    if not data:
        raise SoftPromptError(f"{path}: the file is empty")
    if suffix == ".parquet":
        return _read_parquet(path, data, needed)
    text = _decode(path, data)
    if suffix == ".jsonl":
        return _read_jsonl(path, text, needed)
    return _read_delimited(path, text, needed, "," if suffix == ".csv" else "\t")


def _decode(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SoftPromptError(
            f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); "
            "save the file as UTF-8"
        ) from None
    if not text.strip():
        raise SoftPromptError(f"{path}: the file is empty")
    return text


def _read_delimited(
    path: Path, text: str, needed: Sequence[str], delimiter: str
) -> Iterator[tuple[str, Mapping[str, object]]]:
    # The limit on a value's length belongs to the whole csv module: raised for long texts, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # Strict: a stray quote is an error, where csv would otherwise glue rows together in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        line = reader.line_num + 1
        place = f"{path}: row {number + 1} (line {line})" if header else f"{path}: line {line}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise SoftPromptError(f"{place}: {error}; check the quotes") from None
        if values is None:
            return
        if not values:
            continue
        if header is None:
            header = values
            _refuse_duplicates(header, str(path))
            _require(needed, header, str(path))
            continue
        if len(values) != len(header):
            raise SoftPromptError(
                f"{place}: {len(values)} values, but {len(header)} columns; "
                "put a value that holds the delimiter in double quotes"
            )
        number += 1
        yield place, dict(zip(header, values, strict=True))


def _read_jsonl(path: Path, text: str, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    number = 0
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        number += 1
        place = f"{path}: row {number} (line {line})"

        def unique(pairs: list[tuple[str, Any]], place: str = place) -> dict[str, Any]:
            _refuse_duplicates([name for name, _ in pairs], place)
            return dict(pairs)

        try:
            # Numbers stay as they are written; NaN is how some writers spell a missing value.
            record = json.loads(
                content,
                object_pairs_hook=unique,
                parse_int=str,
                parse_float=str,
                parse_constant=lambda _: None,
            )
        except json.JSONDecodeError as error:
            raise SoftPromptError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
        except RecursionError:
            raise SoftPromptError(f"{place}: nested too deeply") from None
        if not isinstance(record, dict):
            raise SoftPromptError(f'{place}: not an object such as {{"text": "..."}} but {shown(record)}')
        _require(needed, record, place)
        yield place, record


def _read_parquet(path: Path, data: bytes, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read()
        table.validate(full=True)  # that text is UTF-8, above all
        _refuse_duplicates(table.column_names, str(path))
        dataset = Dataset(table)
    except SoftPromptError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SoftPromptError(f"{path}: cannot be read as Parquet: {error}") from None
    return _read_dataset(dataset, str(path), needed)


def _read_hub(source: str, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    match = _HUB.fullmatch(source)
    if match is None:
        raise SoftPromptError(f"{source}: write a hub data set as hub:OWNER/NAME:SPLIT")
    import datasets

    try:
        dataset = datasets.load_dataset(match["name"], split=match["split"])
    except Exception as error:  # whatever goes wrong between here and the hub, in any of its libraries' types
        raise SoftPromptError(f"{source}: cannot be loaded: {type(error).__name__}: {error}") from None
    return _read_dataset(dataset, source, needed)


def _read_dataset(dataset: Dataset, source: str, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    from datasets import ClassLabel

    _require(needed, dataset.column_names, source)
    dataset = dataset.select_columns(list(needed))
    names = {column: feature.names for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    for number, record in enumerate(dataset, 1):
        for column, labels in names.items():
            # Where a label is unknown, as in many test sets, its index is -1.
            if record[column] is not None:
                record[column] = labels[record[column]] if record[column] >= 0 else None
        yield f"{source}: row {number}", record
