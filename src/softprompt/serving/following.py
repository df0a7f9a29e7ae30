"""A service that follows its library: what it serves are the current versions, whoever changes them.

Owns when the library is looked at, and what is said where it cannot be read. What is loaded goes on being answered.
"""

from __future__ import annotations

import asyncio

from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.prompts.mirror import Mirror
from softprompt.serving.catalogue import RefusedPromptError, Served
from softprompt.serving.engine import Engine
from softprompt.serving.logs import LOGGER
from softprompt.serving.service import Service


class Following(Service):
    """A service whose library is looked at again and again.

    A version that became the current one is loaded, its state first, and takes the place of the one before at once. A
    name whose versions were all removed is unloaded. What has only gone from the storage is no removal.

    Args:
        engine, library, base_name: see `Service`.
        mirror: what brings the library's folder up to date; None: the folder is the library itself.
        every: seconds between two looks.
    """

    def __init__(
        self,
        engine: Engine,
        library: PromptLibrary,
        base_name: str | None = None,
        *,
        mirror: Mirror | None = None,
        every: float = 2.0,
    ) -> None:
        super().__init__(engine, library, base_name)
        self._mirror, self._every = mirror, every
        self._following: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}

    async def start(self) -> None:
        await super().start()
        if self.status == "ready":
            self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await super().stop()

    async def load(self, name: str) -> Served:
        """Look at the library now, not only when it is time.

        Raises:
            RefusedPromptError: it is a version that is not the current one; see also `Service.load`.
        """
        wanted, at, _ = name.partition("@")
        current = (await asyncio.to_thread(self._look)).get(wanted)
        if at and current is not None and name != f"{wanted}@{current}":
            raise RefusedPromptError(
                f"{name} is not the library's current version, which is what is served here: make it that with "
                "`softprompt library rollback`"
            )
        return await super().load(name)

    def unload(self, name: str) -> Served:
        """Nothing is unloaded but by the library.

        Raises:
            RefusedPromptError: always.
        """
        raise RefusedPromptError(
            f"what the library has is what is served here: take {name} out of it with `softprompt library remove`"
        )

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await self._catch_up()
            except Exception as error:  # of the next look nothing may be lost
                LOGGER.error("library not followed", exc_info=error)

    async def _catch_up(self) -> None:
        try:
            current = await asyncio.to_thread(self._look)
        except SoftPromptError as error:
            self._tell("library", f"{error}; what is loaded goes on being answered")
            return
        loaded = {served.name: served.version for served in self.catalogue.prompts}
        gone = sorted(loaded.keys() - current.keys())
        self._tell("library", f"{', '.join(gone)}: gone from the storage, and answered on" if gone else "")
        for name, version in current.items():
            if version == loaded.get(name):
                continue
            try:
                served = super().unload(name) if version is None else await super().load(f"{name}@{version}")
            except SoftPromptError as error:
                self._tell(name, str(error))
            else:
                self._tell(name, "")
                for old in [one for one in self.catalogue.refused if one.partition("@")[0] == name]:
                    del self.catalogue.refused[old]
                event = "prompt unloaded" if version is None else "prompt loaded"
                LOGGER.info(event, extra={"fields": {"prompt": served.id}})

    def _look(self) -> dict[str, int | None]:
        """The library's current versions; runs in any thread."""
        for name, reason in ({} if self._mirror is None else self._mirror.refresh()).items():
            self._tell(name, reason)
        return self.library.current()

    def _tell(self, about: str, reason: str) -> None:
        """Log what is wrong once, and again when it is something else."""
        if reason and self._told.get(about) != reason:
            LOGGER.warning("library not followed", extra={"fields": {"about": about, "reason": reason}})
        self._told[about] = reason
