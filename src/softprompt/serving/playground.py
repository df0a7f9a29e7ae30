"""The playground: a page of Gradio's at `/`, for people who want to look and try.

Owns how the page lives beside the API: which paths are its own, how a browser shows its key, what it may ask for. Does
not know what is on the page (`playground_page`). Gradio comes with the extra `playground` and is imported where it is
used.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import importlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from softprompt.errors import SoftPromptError
from softprompt.serving.gate import own_path
from softprompt.serving.playground_desk import Desk, Places
from softprompt.serving.playground_looks import STYLE
from softprompt.serving.service import Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ABSENT = 'the playground needs an extra: pip install "softprompt[playground]"'

# Gradio's own files, the same for everybody: they need no key and count for no rate limit, as a page has dozens.
_FILES = ("/assets/", "/static/", "/theme.css", "/favicon.ico")
_CALLS = ("queue/", "upload", "file=", "heartbeat/", "startup-events", "app_id", "cancel", "reset")
# Of Gradio's other paths the page needs none: they stay shut.
_PAGE = ("/config", *(f"/gradio_api/{call}" for call in _CALLS))
# Whatever Gradio's scripts may think of, the browser asks this server alone. They are made of templates that are
# evaluated, so that they cannot do without `unsafe-eval`; the texts of others come as escaped HTML.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_FAINT = ("body_text_color_subdued", "block_info_text_color", "block_label_text_color", "block_title_text_color")
_CLOSING = 0.5  # seconds between two looks at whether the server stops


def is_installed() -> bool:
    """Whether the extra is."""
    return find_spec("gradio") is not None


def check_installed() -> None:
    """Check that the extra is installed.

    Raises:
        SoftPromptError: it isn't.
    """
    if not is_installed():
        raise SoftPromptError(f"{ABSENT}, or leave out --playground")


class Playground:
    """The page's ASGI app; it answers within `living`.

    Args:
        service: what answers.
        places: where it looks.
        body_limit: the largest upload in bytes.
        root_path: what a proxy puts before every path.
    """

    def __init__(self, service: Service, places: Places, *, body_limit: int, root_path: str = "") -> None:
        self._service, self._desk, self._body_limit = service, Desk(service, places), body_limit
        self._root_path = root_path
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app is not None, "outside of `living`"
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """From here to the end the page is served; what was uploaded is deleted at the end.

        Raises:
            SoftPromptError: the extra is not installed.
        """
        check_installed()
        with TemporaryDirectory(prefix="softprompt-playground-") as folder, _environment(folder):
            await asyncio.to_thread(importlib.import_module, "gradio")
            shell = self._mount()
            async with shell.router.lifespan_context(shell):
                self._app = shell
                closing = asyncio.create_task(self._close(shell))
                try:
                    yield
                finally:
                    closing.cancel()
                    await asyncio.gather(closing, return_exceptions=True)

    def _mount(self) -> FastAPI:
        import gradio as gr

        from softprompt.serving.playground_page import make_page, translations

        shell = FastAPI(openapi_url=None)
        # Without one Gradio adds its own, which lets every other site in where the host is not this machine.
        shell.add_middleware(CORSMiddleware)
        fonts = ("ui-sans-serif", "system-ui", "sans-serif")  # the system's: others come from the network
        theme = gr.themes.Default(primary_hue="blue", font=fonts, font_mono=("ui-monospace", "monospace"))
        faint = {"": "*neutral_600", "_dark": "*neutral_300"}  # what Gradio has is too pale to be read by all
        theme.set(**{f"{part}{mode}": faint[mode] for part in _FAINT for mode in faint})
        mounted: FastAPI = gr.mount_gradio_app(
            shell,
            make_page(self._desk),
            path="/",
            root_path=self._root_path,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=self._body_limit,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            i18n=translations(),
            theme=theme,
            css=STYLE,
        )
        return mounted

    async def _close(self, shell: FastAPI) -> None:
        """End the streams that open pages hold, so that the server need not wait for them when it stops."""
        while self._service.status in ("starting", "ready"):
            await asyncio.sleep(_CLOSING)
        (mounted,) = (route.app for route in shell.routes if hasattr(route, "app"))
        mounted.stop_event.set()


class Within:
    """The middleware behind the gate: hands the page's requests to the page.

    Args:
        app: the API.
        page: the page.
    """

    def __init__(self, app: ASGIApp, *, page: Playground) -> None:
        self._app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._page if _is_page(scope) else self._app)(scope, receive, send)


class Before:
    """The middleware before the gate: hands out Gradio's own files, and shows the gate the key that a browser has.

    A browser asks for a name and a password when it is told to, and sends them with all that the page asks for; the
    password is the key.

    Args:
        app: the gate.
        page: the page.
    """

    def __init__(self, app: ASGIApp, *, page: Playground) -> None:
        self._app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and own_path(scope).startswith(_FILES) and scope["method"] in ("GET", "HEAD"):
            await self._page(scope, receive, send)
        elif _is_page(scope):
            headers = [
                (name, _bearer(value) if name == b"authorization" else value) for name, value in scope["headers"]
            ]
            await self._app({**scope, "headers": headers}, receive, _marked(send))
        else:
            await self._app(scope, receive, send)


def _is_page(scope: Scope) -> bool:
    path = own_path(scope)
    return scope["type"] == "http" and (path == "/" or path.startswith(_PAGE))


def _bearer(given: bytes) -> bytes:
    """The header `Authorization` as the gate reads it: a browser's password becomes the key."""
    scheme, _, coded = given.partition(b" ")
    if scheme.lower() != b"basic":
        return given
    try:
        name, _, password = base64.b64decode(coded, validate=True).partition(b":")
    except binascii.Error:
        return given
    return b"Bearer " + (password or name)


def _marked(send: Send) -> Send:
    """`send`, which tells a browser what it may do, and to ask for the key where one is needed."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message.get("headers", []) if name != b"www-authenticate"]
            if message["status"] == 401:
                headers.append((b"www-authenticate", b'Basic realm="softprompt: the password is an API key"'))
            headers.extend((name.encode(), value.encode()) for name, value in _HEADERS.items())
            message = {**message, "headers": headers}
        await send(message)

    return send_marked


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """What Gradio looks up again and again: where uploads go, and that it neither tells nor keeps who did what."""
    settings = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        # Else it makes tables of all events of the past, at each new one.
        "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62),
        "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    }
    before: dict[str, Any] = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
