"""An ensemble's training: K prompts for one task side by side, each on the rows in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from softprompt.bases.base import Base, dtype_name
from softprompt.errors import SoftPromptError
from softprompt.prompts.ensemble import Ensemble
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.heads import with_head
from softprompt.training.recipe import Recipe
from softprompt.training.side_by_side import train_side_by_side


def train_ensemble(
    base: Base,
    prompts: Sequence[SoftPrompt],
    task: Task,
    *,
    train: Sequence[Row],
    validation: Sequence[Row] | None = None,
    recipe: Recipe | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Callable[[int], None] | None = None,
) -> Ensemble:
    """Train K prompts side by side, each on the rows in an order of its own.

    Args:
        base: the frozen base.
        prompts: where the members start from, best not all from the same place.
        task: what is learned.
        train: labelled rows.
        validation: likewise; None: the last prompts are kept.
        recipe: the settings; default `Recipe()`. Member k's order is that of a run with the seed `recipe.seed + k`.
        callbacks: callbacks of the Trainer's kind.
        progress: called with the number of rows finished since the last call, in each validation and where a head is
            fitted.

    Raises:
        SoftPromptError: there is no prompt, the task has no labels, or see `train_side_by_side`.
        WrongBaseError: a prompt was made for another base.
        DivergedError: a prompt's gradient became NaN or infinite.
    """
    Ensemble(prompts)  # says if there is none
    if task.labels is None:
        raise SoftPromptError("an ensemble votes on labels: this task generates free text")
    recipe = recipe or Recipe()
    seeds = [recipe.seed + k for k in range(len(prompts))]
    members = train_side_by_side(
        base,
        list(zip(prompts, seeds, strict=True)),
        task,
        train=train,
        validation=validation,
        recipe=recipe,
        callbacks=callbacks,
        progress=progress,
    )
    learned = []
    for prompt, member, seed in zip(prompts, members, seeds, strict=True):
        metrics: dict[str, Any] = {"best_step": member.step}
        if member.validation is not None:
            metrics["validation"] = member.validation.for_card()
        begun = with_head(prompt, task, base)
        card = begun.card.replace(
            base=base.identity.model_dump(),
            task=task.model_dump(exclude_none=True),
            recipe=recipe.model_dump() | {"learning_rate": recipe.rate, "seed": seed, "dtype": dtype_name(base.dtype)},
            metrics=metrics,
            calibration=None,
        )
        learned.append(replace(begun, embeddings=member.learned.embeddings, card=card, head=member.learned.head))
    return Ensemble(Ensemble(learned).marked())
