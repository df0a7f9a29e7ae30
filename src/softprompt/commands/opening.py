"""A prompt's folder, its task and its base, as a command's arguments and the prompt's card name them.

Does not know what is asked of the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from softprompt.commands.options import LIBRARY
from softprompt.errors import SoftPromptError, UnknownPromptError

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.prompts.ensemble import Ensemble
    from softprompt.tasks import Task
    from softprompt.tasks.reading import Reading


class Asked(NamedTuple):
    """What a command's options say of the base; None: what the prompt's card says.

    Attributes:
        base: what `load_base` takes.
        dtype: its dtype.
        quantization: how its weights are held; "none": as they are stored.
        device_map: where its layers are; no card says that.
    """

    base: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    device_map: str | None = None


def open_prompt(
    path: Path, asked: Asked, task_file: Path | None
) -> tuple[SoftPrompt | Ensemble, Task, Callable[[], Base], Reading]:
    """A prompt or an ensemble, its task, what loads its base, and how its tables are read.

    Its card says what the arguments don't.
    """
    from softprompt.prompts.ensemble import load
    from softprompt.tasks import Task
    from softprompt.tasks.reading import Reading
    from softprompt.training.taskfile import load_task_file

    path = find_prompt(path)
    prompt = load(path)
    card = prompt.card
    reading = Reading.of_card(card.data)
    if task_file is not None:
        file = load_task_file(task_file)
        task, reading = file.task, file.data
    elif card.task is not None:
        task = Task.from_dict(card.task, f"{path / 'card.json'}: task")
    else:
        raise SoftPromptError(f"{path} doesn't say what its task is: give a task file with --task")
    return prompt, task, base_of(path, prompt, asked), reading


def find_prompt(path: Path) -> Path:
    """A prompt's or an ensemble's folder: `path`, "prompt" in a run's, or what the library has of that name."""
    from softprompt.prompts.ensemble import is_ensemble
    from softprompt.prompts.library import PromptLibrary
    from softprompt.prompts.names import CONFIG

    for folder in (path, path / "prompt"):
        if (folder / CONFIG).exists() or is_ensemble(folder):
            return folder
    if path.exists() or len(path.parts) != 1 or not LIBRARY.is_dir():
        return path
    try:
        return PromptLibrary(LIBRARY).entry(str(path)).path
    except UnknownPromptError:
        if "@" in str(path):
            raise
        return path  # which whoever loads it says is not there


def load_one(path: Path) -> SoftPrompt:
    """The prompt in a folder, which is no ensemble's."""
    from softprompt.prompts.ensemble import load

    path = find_prompt(path)
    return _alone(load(path), path)


def _alone(prompt: SoftPrompt | Ensemble, path: Path) -> SoftPrompt:
    from softprompt.prompts.ensemble import Ensemble

    if isinstance(prompt, Ensemble):
        raise SoftPromptError(f"{path} is an ensemble: name one of its members, such as {path / '0'}")
    return prompt


def open_one(path: Path, asked: Asked, task_file: Path | None) -> tuple[SoftPrompt, Task, Callable[[], Base], Reading]:
    """`open_prompt` of a prompt alone."""
    prompt, task, load, reading = open_prompt(path, asked, task_file)
    return _alone(prompt, path), task, load, reading


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
    prompt: SoftPrompt | Ensemble, task: Task, load: Callable[[], Base], calibrate: str | None, reading: Reading
) -> tuple[SoftPrompt | Ensemble, Base]:
    """A prompt's base, and the prompt calibrated on a file's rows where one is given."""
    from softprompt import evaluation
    from softprompt.prompts.ensemble import Ensemble
    from softprompt.tasks import load_rows

    rows = None if calibrate is None else load_rows(calibrate, task, reading=reading)
    base = load()
    if rows is None:
        return prompt, base
    if isinstance(prompt, Ensemble):
        return Ensemble([evaluation.calibrate(base, one, task, rows) for one in prompt.prompts]), base
    return evaluation.calibrate(base, prompt, task, rows), base


def base_of(path: Path, prompt: SoftPrompt | Ensemble, asked: Asked) -> Callable[[], Base]:
    """What loads a prompt's base, which its card names where the options do not."""
    from softprompt.bases.load import load_base

    card, base = prompt.card, asked.base
    if base is None:
        # PEFT's configuration says it where there is no card.
        stated = card.initialisation.get("base_model_name_or_path") if card.base is None else card.base.name
        if not stated:
            raise SoftPromptError(f"{path} doesn't say which base it is for: give it with --base")
        base = str(stated)
        if os.path.isabs(base) and not os.path.exists(base):
            raise SoftPromptError(f"{base} is where the base was, and is no longer: give where it is with --base")
    # A card says how its prompt's base was held; an older one may say "auto", or nothing.
    dtype = asked.dtype or str(card.recipe.get("dtype", "auto"))
    quantization = asked.quantization or card.recipe.get("quantization") or "none"
    held = None if quantization == "none" else str(quantization)
    return partial(load_base, base, dtype=dtype, quantization=held, device_map=asked.device_map)
