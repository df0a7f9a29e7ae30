"""Names: of tasks and prompts, how "name@3" is read, and what the files of a prompt's folder are called.

Owns the rule and the words. Knows neither folders nor task files.
"""

from __future__ import annotations

import re

from softprompt.errors import SoftPromptError

RULE = '1 to 64 of a-z, 0-9, ".", "_" and "-", the first of them no dot'

# The files of a prompt's folder: the first two are PEFT's.
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "card.json"
FILES = (CONFIG, WEIGHTS, CARD)

_NAME = re.compile(r"(?!\.)[a-z0-9._-]{1,64}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def is_name(text: str) -> bool:
    """Whether `text` follows `RULE`. Such a name is one step of a path and never leads up."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """`name`, which follows `RULE`.

    Raises:
        SoftPromptError: it doesn't.
    """
    if not isinstance(name, str) or not is_name(name):
        raise SoftPromptError(f"{_quoted(name)} is not a prompt's name: a name is {RULE}")
    return name


def split_name(reference: str) -> tuple[str, int | None]:
    """The name and the version in "name@3"; of "name" alone the version is None.

    Raises:
        SoftPromptError: the name doesn't follow `RULE`, or the version isn't a whole number from 1 on.
    """
    if not isinstance(reference, str):
        return check_name(reference), None
    name, at, version = reference.partition("@")
    if not at:
        return check_name(name), None
    if not _VERSION.fullmatch(version):
        raise SoftPromptError(f"{_quoted(reference)} names no version: write NAME@3, a whole number from 1 on")
    return check_name(name), int(version)


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
