"""A task file for a table: written from what a survey has found, with a comment at each choice.

Owns the text of it. Does not know how the table was looked at, nor who is asked.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from softprompt.errors import SoftPromptError
from softprompt.files import write_file
from softprompt.tasks.problems import UNEVEN
from softprompt.tasks.survey import Survey, safe_name
from softprompt.tasks.unpacking import STDIN
from softprompt.training.recipe import Recipe

_HELD_OUT = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_FEWEST_STEPS, _MOST_STEPS, _PASSES = 120, 600, 3


def write_draft(survey: Survey, path: Path, *, base: str, force: bool = False) -> None:
    """Write the task file of a table.

    Args:
        survey: of the table.
        path: the task file.
        base: what `load_base` takes.
        force: replace a file that is there.

    Raises:
        SoftPromptError: it is there already, the table is stdin, or the disk refuses.
    """
    if path.exists() and not force:
        raise SoftPromptError(f"{path} exists: train it, choose another --output, or replace it with --force")
    if survey.source in STDIN:
        raise SoftPromptError("a task file cannot name stdin: save the table as a file")
    task = _form(survey) if survey.form else _classes(survey) if survey.label else _free_text(survey)
    write_file(path, "\n".join([*_head(survey, base), *task, *_data(survey, path.parent), *_recipe(survey), ""]))


def draft_name(source: str) -> str:
    """A task's name, from the file's: at most 64 characters that a name may have."""
    stem = re.sub(r"^hub:|:.*|#", "", source) if source.startswith("hub:") else Path(source.partition("#")[0]).name
    stem = re.sub(r"(\.(csv|tsv|jsonl|ndjson|json|parquet|xlsx|arrow|gz|zip))+$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:64] or "task"


def _head(survey: Survey, base: str) -> list[str]:
    return [
        f"# Written by softprompt init from {survey.source}: {survey.rows:,} rows. See docs/task-files.md.",
        f"name: {_text(draft_name(survey.source))}",
        f"base: {_text(base)}  # hub id, folder or GGUF file; smollm2-135m is small enough for any computer",
    ]


def _text(value: str) -> str:
    """A value in double quotes, which YAML reads as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _aliases(survey: Survey) -> dict[str, str]:
    """The template's name for each column of the text."""
    names: dict[str, str] = {}
    for column in survey.texts:
        names[column] = safe_name(column, list(names.values()))
    return names


def _template(survey: Survey, last: str) -> str:
    """A line for each column of the text, and the words that the answer follows."""
    names = _aliases(survey)
    heads = {column: "Text" if len(names) == 1 else re.sub("[{}]", "", column).strip() for column in names}
    return "\n".join([*(f"{heads[column]}: {{{name}}}" for column, name in names.items()), f"{last}:"])


def _classes(survey: Survey) -> list[str]:
    counts, _ = survey.labels()
    uneven = max(counts.values()) >= UNEVEN * min(counts.values())
    return [
        "task:",
        "  # {column} names a column of the data; the words around it are yours to choose.",
        f"  template: {_text(_template(survey, 'Label'))}",
        '  target: " {label}"  # with the space before it',
        f"  labels: {json.dumps(list(counts), ensure_ascii=False)}",
        "  metric: macro_f1  # the labels are uneven: each counts alike" if uneven else "  metric: accuracy",
    ]


def _free_text(survey: Survey) -> list[str]:
    names = _aliases(survey)
    answer = safe_name(str(survey.answer), list(names.values()))
    longest = survey.columns[str(survey.answer)].longest
    return [
        "task:  # no labels: the answer is generated",
        f"  template: {_text(_template(survey, 'Answer'))}",
        f"  target: {_text(f' {{{answer}}}')}",
        f"  max_new_tokens: {min(256, 16 + 2 * longest)}  # the longest answer has {longest} words",
    ]


def _form(survey: Survey) -> list[str]:
    return ["task:", f"  template: {survey.form}  # rows of a known form, see docs/task-files.md"]


def _data(survey: Survey, folder: Path) -> list[str]:
    columns = {name: column for column, name in _aliases(survey).items() if name != column}
    mapping: dict[str, str] = {}
    if survey.label:
        mapping = survey.labels()[1]
        columns |= {} if survey.label == "label" else {"label": survey.label}
    if survey.answer:
        name = safe_name(survey.answer, list(_aliases(survey).values()))
        columns |= {} if name == survey.answer else {name: survey.answer}
    lines = ["data:", f"  train: {_text(_path(survey.source, folder))}"]
    others = _held_out(survey.source)
    lines += [f"  {part}: {_text(_path(other, folder))}" for part, other in others.items()]
    if "validation" not in others:
        lines.append("  validation: auto  # a tenth of the rows is set aside, of all labels alike; or a file, or 0.2")
    lines += [f"  columns: {json.dumps(columns, ensure_ascii=False)}"] if columns else []
    lines += [f"  labels: {json.dumps(mapping, ensure_ascii=False)}  # other spellings"] if mapping else []
    if survey.reading.header:
        lines.append(f"  header: {json.dumps(survey.reading.header)}  # the file has none")
    lines.append("  unusable: skip  # rows without a text or an answer are left out, and counted; or refuse")
    return lines


def _path(source: str, folder: Path) -> str:
    return source if source.startswith("hub:") else os.path.relpath(Path(source).expanduser(), folder)


def _held_out(source: str) -> dict[str, str]:
    """Files, or parts of a file, beside that of the training rows and named for the others."""
    place, mark, part = source.rpartition("#")
    stem = part if mark else Path(source).name
    found: dict[str, str] = {}
    for kind, words in _HELD_OUT.items():
        for word in words:
            other = re.sub("train", word, stem, count=1)
            there = Path(source).with_name(other)
            if other != stem and not mark and there.exists() and not source.startswith("hub:"):
                found.setdefault(kind, str(there))
            elif mark and other != stem and f'"{other}"' in Path(place).read_text("utf-8"):
                found.setdefault(kind, f"{place}#{other}")
    return found


def _recipe(survey: Survey) -> list[str]:
    steps = min(_MOST_STEPS, max(_FEWEST_STEPS, _PASSES * survey.rows // Recipe().batch_size))
    return [
        "prompt: {num_virtual_tokens: 16}",
        "recipe:",
        f"  max_steps: {steps}  # of {Recipe().batch_size} rows; or epochs: 3",
        f"  evaluate_every: {steps // 4}",
    ]
