"""The tab Try: a text, asked of several tasks, each behind its prompt and of the base alone.

Owns the way from the page's text boxes to a task's row. Does not know how an answer is found (`client`) or shown
(`looks`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from softprompt.errors import SoftPromptError
from softprompt.prompts.card import Card
from softprompt.serving.playground import looks
from softprompt.serving.playground.client import Visitor
from softprompt.serving.playground.texts import Texts
from softprompt.serving.streams import merged
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task

MOST_BOXES = 6
MOST_CHARACTERS = 100_000  # of a row's texts


def task_of(card: Card | None, name: str) -> Task:
    """The task on a prompt's card; of a prompt that has none: to go on with a text."""
    if card is None or card.task is None:
        return Task(template="{text}", target=" {answer}")
    return Task.from_dict(card.task, f"{name}: card.json: task")


async def columns_of(visitor: Visitor, names: Sequence[str]) -> list[str]:
    """The columns that tasks need a text box for; tasks of one column share the first box."""
    return _columns([task_of((await visitor.model(name)).card, name) for name in names])


async def ask(visitor: Visitor, names: Sequence[str] | None, *written: str | None) -> AsyncGenerator[str, None]:
    """The answers to a text as they come, of each task and of the base alone.

    Args:
        names: the tasks' prompts.
        written: what stands in the text boxes, in the order of `columns_of`.
    """
    texts = visitor.texts
    if not names:
        raise SoftPromptError(texts["choose_task"])
    models = [await visitor.model(name) for name in names]
    tasks = [task_of(model.card, model.id) for model in models]
    boxes = dict(zip(_columns(tasks), (text or "" for text in written), strict=False))
    if not any(map(str.strip, boxes.values())):
        raise SoftPromptError(texts["type_text"])
    check_length(boxes, texts)
    sheets: dict[str, list[looks.Side]] = {}
    streams = []
    for model, task in zip(models, tasks, strict=True):
        sides = sheets.setdefault(model.id if model.version is None else f"{model.id}@{model.version}", [None, None])
        columns = {column: boxes[column] for column in task.columns if column in boxes}
        if len(task.columns) == 1:
            columns = {task.columns[0]: next(iter(boxes.values()))}
        streams += [_fill(visitor, sides, side, model.id, Row(columns)) for side in (0, 1)]
    yield looks.page(looks.sheets(sheets, texts))
    async with aclosing(merged(streams)) as changes:
        async for _ in changes:
            yield looks.page(looks.sheets(sheets, texts))


async def _fill(
    visitor: Visitor, sides: list[looks.Side], side: int, model: str, row: Row
) -> AsyncGenerator[int, None]:
    """Which side, again and again, as its answer grows; where that fails, it says so and the others go on."""
    try:
        async with aclosing(visitor.write(model, row, alone=bool(side))) as answers:
            async for sides[side] in answers:
                yield side
    except SoftPromptError as error:
        sides[side] = str(error)
        yield side


def check_length(columns: Mapping[str, str], texts: Texts) -> None:
    """Refuse texts that would keep the server busy for long.

    Raises:
        SoftPromptError: they have more than `MOST_CHARACTERS`.
    """
    if sum(map(len, columns.values())) > MOST_CHARACTERS:
        raise SoftPromptError(texts["too_long"].format(most=f"{MOST_CHARACTERS:,}"))


def _columns(tasks: Sequence[Task]) -> list[str]:
    single = next((task.columns for task in tasks if len(task.columns) == 1), [])
    several = [column for task in tasks if len(task.columns) > 1 for column in task.columns]
    return list(dict.fromkeys([*single, *several]))[:MOST_BOXES]
