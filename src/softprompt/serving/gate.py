"""What every request passes: an id, a key, the limits on rate and size, a line in the log.

Owns who may come in and how much they may bring. Knows nothing of what is asked. It is plain ASGI, since Starlette's
own kind of middleware would hide a client's going away from the endpoints.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi.datastructures import Headers

from softprompt.serving.logs import LOGGER
from softprompt.serving.metrics import Metrics
from softprompt.serving.problems import ProblemError, busy, find_problem
from softprompt.serving.streams import ClientGoneError
from softprompt.text import shown

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Paths that need no API key, and with them the files of /docs.
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json")

# What a browser may do with the page at /. It is made of templates that are evaluated, so that it cannot do without
# `unsafe-eval`; but whatever its scripts may think of, the browser asks this server alone, and no other site shows it.
_PAGE_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'; "
        b"base-uri 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

_BASIC = 'Basic realm="softprompt: the password is an API key"'

_PROBES = ("/health", "/ready")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_CLIENT_GONE = 499  # in the log; nginx's
_BODY_SECONDS = 60.0
# What is read of a body that is too large, so that its sender sees the answer and not a connection that breaks.
_MOST_DRAINED = 200_000_000
_DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Access:
    """Who may come in, how much they may bring, and what is noted of it.

    Attributes:
        api_keys: each opens all endpoints; none at all: no key is needed.
        requests_per_minute: for each key, or for each address where no key is needed; None: any number.
        body_limit: the largest body in bytes.
        hosts: names beside `localhost` and addresses under which the server answers without a key; None: under any.
            A page of the web could otherwise reach it by a name of its own that leads here (DNS rebinding).
        origins: of web pages that may read answers (CORS); "*" is any.
        log_probes: whether requests for /health and /ready get a line in the log.
    """

    api_keys: Sequence[str] = ()
    requests_per_minute: int | None = None
    body_limit: int = 10_000_000
    hosts: Sequence[str] | None = None
    origins: Sequence[str] = ()
    log_probes: bool = True

    def check_host(self, header: str | None) -> None:
        """Refuse a name that is not one of this server's.

        Raises:
            ProblemError: it isn't.
        """
        if self.api_keys or self.hosts is None or header is None:
            return
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            name = ""
        if name in ("localhost", *(host.lower() for host in self.hosts)) or _is_address(name):
            return
        raise ProblemError(
            403,
            f"this server does not answer as {shown(header)}: start it with --allowed-host NAME, or with an API key",
            kind="permission_error",
            code="host_not_allowed",
        )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Prefix:
    """The middleware behind a proxy that puts a prefix before every path, and may have taken it off again or not.

    Args:
        app: what is behind it; it sees the prefix as ASGI has it, in `root_path` and in `path`.
        root_path: the prefix.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            marked = {**scope, "root_path": self._root_path}
            scope = {**marked, "path": self._root_path + own_path(marked)}
        await self._app(scope, receive, send)


def own_path(scope: Scope) -> str:
    """The path of a request without its `root_path`."""
    path: str = scope.get("path", "")
    root: str = scope.get("root_path", "")
    inside = root and (path == root or path.startswith(f"{root}/"))
    return path[len(root) :] or "/" if inside else path


def is_open(path: str) -> bool:
    """Whether a path needs no API key."""
    return path in OPEN_PATHS or path.startswith("/docs/files/")


@dataclass(frozen=True)
class PagePaths:
    """Paths of a page for browsers, by how they begin; "/" is one, too.

    Attributes:
        calls: what it asks. There a key may come as the password of HTTP's Basic scheme, which a browser asks for.
        files: the same for everybody: they need no key, count for no limit and are not logged.
    """

    calls: tuple[str, ...]
    files: tuple[str, ...]

    def has(self, path: str) -> bool:
        """Whether a path is the page's, but none of its files."""
        return path == "/" or path.startswith(self.calls)


def read_key(authorization: str, *, basic: bool) -> bytes:
    """The key in a header `Authorization`; b"" where there is none.

    Args:
        authorization: the header's value.
        basic: whether the password (or else the name) of HTTP's Basic scheme is a key, too. Not for an API: a browser
            sends it with whatever a page of another site makes it ask.
    """
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip(" ").encode("latin-1")  # the bytes as they came
    if basic and scheme.lower() == "basic":
        with suppress(ValueError):  # it is no Base64
            name, _, password = base64.b64decode(given, validate=True).partition(b":")
            return password or name
    return b""


class RateLimit:
    """So many requests a minute for each client, in bursts of as many (the generic cell rate algorithm).

    Args:
        per_minute: at least 1.
    """

    _MOST_CLIENTS = 10_000

    def __init__(self, per_minute: int) -> None:
        self._interval = 60 / per_minute
        # When each client will have used up nothing; what lies in the past says no more than what isn't there.
        self._free: dict[str, float] = {}

    def wait(self, client: str, now: float) -> float:
        """Take one request of `client`; 0, or, where it may not be made, after how many seconds it may.

        Args:
            now: in seconds, from any start.
        """
        if len(self._free) >= self._MOST_CLIENTS:
            self._free = {client: free for client, free in self._free.items() if free > now}
        free = max(self._free.get(client, now), now) + self._interval
        if free - now > 60.0 + 1e-6:
            return free - now - 60.0
        self._free[client] = free
        return 0.0


class Gate:
    """The middleware.

    Args:
        app: what is behind it.
        metrics: where requests are counted.
        access: who may come in.
        page: the paths of the page; None: there is none.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access: Access, page: PagePaths | None = None) -> None:
        self._app, self._metrics, self._access = app, metrics, access
        self._page = page
        self._keys = [key.encode() for key in access.api_keys]
        self._rate = None if access.requests_per_minute is None else RateLimit(access.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = own_path(scope)
        if scope["type"] != "http" or (self._page is not None and path.startswith(self._page.files)):
            await self._app(scope, receive, send)
            return
        on_page = self._page is not None and self._page.has(path)
        start = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        record: dict[str, Any] = {}
        scope.setdefault("state", {})["record"] = record
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marks = [(b"x-request-id", request_id.encode()), *(_PAGE_HEADERS if on_page else ())]
                message["headers"] = [*message.get("headers", []), *marks]
            await send(message)

        self._metrics.running.inc()
        try:
            self._access.check_host(headers.get("host"))
            if not is_open(path):
                self._admit(scope, headers, on_page)
            await self._app(scope, limited(headers, receive, self._access.body_limit), send_marked)
        except ClientGoneError:
            status = _CLIENT_GONE
        except asyncio.CancelledError:  # so does who asks within this process
            status = _CLIENT_GONE
            raise
        except Exception as error:
            problem = find_problem(error)
            if problem.status_code == 500:
                LOGGER.error("request failed", exc_info=error, extra={"fields": {"request_id": request_id}})
            if status:  # half an answer is out: cut the connection, so that it is not taken for a whole one
                raise
            await problem.response(scope, receive, send_marked)
        finally:
            self._metrics.running.dec()
            route = getattr(scope.get("route"), "path", "unknown")
            # A stream that ended in an error began with 200: what counts is how it ended.
            status = record.get("status", status)
            self._metrics.answered(route, status)
            fields = {
                "request_id": request_id,
                "method": scope["method"] if scope["method"] in _METHODS else "other",
                "route": route,
                "status": status,
                "seconds": round(time.perf_counter() - start, 4),
                "client": (scope.get("client") or ("",))[0],
            }
            if self._access.log_probes or route not in _PROBES:
                LOGGER.info("request", extra={"fields": fields | record})

    def _admit(self, scope: Scope, headers: Headers, on_page: bool) -> None:
        if on_page and scope["method"] != "GET" and headers.get("sec-fetch-site") == "cross-site":
            raise ProblemError(403, "no page of another site may ask this one", kind="permission_error")
        given = headers.get("authorization", "")
        token = read_key(given, basic=on_page)
        # All are compared, whichever fits: the time tells nothing.
        fitting = [i for i, key in enumerate(self._keys) if secrets.compare_digest(token, key)]
        client = f"key {fitting[0]}" if fitting else str((scope.get("client") or ("",))[0])
        # A page takes a dozen requests to be shown. What it asks then is counted where the API is asked.
        shows_page = on_page and scope["method"] in ("GET", "HEAD") and (fitting or not self._keys)
        if self._rate is not None and not shows_page and (wait := self._rate.wait(client, time.monotonic())):
            raise busy("too many requests a minute: try again later", "rate_limit_exceeded", wait)
        if self._keys and not fitting:
            message = (
                "the API key is wrong"
                if given.partition(" ")[2]
                else "an API key is needed, as `Authorization: Bearer KEY`"
            )
            raise ProblemError(
                401,
                message,
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": _BASIC if on_page else "Bearer"},
            )


def limited(headers: Headers, receive: Receive, body_limit: int) -> Receive:
    """`receive`, but for bodies that are too large or come too slowly.

    Raises (when it is called):
        ProblemError: the body is such a one.
    """
    declared = headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    read, complete = 0, False
    deadline = time.monotonic() + _BODY_SECONDS

    async def receive_limited() -> Message:
        nonlocal read, complete
        if complete:
            return await receive()
        message: Message = {"type": "http.request", "more_body": True}
        if size <= body_limit:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise ProblemError(
                    408, f"the body took longer than {_BODY_SECONDS:.0f} s", code="body_too_slow"
                ) from None
        read += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if max(size, read) > body_limit:
            if not complete:
                await _drain(receive)
            limit = f"{body_limit:,} bytes"
            raise ProblemError(413, f"the body is larger than {limit}: send less at a time", code="body_too_large")
        return message

    return receive_limited


async def _drain(receive: Receive) -> None:
    read, more = 0, True
    deadline = time.monotonic() + _DRAIN_SECONDS
    with suppress(asyncio.TimeoutError):
        while more and read < _MOST_DRAINED:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            read += len(message.get("body", b""))
            more = message.get("more_body", False)
