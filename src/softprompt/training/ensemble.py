"""Several prompts for one task that vote, trained and asked side by side on one base.

Lester, Al-Rfou, Constant 2021, section 5.3 (https://aclanthology.org/2021.emnlp-main.243): K prompts make an ensemble
of K models that costs the storage of K prompts and one base.

Owns the vote and the ensemble's folder, in which each member is a prompt's folder. Training is `side_by_side`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers.answer import label_probabilities
from softprompt.tasks.encode import Encoder
from softprompt.tasks.metrics import classification_metrics
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe
from softprompt.training.side_by_side import train_side_by_side


@dataclass(frozen=True)
class Ensemble:
    """K prompts for one task.

    Attributes:
        prompts: the members.
    """

    prompts: Sequence[SoftPrompt]

    def member_probabilities(
        self, base: Base, task: Task, rows: Sequence[Row], progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Every member's probability of each label, `[K, n, L]` float64; all members answer in the same batches.

        Raises:
            SoftPromptError: the task has no labels.
            WrongBaseError: a member was made for another base.
        """
        for prompt in self.prompts:
            prompt.check_base(base)
        model = PromptedModel(base, list(self.prompts))
        longest = max(prompt.num_virtual_tokens for prompt in self.prompts)
        encoder = Encoder(base, task, virtual_tokens=longest)
        if encoder.answer.label_ids is None:
            raise SoftPromptError("an ensemble votes on labels: this task generates free text")
        texts = encoder.encode_rows(rows).input_ids
        count = len(self.prompts)
        index = [k for k in range(count) for _ in texts]
        found = score(model, texts * count, encoder.answer.label_ids, index, progress)
        of_member = found.view(count, len(texts), -1)
        pairs = zip(of_member, self.prompts, strict=True)
        return torch.stack(
            [label_probabilities(scores, prompt.card.log_priors(task.labels)) for scores, prompt in pairs]
        )

    def evaluate(
        self, base: Base, task: Task, rows: Sequence[Row], progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """The figures of the vote over labelled rows.

        Raises:
            SoftPromptError: the task has no labels.
            WrongBaseError: a member was made for another base.
        """
        start = time.perf_counter()
        probabilities = vote(self.member_probabilities(base, task, rows, progress))
        gold = [row.label or 0 for row in rows]
        figures = classification_metrics(gold, probabilities.numpy(), task.labels or [])
        return Evaluation(**figures, seconds=time.perf_counter() - start)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write each member's folder, `0`, `1` and so on, into `folder`.

        Args:
            folder: is made.
            force: replace members that are there.

        Raises:
            SoftPromptError: a member is there already (without `force`), or the disk refuses.
        """
        for i, prompt in enumerate(self.prompts):
            prompt.save(Path(folder) / str(i), force=force and (Path(folder) / str(i)).exists())
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, base: Base | None = None) -> Ensemble:
        """Read the members in `folder`, in order, and check them against `base` where that is given.

        Raises:
            SoftPromptError: there is none, one is missing, or one is damaged.
            WrongBaseError: one was made for another base.
        """
        try:
            names = {entry.name for entry in Path(folder).iterdir() if entry.name.isdigit()}
        except OSError as error:
            raise SoftPromptError(f"{folder}: cannot be read: {error.strerror}") from None
        if not names or names != {str(i) for i in range(len(names))}:
            raise SoftPromptError(f"{folder} is not an ensemble: its members are the prompts' folders 0, 1 and so on")
        return cls([SoftPrompt.load(Path(folder) / str(i), base) for i in range(len(names))])


def vote(probabilities: Tensor) -> Tensor:
    """The members' vote as probabilities, `[K, n, L]` to `[n, L]`.

    Each member has one vote for its likeliest label. The mean of the members' probabilities counts as one vote more, to
    be shared: it never outvotes a member, and decides between labels with as many votes.
    """
    members, _, labels = probabilities.shape
    votes = functional.one_hot(probabilities.argmax(-1), labels).sum(0)
    return (votes + probabilities.mean(0)) / (members + 1)


def train_ensemble(
    base: Base,
    prompts: Sequence[SoftPrompt],
    task: Task,
    *,
    train: Sequence[Row],
    validation: Sequence[Row] | None = None,
    recipe: Recipe | None = None,
    callbacks: Sequence[TrainerCallback] = (),
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

    Raises:
        SoftPromptError: there is no prompt, or see `train_side_by_side`.
        WrongBaseError: a prompt was made for another base.
        DivergedError: a prompt's gradient became NaN or infinite.
    """
    if not prompts:
        raise SoftPromptError("an ensemble needs at least one prompt to start from")
    recipe = recipe or Recipe()
    seeds = [recipe.seed + k for k in range(len(prompts))]
    members = train_side_by_side(
        base, prompts, task, train=train, validation=validation, recipe=recipe, seeds=seeds, callbacks=callbacks
    )
    learned = []
    for prompt, member, seed in zip(prompts, members, seeds, strict=True):
        metrics: dict[str, Any] = {"best_step": member.step, "ensemble": len(prompts)}
        if member.validation is not None:
            metrics["validation"] = member.validation.for_card()
        card = prompt.card.replace(
            base=base.identity.model_dump(),
            task=task.model_dump(exclude_none=True),
            recipe=recipe.model_dump() | {"learning_rate": recipe.rate, "seed": seed},
            metrics=metrics,
            calibration=None,
        )
        learned.append(SoftPrompt(member.learned.embeddings, card, member.learned.head))
    return Ensemble(learned)
