"""The tabs File and Compare: a CSV file's rows, answered by a prompt and the base, or by two versions of a prompt.

Owns the way from an uploaded file to figures and answers, and how much of it is done. Does not know how an answer is
found (`client`).
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from markupsafe import Markup

from softprompt.errors import SoftPromptError
from softprompt.reporting.page import table
from softprompt.serving.playground.asking import check_length, task_of
from softprompt.serving.playground.client import Visitor
from softprompt.serving.playground.looks import notice, page, progress, said
from softprompt.serving.playground.texts import Texts
from softprompt.serving.reading import is_read
from softprompt.serving.schemas import Prediction
from softprompt.tasks.metrics import classification_metrics, text_metrics
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import Row, load_rows
from softprompt.tasks.tables import open_tables
from softprompt.tasks.task import Task
from softprompt.text import shorten

MOST_ROWS = 10_000
# Rows of one request: enough to fill batches, few enough to leave room for others and to tell how far it is.
_LONGEST = 300  # characters of a cell
_AT_ONCE = 32
_SHOWN = 20  # rows in a table


@dataclass
class Answered:
    """A file's rows, and the answers to the first of them.

    Attributes:
        name: of who answers, as the page calls it.
        model: the prompt that is asked.
        alone: whether the base answers in its place.
        task: the prompt's.
        rows: as this task reads them.
    """

    name: str
    model: str
    alone: bool
    task: Task
    rows: Sequence[Row]
    answers: list[Prediction] = field(default_factory=list)

    @property
    def has_probabilities(self) -> bool:
        """Whether an answer is a label for the whole text."""
        return self.task.labels is not None and not is_read(self.task)

    @property
    def figures(self) -> dict[str, Any]:
        """The answers' figures, as `softprompt evaluate` gives them, of labels and free text that have targets."""
        if self.rows[0].target is None or is_read(self.task):
            return {}
        labels = self.task.labels
        if labels is None:
            return text_metrics([said(answer) for answer in self.answers], [row.target or "" for row in self.rows])
        probabilities = [[(answer.probabilities or {})[label] for label in labels] for answer in self.answers]
        found = classification_metrics([row.label or 0 for row in self.rows], probabilities, labels)
        return {name: found[name] for name in ("n", "accuracy", "macro_f1", "log_loss")}


async def answer_file(
    visitor: Visitor, name: str | None, path: str | None, with_base: bool
) -> AsyncGenerator[tuple[str, Path | None], None]:
    """How far a file is answered, then what was found, with a CSV file that stays until the next step."""
    texts = visitor.texts
    if not name:
        raise SoftPromptError(texts["choose_task"])
    model = await visitor.model(name)
    title = name if model.version is None else f"{model.id}@{model.version}"
    task = task_of(model.card, title)
    rows = await _read(path, title, task, texts)
    asked = [Answered(title, name, False, task, rows)]
    if with_base:
        asked.append(Answered(texts["base_alone"], name, True, task, rows))
    async with aclosing(_answer(visitor, asked)) as steps:
        async for step in steps:
            yield step, None
    with TemporaryDirectory(prefix="softprompt-answers-") as folder:
        target = Path(folder) / "answers.csv"
        await asyncio.to_thread(_write, Path(path or ""), target, asked)
        line = texts["answered"].format(count=f"{len(rows):,}")
        yield page(notice(line), await asyncio.to_thread(_show, asked, texts)), target


async def compare(
    visitor: Visitor, first: str | None, second: str | None, path: str | None
) -> AsyncGenerator[str, None]:
    """How far two versions, each "name@version", have answered a file, then how they compare."""
    if not first or not second or first == second:
        raise SoftPromptError(visitor.texts["choose_two"])
    cards = {version.id: version.card for version in (await visitor.library()).data}
    asked = []
    for name in (first, second):
        task = task_of(cards.get(name), name)
        asked.append(Answered(name, name, False, task, await _read(path, name, task, visitor.texts)))
    async with aclosing(_answer(visitor, asked)) as steps:
        async for step in steps:
            yield step
    every = len(asked[0].rows)
    same = sum(said(one) == said(other) for one, other in zip(asked[0].answers, asked[1].answers, strict=True))
    line = visitor.texts["agree"].format(same=f"{same:,}", all=f"{every:,}", share=f"{same / every:.1%}")
    yield page(notice(line), await asyncio.to_thread(_show, asked, visitor.texts, differing=True))


async def _answer(visitor: Visitor, asked: Sequence[Answered]) -> AsyncGenerator[str, None]:
    """Fill in all answers; how far it is, again and again. Closing the generator cancels what runs."""
    every = sum(len(one.rows) for one in asked)
    for one in asked:
        while (start := len(one.answers)) < len(one.rows):
            done = sum(len(other.answers) for other in asked)
            line = visitor.texts["progress"].format(done=f"{done:,}", all=f"{every:,}")
            yield page(progress(done, every, line))
            one.answers += await visitor.predict(one.model, one.rows[start : start + _AT_ONCE], alone=one.alone)


async def _read(path: str | None, name: str, task: Task, texts: Texts) -> list[Row]:
    """The rows of an uploaded file; with their targets where the file has them, and all of them can be used.

    Raises:
        SoftPromptError: the file cannot be used; the line calls it by its own name, after the prompt's.
    """
    if not path or not path.lower().endswith(".csv"):
        raise SoftPromptError(texts["choose_file"])
    try:
        try:
            rows = await asyncio.to_thread(load_rows, path, task)
        except SoftPromptError:
            rows = await asyncio.to_thread(load_rows, path, task, need_targets=False)
    except SoftPromptError as error:
        # Where uploads lie on the server is nobody's business.
        raise SoftPromptError(f"{name}: {error}".replace(f"{Path(path).parent}/", "")) from None
    if len(rows) > MOST_ROWS:
        raise SoftPromptError(texts["too_many_rows"].format(count=f"{len(rows):,}", most=f"{MOST_ROWS:,}"))
    for row in rows:
        check_length(row.columns, texts)
    return rows


def _write(source: Path, target: Path, answered: Sequence[Answered]) -> None:
    """Write an uploaded file's rows with the answers beside them, as CSV."""
    # Read as its rows were, so that each answer stands beside its own.
    records = [record.values for table in open_tables(source, Reading()) for record in table.records]
    head, lines = list(records[0]), [list(map(str, record.values())) for record in records]
    for one in answered:
        head.append(f"{one.name} answer")
        if one.has_probabilities:
            head.append(f"{one.name} probability")
        for line, answer in zip(lines, one.answers, strict=True):
            line.append(said(answer))
            if answer.probabilities is not None:
                line.append(f"{answer.probabilities[said(answer)]:.6f}")
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *lines])


def _show(answered: Sequence[Answered], texts: Texts, *, differing: bool = False) -> Markup:
    """How many texts were cut, how well each answered, and the first answers, or the first that differ."""
    cut = max(sum(answer.truncated for answer in one.answers) for one in answered)
    found = notice(texts["cut_rows"].format(count=f"{cut:,}")) if cut else Markup()
    if measured := {one.name: figures for one in answered if (figures := one.figures)}:
        keys = dict.fromkeys(key for figures in measured.values() for key in figures)
        rows = [[key.replace("_", " "), *(figures.get(key) for figures in measured.values())] for key in keys]
        found += table([texts["figure"], *measured], rows, texts["figures_caption"])
    pairs = list(zip(answered[0].rows, zip(*(one.answers for one in answered), strict=True), strict=True))
    if differing:
        pairs = [(row, answers) for row, answers in pairs if len(set(map(said, answers))) > 1]
    lines = [
        [str(row.number), shorten(" | ".join(row.columns.values()), _LONGEST), row.target, *map(_shown, answers)]
        for row, answers in pairs[:_SHOWN]
    ]
    caption = texts["differences_caption" if differing else "answers_caption"].format(count=len(lines))
    head = [texts["row"], texts["text"], texts["right"], *(one.name for one in answered)]
    return found + table(head, lines, caption) if lines else found


def _shown(answer: Prediction) -> str:
    share = "" if answer.probabilities is None else f" ({answer.probabilities[said(answer)]:.1%})"
    return shorten(said(answer), _LONGEST) + share
