"""The library's folder on disk: its layout, what may be read from it, and how it changes.

Owns the lock, the order of writes and the checks on files. Does not know what is in a prompt's files (`files`), nor
which version somebody wants (`library`), nor what counts as a fault (`faults`).

    LIBRARY/mood/versions.json    which versions there are and which is the current one; see `versions`
    LIBRARY/mood/3/               a version: a prompt's folder, as PEFT loads it
    LIBRARY/.unfinished/mood@4/   the mark of a change under way, and room for its new files
    LIBRARY/.lock                 held while something changes

A change takes effect when a new `versions.json` is renamed over the old one: readers, who need no lock, and whoever
comes after a kill find the one or the other. A mark is there before a version's folder comes or goes, so that the next
change can delete what a killed one has left, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from softprompt.errors import SoftPromptError
from softprompt.files import sync, write_file
from softprompt.prompts.names import split_name
from softprompt.prompts.versions import Versions, digest

INDEX = "versions.json"
UNFINISHED = ".unfinished"
LOCK = ".lock"

_PATIENCE = 60.0  # seconds to wait for another process's change, which takes a fraction of one
_KINDS = {"file": stat.S_ISREG, "folder": stat.S_ISDIR}


class Store:
    """The folder of a library. What is read without the lock may change at any time.

    All names given to it must follow the rule in `names`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def children(self) -> list[str]:
        """The names of what lies in the folder, sorted; none where the folder isn't there.

        Raises:
            SoftPromptError: it cannot be read, or is no library.
        """
        try:
            children = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise SoftPromptError(f"{self.folder} is a file: a prompt library is a folder") from None
        except OSError as error:
            raise SoftPromptError(f"{self.folder} cannot be read: {error.strerror}") from None
        begun = set(children) <= {LOCK} or UNFINISHED in children
        if not begun and not any(self.has(child) for child in children):
            raise SoftPromptError(
                f"{self.folder} is not a prompt library: it holds other things, such as '{children[0]}', and no prompt "
                "that was added; choose a library, or a new folder"
            )
        return children

    def has(self, name: str) -> bool:
        """Whether `name` has a `versions.json`, a damaged one too."""
        return os.path.lexists(self.folder / name / INDEX)

    def versions(self, name: str) -> Versions:
        """What `versions.json` of `name` says; no versions where there is none.

        Raises:
            SoftPromptError: it is damaged or of a newer softprompt, or cannot be read.
        """
        if not os.path.lexists(self.folder / name):
            return Versions()
        check_kind(self.folder / name, "folder")
        file = self.folder / name / INDEX
        return Versions.parse(_read(file), str(file)) if self.has(name) else Versions()

    def path(self, name: str, number: int) -> Path:
        """The folder of a version, which is a folder."""
        check_kind(self.folder / name, "folder")
        path = self.folder / name / str(number)
        check_kind(path, "folder")
        return path

    def locked(self) -> AbstractContextManager[object]:
        """Nothing changes inside.

        Raises (when entered):
            OSError: the folder can only be read, or another process has been changing it for a minute.
        """
        return FileLock(self.folder / LOCK, timeout=_PATIENCE)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Alone, and with nothing left over from a change before; `mark` and `write` are for inside.

        Raises:
            SoftPromptError: the folder is no library or cannot be written; another process keeps changing it.
        """
        self.children()
        unfinished = self.folder / UNFINISHED
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            check_kind(unfinished, "folder")
            with self.locked():
                with suppress(OSError):  # what can't be deleted does not stand in the way of other changes
                    self._clear()
                try:
                    yield
                finally:
                    self._clear()
        except Timeout:
            raise SoftPromptError(
                f"another process has been changing the library {self.folder} for {_PATIENCE:.0f} s: try again"
            ) from None
        except OSError as error:
            place = self.folder if error.filename is None else error.filename
            raise SoftPromptError(
                f"cannot change the library {self.folder}: {place}: {error.strerror or error}"
            ) from error

    def mark(self, name: str, number: int) -> Path:
        """Say that this version may come or go, until the change ends; return a folder for new files."""
        mark = self.folder / UNFINISHED / f"{name}@{number}"
        mark.mkdir(exist_ok=True)
        return mark

    def marked(self, name: str) -> set[str]:
        """The numbers of the versions of `name` that come or go, or did when a process was killed."""
        with suppress(FileNotFoundError):
            marks = (mark.partition("@") for mark in os.listdir(self.folder / UNFINISHED))
            return {number for marked, _, number in marks if marked == name}
        return set()

    def write(self, name: str, versions: Versions, mark: Path) -> None:
        """Put `versions` into force: all of it or nothing."""
        new = mark / INDEX
        write_file(new, versions.text())
        os.replace(new, self.folder / name / INDEX)
        sync(self.folder / name)

    def _clear(self) -> None:
        """Delete the marked versions that `versions.json` does not know, or no more, and the marks."""
        for mark in (self.folder / UNFINISHED).iterdir():
            try:
                name, number = split_name(mark.name)
                known = number in self.versions(name).versions
            except SoftPromptError:  # no mark; or a damaged versions.json, which may know it
                continue
            if not known:
                with suppress(FileNotFoundError):  # away at once, so that no reader finds half of it
                    os.rename(self.folder / name / str(number), mark / "removed")
                with suppress(OSError):  # where it was to be the first version
                    os.rmdir(self.folder / name)
            shutil.rmtree(mark)


def check_kind(path: Path, kind: str) -> os.stat_result:
    """That `path` is a "file" or a "folder" itself, no link to one; what the system says of it.

    Raises:
        SoftPromptError: it isn't.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise SoftPromptError(f"{path} is missing: put it back from a copy, or remove this version") from None
    except OSError as error:
        raise SoftPromptError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_ISLNK(found.st_mode):
        raise SoftPromptError(f"{path} is a link, which could lead out of the library: put the {kind} itself there")
    if not _KINDS[kind](found.st_mode):
        raise SoftPromptError(f"{path} is not a {kind}")
    return found


def list_folder(path: Path) -> list[str]:
    """The names of what lies in the folder `path`, which is no link, sorted.

    Raises:
        SoftPromptError: it is no folder, or cannot be read.
    """
    check_kind(path, "folder")
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise SoftPromptError(f"{path} cannot be read: {error.strerror}") from None


def read_checked(file: Path, digests: Mapping[str, str]) -> bytes:
    """What a version's file holds, which is what was added.

    Raises:
        SoftPromptError: it isn't, or cannot be read.
    """
    content = _read(file)
    if digest(content) != digests.get(file.name):
        raise SoftPromptError(
            f"{file} is damaged: its SHA-256 is not the one it was added with; put it back from a copy, or remove this "
            "version"
        )
    return content


def _read(file: Path) -> bytes:
    check_kind(file, "file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise SoftPromptError(f"{file} cannot be read: {error.strerror}") from None
