"""Many answers at a time to one client: run together, merged into one stream, dropped when the client goes.

Owns the tasks of one request and their end. Knows nothing of engines, prompts or what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.responses import StreamingResponse

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

_T = TypeVar("_T")

# Answers of one request that are worked on at a time: enough to fill batches, few enough to leave room for others.
_AT_ONCE = 256


class ClientGoneError(Exception):
    """The client has closed the connection: nobody waits for the answer."""


async def together(works: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """What each of `works` returns, run together. When one fails or the caller is cancelled, all are cancelled."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def run(work: Callable[[], Awaitable[_T]]) -> _T:
        async with room:
            return await work()

    async with _running([run(work) for work in works]) as tasks:
        return await asyncio.gather(*tasks)


async def merged(streams: Sequence[AsyncGenerator[_T, None]]) -> AsyncGenerator[_T, None]:
    """The items of all `streams` as they come. When one fails or the caller stops, all are closed."""
    # One at a time: what a client does not read is not computed. None is the end of a stream.
    items: asyncio.Queue[_T | Exception | None] = asyncio.Queue(maxsize=1)
    room = asyncio.Semaphore(_AT_ONCE)

    async def feed(stream: AsyncGenerator[_T, None]) -> None:
        end = None
        try:
            async with room, aclosing(stream):
                async for item in stream:
                    await items.put(item)
        except Exception as error:
            end = error
        await items.put(end)

    async with _running([feed(stream) for stream in streams]):
        unfinished = len(streams)
        while unfinished:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                unfinished -= 1
            else:
                yield item


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns. It is cancelled when the client closes the connection.

    Args:
        receive: the request's, whose body has been read.
        work: what to do for the client.

    Raises:
        ClientGoneError: it has.
    """

    async def wait_until_gone() -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await receive()

    async with _running([work]) as (working,), _running([wait_until_gone()]) as (gone,):
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return await working


class EventStream(StreamingResponse):
    """Server-sent events. The generator that they come from is closed at the end, and when the client goes."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await unless_gone(receive, self.stream_response(send))


@asynccontextmanager
async def _running(works: Sequence[Coroutine[Any, Any, _T]]) -> AsyncIterator[list[asyncio.Task[_T]]]:
    """Tasks for `works`; those that still run at the end are cancelled and waited for."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
