"""The tab Library: what is loaded, what could not be, which versions there are, the cards.

Owns what of the API's answer is shown. Does not know where it comes from.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from softprompt.reporting.page import table
from softprompt.serving.playground.client import Visitor
from softprompt.serving.playground.looks import details, error, notice, page
from softprompt.serving.playground.texts import Texts
from softprompt.serving.schemas import LibraryVersion
from softprompt.text import shorten

_MOST_LABELS = 60  # characters of a task's labels in the table


def first_choice(versions: list[str]) -> tuple[str | None, str | None]:
    """Two versions to begin a comparison with, of the last prompt that has two; else the first one alone."""
    for newer, older in zip(versions[::-1], versions[-2::-1], strict=False):
        if older.partition("@")[0] == newer.partition("@")[0]:
            return older, newer
    return (versions[0] if versions else None), None


async def show_library(visitor: Visitor) -> AsyncGenerator[str, None]:
    """The library's prompts in a table, what is wrong with those that are not whole, and their cards."""
    texts, library = visitor.texts, await visitor.library()
    faults = [error(f"{fault.name}: {fault.reason}") for fault in library.refused]
    current = [version for version in library.data if version.current]
    if not current:
        yield page(*faults, notice(texts["library_empty"]))
        return
    keys = ("prompt", "loaded", "versions", "virtual_tokens", "kind", "validation")
    rows = [_row(one, [other for other in library.data if other.name == one.name], texts) for one in current]
    cards = [
        details(texts["card"].format(id=one.id), one.card.model_dump_json(indent=1, exclude_none=True))
        for one in current
    ]
    yield page(*faults, table([texts[key] for key in keys], rows, texts["library_caption"]), *cards)


def _row(one: LibraryVersion, versions: list[LibraryVersion], texts: Texts) -> list[object]:
    loaded = next((version.id for version in versions if version.loaded), texts["not_loaded"])
    task = one.card.task or {}
    kind = texts["free_text"] if task else texts["no_task"]
    if isinstance(labels := task.get("labels"), list):
        kind = shorten(", ".join(map(str, labels)), _MOST_LABELS)
    metric = str(task.get("metric", "accuracy"))
    measured = one.card.metrics.get("validation")
    value = measured.get(metric) if isinstance(measured, dict) else None
    figure = f"{metric.replace('_', ' ')} {value:.1%}" if isinstance(value, float) else None
    return [one.id, loaded, len(versions), one.num_virtual_tokens, kind, figure]
