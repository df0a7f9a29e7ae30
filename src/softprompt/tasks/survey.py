"""A look at a table before there is a task: which column is the text, which the label, and what has to be said of both.

Owns the guesses. Writes nothing, and knows no task file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from softprompt.errors import SoftPromptError
from softprompt.tasks.delimited import Record
from softprompt.tasks.forms import FORMS
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import MOST_LABELS, as_key, with_messages
from softprompt.tasks.tables import open_tables
from softprompt.text import listed, shown

# Names that say what a column is, the surest first.
_LABEL = (
    *("label", "labels", "class", "category", "intent", "sentiment", "topic", "target", "polarity", "quality"),
    *("emotion", "genre", "spam", "queue", "department", "type", "priority", "stars", "rating", "v1"),
)
_TEXT = ("text", "sentence", "review", "message", "utterance", "tweet", "content", "body", "description", "question")
_ANSWER = ("answer", "output", "response", "completion", "summary", "translation", "target", "reply")
_LONGEST_LABEL = 60  # characters, of the typical one
_ALIKE = 0.5  # of the longest column's words: a column with so many is a text beside it
_WORDS_OF_A_NAME = 2  # a column's name has no more, where its texts do
_NAME = re.compile(r"\w+(?:[ -]+\w+)*")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as in the table.
        filled: how many of its values are not empty.
        values: how often each occurs.
        words: of a value, the median.
        longest: words of the longest value.
    """

    name: str
    filled: int
    values: Counter[str]
    words: float
    longest: int

    @property
    def may_be_label(self) -> bool:
        """Whether its values are few, short and come again."""
        counts = len({as_key(value) for value in self.values})
        typical = median(map(len, self.values)) if self.values else 0
        return 2 <= counts <= min(MOST_LABELS, max(2, self.filled // 2)) and typical <= _LONGEST_LABEL


@dataclass(frozen=True)
class Survey:
    """What a table looks like.

    Attributes:
        source: where it is.
        rows: its records.
        reading: how it is read where that is not plain: the names of columns where there is no header.
        columns: by name.
        texts: the columns that are the text.
        label: the column that is the label; None for free text.
        answer: the column that is to be generated; None for classification.
        form: the name of the form that the rows have, see `FORMS`; None where they have none of these.
    """

    source: str
    rows: int
    reading: Reading
    columns: Mapping[str, Column]
    texts: list[str] = field(default_factory=list)
    label: str | None = None
    answer: str | None = None
    form: str | None = None

    def labels(self) -> tuple[dict[str, int], dict[str, str]]:
        """How often each label occurs, in the spelling that is most common, and what the other spellings mean."""
        assert self.label is not None, "it is asked where there are labels"
        values = self.columns[self.label].values
        spellings: dict[str, list[str]] = {}
        for value, _ in values.most_common():
            spellings.setdefault(as_key(value), []).append(value)
        counts = {same[0].strip(): sum(values[one] for one in same) for same in spellings.values()}
        mapping = {one: same[0].strip() for same in spellings.values() for one in same}
        return dict(sorted(counts.items())), {value: label for value, label in mapping.items() if value != label}


def survey(source: str, *, texts: Sequence[str] = (), label: str | None = None, answer: str | None = None) -> Survey:
    """Look at a table.

    Args:
        source: see `load_rows`.
        texts: the columns that are the text; empty: to be guessed.
        label: the column that is the label, likewise.
        answer: the column that is to be generated, in place of a label.

    Raises:
        SoftPromptError: it cannot be read, has no such column, or nothing in it can be learned.
    """
    reading = Reading()
    records = _records(source, reading)
    if header := _missing_header(records):
        reading = Reading(header=header)
        records = _records(source, reading)
    columns = _columns(records)
    for name in (*texts, *filter(None, (label, answer))):
        if name not in columns:
            raise SoftPromptError(f"{source}: no column {shown(name)}; choose one of {listed([*map(shown, columns)])}")
    found = Survey(source, len(records), reading, columns)
    form = next((name for name, form in FORMS.items() if form.columns <= set(columns)), None)
    if form is not None and not texts and label is None and answer is None:
        return replace(found, form=form)
    if label is None and answer is None:
        label = _label(columns, texts)
    if label is not None and len(columns[label].values) < 2:
        raise SoftPromptError(f"{source}: column {shown(label)} has one value only; choose another with --label")
    chosen = list(texts) or _texts(columns, [label, answer])
    if label is None and answer is None:
        filled = {name: column for name, column in columns.items() if column.filled}
        answer = next(iter(_named(filled, _ANSWER, [*chosen])), None) or next(
            (name for name in reversed(filled) if name not in chosen), None
        )
        chosen = [name for name in chosen if name != answer] if answer in chosen else chosen
    if not chosen or (label is None and answer is None):
        raise SoftPromptError(
            f"{source}: no column for what is to be learned beside {listed([*map(shown, columns)])}: add a column of "
            "labels or answers"
        )
    return replace(found, texts=chosen, label=label, answer=answer)


def safe_name(column: str, taken: Sequence[str]) -> str:
    """The name by which a template can have a column: its own, or one like it."""
    name = column if _NAME.fullmatch(column) and column != "label" else "_".join(re.findall(r"\w+", column)) or "text"
    while name in taken or name == "label":
        name += "_"
    return name


def _records(source: str, reading: Reading) -> list[Record]:
    records = [record for table in open_tables(source, reading) for record in table.records]
    if not records:
        raise SoftPromptError(f"{source}: there are no rows of data")
    return [record for record in records if not record.fault]


def _missing_header(records: Sequence[Record]) -> list[str] | None:
    """Names for the columns of a table whose first line is a row: its values come again in its few-valued columns."""
    if not records or not all(isinstance(value, str) for value in records[0].values.values()):
        return None
    columns = _columns(records)
    if not any(column.may_be_label and name in column.values for name, column in columns.items()):
        return None
    longest = max(columns.values(), key=lambda column: column.words)
    if longest.words > _WORDS_OF_A_NAME >= len(longest.name.split()):  # a column of labels may go by one of them
        return None
    label = _label(columns, ())
    text = next(iter(_texts(columns, [label])), None)
    names = {label: "label", text: "text"}
    return [names.get(name, f"column_{i}") for i, name in enumerate(columns, 1)]


def _columns(records: Sequence[Record]) -> dict[str, Column]:
    values: dict[str, list[str]] = {}
    for record in records:
        for name, value in with_messages(record.values).items():
            kept = values.setdefault(name, [])
            if isinstance(value, str | int | float) and value == value and str(value).strip():
                kept.append(str(value).lower() if isinstance(value, bool) else str(value))
    return {
        name: Column(
            name,
            len(found),
            Counter(found),
            median(counts := [len(value.split()) for value in found]) if found else 0.0,
            max(counts) if found else 0,
        )
        for name, found in values.items()
    }


def _named(columns: Mapping[str, Column], names: Sequence[str], without: Sequence[str | None]) -> list[str]:
    """The columns that go by one of `names`, in the order of these, the exact ones first."""
    folded = {name: name.casefold().strip() for name in columns if name not in without}
    exact = [name for wanted in names for name, fold in folded.items() if fold == wanted]
    within = [name for wanted in names for name, fold in folded.items() if wanted in re.split(r"\W+|_", fold)]
    return list(dict.fromkeys([*exact, *within]))


def _label(columns: Mapping[str, Column], texts: Sequence[str]) -> str | None:
    """The column that is the label: by its name, else the one of the fewest values."""
    possible = {name: column for name, column in columns.items() if column.may_be_label and name not in texts}
    named = _named(possible, _LABEL, ())
    if named or not possible:
        return next(iter(named), None)
    return min(possible, key=lambda name: len(possible[name].values))


def _texts(columns: Mapping[str, Column], without: Sequence[str | None]) -> list[str]:
    """The text: the longest column, and where they go by one name with numbers, those beside it."""
    possible = {name: column for name, column in columns.items() if name not in without and column.filled}
    if not possible:
        return []
    longest = max(possible.values(), key=lambda column: (column.words, len(column.values)))
    if longest.words < 2:
        return [next(iter(_named(possible, _TEXT, ())), longest.name)]
    beside = [name for name, column in possible.items() if column.words >= max(2, _ALIKE * longest.words)]
    named = _named({name: possible[name] for name in beside}, _TEXT, ())
    pairs = [name for name in beside if re.sub(r"\d", "", name) == re.sub(r"\d", "", longest.name)]
    return pairs if len(pairs) > 1 else [next(iter(named), longest.name)]
