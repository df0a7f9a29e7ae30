"""A library of prompts on a tiny base, and a real server in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from softprompt.bases.base import Base
from softprompt.prompts import SoftPrompt
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.api import make_app
from softprompt.serving.engine import Engine
from softprompt.serving.gate import Access
from softprompt.serving.local import LocalEngine
from softprompt.serving.server import Server, bind, run
from softprompt.serving.service import Service
from softprompt.tasks import Task
from tests.conftest import make_base
from tests.serving.plain import PlainEngine

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' and loop.first %}{{ raise_exception('the user begins') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
MOOD = Task(template="Text: {text}\nMood:", labels=["negative", "positive"])
TOPIC = Task(template="{title}: {text}\nTopic:", labels=["art", "article", "war"])
COLOUR = Task(template="{text} is", target=" {colour}", max_new_tokens=3)

ENGINES: dict[str, Callable[[Base], Engine]] = {"local": LocalEngine}


def make_chat_base() -> Base:
    base = make_base()
    base.tokenizer.chat_template = CHAT_TEMPLATE
    return base


def make_prompt(base: Base, virtual: int, task: Task | None = None, seed: int = 0) -> SoftPrompt:
    prompt = SoftPrompt.random(base, virtual, seed=seed)
    return SoftPrompt(prompt.embeddings, prompt.card.replace(task=None if task is None else task.model_dump()))


def fill_library(folder: Path, base: Base) -> PromptLibrary:
    """mood@1 and mood@2 (current), topic@1, colour@1 (free text), bare@1 (no task)."""
    library = PromptLibrary(folder)
    library.add("mood", make_prompt(base, 4, MOOD, seed=1))
    library.add("mood", make_prompt(base, 6, MOOD, seed=2))
    library.add("topic", make_prompt(base, 3, TOPIC, seed=3))
    library.add("colour", make_prompt(base, 5, COLOUR, seed=4))
    library.add("bare", make_prompt(base, 2, seed=5))
    return library


class Live:
    """A server that runs."""

    def __init__(self, url: str, server: Server, http: httpx.Client) -> None:
        self.url, self.server, self.service = url, server, server.service
        self.engine: Any = server.service.engine
        self.get, self.post, self.request = http.get, http.post, http.request

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def http(self) -> httpx.Client:
        """One whose connections can be broken off."""
        return httpx.Client(base_url=self.url, timeout=30, verify=False)


@contextmanager
def living(
    engine: Engine, library: PromptLibrary, told: Callable[[str], None] = lambda url: None, **settings: Any
) -> Iterator[Live]:
    """A server on a free port; all its requests are finished at the end, and nothing has gone wrong in it.

    `told` gets its URL before it is ready.
    """
    is_ready = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        service = Service(engine, library)
        playground, root_path = settings.pop("playground", None), settings.pop("root_path", "")
        app = make_app(service, Access(**settings), playground=playground, root_path=root_path)
        found["server"] = Server(app, service, patience=5)
        with bind("127.0.0.1", 0) as bound:
            found["url"] = f"http://127.0.0.1:{bound.getsockname()[1]}"
            told(found["url"])
            await run(found["server"], bound, is_ready.set)

    def target() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            found["error"] = error
        is_ready.set()

    thread = threading.Thread(target=target)
    thread.start()
    try:
        assert is_ready.wait(30)
        if "error" in found:
            raise found["error"]
        with httpx.Client(base_url=found["url"], timeout=30, verify=False) as http:
            yield Live(found["url"], found["server"], http)
    finally:
        if "server" in found:
            found["server"].should_exit = True
        thread.join(30)
    assert "error" not in found


@pytest.fixture(scope="package")
def base() -> Base:
    return make_chat_base()


@pytest.fixture(scope="package")
def library(base: Base, tmp_path_factory: pytest.TempPathFactory) -> PromptLibrary:
    """To be read only."""
    return fill_library(tmp_path_factory.mktemp("served") / "library", base)


@pytest.fixture
def own_library(base: Base, tmp_path: Path) -> PromptLibrary:
    """One that a test may change."""
    return fill_library(tmp_path / "library", base)


@pytest.fixture(scope="package", params=list(ENGINES))
def live(request: pytest.FixtureRequest, base: Base, library: PromptLibrary) -> Iterator[Live]:
    """One server for all tests that leave it as it is, for each engine."""
    with living(ENGINES[request.param](base), library) as server:
        yield server


@pytest.fixture(scope="package")
def server(base: Base, library: PromptLibrary) -> Iterator[Live]:
    """One server for all tests in which the engine plays no part."""
    with living(PlainEngine(base), library) as server:
        yield server


@pytest.fixture(scope="package")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.client() as client:
        yield client
