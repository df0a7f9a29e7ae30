"""Labelled rows: the records of tables, checked against a task.

Owns what a row must hold, and what is said of those that do not. Knows no file format, tokens or models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

from softprompt.errors import SoftPromptError
from softprompt.tasks.delimited import Record
from softprompt.tasks.reading import Reading
from softprompt.tasks.tables import Table, open_tables
from softprompt.tasks.task import LABEL_COLUMN, Task
from softprompt.tasks.unpacking import STDIN
from softprompt.text import shown

logger = logging.getLogger(__name__)

MOST_LABELS = 200  # that are taken from the rows without being asked for by name
# What a row of messages is to a task: what was said before the last answer, and that answer.
CONVERSATION, ANSWER = "conversation", "answer"


@dataclass(frozen=True)
class Row:
    """One row of a task's data.

    Attributes:
        columns: The template's columns and their text.
        label: Index into the task's labels; None for free text, or where targets were not asked for.
        target: The rendered target; None where targets were not asked for.
        source: File or hub data set that it comes from.
        number: Its number there, from 1, the header not counted.

    Raises:
        SoftPromptError: There are no columns, one of them is not text, or the label is no number.
    """

    columns: dict[str, str] = field(default_factory=dict)
    label: int | None = None
    target: str | None = None
    source: str = "input"
    number: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.columns, Mapping) or not self.columns:
            raise SoftPromptError(
                f"a Row has columns, not {shown(self.columns)}: write Row({{'text': '...'}}), or give mappings in "
                "place of rows"
            )
        if other := next((name for name, text in self.columns.items() if not isinstance(text, str)), None):
            raise SoftPromptError(
                f"{self.place}: column {shown(other)} is {shown(self.columns[other])}, which is not text: give a str"
            )
        if not isinstance(self.label, Integral | None):
            raise SoftPromptError(
                f"{self.place}: the label of a Row is an index into the task's labels, not {shown(self.label)}: to "
                "give labels as text, give mappings in place of rows"
            )

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"{self.source}: row {self.number}"


@dataclass(frozen=True)
class Entry:
    """A record of a table, and the row that it is to a task.

    Attributes:
        record: The record.
        row: None where it cannot be used.
        fault: Why not; "" where it can.
        label: The label that is none of the task's, where that is the fault.
    """

    record: Record
    row: Row | None
    fault: str = ""
    label: str | None = None


class _UnusableError(Exception):
    """What is wrong with a record."""


# A file, a pattern, a list of files, a hub data set; or rows, mappings, a data frame or a `datasets.Dataset`.
Rows = Any


def load_rows(
    source: Rows,
    task: Task,
    *,
    root: str | Path | None = None,
    need_targets: bool = True,
    reading: Reading | None = None,
) -> list[Row]:
    """Read the rows that a task learns from or is applied to.

    CSV follows RFC 4180 (double quotes around a value that holds the delimiter, a quote or a line end); TSV is the same
    without quotes. A JSONL line is an object. Text is UTF-8 unless the file says otherwise, and is kept as it stands:
    "NA", "null", "007" and "true" are text. Numbers and booleans become the text that JSON has for them. Labels are
    compared as text. Columns that the task does not name are ignored.

    Args:
        source: A .csv, .tsv, .jsonl, .json, .parquet, .arrow or .xlsx file, also packed by gzip or zip; a pattern or
            a list of files; a folder of `save_to_disk`; `hub:OWNER/NAME[/SUBSET]:SPLIT`; "-" for stdin; or a data
            frame, a `datasets.Dataset` or a list of mappings.
        task: Names the columns and the labels.
        root: Folder that a relative path starts from; default the working folder.
        need_targets: False to predict: the target's columns are neither needed nor read.
        reading: How the table is read, where that is not plain.

    Raises:
        SoftPromptError: The source cannot be read, is empty, lacks a column, or rows are unusable; one line names the
            file with the first such rows, or the column.
    """
    entries = list(read_entries(source, task, root=root, need_targets=need_targets, reading=reading))
    rows = [entry.row for entry in entries if entry.row is not None]
    if len(rows) < len(entries):
        report = _report(entries, task)
        if reading is None or reading.unusable == "refuse" or not rows:
            several = "; mend them, or leave them out with data.unusable: skip"
            raise SoftPromptError(report + several * (len(entries) - len(rows) > 1))
        logger.warning("%s; they are left out", report)
    return rows


def read_entries(
    source: Rows,
    task: Task,
    *,
    root: str | Path | None = None,
    need_targets: bool = True,
    reading: Reading | None = None,
) -> Iterator[Entry]:
    """Each record of a source with its row, or with what is wrong with it; see `load_rows`.

    Raises:
        SoftPromptError: The source cannot be read, is empty or lacks a column.
    """
    reading = reading or Reading()
    maker = _Maker(task, reading, need_targets)
    tables = open_tables(source, reading, [reading.name_of(column) for column in maker.needed], root)
    for table in tables:
        _require(table, maker.needed, reading, task)
    found = 0
    for table in tables:
        for number, record in enumerate(table.records, 1):
            found += 1
            yield maker.entry(record, table.name, number)
    if not found:
        raise SoftPromptError(f"{tables[0].name if tables else 'input'}: there are no rows of data")


class Entries:
    """The records of a source that is to be answered, gone through once to look at them and then as often as wanted.

    None is kept, unless the source gives them only once (stdin).

    Args:
        source, task, reading, root: see `read_entries`.

    Attributes:
        count: how many there are.
        bad: how many of them cannot be used.
        digest: of their values.

    Raises:
        SoftPromptError: The source cannot be read, is empty or lacks a column.
    """

    def __init__(self, source: Rows, task: Task, reading: Reading, root: Path | None = None) -> None:
        self._read = partial(read_entries, source, task, root=root, need_targets=False, reading=reading)
        self._kept = list(self._read()) if str(source) in STDIN else None
        self.count = self.bad = 0
        self._first_bad: Entry | None = None
        values = hashlib.sha256()
        for entry in self:
            self.count += 1
            values.update(json.dumps(entry.record.values, sort_keys=True, default=str).encode())
            if entry.row is None:
                self.bad += 1
                self._first_bad = self._first_bad or entry
        self.digest = values.hexdigest()

    def __iter__(self) -> Iterator[Entry]:
        return self._read() if self._kept is None else iter(self._kept)

    def refuse_bad(self) -> None:
        """Refuse the first record that cannot be used, where there is one.

        Raises:
            SoftPromptError: there is.
        """
        if self._first_bad is not None:
            raise SoftPromptError(f"{self._first_bad.record.place}: {self._first_bad.fault}")


def rows_from(inputs: Iterable[Any], task: Task, *, source: str = "input", reading: Reading | None = None) -> list[Row]:
    """Rows without targets from memory, to predict.

    Args:
        inputs: Texts, where the template has one column, or a mapping of the template's columns for each row, or rows;
            or a data frame or a `datasets.Dataset`; or the path of a file, as a `Path`.
        task: Names the columns.
        source: What messages call the inputs.
        reading: How the columns are named.

    Raises:
        SoftPromptError: A column is missing, a text empty, or the inputs are one text; one line names the row.
    """
    if isinstance(inputs, str | bytes):
        raise SoftPromptError(
            f"{shown(inputs)} is one text, and several are taken: put it in a list, [{shown(inputs)}], or give a "
            "file as a Path"
        )
    if isinstance(inputs, Path) or hasattr(inputs, "columns") or hasattr(inputs, "column_names"):
        return load_rows(inputs, task, need_targets=False, reading=reading)
    if not isinstance(inputs, Iterable) or isinstance(inputs, Mapping):
        raise SoftPromptError(f"{shown(inputs)} is no list of texts or mappings: put it in a list, or give a Path")

    reading, rows = reading or Reading(), []
    maker = _Maker(task, reading, need_targets=False)
    for number, given in enumerate(inputs, 1):
        place = f"{source}: row {number}"
        if isinstance(given, Row):
            rows.append(given)
            continue
        if isinstance(given, str):
            if len(task.columns) > 1:
                raise SoftPromptError(f"{place}: the template needs the columns {shown(task.columns)}")
            given = {reading.name_of(task.columns[0]): given}
        if not isinstance(given, Mapping):
            raise SoftPromptError(
                f"{place}: {shown(given)} is neither a text nor a mapping of columns: give one of them"
            )
        entry = maker.entry(Record(place, dict(given)), source, number)
        if entry.row is None:
            raise SoftPromptError(f"{place}: {entry.fault}")
        rows.append(entry.row)
    return rows


def as_rows(data: Rows, task: Task, *, need_targets: bool = True, reading: Reading | None = None) -> Sequence[Row]:
    """`data` itself where it is rows, else what `load_rows` reads.

    Raises:
        SoftPromptError: A row's label is none of the task's, or as `load_rows`.
    """
    if isinstance(data, Sequence) and all(isinstance(row, Row) for row in data):
        known = range(0 if task.kind == "tags" else len(task.labels or ()))
        for row in data if need_targets and known else ():
            if row.label not in known:
                place = f"an index into the task's labels, from 0 to {known[-1]}"
                raise SoftPromptError(f"{row.place}: its label is {row.label}: give {place}")
        return data
    return load_rows(data, task, need_targets=need_targets, reading=reading)


def find_labels(source: Rows, reading: Reading, *, root: str | Path | None = None, by_word: bool = False) -> list[str]:
    """The labels that stand in a source, sorted, for `labels: auto`; `by_word`: one for each word of a row.

    Raises:
        SoftPromptError: There are so many that they are hardly labels, or fewer than two.
    """
    column = reading.name_of(LABEL_COLUMN)
    counts: Counter[str] = Counter()
    for table in open_tables(source, reading, [column], root):
        if table.columns is not None and column not in table.columns:
            raise SoftPromptError(_no_column(table.name, LABEL_COLUMN, column, table.columns))
        for record in table.records:
            try:
                found = _value(record.values, LABEL_COLUMN, reading, None)
                text = " ".join(map(str, found)) if by_word and isinstance(found, list) else _text(found, column)
            except _UnusableError:  # said where the rows are read
                continue
            for label in text.split() if by_word else [text] if text.strip() else []:
                counts[reading.labels.get(label, label)] += 1
    if not 2 <= len(counts) <= MOST_LABELS:
        raise SoftPromptError(
            f"task.labels: auto finds {len(counts):,} labels in the column {shown(column)} of {source}: write them "
            "down in task.labels, name another column in data.columns, or leave labels out for free text"
        )
    logger.info("labels: auto: %s labels in %s rows of %s", len(counts), f"{counts.total():,}", source)
    return sorted(counts)


class _Maker:
    """What records are to a task."""

    def __init__(self, task: Task, reading: Reading, need_targets: bool) -> None:
        self._task, self._reading = task, reading
        self._columns = task.columns
        self._targets = task.target_columns if need_targets else []
        self._index = {label: i for i, label in enumerate(task.labels or [])}

    @property
    def needed(self) -> list[str]:
        """The columns of the task that a table has to have."""
        return list(dict.fromkeys([*self._columns, *self._targets]))

    def entry(self, record: Record, source: str, number: int) -> Entry:
        """A record with its row, which stands at `number` in `source`, or with its fault."""
        if record.fault:
            return Entry(record, None, record.fault)
        values = with_messages(record.values)
        if self._task.kind == "tags":
            return self._tagged(record, values, source, number)
        label = target = None
        try:
            columns = {name: _required(values, name, self._reading) for name in self._columns}
            if self._targets:
                wanted = {name: _required(values, name, self._reading) for name in self._targets}
                if self._task.labels is not None:
                    given = self._reading.labels.get(wanted[LABEL_COLUMN], wanted[LABEL_COLUMN])
                    label = self._index.get(given)
                    if label is None:
                        return Entry(record, None, _unknown(given, self._task.labels), given)
                    wanted = {LABEL_COLUMN: given}
                target = self._task.render_target(wanted)
        except _UnusableError as fault:
            return Entry(record, None, str(fault))
        return Entry(record, Row(columns, label, target, source, number))

    def _tagged(self, record: Record, values: Mapping[str, object], source: str, number: int) -> Entry:
        """The same of words, with a label for each, as texts with white space between them or as lists."""
        (name,), target = self._columns, None
        try:
            text = _spaced(values, name, self._reading)
            if self._targets:
                tags = _spaced(values, LABEL_COLUMN, self._reading).split()
                if len(tags) != len(text.split()):
                    raise _UnusableError(
                        f"column {shown(name)} has {len(text.split())} words, but column {shown(LABEL_COLUMN)} "
                        f"{len(tags)} labels; give one for each word"
                    )
                tags = [self._reading.labels.get(tag, tag) for tag in tags]
                if unknown := next((tag for tag in tags if tag not in self._index), None):
                    return Entry(record, None, _unknown(unknown, self._task.labels or []), unknown)
                target = " ".join(tags)
        except _UnusableError as fault:
            return Entry(record, None, str(fault))
        return Entry(record, Row({name: text}, None, target, source, number))


def _spaced(values: Mapping[str, object], name: str, reading: Reading) -> str:
    """A column of words as one text; a list's are joined by spaces."""
    found = _value(values, name, reading, None)
    if not isinstance(found, list | tuple):
        return _required(values, name, reading)
    if wrong := next((one for one in found if not isinstance(one, str) or len(one.split()) != 1), None):
        raise _UnusableError(f"column {shown(name)} has {shown(wrong)} in its list, which is no word without spaces")
    if not found:
        raise _UnusableError(f"column {shown(name)} is empty; fill it in or leave the row out")
    return " ".join(found)


def _value(values: Mapping[str, object], name: str, reading: Reading, default: object) -> object:
    """A column's value, by the table's name or the task's own; of an object within the record by OUTER.INNER."""
    column = reading.name_of(name)
    for one in (column, name):
        if one in values:
            return values[one]
    inner: object = values
    for key in column.split("."):
        if not isinstance(inner, Mapping) or key not in inner:
            return default
        inner = inner[key]
    return inner


def _required(values: Mapping[str, object], name: str, reading: Reading) -> str:
    """A column's text, which is not empty unless `reading` says what stands for that."""
    missing = object()
    value = _value(values, name, reading, missing)
    if value is missing:
        if name in reading.empty:
            return reading.empty[name]
        raise _UnusableError(_no_column("", name, reading.name_of(name), list(values)))
    text = _text(value, name)
    if not text.strip():
        if name in reading.empty:
            return reading.empty[name]
        raise _UnusableError(f"column {shown(name)} is empty; fill it in or leave the row out")
    return text


def _text(value: object, column: str) -> str:
    """A value as text that a tokenizer can read; "" for what is missing."""
    if isinstance(value, (list, dict, bytes)):
        raise _UnusableError(f"column {shown(column)} holds {shown(value)}, which is not text; name another column")
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        value = "true" if value else "false"
    # How tables in memory spell a missing value: None, NaN, pandas' NA and NaT.
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return ""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError(
            f"column {shown(column)} holds half a surrogate pair; mend it or leave the row out"
        ) from None
    return text


def with_messages(values: Mapping[str, object]) -> Mapping[str, object]:
    """A record of a conversation with what was said before its last answer, and that answer, as columns."""
    body = values.get("body")
    messages = values.get("messages", body.get("messages") if isinstance(body, Mapping) else None)
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) and "role" in one for one in messages):
        return values
    said = [(str(one["role"]), _said(one.get("content"))) for one in messages]
    found: dict[str, object] = {}
    if said and said[-1][0] == "assistant":
        found[ANSWER] = said.pop()[1]
    found[CONVERSATION] = "\n".join(f"{role.capitalize()}: {content}" for role, content in said)
    return found | dict(values)


def _said(content: object) -> str:
    """A message's text, which may be in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def _require(table: Table, needed: Sequence[str], reading: Reading, task: Task) -> None:
    """Refuse a table that lacks a needed column. Where each record has columns of its own, each is looked at."""
    if table.columns is None:
        return
    probe = dict.fromkeys(table.columns)
    missing = object()
    for name in needed:
        is_nested = any(column in reading.name_of(name).split(".") for column in table.columns)
        chat = name in (CONVERSATION, ANSWER) and "messages" in probe
        if (
            _value(probe, name, reading, missing) is missing
            and name not in reading.empty
            and not is_nested
            and not chat
        ):
            line = _no_column(table.name, name, reading.name_of(name), table.columns)
            if set(task.labels or ()) & set(table.columns):
                line += "; if the first line is a row, name the columns: data.header: [text, label]"
            raise SoftPromptError(line)


def _no_column(place: str, name: str, column: str, columns: Sequence[str]) -> str:
    """That a column is not there, and what may be meant."""
    near = _near(column, tuple(columns))
    act = f"did you mean {shown(near)}? " if near else ""
    act += f"name it, data.columns: {{{name}: {near or 'NAME'}}}, or rename the column"
    return f"{place and place + ': '}no column {shown(column)}; the columns are {shown(list(columns))}: {act}"


def as_key(text: str) -> str:
    """What texts have in common that differ by case, white space, Unicode form or how a number is written."""
    key = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return key[:-2] if key.endswith(".0") and key[:-2].lstrip("-").isdigit() else key


@lru_cache(maxsize=4096)
def _near(text: str, known: tuple[str, ...]) -> str | None:
    """The one of `known` that `text` most likely means; None where there is none."""
    same = [one for one in known if as_key(one) == as_key(text)]
    close = difflib.get_close_matches(text, known, 1, 0.8) if len(known) <= MOST_LABELS else []
    return next(chain(same, close), None)


def _unknown(label: str, labels: Sequence[str]) -> str:
    near = _near(label, tuple(labels))
    ask = f"did you mean {shown(near)}? " if near else ""
    return (
        f"label {shown(label)} is not one of the task's {len(labels)} labels: {shown(labels)}; {ask}"
        "map it in data.labels, or mend the row"
    )


def _report(entries: Sequence[Entry], task: Task) -> str:
    """One line for all records that cannot be used: how many, of which kinds, and the first three."""
    bad = [entry for entry in entries if entry.row is None]
    if len(bad) == 1:
        return f"{bad[0].record.place}: {bad[0].fault}"
    source = bad[0].record.place.partition(": row ")[0]
    kinds = Counter(entry.fault.partition(";")[0] for entry in bad if entry.label is None)
    said = [f"{count:,} times {kind}" for kind, count in kinds.most_common(3)]
    unknown: dict[str | None, Counter[str]] = {}
    for entry in bad:
        if entry.label is not None:
            unknown.setdefault(_near(entry.label, tuple(task.labels or ())), Counter())[entry.label] += 1
    for near, counts in unknown.items():
        named = ", ".join(f"{shown(label)} ({count:,})" for label, count in counts.most_common(5))
        ask = f"did you mean {shown(near)}?" if near else f"none of the labels {shown(task.labels)}"
        said.append(f"the labels {named}: {ask}")
    if unknown:
        said.append('map labels with data.labels, such as {"1.0": positive}')
    first = "; ".join(entry.record.place.removeprefix(f"{source}: ") for entry in bad[:3])
    return f"{source}: {len(bad):,} of {len(entries):,} rows cannot be used: {'; '.join(said)}; the first are {first}"
