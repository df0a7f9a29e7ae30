"""What the playground does for its visitors: each thing that can be done there, from what was chosen to what is shown.

Owns the order of the steps and what is told when one fails. It keeps nothing of any visitor. Does not know the page's
elements (`playground_page`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from markupsafe import Markup

from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.serving import playground_looks as looks
from softprompt.serving.classification import Question
from softprompt.serving.logs import LOGGER
from softprompt.serving.playground_answers import Asker, boxes_for, row_for, task_of
from softprompt.serving.playground_files import (
    MOST_CHARACTERS,
    Answered,
    Progress,
    answer_rows,
    read_file,
    show_answers,
    show_comparison,
    write_answers,
)
from softprompt.serving.playground_library import list_versions, show_library
from softprompt.serving.playground_looks import Sheet, Side
from softprompt.serving.playground_texts import Texts
from softprompt.serving.service import Service
from softprompt.serving.streams import merged

MOST_BOXES = 6


@dataclass(frozen=True)
class Places:
    """Where the playground looks.

    Attributes:
        library: the prompts, also those that are not loaded.
        runs: the folder of training runs.
    """

    library: PromptLibrary
    runs: Path


class Desk:
    """Serves all visitors.

    Every method that shows something yields or returns HTML, and tells what goes wrong there instead of raising.

    Args:
        service: what answers.
        places: see there.
    """

    def __init__(self, service: Service, places: Places) -> None:
        self._service, self._places = service, places
        # matplotlib's settings, which a figure changes while it is drawn, are everybody's.
        self._drawing = asyncio.Lock()

    def models(self) -> list[str]:
        """The names of the prompts that are loaded."""
        return [served.name for served in self._service.catalogue.prompts]

    def first_task(self) -> str | None:
        """The name to begin with where a task is needed: that of the first prompt whose card holds one."""
        prompts = self._service.catalogue.prompts
        with_task = (one.name for one in prompts if one.prompt is not None and one.prompt.card.task is not None)
        return next(with_task, None)

    def versions(self) -> list[str]:
        """Every version in the library, as "name@version"; none where it cannot be read."""
        try:
            return list_versions(self._places.library)
        except SoftPromptError:
            return []

    def greeting(self, texts: Texts) -> str:
        """What stands at the top."""
        count = len(self._service.catalogue.prompts)
        base = self._service.engine.base.name
        try:
            self._service.check("ready", "stopping")
        except SoftPromptError as error:
            return looks.page(looks.error(str(error)))
        return looks.page(looks.notice(texts["served" if count else "nothing_served"].format(base=base, count=count)))

    def boxes(self, names: Sequence[str] | None) -> list[str]:
        """The columns that the chosen tasks need a text box for, at most `MOST_BOXES`."""
        chosen = [served for served in self._service.catalogue.prompts if served.name in (names or [])]
        return boxes_for([task_of(served) for served in chosen])[:MOST_BOXES]

    async def ask(
        self, texts: Texts, names: Sequence[str] | None, written: Sequence[str | None]
    ) -> AsyncGenerator[str, None]:
        """The answers to a text as they come, of each task that was chosen and of the base alone.

        Args:
            names: the chosen tasks.
            written: what stands in the text boxes, in the order of `boxes`.
        """
        async with aclosing(_told(self._ask(texts, names or [], written), texts)) as shown:
            async for one in shown:
                yield one

    async def answer_file(
        self, texts: Texts, name: str | None, path: str | None, with_base: bool
    ) -> AsyncGenerator[tuple[str, Path | None], None]:
        """How far a file is answered, then what was found, with a CSV file that stays until the next step."""
        made: list[Path] = []
        with TemporaryDirectory(prefix="softprompt-answers-") as folder:
            target = Path(folder) / "answers.csv"
            async with aclosing(_told(self._answer_file(texts, name, path, with_base, target, made), texts)) as shown:
                async for one in shown:
                    yield one, made[0] if made else None

    async def compare(
        self, texts: Texts, first: str | None, second: str | None, path: str | None
    ) -> AsyncGenerator[str, None]:
        """How far two versions, each "name@version", have answered a file, then how they compare."""
        async with aclosing(_told(self._compare(texts, first, second, path), texts)) as shown:
            async for one in shown:
                yield one

    async def library(self, texts: Texts) -> str:
        """The library's table and cards."""
        try:
            found = await asyncio.to_thread(show_library, self._places.library, self._service.catalogue, texts)
        except Exception as error:
            return _explain(error, texts)
        return looks.page(found)

    async def runs(self) -> list[str]:
        """The names of the training runs, the newest first."""
        # Training brings a large part of Transformers along, which a server without visitors has no need of.
        from softprompt.serving.playground_runs import list_runs

        return await asyncio.to_thread(list_runs, self._places.runs)

    async def run(self, texts: Texts, name: str | None, seen: object = None) -> tuple[str, object] | None:
        """A run's curves, and a mark of what was seen; None where that mark is `seen`: nothing has changed.

        Args:
            name: of the run; None: there is none to choose.
        """
        from softprompt.serving.playground_runs import find_run, mark, show_run

        try:
            if not name:
                return looks.page(looks.notice(texts["no_runs"].format(folder=self._places.runs))), None
            folder = await asyncio.to_thread(find_run, self._places.runs, name)
            if folder is None:
                return looks.page(looks.error(texts["no_such_run"])), None
            current = mark(folder)
            if current == seen:
                return None
            async with self._drawing:
                return looks.page(await asyncio.to_thread(show_run, folder, texts)), current
        except Exception as error:
            return _explain(error, texts), None

    async def _ask(
        self, texts: Texts, names: Sequence[str], written: Sequence[str | None]
    ) -> AsyncGenerator[str, None]:
        self._service.check("ready", "stopping")
        if not names:
            raise SoftPromptError(texts["choose_task"])
        chosen = [self._service.catalogue.find(name) for name in names]
        boxes = boxes_for([task_of(served) for served in chosen])
        filled = {box: text or "" for box, text in zip(boxes, written, strict=False)}
        if not any(map(str.strip, filled.values())):
            raise SoftPromptError(texts["type_text"])
        _check_length(filled, texts)
        sheets, streams = [], []
        for served in chosen:
            sheet = Sheet(served.id)
            sheets.append(sheet)
            try:
                task = task_of(served)
                if len(task.columns) > MOST_BOXES:
                    raise SoftPromptError(texts["too_many_columns"].format(count=len(task.columns)))
                row = row_for(task, filled)
                empty = [column for column, text in row.columns.items() if not text.strip()]
                if empty:
                    raise SoftPromptError(texts["fill_in"].format(column=", ".join(empty)))
                pair = [(Asker(self._service, served, bare=bare), bare) for bare in (False, True)]
                for asker, bare in pair:
                    (question,) = await asyncio.to_thread(asker.ask, [row])
                    side = sheet.base if bare else sheet.prompt
                    streams.append(_fill(side, asker, question))
            except SoftPromptError as error:
                sheet.error = str(error)
        yield looks.page(looks.sheets(sheets, texts))
        async with aclosing(merged(streams)) as changes:
            async for _ in changes:
                yield looks.page(looks.sheets(sheets, texts))

    async def _answer_file(
        self, texts: Texts, name: str | None, path: str | None, with_base: bool, target: Path, made: list[Path]
    ) -> AsyncGenerator[str, None]:
        self._service.check("ready", "stopping")
        if not name:
            raise SoftPromptError(texts["choose_task"])
        if not path:
            raise SoftPromptError(texts["choose_file"])
        served = self._service.catalogue.find(name)
        asked = [(served.id, Asker(self._service, served))]
        if with_base:
            asked.append((texts["base_alone"], Asker(self._service, served, bare=True)))
        rows = await asyncio.to_thread(read_file, path, served.id, task_of(served), texts)
        async with aclosing(answer_rows([(who, asker, rows) for who, asker in asked])) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield _progress(step, texts)
                else:
                    await asyncio.to_thread(write_answers, path, target, step)
                    made.append(target)
                    yield looks.page(await asyncio.to_thread(show_answers, step, texts))

    async def _compare(
        self, texts: Texts, first: str | None, second: str | None, path: str | None
    ) -> AsyncGenerator[str, None]:
        self._service.check("ready", "stopping")
        if not first or not second or first == second:
            raise SoftPromptError(texts["choose_two"])
        if not path:
            raise SoftPromptError(texts["choose_file"])
        asked = []
        for name in (first, second):
            served = await asyncio.to_thread(self._service.catalogue.read, name)
            rows = await asyncio.to_thread(read_file, path, served.id, task_of(served), texts)
            asked.append((served.id, Asker(self._service, served), rows))
        async with aclosing(answer_rows(asked)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield _progress(step, texts)
                else:
                    yield looks.page(await asyncio.to_thread(_compared, step, texts))


def _compared(answered: Sequence[Answered], texts: Texts) -> Markup:
    first, second = answered
    return show_comparison(first, second, texts)


def _progress(step: Progress, texts: Texts) -> str:
    line = texts["progress"].format(done=f"{step.done:,}", all=f"{step.every:,}")
    return looks.page(looks.progress(step.done, step.every, line))


def _check_length(filled: Mapping[str, str], texts: Texts) -> None:
    count = sum(map(len, filled.values()))
    if count > MOST_CHARACTERS:
        raise SoftPromptError(texts["too_long"].format(count=f"{count:,}", most=f"{MOST_CHARACTERS:,}"))


async def _fill(side: Side, asker: Asker, question: Question) -> AsyncGenerator[Side, None]:
    """The side as its answer grows; where that fails, it says so and the others go on."""
    try:
        async with aclosing(asker.write(question)) as answers:
            async for side.answer in answers:
                yield side
    except SoftPromptError as error:
        side.error = str(error)
        yield side


async def _told(shown: AsyncGenerator[str, None], texts: Texts) -> AsyncGenerator[str, None]:
    """What is shown, and at the end what went wrong."""
    try:
        async with aclosing(shown):
            async for one in shown:
                yield one
    except Exception as error:
        yield _explain(error, texts)


def _explain(error: Exception, texts: Texts) -> str:
    if isinstance(error, SoftPromptError):
        return looks.page(looks.error(str(error)))
    LOGGER.error("playground failed", exc_info=error)
    return looks.page(looks.error(texts["failed"]))
