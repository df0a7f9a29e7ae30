"""What the playground shows of the library: what is loaded, what could not be, which versions there are, the cards.

Owns the reading. Does not know how prompts are loaded or asked.
"""

from __future__ import annotations

import json

from markupsafe import Markup

from softprompt.errors import SoftPromptError
from softprompt.prompts.library import Entry, PromptLibrary
from softprompt.reporting.page import table
from softprompt.serving.catalogue import Catalogue
from softprompt.serving.playground_looks import details, error, notice
from softprompt.serving.playground_texts import Texts

_MOST_LABELS = 60  # characters of a task's labels in the table


def list_versions(library: PromptLibrary) -> list[str]:
    """Every whole version in the library as "name@version", by name, the newest first."""
    found: list[str] = []
    for name in library.names():
        try:
            versions = library.versions(name)
        except SoftPromptError:  # damaged: the library's table says so
            continue
        found.extend(f"{name}@{entry.version}" for entry in reversed(versions))
    return found


def first_choice(versions: list[str]) -> tuple[str | None, str | None]:
    """Two versions to begin a comparison with: the newest two of the first prompt that has two; else the first one."""
    for older, newer in zip(versions[1:], versions, strict=False):
        if older.partition("@")[0] == newer.partition("@")[0]:
            return older, newer
    return (versions[0] if versions else None), None


def show_library(library: PromptLibrary, catalogue: Catalogue, texts: Texts) -> Markup:
    """The library's prompts in a table, what is wrong with those that are not whole, and their cards.

    Raises:
        SoftPromptError: the folder is no library, or cannot be read.
    """
    names = library.names()
    if not names:
        return notice(texts["library_empty"])
    loaded = {served.name: served.id for served in catalogue.prompts}
    rows: list[list[object]] = []
    faults = [f"{name}: {reason}" for name, reason in sorted(catalogue.refused.items())]
    cards = []
    for name in names:
        try:
            entry, count = library.entry(name), len(library.versions(name))
        except SoftPromptError as fault:
            if name not in catalogue.refused:
                faults.append(f"{name}: {fault}".replace(f"{library.folder}/", ""))
            continue
        rows.append(_row(entry, count, loaded.get(name), texts))
        text = json.dumps(entry.card.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
        cards.append(details(texts["card"].format(id=_id(entry)), text))
    head = [
        texts[key] for key in ("prompt", "state", "versions", "virtual_tokens", "kind", "validation", "size", "created")
    ]
    found = table(head, rows, texts["library_caption"]) if rows else Markup()
    return Markup().join([*map(error, faults), found, *cards])


def _row(entry: Entry, versions: int, loaded: str | None, texts: Texts) -> list[object]:
    if loaded is None:
        state = texts["not_loaded"]
    else:
        state = texts["loaded"] if loaded == _id(entry) else texts["loaded_other"].format(id=loaded)
    task = entry.card.task
    labels = None if task is None else task.get("labels")
    if isinstance(labels, list):
        kind = ", ".join(map(str, labels))
        kind = kind if len(kind) <= _MOST_LABELS else kind[: _MOST_LABELS - 1] + "…"
    else:
        kind = texts["no_task" if task is None else "free_text"]
    measured = entry.card.metrics.get("validation")
    metric = task.get("metric", "accuracy") if task is not None else None
    value = measured.get(str(metric)) if isinstance(measured, dict) else None
    figure = f"{str(metric).replace('_', ' ')} {value:.1%}" if isinstance(value, float) else None
    return [
        _id(entry),
        state,
        versions,
        entry.num_virtual_tokens,
        kind,
        figure,
        round(entry.bytes / 1000),
        entry.card.created[:10],
    ]


def _id(entry: Entry) -> str:
    return f"{entry.name}@{entry.version}"
