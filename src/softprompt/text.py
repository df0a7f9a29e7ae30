"""Words for people: values and texts shortened to a line, what an error says and where it comes from.

Owns how these look everywhere. Knows nothing of who says them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

# Those of C0 and C1 but tab and line end, and what turns the direction of writing round.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = 10


def shown(value: object) -> str:
    """`repr(value)`, shortened to what fits an error's one line."""
    return _short.repr(value)


def shorten(text: str, most: int) -> str:
    """A text on one line, cut where it is longer than `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """A text without power over a terminal: control characters but tabs and line ends are shown as escapes."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def first_line(error: BaseException) -> str:
    """The first line of what an error says; of one that says nothing its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the last one first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def validation_line(error: ValidationError, where: str) -> str:
    """One line for a pydantic error: each key at fault with what is wrong, after the name of what was read.

    Args:
        error: what pydantic raised.
        where: what was being read, such as the task file's name.
    """
    lines = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "missing":
            message = "is missing"
        elif fault["type"] == "extra_forbidden":
            message = "unknown key"
        elif fault["type"] == "value_error":
            message = str(fault["ctx"]["error"])
        else:
            message = f"{fault['msg']}, not {shown(fault['input'])}"
        key = ".".join(str(part) for part in fault["loc"])
        lines.append(f"{key}: {message}" if key else message)
    return f"{where}: {'; '.join(lines)}"
