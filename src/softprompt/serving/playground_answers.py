"""Asking: a task's rows, answered behind its prompt or by the base alone, through the service that the API uses.

Owns the way from a row to an answer for both kinds of task, and from the page's text boxes to a row. Does not know how
an answer is shown.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from softprompt.errors import SoftPromptError
from softprompt.serving.catalogue import Served
from softprompt.serving.classification import Classifier, Question
from softprompt.serving.engine import Sampling
from softprompt.serving.service import Service
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row, rows_from
from softprompt.tasks.task import Task

ROUTE = "playground"  # what its answers are called in the metrics


@dataclass(frozen=True)
class Answer:
    """An answer, or as much of it as there is.

    Attributes:
        text: the label, or the generated text without white space around it.
        probabilities: of the labels; None for free text.
        truncated: whether the text that was asked about was cut to fit the context.
    """

    text: str
    probabilities: Mapping[str, float] | None = None
    truncated: bool = False


def task_of(served: Served) -> Task:
    """The task on the prompt's card; of a prompt that has none: to go on with a text."""
    task = None if served.prompt is None else served.prompt.card.task
    if task is None:
        return Task(template="{text}", target=" {answer}")
    return Task.from_dict(task, f"{served.id}: card.json: task")


class Asker:
    """Asks one prompt of the service, or the base alone with the same template.

    The answers are those of `softprompt predict` with that prompt, or with none.

    Args:
        service: it is ready.
        served: the prompt whose task is asked.
        bare: whether the base answers alone.

    Attributes:
        task: the prompt's.
    """

    def __init__(self, service: Service, served: Served, *, bare: bool = False) -> None:
        self.task = task_of(served)
        self._service, self._served = service, served
        self._prompt = None if bare else served.prompt
        self._name = service.engine.base.name if bare else served.name
        base = service.engine.base
        self._classifier: Classifier | None = None
        if self.task.labels is None:
            self._encoder = Encoder(base, self.task, virtual_tokens=0 if bare else served.virtual)
        elif bare:
            self._classifier = Classifier(base, self.task, None)
        else:
            self._classifier = served.classifier

    def ask(self, rows: Sequence[Row]) -> list[Question]:
        """The questions for rows, texts that are too long cut. May take long where they are; runs in any thread.

        Raises:
            SoftPromptError: a text is empty, or the template leaves it no room.
        """
        if self._classifier is not None:
            return self._classifier.ask([row.columns for row in rows], truncate=True)
        checked = rows_from([row.columns for row in rows], self.task)
        encoded = [self._encoder.encode_rows([row], reserve=self.task.max_new_tokens) for row in checked]
        return [Question(one.input_ids[0], [], bool(one.truncated)) for one in encoded]

    async def answer(self, question: Question) -> Answer:
        """The whole answer.

        Raises: as `Engine.generate`.
        """
        async with aclosing(self.write(question)) as answers:
            return [answer async for answer in answers][-1]

    async def write(self, question: Question) -> AsyncGenerator[Answer, None]:
        """The answer as it grows; of a classification there is but one state. Closing the generator cancels it.

        Raises: as `Engine.generate`.
        """
        service, start, new_tokens = self._service, time.perf_counter(), 0
        if self._classifier is not None:
            found = await service.engine.classify(self._prompt, question.ids, question.continuations)
            label, probabilities = self._classifier.answer(found)
            yield Answer(label, probabilities, question.truncated)
        else:
            text = ""
            sampling = Sampling(max_tokens=self.task.max_new_tokens)
            async with aclosing(service.writer.write(0, self._prompt, question.ids, sampling, [])) as pieces:
                async for piece in pieces:
                    text, new_tokens = text + piece.text, new_tokens + piece.new_tokens
                    yield Answer(text.strip(), None, question.truncated)
        seconds = time.perf_counter() - start
        service.metrics.finished(self._name, ROUTE, seconds, len(question.ids), new_tokens)


def boxes_for(tasks: Sequence[Task]) -> list[str]:
    """The text boxes that tasks need, each by its column; tasks of one column share the first box."""
    single = next((task.columns for task in tasks if len(task.columns) == 1), None)
    several = [column for task in tasks if len(task.columns) > 1 for column in task.columns]
    return list(dict.fromkeys([*(single or []), *several]))


def row_for(task: Task, boxes: Mapping[str, str]) -> Row:
    """What a task reads of the boxes, which are in the order of `boxes_for`.

    Raises:
        SoftPromptError: a box that it needs is not there.
    """
    if len(task.columns) == 1:
        return Row({task.columns[0]: next(iter(boxes.values()))})
    missing = [column for column in task.columns if column not in boxes]
    if missing:
        raise SoftPromptError(f"there is no text for the column {missing[0]}")
    return Row({column: boxes[column] for column in task.columns})
