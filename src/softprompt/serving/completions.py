"""The endpoints that generate text, as OpenAI's: /v1/completions and /v1/chat/completions.

Owns the way of such a request, from its fields to its answer or events. Does not know how the app is put together
(`api`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from softprompt.errors import SoftPromptError
from softprompt.serving import schemas
from softprompt.serving.catalogue import Served
from softprompt.serving.engine import Sampling, naming
from softprompt.serving.logs import LOGGER
from softprompt.serving.problems import ProblemError, find_problem
from softprompt.serving.service import Service
from softprompt.serving.shapes import DONE, ChatShape, Shape, TextShape
from softprompt.serving.streams import EventStream, merged, together, unless_gone
from softprompt.serving.writer import Piece, Scored, choices

_T = TypeVar("_T")

# Dividing by less would overflow, and the likeliest token is all but certain anyway.
_COLDEST = 1e-3
_CHAT_TOKENS = 256
_TEXT_TOKENS = 16
# Characters from which a text is encoded in a thread, so that others are answered meanwhile.
_LONG = 20_000

router = APIRouter(tags=["OpenAI"])


def ready_service(request: Request) -> Service:
    """The service, which answers requests now."""
    service: Service = request.app.state.service
    service.check("ready", "stopping")
    return service


ReadyService = Annotated[Service, Depends(ready_service)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI page says of an endpoint's errors."""
    reasons = {
        400: "The request is wrong; the message names the field and says what to do.",
        401: "The API key is missing or wrong.",
        404: "There is no such model or prompt.",
        408: "The body came too slowly.",
        409: "The prompt is damaged, or not of this base.",
        413: "The body is too large.",
        429: "Too many requests: try again after the seconds of the header Retry-After.",
        500: "The server has failed.",
        503: "The server is starting or stopping.",
        504: "The answer took too long.",
    }
    return {status: {"model": schemas.Problem, "description": reasons[status]} for status in statuses}


async def run_long(size: int, work: Callable[[], _T]) -> _T:
    """What `work`, which reads `size` characters, returns; in a thread where that takes long."""
    return await asyncio.to_thread(work) if size > _LONG else work()


def check_count(count: int, what: str, param: str) -> None:
    """Refuse too many answers in one request.

    Raises:
        ProblemError: `count` is above the limit.
    """
    if count > schemas.MOST_ANSWERS:
        raise ProblemError(
            400,
            f"{what} are {count} answers, but one request has at most {schemas.MOST_ANSWERS}: split it",
            param=param,
        )


def check_queue(service: Service, count: int) -> None:
    """Refuse a request that could never be taken as a whole.

    Raises:
        ProblemError: it has more answers than may wait.
    """
    most = service.engine.max_waiting
    if count > max(most, 1):
        raise ProblemError(
            400,
            f"the request asks for {count} answers, but at most {most} wait on this server (--max-waiting): split it",
        )


def _find(service: Service, model: str) -> Served:
    """What writes in the name of `model`.

    Raises:
        UnknownModelError: nothing does.
        ProblemError: it is an ensemble, or answers by a head or an embedding.
    """
    served = service.catalogue.find(model)
    if served.members:
        raise ProblemError(
            400,
            f"{model} is an ensemble, which votes on labels: use /v1/classify or /v1/predict, or ask a member",
            param="model",
            code="ensemble",
        )
    if served.reader is not None:
        raise ProblemError(400, f"{served.id} writes no text: use /v1/predict", param="model", code="no_text")
    if served.prompt is not None and served.prompt.head is not None:
        raise ProblemError(
            400, f"{served.id} answers by a head, with labels and no text: use /v1/classify", param="model", code="head"
        )
    return served


def answers(model: type[Any], *further: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI page says of the answers of an endpoint that may stream, and of `further` errors."""
    events = {"schema": {"type": "string"}, "example": 'data: {"id": "...", "choices": [...]}\n\ndata: [DONE]\n\n'}
    whole: dict[int | str, dict[str, Any]] = {
        200: {
            "model": model,
            "description": "The answer; with `stream`, its parts as server-sent events and `[DONE]` at the end.",
            "content": {"text/event-stream": events},
        }
    }
    return {**whole, **problems(400, 401, 404, 408, *further, 413, 429, 500, 503, 504)}


def as_texts(given: Any) -> Sequence[str | list[int]]:
    """The texts of a request, each as text or as ids, that were given as one or many."""
    one = isinstance(given, str) or isinstance(given[0], int)
    return [given] if one else given


async def encode(service: Service, texts: Sequence[str | list[int]]) -> list[list[int]]:
    """The token ids of a request's texts.

    Raises:
        SoftPromptError: one of the ids is no token.
    """
    writer = service.writer

    def ids_of(text: str | list[int]) -> list[int]:
        if isinstance(text, str):
            return writer.encode(text)
        writer.check_ids(text)
        return text

    return await run_long(sum(map(len, texts)), lambda: [ids_of(text) for text in texts])


async def stream_events(events: AsyncGenerator[str, None], request: Request) -> EventStream:
    """The stream of `events`, whose first is there: an error before it has a status of its own.

    Later it is too late for a status: the error is the last event.
    """
    return EventStream(_with_error(await unless_gone(request.receive, _next(events)), events, request))


async def _with_error(first: str, events: AsyncGenerator[str, None], request: Request) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event
    except Exception as error:
        if not isinstance(error, SoftPromptError):
            LOGGER.error("stream failed", exc_info=error)
        problem = find_problem(error)
        request.state.record.update(status=problem.status_code, error=problem.body["error"]["code"])
        yield f"data: {problem.json}\n\n"


async def _next(events: AsyncGenerator[str, None]) -> str:
    return await anext(events)


@router.post("/v1/completions", summary="Go on with a text", response_model=None, responses=answers(schemas.Completion))
async def complete(body: schemas.CompletionRequest, request: Request, service: ReadyService) -> Response:
    """Texts as they stand, each behind the prompt's virtual tokens, are gone on with."""
    served = _find(service, body.model)
    texts, writer, n = as_texts(body.prompt), service.writer, body.n or 1
    if body.best_of not in (None, n):
        raise ProblemError(400, "best_of is not supported: leave it out, or set it to n", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ProblemError(400, "max_tokens is 0: with echo only, which then gives the text alone", param="max_tokens")
    check_count(len(texts) * n, f"{len(texts)} texts times n = {n}", "prompt")
    encoded = await encode(service, texts)
    rooms = [room for ids in encoded if (room := writer.room(served.prompt, ids)) is not None]
    most = min([_TEXT_TOKENS, *rooms]) if body.max_tokens is None else body.max_tokens
    sampling = _sampling(body, service, max(most, 1), body.logprobs)
    echoes: list[Echo] = []
    if body.echo:
        echoes = [Echo(text if isinstance(text, str) else writer.decode(text)) for text in texts]
    answers = _Answers(request, service, served, encoded, sampling, body, echoes)
    if body.echo and body.logprobs is not None:
        await unless_gone(request.receive, answers.weigh(body.logprobs))
    if body.max_tokens == 0:
        answers.leave_out()
    return await answers.respond(TextShape(served.id, body.logprobs is not None))


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_model=None,
    responses=answers(schemas.ChatCompletion),
)
async def chat(body: schemas.ChatRequest, request: Request, service: ReadyService) -> Response:
    """The conversation in the base's chat template, behind the prompt's virtual tokens, is answered."""
    served = _find(service, body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ProblemError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise ProblemError(400, "max_tokens and max_completion_tokens differ: send one of them", param="max_tokens")
    messages = [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.content
            if isinstance(message.content, str)
            else "".join(part.text for part in message.content),
        }
        for message in body.messages
    ]
    size = sum(len(message["content"]) for message in messages)
    ids = await run_long(size, lambda: service.writer.encode_chat(messages))
    room = service.writer.room(served.prompt, ids)
    most = limits.pop() if limits else min(_CHAT_TOKENS, room or _CHAT_TOKENS)
    sampling = _sampling(body, service, most, (body.top_logprobs or 0) if body.logprobs else None)
    return await _Answers(request, service, served, [ids], sampling, body, []).respond(
        ChatShape(served.id, bool(body.logprobs))
    )


def _sampling(
    body: schemas.CompletionRequest | schemas.ChatRequest, service: Service, max_tokens: int, logprobs: int | None
) -> Sampling:
    if body.stream_options is not None and body.stream_options.include_usage and not body.stream:
        raise ProblemError(400, "stream_options.include_usage needs stream: true", param="stream_options")
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=body.seed,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        no_repeat_ngram_size=body.no_repeat_ngram_size or 0,
        bad_words=service.writer.bad_words(body.bad_words or []),
        logprobs=logprobs,
        ignore_eos=bool(body.ignore_eos),
    )


@dataclass
class Echo:
    """What stands before an answer: the text that was sent, and its tokens' log-probabilities if asked for."""

    text: str
    scored: list[Scored] = field(default_factory=list)


class _Answers:
    """The answers to one request, while they come.

    Args:
        texts: the texts' token ids; each is answered `n` times.
        echoes: what to put before the answers to each text; empty: nothing.
    """

    def __init__(
        self,
        request: Request,
        service: Service,
        served: Served,
        texts: Sequence[list[int]],
        sampling: Sampling,
        body: schemas.CompletionRequest | schemas.ChatRequest,
        echoes: Sequence[Echo],
    ) -> None:
        self._start = time.perf_counter()
        self._request, self._service, self._served = request, service, served
        for ids in texts:
            service.writer.check(served.prompt, ids, sampling.max_tokens)
        self._stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        n = body.n or 1
        self._asked = [(ids, one) for ids in texts for one in choices(sampling, n)]
        check_queue(service, len(self._asked))
        self._texts, self._echoes = texts, list(echoes)
        self._before = dict(enumerate(echo for echo in self._echoes for _ in range(n)))
        self._answered = True
        self._stream = bool(body.stream)
        self._with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._text_tokens, self._new_tokens = sum(map(len, texts)), 0

    async def respond(self, shape: Shape) -> Response:
        """The whole answer, or the stream of its events, whose first is there."""
        if not self._stream:
            found = await unless_gone(self._request.receive, self._collect())
            return Response(shape.whole(found, self._usage).model_dump_json(), media_type="application/json")
        return await stream_events(self._events(shape), self._request)

    async def weigh(self, top: int) -> None:
        """Give the echoed texts their tokens' log-probabilities."""
        writer, prompt = self._service.writer, self._served.prompt
        works = [partial(writer.weigh, prompt, ids, top) for ids in self._texts]
        with naming(self._served.id):
            found = await together(works)
        for echo, scored in zip(self._echoes, found, strict=True):
            echo.scored = scored

    def leave_out(self) -> None:
        """Answer nothing: the echoed texts alone are asked for."""
        self._answered = False

    @property
    def _usage(self) -> schemas.Usage:
        return schemas.Usage(
            prompt_tokens=self._text_tokens,
            completion_tokens=self._new_tokens,
            total_tokens=self._text_tokens + self._new_tokens,
        )

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        metrics, name = self._service.metrics, self._served.name
        streams = [
            self._service.writer.write(number, self._served.prompt, ids, sampling, self._stops)
            if self._answered
            else _nothing(number)
            for number, (ids, sampling) in enumerate(self._asked)
        ]
        shifts = {number: len(echo.text) for number, echo in self._before.items()}
        try:
            with naming(self._served.id):
                async with aclosing(merged(streams)) as pieces:
                    async for piece in pieces:
                        if not self._new_tokens and piece.new_tokens:
                            metrics.first_text(name, time.perf_counter() - self._start)
                        self._new_tokens += piece.new_tokens
                        echo = self._before.pop(piece.choice, Echo(""))
                        shift = shifts.get(piece.choice, 0)
                        scored = [replace(one, offset=one.offset + shift) for one in piece.scored]
                        yield replace(piece, text=echo.text + piece.text, scored=[*echo.scored, *scored])
        finally:
            seconds = time.perf_counter() - self._start
            metrics.finished(name, self._request.scope["route"].path, seconds, self._text_tokens, self._new_tokens)
            self._request.state.record.update(
                model=self._served.id, text_tokens=self._text_tokens, new_tokens=self._new_tokens
            )

    async def _in_order(self) -> AsyncGenerator[Piece, None]:
        """The pieces, of which no choice's first comes before the one's before: OpenAI's own client relies on it."""
        begun, held = 0, dict[int, list[Piece]]()
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if piece.choice > begun:
                    held.setdefault(piece.choice, []).append(piece)
                    continue
                yield piece
                if piece.choice == begun:
                    begun += 1
                    while begun in held:
                        for one in held.pop(begun):
                            yield one
                        begun += 1

    async def _collect(self) -> list[Piece]:
        parts: list[list[Piece]] = [[] for _ in self._asked]
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                parts[piece.choice].append(piece)
        return [
            Piece(
                choice=number,
                text="".join(piece.text for piece in some),
                new_tokens=sum(piece.new_tokens for piece in some),
                scored=[scored for piece in some for scored in piece.scored],
                finish=some[-1].finish,
            )
            for number, some in enumerate(parts)
        ]

    async def _events(self, shape: Shape) -> AsyncGenerator[str, None]:
        async with aclosing(self._in_order()) as pieces:
            async for piece in pieces:
                yield shape.event([piece])
        if self._with_usage:
            yield shape.event([], self._usage)
        yield DONE


async def _nothing(choice: int) -> AsyncGenerator[Piece, None]:
    yield Piece(choice, "", 0, finish="length")
