"""A library on storage that is no folder, such as S3: brought into a folder here, and brought up to date.

Owns what is fetched and in which order. Which storage it is, fsspec knows (https://filesystem-spec.readthedocs.io).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from softprompt.errors import SoftPromptError
from softprompt.files import write_file
from softprompt.prompts.names import FILES, is_name
from softprompt.prompts.store import INDEX
from softprompt.prompts.versions import Versions, digest
from softprompt.text import first_line


def is_url(place: str) -> bool:
    """Whether a library's place is one that fsspec reads, and no folder."""
    return "://" in place


class Mirror:
    """A library at a URL, kept in a folder, which is read as a library.

    Nothing is ever deleted from the folder: where the storage has gone, what was fetched stays. A version that was
    removed is no longer in the library, as its `versions.json` says.

    Args:
        url: as fsspec takes it, such as "s3://bucket/library".
        folder: where it is kept; is made.

    Raises:
        SoftPromptError: the URL is none, or the package that reads it is not installed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        import fsspec

        self.url, self.folder = url, folder
        try:
            self._storage, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise SoftPromptError(f"{url}: cannot be read: {first_line(error)}") from None
        self._root = root.rstrip("/")

    def refresh(self) -> dict[str, str]:
        """Fetch what is new: of each name its versions first, then what says that they are there.

        Returns:
            Names that could not be fetched as a whole, as while they are being uploaded, and why. They stay as they
            were, and are tried again the next time.

        Raises:
            SoftPromptError: the storage cannot be read, or has no library there.
        """
        faults = {}
        try:
            self._storage.invalidate_cache()
            found = [str(entry["name"]).rstrip("/") for entry in self._storage.ls(self._root, detail=True)]
        except FileNotFoundError:
            raise SoftPromptError(f"{self.url}: there is no library") from None
        except Exception as error:  # whatever goes wrong between here and the storage, in any of its packages' types
            raise SoftPromptError(f"{self.url}: cannot be read: {first_line(error)}") from None
        for name in sorted(path.rpartition("/")[2] for path in found):
            if not is_name(name):
                continue
            try:
                self._fetch(name)
            except FileNotFoundError as error:
                faults[name] = f"{first_line(error)} is missing"
            except Exception as error:
                faults[name] = first_line(error)
        return faults

    def _fetch(self, name: str) -> None:
        there, here = f"{self._root}/{name}", self.folder / name
        try:
            content = self._read(f"{there}/{INDEX}")
        except (FileNotFoundError, NotADirectoryError):  # something else lies there
            return
        if (here / INDEX).exists() and (here / INDEX).read_bytes() == content:
            return
        for number, digests in Versions.parse(content, f"{self.url}/{name}/{INDEX}").versions.items():
            if (here / str(number)).exists():  # a version never changes
                continue
            new = here / f".{number}.new"
            for file in FILES:
                data = self._read(f"{there}/{number}/{file}")
                if digest(data) != digests.get(file):
                    raise SoftPromptError(
                        f"{self.url}/{name}/{number}/{file}: its SHA-256 is not the one it was added with"
                    )
                write_file(new / file, data)
            os.rename(new, here / str(number))
        write_file(here / INDEX, content)

    def _read(self, path: str) -> bytes:
        content: Any = self._storage.cat_file(path)
        return bytes(content)
