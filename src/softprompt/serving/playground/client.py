"""The page as a client: asks the server's own HTTP API, gate and all, with the key of the visitor it asks for.

Owns how a request gets there and what comes back. Does not know how it is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from softprompt.errors import SoftPromptError
from softprompt.serving import schemas
from softprompt.serving.gate import read_key
from softprompt.serving.playground.texts import texts_for
from softprompt.tasks.rows import Row

if TYPE_CHECKING:
    import httpx
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TRIES = 10  # of a request that is one too many for now


class Visitor:
    """Whoever looks at the page, who may ask of the API what their key allows.

    Every method raises a SoftPromptError where the API answers with an error.

    Args:
        app: the server's app.
        address: by which requests are counted where no key is needed.
        headers: as the visitor's browser sends them.

    Attributes:
        texts: in the visitor's language.
    """

    def __init__(self, app: ASGIApp, address: str, headers: Mapping[str, str]) -> None:
        self._app, self._client = app, (address, 0)
        self._headers = {b"authorization": b"Bearer " + read_key(headers.get("authorization", ""), basic=True)}
        self.texts = texts_for(headers.get("accept-language", ""))

    async def models(self) -> list[schemas.Model]:
        """The base, then the prompts that are loaded."""
        return schemas.ModelList.model_validate_json(await self._ask("GET", "/v1/models")).data

    async def model(self, name: str) -> schemas.Model:
        """One that is loaded."""
        path = f"/v1/models/{quote(name, safe='')}"
        return schemas.Model.model_validate_json(await self._ask("GET", path))

    async def library(self) -> schemas.Library:
        """All versions of all prompts."""
        return schemas.Library.model_validate_json(await self._ask("GET", "/v1/library"))

    async def predict(self, model: str, rows: Sequence[Row], *, alone: bool) -> list[schemas.Prediction]:
        """The answers to rows by a prompt, or with `alone` by the base in its place. Waits where it has to."""
        body = _body(model, rows, alone)
        return schemas.Predictions.model_validate_json(await self._ask("POST", "/v1/predict", body, tries=_TRIES)).data

    async def write(self, model: str, row: Row, *, alone: bool) -> AsyncGenerator[schemas.Prediction, None]:
        """The answer to a row, as far as it is, again and again. Closing the generator cancels it."""
        # httpx hands on what an app of this process answers only when it is complete: so its parts are taken here.
        parts: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_on(message: Message) -> None:
                parts.put_nowait(message.get("body", b""))
                await send(message)

            await self._app(scope, receive, send_on)

        body = {**_body(model, [row], alone), "stream": True}
        asking = asyncio.create_task(self._ask("POST", "/v1/predict", body, app=app))
        asking.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            while (part := await parts.get()) is not None:
                event = part.removeprefix(b"data: ")
                if event.startswith(b'{"error"'):
                    raise _error(event)
                if event.startswith(b'{"index"'):
                    yield schemas.Prediction.model_validate_json(event)
            await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(
        self, method: str, path: str, body: Any = None, *, tries: int = 1, app: ASGIApp | None = None
    ) -> bytes:
        import httpx

        transport = httpx.ASGITransport(app or self._app, client=self._client)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=self._headers, timeout=None
        ) as http:
            for left in reversed(range(tries)):
                answer: httpx.Response = await http.request(method, path, json=body)
                if answer.status_code != 429 or not left:
                    break
                await asyncio.sleep(float(answer.headers["retry-after"]))
        if answer.is_error:
            raise _error(answer.content)
        return answer.content


def _body(model: str, rows: Sequence[Row], alone: bool) -> dict[str, Any]:
    return {"model": model, "input": [row.columns for row in rows], "without_prompt": alone}


def _error(content: bytes) -> SoftPromptError:
    return SoftPromptError(schemas.Problem.model_validate_json(content).error.message)
