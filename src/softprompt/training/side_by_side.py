"""K prompts trained in one batch: each learns what it would learn in a run of its own.

Owns what they start from and the rows of each. Knows nothing of what the prompts are for (`ensemble`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row
from softprompt.tasks.splits import check_trainable
from softprompt.tasks.task import Task
from softprompt.training.loop import Member, PromptTrainer
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule


def train_side_by_side(
    base: Base,
    prompts: Sequence[SoftPrompt],
    task: Task,
    *,
    train: Sequence[Row],
    validation: Sequence[Row] | None,
    recipe: Recipe,
    seeds: Sequence[int],
    callbacks: Sequence[TrainerCallback] = (),
) -> list[Member]:
    """Train K prompts together, each as `train` would alone with its seed.

    Args:
        base: the frozen base.
        prompts: where to start from; they are not changed.
        task: what is learned.
        train: labelled rows.
        validation: likewise; None: the last prompts are kept.
        recipe: the settings; `batch_size` rows for each prompt. Its monitor has no part in this.
        seeds: of the order of each prompt's rows.
        callbacks: callbacks of the Trainer's kind.

    Raises:
        SoftPromptError: the rows can't be used, the recipe asks for what only a run of one prompt has, or there are
            several processes.
        WrongBaseError: a prompt was made for another base.
        DivergedError: a prompt's gradient became NaN or infinite.
    """
    if recipe.calibrate is True:
        raise SoftPromptError("recipe.calibrate is for one prompt alone, not for several side by side")
    for prompt in prompts:
        prompt.check_base(base)
    check_trainable(train, task)
    model = PromptedModel(
        base, prompts, max_tokens=recipe.max_tokens, gradient_checkpointing=recipe.gradient_checkpointing
    )
    schedules = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        encoder = Encoder(base, task, virtual_tokens=prompt.num_virtual_tokens, max_length=recipe.max_length)
        encoded = encoder.encode_rows(train)
        schedules.append(Schedule(encoded, recipe.batch_size, recipe.max_steps, seed))
    evaluators = None
    if validation is not None:
        # Each prompt is asked alone: the very tensor that is trained, before the same base.
        evaluators = [Evaluator(PromptedModel(base, [prompt]), task, validation) for prompt in model.prompts]
    recipe = recipe.model_copy(update={"save_every": recipe.max_steps})  # nobody resumes it
    with tempfile.TemporaryDirectory(prefix="softprompt-") as folder:
        trainer = PromptTrainer(model, recipe, schedules, evaluators, Path(folder), callbacks)
        trainer.train()
    for member in trainer.members:
        member.step = trainer.state.global_step if member.best is None else member.step
    return trainer.members
