"""A real Chromium without a window, for tests that have to see what a browser makes of a page.

Owns finding the browser, its start and end, and the record of what its pages did: no request may leave this machine and
no dialog may open, or the test fails. Does not know any page. Where there is no Chromium, the tests are skipped and say
so; `scripts/chromium.sh` installs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    # What a page asks of other machines is not only noticed, it cannot get there either.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
PATIENCE = 30_000  # milliseconds that an element may take to appear: the machines of tests are slow
PHONE = {"width": 390, "height": 844}  # pixels
DESK = {"width": 1280, "height": 900}

_LOCAL_SCHEMES = {"file", "data", "blob", "about"}
_LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1"}


def is_local(url: str) -> bool:
    """Whether a request for `url` stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in _LOCAL_SCHEMES or parts.hostname in _LOCAL_HOSTS


@dataclass
class Seen:
    """What the pages of a test did.

    Attributes:
        requests: every address that was asked for, web sockets included.
        errors: what the console called an error, and exceptions that no script caught.
        dialogs: the messages of dialogs (`alert` and the like); each was dismissed.
    """

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def outside(self) -> list[str]:
        return [url for url in self.requests if not is_local(url)]

    def watch(self, context: BrowserContext) -> None:
        """Note what the context's pages do from now on."""

        def tell(message: ConsoleMessage) -> None:
            if message.type == "error":
                self.errors.append(f"{message.text} ({message.location.get('url', '')})")

        def dismiss(dialog: Dialog) -> None:
            self.dialogs.append(dialog.message)
            dialog.dismiss()

        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", tell)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("dialog", dismiss)
        context.on("page", lambda page: page.on("websocket", lambda socket: self.requests.append(socket.url)))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for a module's tests.

    Not for the whole session: while Playwright runs, its event loop is the thread's running one, and no other test of
    this process could use `asyncio.run`.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no browser ({', '.join(NAMES)}) on the PATH: scripts/chromium.sh installs one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def seen() -> Seen:
    """What the pages of this test did so far."""
    return Seen()


@pytest.fixture
def new_page(chromium: Browser, seen: Seen) -> Iterator[Callable[..., Page]]:
    """Opens pages, each as if in a browser of its own.

    Takes the options of Playwright's `new_context`, such as `viewport=PHONE`, `color_scheme="dark"` or
    `locale="es-ES"`.
    """
    contexts: list[BrowserContext] = []

    def make(**options: Any) -> Page:
        context = chromium.new_context(**({"viewport": DESK, "accept_downloads": True} | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        seen.watch(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()
    assert seen.outside == []
    assert seen.dialogs == []


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    """A page as wide as a desk's screen, light, in English."""
    return new_page()
