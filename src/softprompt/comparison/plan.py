"""The plan of a comparison: all that its figures depend on. Owns what all methods have in common; knows no method."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from softprompt.bases.load import find_family
from softprompt.errors import SoftPromptError
from softprompt.tasks.answers import KINDS
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.heads import choose_answer
from softprompt.training.privacy import refuse_private
from softprompt.training.recipe import Recipe
from softprompt.training.taskfile import PromptStart, TaskFile

# With `quick`: two slow cores get through five methods in about ten minutes.
_QUICK_STEPS, _QUICK_VALIDATION, _QUICK_TEST = 60, 100, 200
# Set aside of the training rows where the task file names no validation rows: a setting is never chosen on others.
_SET_ASIDE = 0.2


class Plan(BaseModel):
    """What is compared, on which rows.

    Attributes:
        recipe: steps, batches and schedule of every method that is trained; the rate is the prompt's.
        one_setting: one setting for each method, instead of a grid.
        validation: what settings are chosen on, and the best step of a run.
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
    """Read a task file's rows and settle what is compared; see `compare`.

    Raises:
        SoftPromptError: the rows can't be read or can't be learned from.
    """
    task, recipe = file.task, file.recipe
    if file.prompt.num_virtual_tokens == "auto":
        raise SoftPromptError(
            "prompt.num_virtual_tokens: auto is for `softprompt train`: a comparison gives each method the same steps; "
            "give a number"
        )
    refuse_private(recipe, "a comparison, whose other methods are not private")
    notes = []
    if file.data.validation is None:
        file = file.model_copy(update={"data": file.data.model_copy(update={"validation": _SET_ASIDE})})
        notes.append(f"The task file names no validation rows: {_SET_ASIDE:.0%} of the training rows were set aside.")
    parts = file.rows()
    rows, validation = parts["training"], list(parts.get("validation", []))
    task = choose_answer(task, rows, family=find_family(file.base))
    if KINDS[task.kind].needs == "states":
        raise SoftPromptError(f"task.answer: {task.kind} is for `softprompt train`: its methods are not compared")
    test = list(parts.get("test", validation))
    recipe = recipe.for_rows(len(rows))
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
        train=list(rows),
        validation=validation,
        test=test,
        notes=notes,
    )


def _sample(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, the same ones each time, in their order: a file may be sorted by label."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count))]
