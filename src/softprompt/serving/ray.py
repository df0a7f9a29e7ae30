"""A library served on a Ray cluster: `serve run softprompt.serving.ray:app base=BASE library=DIR`.

Owns the two Ray Serve deployments: replicas, each with an engine and the whole HTTP API, and the front before them,
which sends the requests for one prompt to one replica. Routes, keys and errors are `api`'s and `gate`'s.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from fastapi.datastructures import Headers
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.prompts.mirror import Mirror, is_url
from softprompt.serving.api import make_app
from softprompt.serving.following import Following
from softprompt.serving.gate import Access, limited
from softprompt.serving.logs import LOGGER, logging_to_stderr
from softprompt.serving.problems import ProblemError
from softprompt.serving.streams import ClientGoneError, unless_gone
from softprompt.text import validation_line

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from softprompt.serving.engine import Engine

# What a replica is told of a connection; the rest of ASGI's scope belongs to the process that has it.
_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_SERVED_BY = b"x-served-by"
_LOST = ProblemError(
    503,
    "the replica that was to answer has gone: try again",
    kind="server_error",
    code="replica_lost",
    headers={"Retry-After": "1"},
)
_HEALTH_SECONDS = 2.0  # between two looks at a replica's health


class Settings(BaseModel):
    """The arguments of `serve run softprompt.serving.ray:app KEY=VALUE ...`, or `args` in a Serve config file.

    Attributes:
        base: hub id, folder or GGUF file, the same on every machine.
        library: the library's folder, the same on every machine, or a URL that fsspec reads, such as
            "s3://bucket/library".
        engine: what computes in each replica, "local" or "vllm".
        vllm: flags of vLLM's, for engine "vllm".
        dtype: of the base: "auto", "float32", "bfloat16" or "float16".
        quantization: how its weights are held (local engine), such as "torchao-int8"; None: as they are stored.
        device_map: where its layers are (local engine), such as "auto"; None: all on one device.
        replicas: how many.
        cpus, gpus: that each replica takes of its machine.
        at_once: requests that a replica has at a time; more go to the next one.
        watch: seconds between two looks at the library.
        state_memory: MiB for the prompts' kept states in each replica (local engine).
        max_waiting: requests that may wait in a replica; more get a 429.
        time_limit: seconds for each answer.
        body_limit: bytes of the largest request.
        allowed_hosts: names under which to answer without a key, beside localhost and addresses.
        served_model_name: the base's name for clients; None: its own, or that of its folder or file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    library: str
    engine: Literal["local", "vllm"] = "local"
    vllm: dict[str, Any] = {}
    dtype: str = "auto"
    quantization: str | None = None
    device_map: str | None = None
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    at_once: int = Field(default=64, ge=1)
    watch: float = Field(default=2.0, gt=0)
    state_memory: int = Field(default=1024, ge=1)
    max_waiting: int = Field(default=1024, ge=1)
    time_limit: float = Field(default=60.0, gt=0)
    body_limit: int = Field(default=10_000_000, ge=1)
    allowed_hosts: list[str] = []
    served_model_name: str | None = None


def app(args: Mapping[str, Any]) -> Any:
    """The application, for `serve run` and Serve's config files.

    Clients need one of the keys in the environment's SOFTPROMPT_API_KEY, separated by commas, where that is set.

    Args:
        args: see `Settings`.

    Returns:
        Ray Serve's `Application`.

    Raises:
        SoftPromptError: an argument is missing, unknown or not as it must be; or Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError:
        raise SoftPromptError('Ray Serve is not installed: pip install "softprompt[ray]"') from None
    try:
        settings = Settings(**args)
    except ValidationError as error:
        raise SoftPromptError(validation_line(error, "softprompt.serving.ray:app", Settings)) from None
    if settings.vllm and settings.engine != "vllm":
        raise SoftPromptError("softprompt.serving.ray:app: vllm: is for engine: vllm")
    # The replicas have working folders of their own.
    places = {key: os.path.expanduser(getattr(settings, key)) for key in ("base", "library")}
    found = {key: os.path.abspath(place) for key, place in places.items() if os.path.exists(place)}
    if not (is_url(settings.library) or "library" in found):
        raise SoftPromptError(
            f"there is no library at {settings.library}: make one with `softprompt library add NAME PROMPT`"
        )
    settings = settings.model_copy(update=found)
    keys = [key.strip() for key in os.environ.get("SOFTPROMPT_API_KEY", "").split(",") if key.strip()]
    replicas = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.at_once,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        request_router_config={
            "request_router_class": _ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": max(2, settings.replicas - 1)},
        },
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.time_limit,
    ).bind(settings, keys)
    return serve.deployment(
        serve.ingress()(Front),
        name="Front",
        num_replicas=min(2, settings.replicas),  # one is enough; a second is there while one starts again
        max_ongoing_requests=settings.replicas * settings.max_waiting,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.time_limit,
    ).bind(replicas, settings.body_limit)


class Replica:
    """An engine with the HTTP API in a process of its own, which answers what the front passes on.

    Args:
        settings: of the application.
        keys: one of which a request needs; none at all: no key is needed.
    """

    async def __init__(self, settings: Settings, keys: list[str]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._stack = AsyncExitStack()
        self._stack.enter_context(logging_to_stderr())
        folder, mirror = Path(settings.library), None
        if is_url(settings.library):
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="softprompt-library-")))
            mirror = Mirror(settings.library, folder)
            await asyncio.to_thread(mirror.refresh)
        if not keys:
            LOGGER.warning(
                "no API key: whoever reaches Serve's port is answered; set SOFTPROMPT_API_KEY to ask for one"
            )
        engine = await asyncio.to_thread(_make_engine, settings)
        self._service = Following(
            engine, PromptLibrary(folder), settings.served_model_name, mirror=mirror, every=settings.watch
        )
        access = Access(keys, body_limit=settings.body_limit, hosts=settings.allowed_hosts, log_probes=False)
        self._app = make_app(self._service, access)
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        await self._service.started()
        self._id = _replica_id().encode()
        gc.freeze()  # else each large body has all that was imported looked through, again and again

    async def __del__(self) -> None:
        await self._stack.aclose()

    async def check_health(self) -> None:
        """What Serve asks, to start another in the place of one that is broken.

        Raises:
            StoppedError: the engine has failed.
        """
        self._service.check_engine()

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """What the API sends to a request, as ASGI's messages. To stop is to go away."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        parts = [body]

        async def receive() -> Message:
            if not parts:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": parts.pop(), "more_body": False}

        async def run() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", []), (_SERVED_BY, self._id)]
                yield message
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class Front:
    """What Serve's HTTP proxies ask: it passes each request on to the replica that has its prompt's state.

    Args:
        replicas: Serve's handle of the replicas.
        body_limit: bytes of the largest request.
    """

    def __init__(self, replicas: Any, body_limit: int) -> None:
        self._replicas, self._body_limit = replicas.options(method_name="answer", stream=True), body_limit
        self._stack = ExitStack()
        self._stack.enter_context(logging_to_stderr())

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's name
        found = FastAPI(openapi_url=None)
        found.mount("/", self._pass_on)
        return found

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        begun = False

        async def send_marked(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            body = await _read(limited(Headers(scope=scope), receive, self._body_limit))
            told = {key: scope[key] for key in _SCOPE if key in scope}
            answer = self._replicas.options(session_id=_prompt_of(body)).remote(told, body)
            try:
                await unless_gone(receive, _copy(answer, send_marked))
            finally:
                answer.cancel()
        except ClientGoneError:
            pass
        except ProblemError as problem:
            await problem.response(scope, receive, send)
        except Exception as error:
            LOGGER.warning("replica lost", extra={"fields": {"error": type(error).__name__, "begun": begun}})
            if begun:  # half an answer is out: cut the connection, so that it is not taken for a whole one
                raise
            await _LOST.response(scope, receive, send)


async def _copy(messages: AsyncIterator[Message], send: Send) -> None:
    async for message in messages:
        await send(message)


async def _read(receive: Receive) -> bytes:
    """A request's body."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _prompt_of(body: bytes) -> str:
    """The name, without a version, of the first prompt that a request asks; "" where it asks none."""
    try:
        asked = json.loads(body)["model"]
        name = asked[0] if isinstance(asked, list) else asked
        return str(name).partition("@")[0]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):  # which the replica answers
        return ""


def _make_engine(settings: Settings) -> Engine:
    limits: dict[str, Any] = {"max_waiting": settings.max_waiting, "time_limit": settings.time_limit}
    if settings.engine == "vllm":
        if settings.quantization or settings.device_map:
            raise SoftPromptError("vLLM holds the base in its own ways: give its flags, such as quantization, in vllm")
        from softprompt.serving.vllm import VllmEngine

        return VllmEngine(settings.base, dtype=settings.dtype, **limits, **settings.vllm)
    from softprompt.bases.load import load_base
    from softprompt.serving.local import LocalEngine

    held: dict[str, Any] = {"quantization": settings.quantization, "device_map": settings.device_map}
    base = load_base(settings.base, dtype=settings.dtype, **held)
    return LocalEngine(base, state_bytes=settings.state_memory << 20, **limits)


def _replica_id() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
