"""The library: named prompts whose versions never change.

Owns what each operation means. Does not know how the folder is read and changed (`store`), what is in a prompt's files
(`files`, `prompt`), nor the hub (`hub`), nor any base. PyTorch is imported only where a tensor is read or written.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.files import sync
from softprompt.prompts.card import Card
from softprompt.prompts.faults import FOREIGN, Fault, find_faults
from softprompt.prompts.names import CARD, CONFIG, FILES, WEIGHTS, check_name, is_name, split_name
from softprompt.prompts.store import Store, check_kind, read_checked
from softprompt.prompts.versions import Versions, digest

if TYPE_CHECKING:
    from softprompt.prompts.prompt import SoftPrompt

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Entry:
    """One version of a prompt in the library.

    Attributes:
        name: the prompt's name.
        version: from 1 on.
        current: whether the name alone stands for this version.
        path: its folder, which PEFT loads.
        card: what it says of itself.
        num_virtual_tokens: P.
        bytes: of its files together.
    """

    name: str
    version: int
    current: bool
    path: Path
    card: Card
    num_virtual_tokens: int
    bytes: int


class PromptLibrary:
    """A folder of named prompts, each in versions 1, 2, ... that never change.

    "mood" stands for the current version of the prompt mood, "mood@3" for its version 3. Any number of processes may
    read and change a library at the same time. Every method raises a SoftPromptError where the folder is no library, a
    name is none, or something cannot be read; one that changes something also where the folder cannot be written.

    Args:
        folder: the library's folder; the first `add` makes it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._store = Store(self.folder)

    def __repr__(self) -> str:
        return f"PromptLibrary({str(self.folder)!r})"

    def add(self, name: str, prompt: SoftPrompt | str | Path) -> Entry:
        """Keep `prompt`, or the one saved in the folder `prompt`, as a new version, which becomes the current one.

        The version's number is one that the name never had before.

        Raises:
            SoftPromptError: the folder `prompt` holds no whole prompt; see also the class.
        """
        from softprompt.prompts.prompt import SoftPrompt

        check_name(name)
        if isinstance(prompt, str | Path):
            prompt = SoftPrompt.load(prompt)
        elif not isinstance(prompt, SoftPrompt):
            raise SoftPromptError(f"a SoftPrompt or its folder is needed, not {type(prompt).__name__}")
        with self._store.change():
            versions, folder = self._store.versions(name), self.folder / name
            if not self._store.has(name) and folder.exists() and os.listdir(folder):
                raise SoftPromptError(f"{folder} {FOREIGN}")
            number = versions.last + 1
            while os.path.lexists(folder / str(number)):  # somebody put it there
                number += 1
            mark = self._store.mark(name, number)
            new = prompt.save(mark / "prompt")
            digests = {file: digest((new / file).read_bytes()) for file in FILES}
            folder.mkdir(exist_ok=True)
            sync(self.folder)
            os.rename(new, folder / str(number))
            self._store.write(name, versions.added(number, digests), mark)
            return self.entry(f"{name}@{number}")

    def get(self, name: str) -> SoftPrompt:
        """The prompt `name` ("mood" or "mood@3"), its files compared with what was added.

        Raises:
            UnknownPromptError: there is none of that name, or no such version.
            SoftPromptError: a file of it is damaged or missing, naming the file; see also the class.
        """
        return self.load(name)[1]

    def load(self, name: str) -> tuple[Entry, SoftPrompt]:
        """What `entry` and `get` give, of the same version and read once; also for what it raises."""
        return self._find(name, self._load)

    def entry(self, name: str) -> Entry:
        """What is known of the prompt `name` ("mood" or "mood@3"), without its tensor and without PyTorch.

        Raises: as `get`; of the file with the tensor only that it is missing.
        """
        return self._find(name, self._entry)

    def names(self) -> builtins.list[str]:
        """The names that have a version, damaged ones too, sorted."""
        found = []
        for name in self._store.children():
            if is_name(name) and self._store.has(name):
                try:
                    removed = self._store.versions(name).current is None
                except SoftPromptError:
                    removed = False
                if not removed:
                    found.append(name)
        return found

    def current(self) -> dict[str, int | None]:
        """The current version of each name; None where all its versions were removed.

        What cannot be read is left out, and so is a name whose folder has gone without `remove`. Nothing of a version
        is read: it takes a fraction of a millisecond a name.
        """
        found = {}
        for name in self._store.children():
            if is_name(name) and self._store.has(name):
                with suppress(SoftPromptError):
                    found[name] = self._store.versions(name).current
        return found

    def list(self) -> builtins.list[Entry]:
        """The current version of each name, sorted by name.

        A damaged one is left out, so that it does not keep the others from being used; `verify` names it.
        """
        found = []
        for name in self.names():
            with suppress(SoftPromptError):
                found.append(self.entry(name))
        return found

    def versions(self, name: str) -> builtins.list[Entry]:
        """All versions of `name`, the oldest first; damaged ones are left out, as in `list`.

        Raises:
            UnknownPromptError: there is none of that name.
        """
        found = []
        for number in self._known(check_name(name))[0].versions:
            with suppress(SoftPromptError):
                found.append(self.entry(f"{name}@{number}"))
        return found

    def remove(self, name: str) -> None:
        """Delete all versions of "mood", or the one version "mood@3".

        After the current version went, the newest that is left is the current one. A number is not given again: the
        name keeps its `versions.json`, which remembers the last one.

        Raises:
            UnknownPromptError: there is none of that name, or no such version.
        """
        name, number = split_name(name)
        with self._store.change():
            versions, _ = self._known(name, number)
            numbers = set(versions.versions) if number is None else {number}
            marks = [self._store.mark(name, one) for one in numbers]
            self._store.write(name, versions.removed(numbers), marks[0])

    def rollback(self, name: str, version: int | None = None) -> Entry:
        """Make another version of `name` the current one.

        Args:
            version: which one (default: the one before the current one).

        Raises:
            UnknownPromptError: there is none of that name, or no such version.
            SoftPromptError: there is none before the current one, or the version is damaged; see also the class.
        """
        check_name(name)
        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
            raise SoftPromptError(f"version {version!r} is none: a whole number from 1 on is needed")
        with self._store.change():
            versions, current = self._known(name, None)
            number = versions.before(current) if version is None else version
            if number is None:
                raise SoftPromptError(
                    f"there is no version of '{name}' before the current one, {current}: say which one"
                )
            self._known(name, number)
            self._whole(name, number, versions)  # a damaged version is not to become the current one
            self._store.write(name, versions.rolled_back(number), self._store.mark(name, number))
            return self.entry(f"{name}@{number}")

    def verify(self) -> builtins.list[Fault]:
        """Everything in the folder that is damaged, missing or not the library's; [] where all is well.

        Every file is read and compared with its SHA-256. What a change under way or a killed one has left is no fault:
        it harms no version, and the next change clears it away.
        """
        faults = [*find_faults(self._store)]
        if faults:
            # Something that changed meanwhile may have looked like a fault. Where the lock can't be had, on a disk that
            # can only be read, nothing changes.
            with suppress(OSError), self._store.locked():
                faults = [*find_faults(self._store)]
        return faults

    def push(
        self,
        name: str,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Put the prompt `name` ("mood" or "mood@3") into a repository of the Hugging Face hub, in one commit.

        A README.md is written where the repository has none.

        Args:
            repo_id: "OWNER/NAME"; the repository is made where there is none.
            private: whether nobody else may see it. A repository that is there must be as this says.
            token: of the account to write as (default: that of `hf auth login` or HF_TOKEN).
            revision: the branch, made where there is none (default: the main one).

        Returns:
            The commit's URL.

        Raises:
            UnknownPromptError: as `get`.
            SoftPromptError: as `get`; or the hub cannot be reached or refuses.
        """
        from softprompt.prompts import hub

        entry, files = self._find(name, self._whole)
        readme = hub.readme(repo_id, entry.name, entry.num_virtual_tokens, entry.card)
        message = f"{entry.name}@{entry.version}"
        return hub.push(repo_id, files, readme, message, private=private, token=token, revision=revision)

    def pull(
        self, repo_id: str, name: str | None = None, *, revision: str | None = None, token: str | None = None
    ) -> Entry:
        """Download a prompt, one of PEFT's too, from the Hugging Face hub, check it and add it.

        Args:
            repo_id: "OWNER/NAME".
            name: the name to add it under (default: the repository's, in lower case).
            revision: the branch, tag or commit (default: the main branch).
            token: as in `push`.

        Raises:
            SoftPromptError: the hub cannot be reached or refuses, or what is there is no whole prompt; as `add`.
        """
        from softprompt.prompts import hub

        chosen = repo_id.rpartition("/")[2].lower() if name is None else check_name(name)
        if not is_name(chosen):
            raise SoftPromptError(f"{chosen!r} can't be a prompt's name in the library: give one")
        return self.add(chosen, hub.pull(repo_id, token=token, revision=revision))

    def _known(self, name: str, number: int | None = None) -> tuple[Versions, int]:
        """The versions of `name`, and which of them is meant: `number`, else the current one."""
        versions = self._store.versions(name)
        if versions.current is None:
            self._store.children()  # it may not even be a library
            raise UnknownPromptError(f"there is no prompt '{name}' in {self.folder}: see `softprompt library list`")
        if number is not None and number not in versions.versions:
            raise UnknownPromptError(
                f"there is no version {number} of '{name}' in {self.folder}: the current one is {versions.current}"
            )
        return versions, versions.current if number is None else number

    def _find(self, reference: str, read: Callable[[str, int, Versions], _Found]) -> _Found:
        """What `read` finds of a version; its error only where the version was not removed meanwhile."""
        name, wanted = split_name(reference)
        while True:
            versions, number = self._known(name, wanted)
            try:
                return read(name, number, versions)
            except SoftPromptError:
                if number in self._store.versions(name).versions:
                    raise

    def _entry(self, name: str, number: int, versions: Versions) -> Entry:
        path = self._store.path(name, number)
        config, card = (read_checked(path / file, versions.versions[number]) for file in (CONFIG, CARD))
        return Entry(
            name=name,
            version=number,
            current=number == versions.current,
            path=path,
            card=Card.parse(json.loads(card), str(path / CARD)),
            num_virtual_tokens=int(json.loads(config)["num_virtual_tokens"]),
            bytes=len(config) + len(card) + check_kind(path / WEIGHTS, "file").st_size,
        )

    def _whole(self, name: str, number: int, versions: Versions) -> tuple[Entry, dict[str, bytes]]:
        """The version and what its files hold, each compared with its SHA-256."""
        entry = self._entry(name, number, versions)
        return entry, {file: read_checked(entry.path / file, versions.versions[number]) for file in FILES}

    def _load(self, name: str, number: int, versions: Versions) -> tuple[Entry, SoftPrompt]:
        from softprompt.prompts.prompt import SoftPrompt

        entry, _ = self._whole(name, number, versions)
        prompt = SoftPrompt.load(entry.path)
        if prompt.card != entry.card:  # the card was deleted a moment ago, and the rest looked like a prompt of PEFT's
            raise SoftPromptError(f"{entry.path / CARD} is missing")
        return entry, prompt
