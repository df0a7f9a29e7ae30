"""A prompt's folder, its task and its base, as a command's arguments and the prompt's card name them.

Does not know what is asked of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Task


def open_prompt(
    path: Path, base: str | None, dtype: str | None, task_file: Path | None
) -> tuple[SoftPrompt, Task, Callable[[], Base]]:
    """A prompt, its task and what loads its base. Its card says what the arguments don't."""
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Task
    from softprompt.training.taskfile import load_task_file

    prompt = SoftPrompt.load(path)
    card = prompt.card
    if task_file is not None:
        task = load_task_file(task_file).task
    elif card.task is not None:
        task = Task.from_dict(card.task, f"{path / 'card.json'}: task")
    else:
        raise SoftPromptError(f"{path} doesn't say what its task is: give a task file with --task")
    return prompt, task, base_of(path, prompt, base, dtype)


def with_task(path: Path, task_file: Path) -> SoftPrompt:
    """The prompt in a folder, such as one of PEFT's, with the task of a task file on its card."""
    from softprompt.prompts import SoftPrompt
    from softprompt.training.taskfile import load_task_file

    prompt, task = SoftPrompt.load(path), load_task_file(task_file).task
    return replace(prompt, card=prompt.card.replace(task=task.model_dump(exclude_none=True)))


def load_calibrated(
    prompt: SoftPrompt, task: Task, load: Callable[[], Base], calibrate: str | None
) -> tuple[SoftPrompt, Base]:
    """A prompt's base, and the prompt calibrated on a file's rows where one is given."""
    from softprompt import evaluation
    from softprompt.tasks import load_rows

    rows = None if calibrate is None else load_rows(calibrate, task)
    base = load()
    return (prompt if rows is None else evaluation.calibrate(base, prompt, task, rows)), base


def base_of(path: Path, prompt: SoftPrompt, base: str | None, dtype: str | None) -> Callable[[], Base]:
    """What loads a prompt's base, which its card names where `base` and `dtype` do not."""
    from softprompt.bases.load import load_base

    card = prompt.card
    if base is None:
        if card.base is None:
            raise SoftPromptError(f"{path} doesn't say which base it is for: give it with --base")
        base = card.base.name
    # A card says in which dtype its prompt was trained; an older one may say "auto", or nothing.
    return partial(load_base, base, dtype=dtype or str(card.recipe.get("dtype", "auto")))
