"""The plan of a comparison: all that its figures depend on, kept in its folder, and the files that lie there.

Owns the folder's names and how a file gets there. Knows nothing of models.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from softprompt.errors import SoftPromptError
from softprompt.files import write_file
from softprompt.tasks.rows import Row, check_trainable, load_rows, split_rows
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe
from softprompt.training.taskfile import PromptStart, TaskFile

PLAN = "plan.json"
# With `quick`: two slow cores get through five methods in about ten minutes.
_QUICK_STEPS, _QUICK_VALIDATION, _QUICK_TEST = 60, 100, 200
# Set aside of the training rows where the task file names no validation rows: a setting is never chosen on others.
_SET_ASIDE = 0.2


class Plan(BaseModel):
    """What is compared, on which rows.

    Attributes:
        name: the task file's.
        base: what `load_base` takes.
        task: what is learned.
        start: how the prompt starts.
        recipe: steps, batches and schedule of every method that is trained; the rate is the prompt's.
        one_setting: one setting for each method, instead of a grid.
        train: what every method learns from.
        validation: what settings are chosen on, and the best step of a run.
        test: what is measured at the end, once.
        notes: what a reader of the figures has to know.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    base: str
    task: Task
    start: PromptStart
    recipe: Recipe
    one_setting: bool
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    notes: list[str]


def make_plan(file: TaskFile, *, quick: bool, one_setting: bool = False) -> Plan:
    """Read a task file's rows and settle what is compared.

    Args:
        file: the task file.
        quick: few steps, few rows to measure on, one setting for each method.
        one_setting: the last of these alone.

    Raises:
        SoftPromptError: the rows can't be read or can't be learned from.
    """
    task, recipe = file.task, file.recipe
    if file.prompt.num_virtual_tokens == "auto":
        raise SoftPromptError(
            "prompt.num_virtual_tokens: auto is for `softprompt train`: a comparison gives each method the same steps; "
            "give a number"
        )
    notes = []
    train = load_rows(file.data.train, task)
    check_trainable(train, task)
    if isinstance(file.data.validation, str):
        validation = load_rows(file.data.validation, task)
    else:
        share = file.data.validation
        if share is None:
            share = _SET_ASIDE
            notes.append(f"The task file names no validation rows: {share:.0%} of the training rows were set aside.")
        train, validation = split_rows(train, share, recipe.seed)
        check_trainable(train, task)
    test = validation if file.data.test is None else load_rows(file.data.test, task)
    if quick:
        steps = min(recipe.max_steps, _QUICK_STEPS)
        recipe = recipe.model_copy(
            update={
                "max_steps": steps,
                "warmup_steps": min(recipe.warmup_steps, steps // 5),
                "evaluate_every": max(1, steps // 3),
            }
        )
        validation, test = _sample(validation, _QUICK_VALIDATION), _sample(test, _QUICK_TEST)
        notes.append(
            f"Quick: {steps} steps, one setting for each method. A longer run with a grid of settings may rank the "
            "methods otherwise."
        )
    if file.data.test is None:
        notes.append(
            "The task file names no test rows: the figures are of the validation rows, on which the settings and "
            "the best steps were chosen, and so too good."
        )
    # Every method takes all its steps: a run that stopped early would have had a smaller budget. What prompts alone
    # have, and takes time, is off.
    recipe = recipe.model_copy(update={"patience": recipe.max_steps, "monitor": False, "report_to": []})
    return Plan(
        name=file.name,
        base=file.base,
        task=task,
        start=file.prompt,
        recipe=recipe,
        one_setting=one_setting or quick,
        train=train,
        validation=validation,
        test=test,
        notes=notes,
    )


def open_folder(folder: Path, plan: Plan, *, force: bool) -> None:
    """Make the comparison's folder, or check that what is in it belongs to this plan and can be gone on with.

    Args:
        folder: for the plan, the finished rows, what was trained and the report.
        plan: what is compared.
        force: replace another comparison.

    Raises:
        SoftPromptError: the folder holds another comparison (without `force`), something else, or can't be written.
    """
    text = plan.model_dump_json(indent=1)
    record = folder / PLAN
    try:
        if record.exists() and record.read_text(encoding="utf-8") == text and not force:
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not force:
                what = "holds another comparison" if record.exists() else "exists"
                raise SoftPromptError(f"{folder} {what}: choose another --output, or --force to replace it")
            if not record.exists():
                raise SoftPromptError(f"{folder} is not a comparison's folder (it has no {PLAN}): it is not replaced")
            # The record goes last: what a kill leaves is still known for a comparison's folder.
            for entry in [*(set(folder.iterdir()) - {record}), record]:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write_file(record, text)
    except OSError as error:
        raise SoftPromptError(f"{folder}: the comparison's folder can't be made: {error.strerror}") from error


def read_plan(folder: Path) -> Plan:
    """The plan in a comparison's folder."""
    return Plan.model_validate_json((folder / PLAN).read_text(encoding="utf-8"))


def result_file(folder: Path, part: str, name: str) -> Path:
    """Where the result of a job is kept; `part` is "trained" or "tested"."""
    return folder / part / f"{name}.json"


def artifact(folder: Path, name: str) -> Path:
    """Where what a job has learned is kept: a prompt, an adapter, a model, or examples."""
    return folder / "artifacts" / name


def read_result(file: Path) -> dict[str, Any] | None:
    """A finished result; None where there is none, or one that can't be read and so has to be made again."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sample(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, the same ones each time, in their order: a file may be sorted by label."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count))]
