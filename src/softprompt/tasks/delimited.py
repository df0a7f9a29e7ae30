"""CSV and its kin: values between delimiters, one row a line unless a quoted value holds line ends.

Owns how the delimiter, the header and the quotes are found out. Python's `csv` splits; unlike `pandas` or `datasets` it
guesses no types ("007" stays, "NA" is text) and knows its line numbers.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Literal

from softprompt.errors import SoftPromptError
from softprompt.tasks.reading import Reading
from softprompt.tasks.unpacking import Text
from softprompt.text import counted, shown

logger = logging.getLogger(__name__)

_DELIMITERS = (",", ";", "\t", "|")
_LINES_LOOKED_AT = 50
_MOST_ALIKE = 1000  # different values that a column of few has
_LONGEST_VALUE = 2**31 - 1  # what the csv module can be told on all systems
_Lines = Iterator[tuple[int, list[str]]]


@dataclass(frozen=True)
class Record:
    """One record of a table.

    Attributes:
        place: where it stands, for messages.
        values: by column.
        fault: why it cannot be used; "" where it can.
    """

    place: str
    values: dict[str, object] = field(default_factory=dict)
    fault: str = ""


class Records:
    """The records of a delimited text, which are made whenever they are gone through: none is kept.

    Args:
        name: what messages call the file.
        lines: gives each row's first line and values, from the first row on.
        columns: their names.
    """

    def __init__(self, name: str, lines: Callable[[], _Lines], columns: Sequence[str]) -> None:
        self._name, self._lines, self._columns = name, lines, columns
        self._said = False

    def __iter__(self) -> Iterator[Record]:
        name, columns = self._name, self._columns
        number = blank = 0
        held: list[Record] = []  # rows of nothing but delimiters, until a row follows
        for line, values in self._lines():
            if not values and len(columns) > 1:
                blank += 1
                continue
            number += 1
            while len(values) > len(columns) and not values[-1].strip():
                values.pop()
            fault = ""
            if len(values) != len(columns) and (values or len(columns) > 1):
                fault = (
                    f"{len(values)} values, but {len(columns)} columns; put a value that holds the delimiter in double "
                    "quotes"
                )
            found = dict(zip(columns, values or [""], strict=False))
            held.append(Record(f"{name}: row {number} (line {line})", dict(found), fault))
            if any(value.strip() for value in values):
                yield from held
                held.clear()
        if held and not self._said:
            rows = counted(len(held), "row at its end has no values and is", "rows at its end have no values and are")
            logger.info("%s: %s left out", name, rows)
        if blank and not self._said:
            lines = counted(blank, "blank line between rows is", "blank lines between rows are")
            logger.info("%s: %s left out", name, lines)
        self._said = True


def read_delimited(
    name: str, text: Text, suffix: str, reading: Reading, needed: Sequence[str]
) -> tuple[list[str], Records]:
    """A delimited text's columns and records, all of which have been looked at once.

    Args:
        name: what messages call the file.
        text: its text.
        suffix: ".tsv" delimits by tabs unless the file does not.
        reading: what is not to be found out.
        needed: the columns that must not stand there twice.

    Raises:
        SoftPromptError: quotes do not close or glue rows together, or a needed column is there twice.
    """
    # The limit on a value's length belongs to the whole csv module: raised for long texts, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_VALUE))
    marked = re.match(r'"?sep=(.)"?\r?\n', next(text.lines()))
    first = 2 if marked else 1
    if marked and reading.delimiter is None:
        _tell_delimiter(name, marked[1])
    delimiter = reading.delimiter or (marked and marked[1]) or _find_delimiter(name, text, suffix)
    quoting = delimiter != "\t" if reading.quoting is None else reading.quoting
    columns, records = _read(name, partial(_split, name, text, delimiter, quoting, first), reading, needed)
    if reading.quoting is None and not quoting and any(record.fault for record in records):
        with suppress(SoftPromptError):
            found = _read(name, partial(_split, name, text, delimiter, True, first), reading, needed)
            _look_for_glue(name, found[1], found[0], delimiter)
            if not any(record.fault for record in found[1]):
                logger.info("%s: double quotes hold values together: only so have all rows as many values", name)
                return found
    if quoting:
        _look_for_glue(name, records, columns, delimiter)
    elif quoted := sum(map(_is_quoted, chain.from_iterable(record.values.values() for record in records))):
        logger.info(
            "%s: %s in double quotes, which are taken as text; if they only hold a value together, set "
            "data.quoting: true",
            name,
            counted(quoted, "value stands", "values stand"),
        )
    return columns, records


def _is_quoted(value: object) -> bool:
    return isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"'


def _read(name: str, split: Callable[[], _Lines], reading: Reading, needed: Sequence[str]) -> tuple[list[str], Records]:
    """The columns and records in the rows that `split` gives."""
    header, (_, start) = reading.header, next(split())
    if header is None or (isinstance(header, list) and set(header) <= set(start)):
        return (columns := _name(name, start, needed)), Records(name, lambda: islice(split(), 1, None), columns)
    columns = header if isinstance(header, list) else [f"column_{i + 1}" for i in range(len(start))]
    return columns, Records(name, split, columns)


def _find_delimiter(name: str, text: Text, suffix: str) -> str:
    """The delimiter by which the first line has several values and most lines have as many."""
    usual = "\t" if suffix == ".tsv" else ","
    lines = [line for line in islice(text.lines(), 4 * _LINES_LOOKED_AT) if line.strip()][:_LINES_LOOKED_AT]
    best, chosen = (0.0, False), usual
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter, quoting=_mode(delimiter != "\t"))]
        merit = (sum(width == widths[0] for width in widths) / len(widths), delimiter == usual)
        if widths[0] > 1 and merit > best:
            best, chosen = merit, delimiter
    if chosen != usual:
        _tell_delimiter(name, chosen)
    return chosen


def _tell_delimiter(name: str, delimiter: str) -> None:
    logger.info("%s: values are delimited by %s", name, "tabs" if delimiter == "\t" else repr(delimiter))


def _mode(quoting: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE


def _split(name: str, text: Text, delimiter: str, quoting: bool, first: int) -> _Lines:
    """Each row's line and values, from the line `first` on; the blank lines at the end are left out."""
    # Strict: a stray quote is an error, where csv would otherwise glue rows together in silence.
    reader = csv.reader(
        _without_end(islice(text.lines(), first - 1, None)), delimiter=delimiter, strict=True, quoting=_mode(quoting)
    )
    number, is_header = 0, True
    while True:
        line = reader.line_num + first
        try:
            values = next(reader, None)
        except csv.Error as error:
            place = f"line {line}" if is_header else f"row {number} (line {line})"
            raise SoftPromptError(
                f"{name}: {place}: {error}; check the quotes, or set data.quoting: false to take them as text"
            ) from None
        if values is None:
            return
        if values or not is_header:
            is_header = False
            number += bool(values)
            yield line, values


def _without_end(lines: Iterator[str]) -> Iterator[str]:
    """The lines without the blank ones at the end."""
    blank: list[str] = []
    for line in lines:
        if line.strip("\r\n"):
            yield from blank
            blank.clear()
            yield line
        else:
            blank.append(line)


def _name(name: str, header: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Names for all columns: those without one are numbered, and so are those that stand there again unless needed."""
    names: list[str] = []
    for i, given in enumerate(header):
        column = given.strip() or f"column_{i + 1}"
        if column in names:
            if column in needed:
                raise SoftPromptError(f"{name}: the column {shown(column)} is there more than once; rename one")
            column = next(other for n in range(2, len(header) + 2) if (other := f"{column}_{n}") not in header)
        names.append(column)
    return names


def _look_for_glue(name: str, records: Records, columns: Sequence[str], delimiter: str) -> None:
    """Say how many values hold line ends, and refuse those in which lines end or begin as rows of this table do."""
    count = long = both = 0
    first = ""
    ends: tuple[set[str], set[str]] = (set(), set())
    for record in records:
        count += 1
        for value in map(str, record.values.values()):
            if "\n" in value:
                long += 1
                if delimiter in value:
                    both += 1
                    first = first or record.place.removeprefix(f"{name}: ")
        for found, i in zip(ends, (0, -1), strict=True):
            if len(found) <= _MOST_ALIKE:
                found.add(str(record.values.get(columns[i])))
    if not long:
        return
    # Columns of few values, such as labels: a line within a text may begin as another text does.
    firsts, lasts = (found if len(found) <= min(_MOST_ALIKE, count // 2 + 1) else set() for found in ends)
    for record in records if both else ():
        for value in map(str, record.values.values()):
            lines = [line for line in value.splitlines() if delimiter in line] if "\n" in value else []
            if any(line.rpartition(delimiter)[2] in lasts or line.partition(delimiter)[0] in firsts for line in lines):
                raise SoftPromptError(
                    f"{record.place}: between two double quotes stand what look like whole rows, {shown(value)}: "
                    "double the quotes within values, or set data.quoting: false to take them as text"
                )
    logger.info(
        "%s: %s%s",
        name,
        counted(long, "value holds line ends", "values hold line ends"),
        f", {both:,} of them the delimiter too (the first in {first})" if both else "",
    )
