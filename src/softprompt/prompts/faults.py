"""What is wrong with a library's folder: everything damaged, missing or foreign, each by its path.

Owns what counts as a fault. Reads without the lock and changes nothing; does not know what is done about a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import SoftPromptError
from softprompt.prompts.card import Card
from softprompt.prompts.names import CARD, FILES, is_name
from softprompt.prompts.store import INDEX, LOCK, UNFINISHED, Store, list_folder, read_checked
from softprompt.prompts.versions import Versions

FOREIGN = "is not part of the library: move it away"


@dataclass(frozen=True)
class Fault:
    """Something in a library's folder that is damaged, missing or not the library's.

    Attributes:
        name: the prompt that it belongs to; None where it belongs to none.
        version: that prompt's version; None where it is not one version's.
        path: the file or folder.
        problem: what is wrong with it and what to do, such as "is missing: put it back ...".
    """

    name: str | None
    version: int | None
    path: Path
    problem: str


def find_faults(store: Store) -> Iterator[Fault]:
    """The faults of a library. What changes while they are looked for may be taken for one.

    Raises:
        SoftPromptError: the folder is no library or cannot be read.
    """
    for child in store.children():
        path = store.folder / child
        if child in (LOCK, UNFINISHED):
            continue
        if is_name(child) and (store.has(child) or store.marked(child) or path.is_symlink()):
            yield from _of_name(store, child)
        else:
            missing = f" (it has no {INDEX})" if path.is_dir() else ""
            yield Fault(None, None, path, FOREIGN + missing)


def _of_name(store: Store, name: str) -> Iterator[Fault]:
    path = store.folder / name
    try:
        children = list_folder(path)
    except SoftPromptError as error:
        yield _fault(name, None, path, error)
        return
    try:
        versions = store.versions(name)
    except SoftPromptError as error:
        yield _fault(name, None, path / INDEX, error)
        return
    own = {INDEX, *map(str, versions.versions), *store.marked(name)}
    for child in children:
        if child not in own:
            yield Fault(name, None, path / child, FOREIGN)
    for number in versions.versions:
        yield from _of_version(path / str(number), name, number, versions)


def _of_version(path: Path, name: str, number: int, versions: Versions) -> Iterator[Fault]:
    try:
        children = list_folder(path)
    except SoftPromptError as error:
        yield _fault(name, number, path, error)
        return
    for child in children:
        if child not in FILES:
            yield Fault(name, number, path / child, FOREIGN)
    for file in FILES:
        try:
            content = read_checked(path / file, versions.versions[number])
            if file == CARD:
                Card.parse(json.loads(content), str(path / CARD))  # it may be of a newer softprompt
        except SoftPromptError as error:
            yield _fault(name, number, path / file, error)


def _fault(name: str, number: int | None, path: Path, error: SoftPromptError) -> Fault:
    return Fault(name, number, path, str(error).removeprefix(f"{path} "))
