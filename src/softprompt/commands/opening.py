"""A prompt's folder, its task and its base, as a command's arguments and the prompt's card name them.

Does not know what is asked of the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.commands.options import LIBRARY
from softprompt.errors import SoftPromptError, UnknownPromptError

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Task
    from softprompt.tasks.reading import Reading


def open_prompt(
    path: Path, base: str | None, dtype: str | None, task_file: Path | None
) -> tuple[SoftPrompt, Task, Callable[[], Base], Reading]:
    """A prompt, its task, what loads its base, and how its tables are read. Its card says what the arguments don't."""
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Task
    from softprompt.tasks.reading import Reading
    from softprompt.training.taskfile import load_task_file

    path = find_prompt(path)
    prompt = SoftPrompt.load(path)
    card = prompt.card
    reading = Reading.of_card(card.data)
    if task_file is not None:
        file = load_task_file(task_file)
        task, reading = file.task, file.data
    elif card.task is not None:
        task = Task.from_dict(card.task, f"{path / 'card.json'}: task")
    else:
        raise SoftPromptError(f"{path} doesn't say what its task is: give a task file with --task")
    return prompt, task, base_of(path, prompt, base, dtype), reading


def find_prompt(path: Path) -> Path:
    """A prompt's folder: `path`, the prompt in it where it is a run's folder, or what the library has of that name."""
    from softprompt.prompts.library import PromptLibrary
    from softprompt.prompts.names import CONFIG

    if (path / CONFIG).exists():
        return path
    if (path / "prompt" / CONFIG).exists():
        return path / "prompt"
    if path.exists() or len(path.parts) != 1 or not LIBRARY.is_dir():
        return path
    try:
        return PromptLibrary(LIBRARY).entry(str(path)).path
    except UnknownPromptError:
        if "@" in str(path):
            raise
        return path  # which whoever loads it says is not there


def with_task(path: Path, task_file: Path) -> SoftPrompt:
    """The prompt in a folder, such as one of PEFT's, with the task of a task file on its card."""
    from softprompt.prompts import SoftPrompt
    from softprompt.training.taskfile import load_task_file

    prompt, task = SoftPrompt.load(path), load_task_file(task_file).task
    return SoftPrompt(prompt.embeddings, prompt.card.replace(task=task.model_dump(exclude_none=True)))


def load_calibrated(
    prompt: SoftPrompt, task: Task, load: Callable[[], Base], calibrate: str | None, reading: Reading
) -> tuple[SoftPrompt, Base]:
    """A prompt's base, and the prompt calibrated on a file's rows where one is given."""
    from softprompt import evaluation
    from softprompt.tasks import load_rows

    rows = None if calibrate is None else load_rows(calibrate, task, reading=reading)
    base = load()
    return (prompt if rows is None else evaluation.calibrate(base, prompt, task, rows)), base


def base_of(path: Path, prompt: SoftPrompt, base: str | None, dtype: str | None) -> Callable[[], Base]:
    """What loads a prompt's base, which its card names where `base` and `dtype` do not."""
    from softprompt.bases.load import load_base

    card = prompt.card
    if base is None:
        # PEFT's configuration says it where there is no card.
        stated = card.initialisation.get("base_model_name_or_path") if card.base is None else card.base.name
        if not stated:
            raise SoftPromptError(f"{path} doesn't say which base it is for: give it with --base")
        base = str(stated)
        if os.path.isabs(base) and not os.path.exists(base):
            raise SoftPromptError(f"{base} is where the base was, and is no longer: give where it is with --base")
    # A card says in which dtype its prompt was trained; an older one may say "auto", or nothing.
    return partial(load_base, base, dtype=dtype or str(card.recipe.get("dtype", "auto")))
