"""The endpoint /v1/predict: rows of a prompt's own task, answered as `softprompt predict` answers them.

Owns the way of such a request, with labels and with free text, behind the prompt and by the base alone. Does not know
how the app is put together (`api`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from softprompt.serving import schemas
from softprompt.serving.catalogue import Served, UnknownModelError
from softprompt.serving.classification import Classifier, Question
from softprompt.serving.completions import ReadyService, answers, check_count, check_queue, run_long, stream_events
from softprompt.serving.engine import Sampling, naming
from softprompt.serving.reading import Passage, Reader
from softprompt.serving.service import Service
from softprompt.serving.shapes import DONE
from softprompt.serving.streams import merged, unless_gone
from softprompt.tasks.encode import Encoder
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import rows_from
from softprompt.tasks.task import Task

router = APIRouter(tags=["Tasks"])


@router.post(
    "/v1/predict",
    summary="Answer rows of a prompt's own task",
    response_model=None,
    responses=answers(schemas.Predictions, 409),
)
async def predict(body: schemas.PredictRequest, request: Request, service: ReadyService) -> Response:
    """Each row in the template of the task on the prompt's card: a label with probabilities, free text, tags, a span or
    an embedding.

    The answers are those of `softprompt predict`, also in that texts that are too long are cut. Events are answers
    too, each as far as it is; the last one of a row is whole.
    """
    served = await _find(service, body.model)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    check_count(len(inputs), f"{len(inputs)} rows", "input")
    asked = _Asked(request, service, served, alone=bool(body.without_prompt))
    size = sum(len(given) if isinstance(given, str) else sum(map(len, given.values())) for given in inputs)
    questions = await run_long(size, lambda: asked.ask(inputs))
    check_queue(service, len(questions))
    if body.stream:
        return await stream_events(_events(asked.answers(questions)), request)
    found = await unless_gone(request.receive, _last(asked.answers(questions)))
    whole = schemas.Predictions(
        id=f"predict-{uuid4().hex}",
        created=int(time.time()),
        model=asked.id,
        data=[found[index] for index in range(len(questions))],
        usage=schemas.Usage(
            prompt_tokens=asked.text_tokens,
            completion_tokens=asked.new_tokens,
            total_tokens=asked.text_tokens + asked.new_tokens,
        ),
    )
    return Response(whole.model_dump_json(exclude_none=True), media_type="application/json")


async def _find(service: Service, name: str) -> Served:
    try:
        return service.catalogue.find(name)
    except UnknownModelError:
        if "@" not in name:
            raise
        return await asyncio.to_thread(service.catalogue.read, name)


async def _events(states: AsyncGenerator[schemas.Prediction, None]) -> AsyncGenerator[str, None]:
    async with aclosing(states):
        async for state in states:
            yield f"data: {state.model_dump_json(exclude_none=True)}\n\n"
    yield DONE


async def _last(states: AsyncGenerator[schemas.Prediction, None]) -> dict[int, schemas.Prediction]:
    async with aclosing(states):
        return {state.index: state async for state in states}


class _Asked:
    """One prompt, or the base alone in its place, asked for one request.

    Attributes:
        id: what answers.
        text_tokens, new_tokens: so far.
    """

    def __init__(self, request: Request, service: Service, served: Served, *, alone: bool) -> None:
        self._request, self._service = request, service
        self._answering = service.catalogue.models[0] if alone else served
        self.id, self.text_tokens, self.new_tokens = self._answering.id, 0, 0
        card = served.card
        if card is None or card.task is None:
            self._task = Task(template="{text}", target=" {answer}")
        else:
            self._task = Task.from_dict(card.task, f"{served.id}: card.json: task")
        self._reading = Reading.of_card(None if card is None else card.data)
        base = service.engine.base
        self._classifier, self._reader = served.classifier, served.reader
        if self._classifier is None and self._reader is None:
            self._encoder = Encoder(base, self._task, virtual_tokens=self._answering.virtual)
        elif alone and self._reader is not None:
            self._reader = Reader(base, self._task, None)
        elif alone:
            self._classifier = Classifier(base, self._task, None)

    def ask(self, inputs: Sequence[str | Mapping[str, str]]) -> Sequence[Question | Passage]:
        """The questions for rows of input, texts that are too long cut.

        Raises:
            SoftPromptError: a text is empty, a column is missing, or the template leaves a text no room.
        """
        if self._reader is not None:
            return self._reader.ask(inputs)
        if self._classifier is not None:
            return self._classifier.ask(inputs, truncate=True)
        rows = rows_from(inputs, self._task, reading=self._reading)
        encoded = self._encoder.encode_rows(rows, reserve=self._task.max_new_tokens)
        return [Question(ids, [], cut) for ids, cut in zip(encoded.input_ids, encoded.cut, strict=True)]

    async def answers(self, questions: Sequence[Question | Passage]) -> AsyncGenerator[schemas.Prediction, None]:
        """The answers as they come and grow; closing the generator cancels them.

        Raises: as `Engine.generate`.
        """
        start = time.perf_counter()
        self.text_tokens = sum(len(question.ids) for question in questions)
        try:
            with naming(self.id):
                states = merged([self._answer(index, question) for index, question in enumerate(questions)])
                async with aclosing(states):
                    async for state in states:
                        yield state
        finally:
            seconds, route = time.perf_counter() - start, self._request.scope["route"].path
            name, tokens = self._answering.name, (self.text_tokens, self.new_tokens)
            self._service.metrics.finished(name, route, seconds, *tokens)
            self._request.state.record.update(model=self.id, text_tokens=tokens[0], new_tokens=tokens[1])

    async def _answer(self, index: int, question: Question | Passage) -> AsyncGenerator[schemas.Prediction, None]:
        if isinstance(question, Passage):
            assert self._reader is not None
            found = await self._reader.read(self._service.engine, question)
            yield schemas.Prediction(
                index=index, output=found.output, embedding=found.embedding, truncated=found.truncated
            )
            return
        if self._classifier is not None:
            label, probabilities = await self._classifier.classify(self._service.engine, question)
            yield schemas.Prediction(
                index=index, label=label, probabilities=probabilities, truncated=question.truncated
            )
            return
        text, sampling = "", Sampling(max_tokens=self._task.max_new_tokens)
        async with aclosing(
            self._service.writer.write(index, self._answering.prompt, question.ids, sampling, [])
        ) as pieces:
            async for piece in pieces:
                text += piece.text
                self.new_tokens += piece.new_tokens
                yield schemas.Prediction(index=index, output=text.strip(), truncated=question.truncated)
