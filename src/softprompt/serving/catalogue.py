"""The names that answer: the base, and one version each of the prompts that are loaded.

Owns what a name stands for, and what a prompt must be to be served on a base. Knows nothing of engines or HTTP.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.prompts.card import Card
from softprompt.prompts.ensemble import mark
from softprompt.prompts.library import PromptLibrary
from softprompt.prompts.names import split_name
from softprompt.prompts.prompt import SoftPrompt
from softprompt.serving.classification import Classifier
from softprompt.serving.logs import LOGGER
from softprompt.serving.reading import Reader, is_read
from softprompt.tasks.task import Task
from softprompt.text import shown


def is_path(name: str) -> bool:
    """Whether a base's name is that of a folder or file here."""
    return os.path.exists(os.path.expanduser(name))


class UnknownModelError(SoftPromptError):
    """Nothing that is loaded has this name."""


class RefusedPromptError(SoftPromptError):
    """A prompt of the library cannot be served here."""


@dataclass(frozen=True, eq=False)
class Served:
    """The base, or one version of a prompt. A request holds on to it, whatever is loaded or unloaded meanwhile.

    Attributes:
        id: "name@version"; of the base and of an ensemble its name.
        name: without the version.
        version: None for the base and an ensemble.
        prompt: None for the base and an ensemble.
        members: of an ensemble, the prompts that vote.
        classifier: of its task; None where its card holds no classification task.
        reader: of its task, where that asks for tags, spans or embeddings.
        loaded: when, in seconds since 1970.
    """

    id: str
    name: str
    version: int | None = None
    prompt: SoftPrompt | None = None
    classifier: Classifier | None = None
    reader: Reader | None = None
    members: tuple[SoftPrompt, ...] = ()
    loaded: int = field(default_factory=lambda: int(time.time()))

    @property
    def virtual(self) -> int:
        """P, the number of its virtual tokens."""
        prompts = self.members if self.prompt is None else (self.prompt,)
        return max((prompt.num_virtual_tokens for prompt in prompts), default=0)

    @property
    def card(self) -> Card | None:
        """The prompt's; of an ensemble its first member's; None for the base."""
        return next((prompt.card for prompt in (self.prompt, *self.members) if prompt is not None), None)


class Catalogue:
    """What is served, by name. All changes are made at once, so that a reader sees the old or the new.

    Args:
        base: the base.
        library: where prompts are loaded from.
        base_name: by which the base is asked; None: its own, or that of its folder or file.

    Attributes:
        base_name: of the base.
        refused: prompts of the library that could not be loaded and why, by "name" or "name@version".
    """

    def __init__(self, base: Base, library: PromptLibrary, base_name: str | None = None) -> None:
        self._base, self._library = base, library
        # Where it lies on this machine is nobody's business.
        self.base_name = base_name or (
            os.path.basename(os.path.abspath(base.name)) if is_path(base.name) else base.name
        )
        self._bare = Served(self.base_name, self.base_name)
        self._prompts: dict[str, Served] = {}
        self._ensembles: dict[str, Served] = {}
        self.refused: dict[str, str] = {}

    @property
    def prompts(self) -> list[Served]:
        """The prompts that are loaded, by name."""
        return [self._prompts[name] for name in sorted(self._prompts)]

    @property
    def models(self) -> list[Served]:
        """The base, then ensembles, then the prompts, their members among them."""
        return [self._bare, *(self._ensembles[name] for name in sorted(self._ensembles)), *self.prompts]

    def find(self, name: str) -> Served:
        """What answers to `name`: the base's name, or that of a prompt that is loaded, with its version or without.

        Raises:
            UnknownModelError: nothing does.
        """
        if name == self._bare.name:
            return self._bare
        served = self._prompts.get(name.partition("@")[0]) or self._ensembles.get(name)
        if served is None:
            raise UnknownModelError(f"there is no model {shown(name)}: GET /v1/models lists those that are loaded")
        if name not in (served.name, served.id):
            raise UnknownModelError(f"{shown(name)} is not loaded: {served.id} is")
        return served

    def serves(self, name: str) -> bool:
        """Whether the base or a prompt that is loaded has this name, which has no version."""
        return name == self._bare.name or name in self._prompts or name in self._ensembles

    def read(self, name: str) -> Served:
        """Read "name" (the library's current version) or "name@version" from the library, without serving it yet.

        Takes milliseconds, in which files are read; may run in any thread.

        Raises:
            UnknownPromptError: the library has none of that name or version, or no prompt can have such a name.
            RefusedPromptError: it is damaged, of another base, or its task cannot be used; `refused` then has it.
        """
        try:
            split_name(name)
        except SoftPromptError as error:
            raise UnknownPromptError(str(error)) from None
        try:
            served = self._read(name)
        except UnknownPromptError:
            raise UnknownPromptError(f"the library has no prompt {shown(name)}") from None
        except SoftPromptError as error:
            # Where the library is on this machine is not for everybody.
            raise self.refuse(name, str(error).replace(f"{self._library.folder}/", "")) from None
        return served

    def refuse(self, name: str, reason: str) -> RefusedPromptError:
        """Note why a prompt cannot be served; the error to raise."""
        self.refused[name] = reason
        return RefusedPromptError(f"prompt {name} is refused: {reason}")

    def add(self, served: Served) -> None:
        """Serve it from now on, in place of another version."""
        self._prompts[served.name] = served
        for name in (served.name, served.id):
            self.refused.pop(name, None)
        self._settle_ensembles(served.name)

    def remove(self, name: str) -> Served:
        """Serve the prompt no more. Requests that hold it are finished.

        Raises:
            UnknownModelError: no such prompt is loaded.
        """
        served = self.find(name)
        if served is self._bare:
            raise UnknownModelError(f"{shown(name)} is the base, which stays")
        if served.members:
            raise UnknownModelError(f"{shown(name)} is an ensemble: unload its members, {name}.0 and so on")
        del self._prompts[served.name]
        self._settle_ensembles(served.name)
        return served

    def _settle_ensembles(self, changed: str) -> None:
        """See to the ensembles that a prompt is a member of, as "mood.0" is of "mood", or has the name of."""
        for name in {changed, changed.rpartition(".")[0]}:
            found = self._ensemble(name)
            if found is None:
                self._ensembles.pop(name, None)
            else:
                self._ensembles[name] = found

    def _ensemble(self, name: str) -> Served | None:
        """The ensemble of this name; None where not all its members are loaded, as `library add` names them."""
        first = self._prompts.get(f"{name}.0")
        of = {} if first is None or first.prompt is None else mark(first.prompt.card)
        if first is None or first.classifier is None or not of or not 0 < of["of"] <= len(self._prompts):
            return None
        every = [self._prompts.get(f"{name}.{k}") for k in range(of["of"])]
        members = tuple(one.prompt for one in every if one is not None and one.prompt is not None)
        if len(members) < len(every):
            return None
        if any(mark(prompt.card) != {**of, "member": k} for k, prompt in enumerate(members)):
            LOGGER.warning("%s.0 and so on are not the members of one ensemble: none answers as %s", name, name)
            return None
        if name in (self._bare.name, *self._prompts):
            LOGGER.warning("no ensemble answers as %s, which is another model's name", name)
            return None
        before = self._ensembles.get(name)
        if before is not None and before.members == members:
            return before
        return Served(name, name, classifier=Classifier(self._base, first.classifier.task, *members), members=members)

    def _read(self, name: str) -> Served:
        entry, prompt = self._library.load(name)
        if entry.name == self._bare.name:
            raise SoftPromptError("the base has this name: add it to the library under another one")
        prompt.check_base(self._base)
        room = self._base.room(prompt.num_virtual_tokens)
        if room is not None and room < 1:
            raise SoftPromptError(
                f"its {prompt.num_virtual_tokens} virtual tokens leave no room in {self._base.max_positions}"
            )
        classifier = reader = None
        if prompt.card.task is not None:
            task = Task.from_dict(prompt.card.task, "card.json: task")
            if is_read(task):
                reader = Reader(self._base, task, prompt)
            elif task.labels is not None:
                classifier = Classifier(self._base, task, prompt)
        elif prompt.task_type in ("TOKEN_CLS", "QUESTION_ANS"):
            raise SoftPromptError(f"it is for {prompt.task_type}, and no task says how: add it again with --task FILE")
        return Served(f"{entry.name}@{entry.version}", entry.name, entry.version, prompt, classifier, reader)
