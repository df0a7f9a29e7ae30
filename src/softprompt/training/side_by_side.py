"""K prompts trained in one batch: each learns what it would learn in a run of its own.

Owns what they start from and the rows of each. Knows nothing of what the prompts are for (`ensemble`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluator, tell_cut
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row
from softprompt.tasks.splits import check_trainable
from softprompt.tasks.task import Task
from softprompt.training.heads import fit_head, label_weights, with_head
from softprompt.training.loop import Lane, Member, PromptTrainer
from softprompt.training.privacy import refuse_private
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule


def train_side_by_side(
    base: Base,
    starts: Sequence[tuple[SoftPrompt, int]],
    task: Task,
    *,
    train: Sequence[Row],
    validation: Sequence[Row] | None,
    recipe: Recipe,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Member]:
    """Train K prompts together, each as `train` would alone with its seed.

    Args:
        base: the frozen base.
        starts: prompts to start from, which are not changed, each with the seed of the order of its rows.
        task: what is learned.
        train: labelled rows.
        validation: likewise; None: the last prompts are kept.
        recipe: the settings; `batch_size` rows for each prompt. Its monitor has no part in this.
        callbacks: callbacks of the Trainer's kind.
        progress: called with the number of rows finished since the last call, in each validation and where a head is
            fitted.

    Raises:
        SoftPromptError: the rows can't be used, the recipe asks for what only a run of one prompt has, or there are
            several processes.
        WrongBaseError: a prompt was made for another base.
        DivergedError: a prompt's gradient became NaN or infinite.
    """
    refuse_private(recipe, "prompts side by side")
    if recipe.calibrate is True:
        raise SoftPromptError("recipe.calibrate is for one prompt alone, not for several side by side")
    prompts = [prompt for prompt, _ in starts]
    for prompt in prompts:
        prompt.check_base(base)
    check_trainable(train, task)
    task = task.resolved(head=any(prompt.head is not None for prompt in prompts))
    prompts = [with_head(prompt, task, base) for prompt in prompts]
    model = PromptedModel(
        base, prompts, max_tokens=recipe.max_tokens, gradient_checkpointing=recipe.gradient_checkpointing
    )
    lanes = []
    for k, (prompt, (_, seed)) in enumerate(zip(prompts, starts, strict=True)):
        encoder = Encoder(base, task, virtual_tokens=prompt.num_virtual_tokens, max_length=recipe.max_length)
        encoded = encoder.encode_rows(train)
        if prompt is max(prompts, key=lambda one: one.num_virtual_tokens):  # behind which the most are cut
            tell_cut(encoded, encoder.max_tokens)
        model.label_weights = label_weights(encoded, task, recipe)
        fit_head(model.alone(k), encoded, task, recipe, progress)
        # Each prompt is asked alone: the very tensor that is trained, before the same base.
        evaluator = None if validation is None else Evaluator(model.alone(k), task, validation)
        lanes.append(Lane(Schedule(encoded, recipe.batch_size, recipe.max_steps, seed), evaluator))
    recipe = recipe.model_copy(update={"save_every": recipe.max_steps})  # nobody resumes it
    with tempfile.TemporaryDirectory(prefix="softprompt-") as folder:
        trainer = PromptTrainer(model, recipe, lanes, Path(folder), callbacks, progress)
        trainer.train()
    for member in trainer.members:
        member.step = trainer.state.global_step if member.best is None else member.step
    return trainer.members
