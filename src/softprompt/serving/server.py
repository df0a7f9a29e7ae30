"""The process: a port, uvicorn, signals.

Owns binding, who may be let in from outside, and the way down at SIGTERM. Knows nothing of endpoints.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.api import make_app
from softprompt.serving.engine import Engine
from softprompt.serving.gate import Access
from softprompt.serving.logs import logging_to_stderr
from softprompt.serving.service import Service

_BACKLOG = 2048
_HEADER_SECONDS = 30.0  # for a request's headers


@dataclass(frozen=True)
class Site:
    """Where a server is, and what it shows.

    Attributes:
        host: address or name to listen at.
        port: 0 takes a free one.
        patience: seconds that requests may still take after SIGTERM.
        allow_no_key: listen to other machines without any key.
        base_name: by which the base is asked; None: its own, or that of its folder or file.
        root_path: what a proxy puts before every path, such as "/llm".
        runs: where the playground at `/` looks for training runs; None: there is no playground.
    """

    host: str
    port: int
    patience: float
    allow_no_key: bool = False
    base_name: str | None = None
    root_path: str = ""
    runs: Path | None = None


def serve(
    make_engine: Callable[[], Engine],
    library: PromptLibrary,
    site: Site,
    *,
    ready: Callable[[str, Service], None],
    access: Access,
) -> None:
    """Serve a library until SIGTERM or SIGINT; requests that run then are finished.

    Args:
        make_engine: makes the engine, which may take long; the port is taken first.
        library: its prompts are served.
        site: where.
        ready: called once requests are answered, with the server's URL.
        access: who may come in.

    Raises:
        SoftPromptError: the address cannot be had, or would be open to everybody; the engine cannot start.
    """
    host, root_path = site.host, site.root_path
    if not (access.api_keys or site.allow_no_key or _is_loopback(host)):
        raise SoftPromptError(
            f"--host {host} lets other machines in without a key: give --api-key (or SOFTPROMPT_API_KEY), or "
            "--allow-no-key where something else keeps strangers out"
        )
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise SoftPromptError(f"--root-path {root_path}: begin it with / and end it without, such as /llm")
    if not all(map(str.strip, access.api_keys)):
        raise SoftPromptError("an API key is empty")
    with bind(host, site.port) as bound:
        service = Service(make_engine(), library, site.base_name)
        server = Server(make_app(service, access, playground=site.runs, root_path=root_path), service, site.patience)
        with logging_to_stderr():
            asyncio.run(run(server, bound, lambda: ready(_url(host, bound), service)))


class _Protocol(H11Protocol):
    """uvicorn's own, but for connections whose headers never come to an end: they are closed after a while."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's is as narrow
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting is not None and self.conn.their_state is not h11.IDLE:
            self._waiting.cancel()
            self._waiting = None
        elif self._waiting is None and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(_HEADER_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn, but for the signals: after them the process ends with 0, since all requests were finished.

    Args:
        app: from `make_app`.
        service: that of the app.
        patience: seconds that requests may still take after a signal.
    """

    def __init__(self, app: object, service: Service, patience: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]  # uvicorn's types and Starlette's differ
                loop="asyncio",
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,  # longer than clients and proxies keep a connection for its next request
                proxy_headers=False,  # whoever sends X-Forwarded-For could take any address
                timeout_graceful_shutdown=max(1, round(patience)),
            )
        )
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting and finish what runs; at a second Ctrl-C, stop at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
            # What is broken off on purpose is no news: uvicorn would log each request's and its own cancellation.
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self.service.close()
        self.should_exit = True


async def run(server: Server, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serve at the socket `bound` until `server.should_exit`, and call `ready` once requests are answered.

    Raises:
        SoftPromptError: the engine has failed.
        Exception: whatever has kept the service from starting.
    """
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    starting = asyncio.create_task(server.service.started())
    failing = asyncio.create_task(server.service.engine.failed.wait())
    try:
        await asyncio.wait([serving, starting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            gc.freeze()  # else each large body has all that was imported looked through, again and again
            if not server.should_exit:  # a signal may have come meanwhile, and closed the socket
                ready()
            await asyncio.wait([serving, failing], return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            raise SoftPromptError("the engine has failed, and its log says why: start the server again")
    except Exception:
        server.should_exit = True
        raise
    finally:
        starting.cancel()
        failing.cancel()
        await serving


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address, but does not listen yet.

    Raises:
        SoftPromptError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SoftPromptError(f"--host {host}: {error.strerror or error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise SoftPromptError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; choose another with --port"
        ) from None
    return bound


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, bound: socket.socket) -> str:
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
