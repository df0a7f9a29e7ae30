"""Task files by the dozen: which are meant, what is in them, and which of them can learn side by side.

Owns the ways to name many task files, and the groups. Knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import yaml

from softprompt.bases.base import Base
from softprompt.bases.load import find_family, load_base
from softprompt.errors import SoftPromptError
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.folder import check_folder, recorded_dtype
from softprompt.training.heads import choose_answer
from softprompt.training.many import said_of, shape
from softprompt.training.recipe import Recipe
from softprompt.training.taskfile import TaskFile, load_task_file

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """One of many tasks.

    Attributes:
        path: the task file.
        file: what is in it.
        task: with a kind of answer that is not `auto`.
        recipe: with `max_steps`.
        dtype: of the base: the recipe's, of a run that goes on what it was.
        rows: for training, validation and test.
        output: the run's folder.
        digest: SHA-256 of what the result depends on.
    """

    path: Path
    file: TaskFile
    task: Task
    recipe: Recipe
    dtype: str
    rows: tuple[Sequence[Row], Sequence[Row] | None, Sequence[Row] | None]
    output: Path
    digest: str

    @property
    def group(self) -> Hashable:
        """What tasks share that learn side by side; of its own for one that learns alone."""
        found = shape(self.task, self.recipe)
        alone = found is None or self.file.prompt.num_virtual_tokens in ("auto", 0)
        return (self.base_key, str(self.output) if alone else "", found)

    @property
    def base_key(self) -> Hashable:
        """What tasks share that are trained on one loaded base."""
        return (self.file.base, *self.recipe.loading(self.dtype).values())

    def load_base(self) -> Base:
        """Its base, as `load_base` gives it."""
        return load_base(self.file.base, **self.recipe.loading(self.dtype))


def task_files(words: Sequence[str], listed_in: Path | None = None) -> list[Path]:
    """The task files that are meant by files, folders, patterns, and YAML files with a list of these.

    Args:
        words: as they are given; in a list's file relative paths start from its folder.
        listed_in: the file whose list this is.

    Raises:
        SoftPromptError: a folder or a pattern has no task file, or a list is within a list.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        path = path if listed_in is None else listed_in.parent / path
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in _SUFFIXES)
        elif has_magic(str(path)) and not path.exists():
            inside = sorted(map(Path, glob(str(path), recursive=True)))
        elif (listed := _listed(path)) is not None:
            if listed_in is not None:
                raise SoftPromptError(f"{listed_in}: {path} is a list too: name its task files instead")
            inside = task_files(listed, path)
        else:
            inside = [path]
        if not inside:
            raise SoftPromptError(f"{path}: no task files there: give files, folders or patterns that have some")
        found += inside
    return list(dict.fromkeys(found))


def _listed(path: Path) -> list[str] | None:
    """The list in a YAML file, alone or under the key `tasks`; None: it is something else, such as a task file."""
    if path.suffix.lower() not in _SUFFIXES:
        return None
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):  # whoever reads the task file says what is wrong
        return None
    content = content["tasks"] if isinstance(content, dict) and set(content) == {"tasks"} else content
    if not isinstance(content, list):
        return None
    if not content or not all(isinstance(one, str) and one for one in content):
        raise SoftPromptError(f"{path}: a list of task files is needed, each a path")
    return content


def read_entries(
    paths: Sequence[Path],
    output: Path,
    failed: Callable[[Path, Exception], None],
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
) -> list[Entry]:
    """Read task files and their rows.

    Args:
        paths: the task files.
        output: the folder in which each run has its own, by the task's name.
        failed: called with each file that can't be used, and why.
        overrides: keys to set in all of them, see `load_task_file`.
        resume: runs that are there go on.
        force: runs that are there are replaced; with neither, a task whose run is there can't be used.
    """
    found: dict[str, Entry] = {}
    for path in paths:
        try:
            with said_of(path.stem):
                entry = _read(path, output, overrides, resume)
            if not resume:
                check_folder(entry.output, {}, resume=False, force=force)
            if (other := found.get(entry.file.name)) is not None:
                raise SoftPromptError(f"{path}: its name is {entry.file.name}, as that of {other.path}: change one")
            found[entry.file.name] = entry
        except Exception as error:
            failed(path, error)
    return list(found.values())


def _read(path: Path, output: Path, overrides: Sequence[str], resume: bool) -> Entry:
    if path.suffix.lower() not in _SUFFIXES:
        raise SoftPromptError(f"{path}: a task file ends in .yaml: `softprompt init` writes one for a table")
    file = load_task_file(path, overrides)
    folder = output / file.name
    parts = file.rows()
    train = parts["training"]
    start = None if file.prompt.init_from is None else SoftPrompt.load(file.prompt.init_from)
    task = choose_answer(file.task, train, start, find_family(file.base))
    recipe = file.recipe.for_rows(len(train))
    dtype: str = file.recipe.dtype
    if resume and dtype == "auto":
        dtype = recorded_dtype(folder) or dtype
    digest = _digest(file, task, recipe, parts, None if start is None else start.sha256)
    return Entry(
        path, file, task, recipe, dtype, (train, parts.get("validation"), parts.get("test") or None), folder, digest
    )


def _digest(file: TaskFile, task: Task, recipe: Recipe, parts: dict[str, Sequence[Row]], start: str | None) -> str:
    content: list[Any] = [
        Path(file.base).name,  # a folder may be moved
        task.model_dump(),
        file.prompt.model_dump(exclude={"init_from"}),
        start,
        recipe.model_dump(exclude={"report_to", "save_every", "log_every", "monitor"}),
        {part: [[row.columns, row.label, row.target] for row in rows] for part, rows in parts.items()},
    ]
    return hashlib.sha256(json.dumps(content, default=list).encode()).hexdigest()


def groups(entries: Sequence[Entry], at_once: int, workers: int = 1) -> list[list[Entry]]:
    """The tasks in groups that learn side by side; groups with one base follow each other.

    Args:
        entries: the tasks.
        at_once: the most in one group.
        workers: what could be in one group is shared by so many.
    """
    alike: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(entry.group, []).append(entry)
    some = sorted(alike.values(), key=lambda group: str(group[0].base_key))
    found = []
    for group in some:
        size = min(at_once, math.ceil(len(group) / workers))
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found
