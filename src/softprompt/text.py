"""Words for people: values and texts shortened to a line, what an error says and where it comes from.

Owns how these look everywhere. Knows nothing of who says them.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

# Those of C0 and C1 but tab and line end, and what turns the direction of writing round.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What other tools call a key.
_ALSO = {
    "lr": "learning_rate",
    "dev": "validation",
    "valid": "validation",
    "val": "validation",
    "model": "base",
    "steps": "max_steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "classes": "labels",
    "sep": "delimiter",
    "prompt_length": "num_virtual_tokens",
    "virtual_tokens": "num_virtual_tokens",
    "max_tokens": "max_new_tokens",
}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = 10


def shown(value: object) -> str:
    """`repr(value)`, shortened to what fits an error's one line."""
    return _short.repr(value)


def listed(names: Collection[str], most: int = 12) -> str:
    """Names with commas between them; of many the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more


def counted(count: int, one: str, many: str) -> str:
    """A number with the words for one or for several: "1 row", "2,000 rows"."""
    return f"{count:,} {one if count == 1 else many}"


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


def validation_line(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """One line for a pydantic error: each key at fault with what is wrong, after the name of what was read.

    Args:
        error: what pydantic raised.
        where: what was being read, such as the task file's name.
        model: what was being made of it, to say which key an unknown one may mean.
    """
    lines = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "missing":
            message = "is missing"
        elif fault["type"] == "extra_forbidden":
            meant = None if model is None else _meant(model, [str(part) for part in fault["loc"]])
            message = f"unknown key: did you mean {meant}?" if meant else "unknown key"
        elif fault["type"] == "value_error":
            message = str(fault["ctx"]["error"])
        else:
            message = f"{fault['msg']}, not {shown(fault['input'])}"
        key = ".".join(str(part) for part in fault["loc"])
        lines.append(f"{key}: {message}" if key else message)
    return f"{where}: {'; '.join(lines)}"


def _meant(model: type[BaseModel], loc: Sequence[str]) -> str | None:
    """The key, dotted, that is most likely meant by an unknown one: one beside it, or of that name elsewhere."""
    places = list(_keys(model))
    *above, last = loc
    wanted = _ALSO.get(last, last)
    beside = [place for place in places if place[:-1] == tuple(above)]
    found = [place for place in (*beside, *places) if place[-1] == wanted]
    close = difflib.get_close_matches(last, [place[-1] for place in beside], 1, 0.7)
    found += [(*above, *close)] if close else []
    return ".".join(found[0]) if found else None


def _keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All keys of a model and of the models in it."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        if isinstance(inner := field.annotation, type) and hasattr(inner, "model_fields"):
            yield from _keys(inner, (*above, name))
