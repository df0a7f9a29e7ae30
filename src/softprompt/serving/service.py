"""What a server is made of and how it lives: an engine, a catalogue of prompts, figures; start, load, unload, stop.

Owns the order of these things. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.catalogue import Catalogue, Served
from softprompt.serving.engine import Engine, NotFiniteError, StoppedError
from softprompt.serving.logs import LOGGER
from softprompt.serving.metrics import Metrics
from softprompt.serving.writer import Writer


class Service:
    """An engine that answers in the name of a library's prompts.

    Args:
        engine: not started yet.
        library: its prompts are loaded at the start, each in its current version.
        base_name: by which the base is asked, see `Catalogue`.

    Attributes:
        engine, library, catalogue, metrics, writer: see there.
        status: "starting"; "ready"; "stopping", in which requests that still come are answered; "stopped"; or "failed",
            where it could not start, or its engine has ended.
    """

    def __init__(self, engine: Engine, library: PromptLibrary, base_name: str | None = None) -> None:
        self.engine, self.library = engine, library
        self.catalogue = Catalogue(engine.base, library, base_name)
        self.metrics = Metrics(engine.figures, self.catalogue.serves, lambda: len(self.catalogue.prompts))
        self.writer = Writer(engine)
        self.status: Literal["starting", "ready", "stopping", "stopped", "failed"] = "starting"
        self._failure: Exception | None = None
        self._settled = asyncio.Event()
        self._engine_runs = False

    async def start(self) -> None:
        """Start the engine and load the library. A prompt that cannot be served is logged and left out."""
        try:
            await self.engine.start()
            self._engine_runs = True
            for name in await asyncio.to_thread(self.library.names):
                try:
                    self.catalogue.add(await asyncio.to_thread(self.catalogue.read, name))
                except SoftPromptError as error:
                    LOGGER.warning("prompt refused", extra={"fields": {"prompt": name, "reason": str(error)}})
        except Exception as error:
            self.status, self._failure = "failed", error
        else:
            if self.status == "starting":
                self.status = "ready"
        self._settled.set()

    async def started(self) -> None:
        """Wait until `start` is through.

        Raises:
            Exception: whatever has kept the service from starting.
        """
        await self._settled.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Tell whoever asks that the end is near."""
        self.status = "stopping" if self.status == "ready" else "stopped"

    async def stop(self) -> None:
        """Refuse new requests, finish those that run, then free everything."""
        self.status = "stopped"
        if self._engine_runs:
            await self.engine.stop()

    def check(self, *statuses: str) -> None:
        """Check that the status is one of `statuses`.

        Raises:
            StoppedError: it isn't.
        """
        self.check_engine()
        if self.status not in statuses:
            raise StoppedError(f"the server is not ready ({self.status}): try again later")

    def check_engine(self) -> None:
        """Check that the engine has not failed for good.

        Raises:
            StoppedError: it has.
        """
        if self.engine.failed.is_set():
            self.status = "failed"
            raise StoppedError("the engine has failed, and its log says why: start the server again")

    async def load(self, name: str) -> Served:
        """Serve a prompt of the library, "name" or "name@version", in place of the version that is loaded.

        Its state is computed first, so that the first request need not wait for it. On any error the version that is
        loaded stays.

        Raises: as `Catalogue.read` and `Engine.warm`.
        """
        served = await asyncio.to_thread(self.catalogue.read, name)
        if served.prompt is not None:
            try:
                await self.engine.warm(served.prompt)
            except NotFiniteError as error:
                raise self.catalogue.refuse(name, str(error)) from None
        self.catalogue.add(served)
        return served

    def unload(self, name: str) -> Served:
        """Serve a prompt no more. Requests that use it are finished.

        Raises:
            UnknownModelError: no such prompt is loaded.
        """
        served = self.catalogue.remove(name)
        for gone in (served.name, served.name.rpartition(".")[0]):  # with a member goes its ensemble
            if not self.catalogue.serves(gone):
                self.metrics.drop(gone)
        return served
