"""A prompt's folder, its task and its base, as a command's arguments and the prompt's card name them.

Does not know what is asked of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.prompts.ensemble import Ensemble
    from softprompt.tasks import Task


def open_prompt(
    path: Path, base: str | None, dtype: str | None, task_file: Path | None
) -> tuple[SoftPrompt | Ensemble, Task, Callable[[], Base]]:
    """A prompt or an ensemble, its task and what loads its base. Its card says what the arguments don't."""
    from softprompt.prompts.ensemble import load
    from softprompt.tasks import Task
    from softprompt.training.taskfile import load_task_file

    prompt = load(path)
    card = prompt.card
    if task_file is not None:
        task = load_task_file(task_file).task
    elif card.task is not None:
        task = Task.from_dict(card.task, f"{path / 'card.json'}: task")
    else:
        raise SoftPromptError(f"{path} doesn't say what its task is: give a task file with --task")
    return prompt, task, base_of(path, prompt, base, dtype)


def load_one(path: Path) -> SoftPrompt:
    """The prompt in a folder, which is no ensemble's."""
    from softprompt.prompts import SoftPrompt
    from softprompt.prompts.ensemble import is_ensemble

    if is_ensemble(path):
        raise SoftPromptError(f"{path} is an ensemble: name one of its members, such as {path / '0'}")
    return SoftPrompt.load(path)


def open_one(
    path: Path, base: str | None, dtype: str | None, task_file: Path | None
) -> tuple[SoftPrompt, Task, Callable[[], Base]]:
    """`open_prompt` of a prompt alone."""
    prompt = load_one(path)
    _, task, load = open_prompt(path, base, dtype, task_file)
    return prompt, task, load


def open_for_library(path: Path, name: str, task_file: Path | None) -> Mapping[str, Path | SoftPrompt]:
    """What is kept of a folder, by name: a prompt, or the members of an ensemble as "name.0", "name.1" and so on.

    Args:
        path: the folder.
        name: the prompt's, or the ensemble's.
        task_file: its task is put on the cards; a folder of PEFT's has none.
    """
    from softprompt.prompts.ensemble import Ensemble, is_ensemble, load
    from softprompt.training.taskfile import load_task_file

    found = load(path) if task_file is not None or is_ensemble(path) else None
    if found is None:
        return {name: path}
    if isinstance(found, Ensemble):
        prompts = {f"{name}.{k}": member for k, member in enumerate(found.marked())}
    else:
        prompts = {name: found}
    if task_file is None:
        return prompts
    task = load_task_file(task_file).task
    return {
        one: replace(
            prompt,
            card=prompt.card.replace(task=task.resolved(head=prompt.head is not None).model_dump(exclude_none=True)),
        )
        for one, prompt in prompts.items()
    }


def load_calibrated(
    prompt: SoftPrompt | Ensemble, task: Task, load: Callable[[], Base], calibrate: str | None
) -> tuple[SoftPrompt | Ensemble, Base]:
    """A prompt's base, and the prompt calibrated on a file's rows where one is given."""
    from softprompt import evaluation
    from softprompt.prompts.ensemble import Ensemble
    from softprompt.tasks import load_rows

    rows = None if calibrate is None else load_rows(calibrate, task)
    base = load()
    if rows is None:
        return prompt, base
    if isinstance(prompt, Ensemble):
        return Ensemble([evaluation.calibrate(base, one, task, rows) for one in prompt.prompts]), base
    return evaluation.calibrate(base, prompt, task, rows), base


def base_of(path: Path, prompt: SoftPrompt | Ensemble, base: str | None, dtype: str | None) -> Callable[[], Base]:
    """What loads a prompt's base, which its card names where `base` and `dtype` do not."""
    from softprompt.bases.load import load_base

    card = prompt.card
    if base is None:
        if card.base is None:
            raise SoftPromptError(f"{path} doesn't say which base it is for: give it with --base")
        base = card.base.name
    # A card says in which dtype its prompt was trained; an older one may say "auto", or nothing.
    return partial(load_base, base, dtype=dtype or str(card.recipe.get("dtype", "auto")))
