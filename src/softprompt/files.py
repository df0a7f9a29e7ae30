"""Files that are there whole or not at all: written beside their place, flushed to the disk, renamed.

Owns the order of these steps. Knows nothing of what is in a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from softprompt.errors import SoftPromptError


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, or replace it, at once or not at all; its folder is made. Text is written as UTF-8, as it stands.

    Raises:
        SoftPromptError: the disk refuses; what was there before still is.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `path` at the end, and only then.

    Raises:
        SoftPromptError: see `write_file`.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be written: {error.strerror or error}") from error


def append_to(path: Path, line: str) -> None:
    """Append text to a file.

    Raises:
        SoftPromptError: the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be written: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """What is in a file, or has been renamed in a folder, outlasts a power cut, where the system can do that."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_all(place: Path) -> None:
    """`sync` of a file, or of a folder and all that is in it.

    Raises:
        OSError: the disk refuses to keep a file.
    """
    for path in [*place.rglob("*"), place]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync(path)
