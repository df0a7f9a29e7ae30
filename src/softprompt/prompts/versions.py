"""The file `versions.json`: a prompt's versions in the library, which one is current, what their files hold.

Owns the file's fields and the check that it is as it was written. Does not know where it lies, nor the lock, the
folders and the order of writes (`store`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from softprompt.errors import SoftPromptError

_FORMAT_VERSION = 1
_Number = Annotated[int, Field(ge=1)]


def digest(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


class Versions(BaseModel):
    """The versions of one name.

    Attributes:
        current: the version that the name alone stands for; None where there is none.
        last: the highest version ever given. It is not given again, also when it was removed.
        versions: each version's files and their SHA-256.
    """

    model_config = ConfigDict(frozen=True)

    format_version: int = _FORMAT_VERSION
    current: _Number | None = None
    last: int = Field(default=0, ge=0)
    versions: dict[_Number, dict[str, str]] = {}

    @model_validator(mode="after")
    def _check_current(self) -> Versions:
        if self.current not in (self.versions or {None}):
            raise ValueError("the current version is none of the versions")
        return self

    def added(self, number: int, digests: Mapping[str, str]) -> Versions:
        """With `number`, which becomes the current one."""
        return Versions(current=number, last=number, versions=self.versions | {number: dict(digests)})

    def removed(self, numbers: set[int]) -> Versions:
        """Without `numbers`; where the current one is among them, the newest that is left becomes it."""
        left = {number: digests for number, digests in self.versions.items() if number not in numbers}
        current = self.current if self.current in left else max(left, default=None)
        return Versions(current=current, last=self.last, versions=left)

    def rolled_back(self, number: int) -> Versions:
        """With `number` as the current one."""
        return self.model_copy(update={"current": number})

    def before(self, number: int) -> int | None:
        """The version before `number`; None where there is none."""
        return max((earlier for earlier in self.versions if earlier < number), default=None)

    def text(self) -> str:
        """What the file holds: the fields, and a SHA-256 over them."""
        fields = self.model_dump()
        return json.dumps(fields | {"sha256": digest(json.dumps(fields).encode())}, indent=2) + "\n"

    @classmethod
    def parse(cls, content: bytes, where: str) -> Versions:
        """What a file with `content` says; `where` names it in errors.

        Raises:
            SoftPromptError: it is of a newer softprompt, or not as it was written.
        """
        try:
            fields = json.loads(content)
            found = fields["format_version"]
            if isinstance(found, int) and found > _FORMAT_VERSION:
                raise SoftPromptError(
                    f"{where} has format version {found}, but this softprompt reads up to {_FORMAT_VERSION}: "
                    "upgrade softprompt"
                )
            versions = cls.model_validate(fields)
            whole = versions.text().encode() == content
        except SoftPromptError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise SoftPromptError(
                f"{where} is damaged: put it back from a copy, or move its folder away and add its prompts again"
            )
        return versions
