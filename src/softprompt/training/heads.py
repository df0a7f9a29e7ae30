"""Whether a task is answered by a head, and a head fitted on training rows behind a prompt."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.bases.families import FamilyKind
from softprompt.errors import SoftPromptError
from softprompt.models.prompted import PromptedModel
from softprompt.models.readout import with_ones
from softprompt.models.scoring import final_states
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers import KINDS
from softprompt.tasks.answers.head import fit as fit_states
from softprompt.tasks.encode import Encoded
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe

logger = logging.getLogger(__name__)


def choose_answer(
    task: Task, rows: Sequence[Row], prompt: SoftPrompt | None = None, family: FamilyKind | None = None
) -> Task:
    """The task with a kind of answer that is not `auto`, which is said in a log line where there was a choice.

    A head where the prompt has one, where the base says no words, or where there are more than two labels and two
    training rows for each of them; else words. docs/measurements.md has what this rests on.
    """
    if task.answer != "auto" or task.labels is None:
        return task.resolved(head=False)
    count = len(task.labels)
    if family is not None and not family.words:
        return task.resolved(head=True)
    by_head = (prompt is not None and prompt.head is not None) or (count > 2 and len(rows) >= 2 * count)
    task = task.resolved(head=by_head)
    how, other = ("a head", "words") if by_head else ("its labels' words", "head")
    logger.info(
        "answers are read by %s (%s labels, %s training rows); else set task.answer: %s",
        *(how, count, f"{len(rows):,}", other),
    )
    return task


def with_head(prompt: SoftPrompt, task: Task, base: Base) -> SoftPrompt:
    """The prompt, where its task is answered by a head with one: of zeros where it has none yet.

    Raises:
        SoftPromptError: there is nothing to learn, its head was learned for other labels, or reads other answers.
    """
    kind = KINDS[task.kind]
    if not kind.head:
        if not prompt.num_virtual_tokens:
            raise SoftPromptError("there is nothing to learn without virtual tokens and without a head")
        card = prompt.card.replace(task_type=kind.task_type or base.family.task_type)
        return replace(prompt, head=None, card=card)
    if prompt.head is not None and (prompt.task_type == kind.task_type or bool(prompt.head.any())):
        if prompt.task_type != kind.task_type:
            raise SoftPromptError(f"the prompt's head is for {prompt.task_type}, the task for {kind.task_type}")
        return prompt.for_labels(task.labels)
    rows = len(task.labels or []) if kind.head == "labels" else kind.head
    return prompt.with_head(base, rows, kind.task_type or "SEQ_CLS")


@torch.no_grad()
def fit_head(
    model: PromptedModel,
    encoded: Encoded,
    task: Task,
    recipe: Recipe,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fit the model's head, where it scores labels, to what its prompt makes of the training rows.

    Raises:
        SoftPromptError: see `head.fit`.
    """
    for head in model.heads if KINDS[task.kind].head == "labels" else ():
        head.copy_(fit(model, encoded, task, recipe, progress))


def label_weights(encoded: Encoded, task: Task, recipe: Recipe) -> Tensor | None:
    """`[L]` how much each label's rows count, their mean 1 over the rows; None: all alike.

    Raises:
        SoftPromptError: labels are to be weighed where there is no head.
    """
    if recipe.class_weights == "none":
        return None
    if KINDS[task.kind].head != "labels":
        raise SoftPromptError("recipe.class_weights is for answers by a head: set task.answer: head")
    gold = torch.tensor(_labels(encoded, range(len(encoded.gold or []))), dtype=torch.long)
    counts = gold.bincount(minlength=len(task.labels or [])).float()
    return torch.where(counts > 0, len(gold) / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)


def _labels(encoded: Encoded, rows: Sequence[int]) -> list[int]:
    """The right label at each place at which a head is read, of these rows one after the other."""
    gold = encoded.gold or []
    if encoded.places is None:
        return [gold[row] for row in rows]
    # Words that were cut off with their text have no place.
    return [label for row in rows for label, _ in zip(gold[row], encoded.places[row], strict=False)]


def rows_to_fit(count: int, recipe: Recipe) -> list[int]:
    """The rows of `count` that a head is fitted on: all, or `recipe.fit_rows` that the seed draws."""
    if count <= recipe.fit_rows:
        return list(range(count))
    return sorted(random.Random(recipe.seed).sample(range(count), recipe.fit_rows))


def fit(
    model: PromptedModel,
    encoded: Encoded,
    task: Task,
    recipe: Recipe,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The head `[L, H]` that is fitted on the training rows, of many on `recipe.fit_rows` that the seed draws.

    `progress` is called with the number of rows read since the last call.

    Raises:
        SoftPromptError: see `head.fit`.
    """
    gold = encoded.gold or []
    rows = rows_to_fit(len(gold), recipe)
    if encoded.places is not None:  # as many states as a row has words
        words = sum(len(encoded.places[row]) for row in rows)
        rows = rows[:: math.ceil(words / recipe.fit_rows)]
    if len(rows) < len(gold):
        logger.warning("the head is fitted on %s of %s training rows", f"{len(rows):,}", f"{len(gold):,}")
    places = None if encoded.places is None else [encoded.places[row] for row in rows]
    states = final_states(model, [encoded.input_ids[row] for row in rows], progress=progress, places=places)
    states = with_ones(states, model.heads[0])
    right, weights = _labels(encoded, rows), label_weights(encoded, task, recipe)
    return fit_states(states, right, len(task.labels or []), None if weights is None else weights[right]).head
