"""A file's rows, answered by one prompt or compared between two: from an uploaded CSV to figures and answers.

Owns the way from the file to what was found, and how much of it is done. Does not know what an answer costs nor where
the page shows it.
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from softprompt.errors import SoftPromptError
from softprompt.reporting.page import table
from softprompt.serving.playground_answers import Answer, Asker
from softprompt.serving.playground_looks import notice
from softprompt.serving.playground_texts import Texts
from softprompt.serving.streams import together
from softprompt.tasks.metrics import classification_metrics, text_metrics
from softprompt.tasks.rows import Row, load_rows
from softprompt.tasks.task import Task

MOST_ROWS = 10_000
MOST_CHARACTERS = 100_000  # of a text, or of a row of a file
# Rows that are asked at a time: enough to fill batches, few enough to leave room for others and to tell how far it is.
_AT_ONCE = 32
_SHOWN = 20  # rows in a table
_LONGEST = 200  # characters of a text in a table


@dataclass(frozen=True)
class Progress:
    """How many of all answers are there."""

    done: int
    every: int


@dataclass(frozen=True)
class Answered:
    """A file's rows and one asker's answers to them.

    Attributes:
        name: of the asker, as the page calls it.
        task: the asker's.
        rows: as this task reads them.
        answers: one for each row.
    """

    name: str
    task: Task
    rows: Sequence[Row]
    answers: Sequence[Answer]

    @property
    def figures(self) -> dict[str, Any] | None:
        """The answers' figures, as `softprompt evaluate` gives them; None where the rows have no targets."""
        if self.rows[0].target is None:
            return None
        labels = self.task.labels
        if labels is None:
            return text_metrics([answer.text for answer in self.answers], [row.target or "" for row in self.rows])
        probabilities = [[(answer.probabilities or {})[label] for label in labels] for answer in self.answers]
        found = classification_metrics([row.label or 0 for row in self.rows], probabilities, labels)
        return {name: found[name] for name in ("n", "accuracy", "macro_f1", "log_loss")}


def read_file(path: str | Path, name: str, task: Task, texts: Texts) -> list[Row]:
    """The rows of an uploaded file; with their targets where the file has them, and all of them can be used.

    Raises:
        SoftPromptError: the file cannot be used; the line calls it by its own name, after the prompt's.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise SoftPromptError(texts["only_csv"])
    try:
        try:
            rows = load_rows(path, task)
        except SoftPromptError:
            rows = load_rows(path, task, need_targets=False)
    except SoftPromptError as error:
        # Where uploads lie on the server is nobody's business.
        raise SoftPromptError(f"{name}: {error}".replace(f"{path.parent}/", "")) from None
    if len(rows) > MOST_ROWS:
        raise SoftPromptError(texts["too_many_rows"].format(count=f"{len(rows):,}", most=f"{MOST_ROWS:,}"))
    for row in rows:
        count = sum(map(len, row.columns.values()))
        if count > MOST_CHARACTERS:
            line = texts["row_too_long"].format(row=row.number, count=f"{count:,}", most=f"{MOST_CHARACTERS:,}")
            raise SoftPromptError(f"{path.name}: {line}")
    return rows


async def answer_rows(
    asked: Sequence[tuple[str, Asker, Sequence[Row]]],
) -> AsyncGenerator[Progress | list[Answered], None]:
    """How far it is, again and again, and at last what each asker answered to its rows.

    Closing the generator cancels what runs.

    Args:
        asked: who is asked, by name, and about which rows.

    Raises: as `Asker.ask` and `Engine.generate`.
    """
    found: list[Answered] = []
    done, every = 0, sum(len(rows) for _, _, rows in asked)
    yield Progress(done, every)
    for name, asker, rows in asked:
        answers: list[Answer] = []
        for start in range(0, len(rows), _AT_ONCE):
            questions = await asyncio.to_thread(asker.ask, rows[start : start + _AT_ONCE])
            answers += await together([partial(asker.answer, question) for question in questions])
            done += len(questions)
            yield Progress(done, every)
        found.append(Answered(name, asker.task, rows, answers))
    yield found


def show_answers(answered: Sequence[Answered], texts: Texts) -> Markup:
    """What is said after all rows are answered: how many, how well, and the first answers."""
    rows = answered[0].rows
    found = notice(texts["answered"].format(count=f"{len(rows):,}")) + _cut(answered, texts)
    head = [texts["row"], texts["text"], *(one.name for one in answered)]
    lines = [
        [str(row.number), _text(row), *(_shown(one.answers[i]) for one in answered)]
        for i, row in enumerate(rows[:_SHOWN])
    ]
    return found + _figures(answered, texts) + table(head, lines, texts["answers_caption"].format(count=len(lines)))


def show_comparison(first: Answered, second: Answered, texts: Texts) -> Markup:
    """What is said of two that answered the same file: on how much they agree, how well each did, where they differ."""
    pairs = zip(first.answers, second.answers, strict=True)
    differing = [i for i, (one, other) in enumerate(pairs) if one.text != other.text]
    every = len(first.rows)
    same = every - len(differing)
    line = texts["agree"].format(same=f"{same:,}", all=f"{every:,}", share=f"{same / every:.1%}")
    found = notice(line) + _cut([first, second], texts) + _figures([first, second], texts)
    if not differing:
        return found
    head = [texts["row"], texts["text"], texts["right"], first.name, second.name]
    lines = []
    for i in differing[:_SHOWN]:
        row = first.rows[i]
        answers = (_shown(first.answers[i]), _shown(second.answers[i]))
        lines.append([str(row.number), _text(row), _right(row, first.task), *answers])
    return found + table(head, lines, texts["differences_caption"].format(count=len(lines)))


def write_answers(source: str | Path, target: Path, answered: Sequence[Answered]) -> None:
    """Write an uploaded file's rows with the answers beside them, as CSV.

    Args:
        source: the uploaded file, which `read_file` has read.
        target: the file to write.
        answered: the answers to its rows.
    """
    with Path(source).open(encoding="utf-8-sig", newline="") as file:
        head, *lines = (line for line in csv.reader(file, strict=True) if line)
    for one in answered:
        head.append(f"{one.name} answer")
        for line, answer in zip(lines, one.answers, strict=True):
            line.append(answer.text)
        if one.task.labels is not None:
            head.append(f"{one.name} probability")
            for line, answer in zip(lines, one.answers, strict=True):
                line.append(f"{(answer.probabilities or {})[answer.text]:.6f}")
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *lines])


def _figures(answered: Sequence[Answered], texts: Texts) -> Markup:
    """A table of figures, a column for each of those who were asked; nothing where nobody could be measured."""
    present = [(one.name, figures) for one in answered if (figures := one.figures) is not None]
    if not present:
        return Markup()
    keys = dict.fromkeys(key for _, figures in present for key in figures)
    rows = [
        [texts["rows"] if key == "n" else key.replace("_", " "), *(figures.get(key) for _, figures in present)]
        for key in keys
    ]
    return table([texts["figure"], *(name for name, _ in present)], rows, texts["figures_caption"])


def _cut(answered: Sequence[Answered], texts: Texts) -> Markup:
    count = max(sum(answer.truncated for answer in one.answers) for one in answered)
    return notice(texts["cut_rows"].format(count=f"{count:,}")) if count else Markup()


def _text(row: Row) -> str:
    return _short(" | ".join(row.columns.values()))


def _right(row: Row, task: Task) -> str | None:
    if task.labels is not None and row.label is not None:
        return task.labels[row.label]
    return None if row.target is None else _short(row.target)


def _shown(answer: Answer) -> str:
    if answer.probabilities is None:
        return _short(answer.text)
    return f"{answer.text} ({answer.probabilities[answer.text]:.1%})"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
