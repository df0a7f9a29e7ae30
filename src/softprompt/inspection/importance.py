"""How much each virtual token matters: the figures of the prompt without it.

Owns the measure. Does not know what is done about a token that matters little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.bases.base import Base
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task


@dataclass(frozen=True)
class Importance:
    """What leaving out each virtual token costs.

    Attributes:
        measure: the figure that decides: "log_loss" for classification, which tells more than accuracy does of few
            rows; the task's metric for free text.
        whole: the figures of the whole prompt.
        without: the figures without each of the P virtual tokens.
    """

    measure: str
    whole: Evaluation
    without: list[Evaluation]

    @property
    def scores(self) -> list[float]:
        """`[P]` how much worse the measure is without each virtual token; below 0: it is better."""
        whole = getattr(self.whole, self.measure)
        sign = 1 if self.measure == "log_loss" else -1
        return [sign * (getattr(one, self.measure) - whole) for one in self.without]

    @property
    def pushed(self) -> list[str | None]:
        """`[P]` the label that each virtual token adds the most answers to; None where it adds none."""
        whole = _answered(self.whole)
        found: list[str | None] = []
        for one in self.without:
            left = _answered(one)
            more = {label: count - left[label] for label, count in whole.items()}
            most = max(more, key=more.__getitem__, default=None)
            found.append(most if most is not None and more[most] > 0 else None)
        return found


def _answered(found: Evaluation) -> dict[str, int]:
    """How often each label was the answer."""
    columns = zip(*(found.confusion or []), strict=True)
    return {label: sum(column) for label, column in zip(found.per_label or (), columns, strict=True)}


def measure_importance(
    base: Base, prompt: SoftPrompt, task: Task, rows: Sequence[Row], progress: Callable[[int], None] | None = None
) -> Importance:
    """Evaluate the whole prompt and the P prompts that lack one virtual token each.

    Args:
        base: the prompt's base.
        prompt: P virtual tokens.
        task: what is asked.
        rows: labelled rows, better not those of training; each is asked P + 1 times.
        progress: called with the number of rows finished since the last call.
    """
    every = range(prompt.num_virtual_tokens)
    whole = _evaluate_kept(base, prompt, list(every), task, rows, progress)
    without = [
        _evaluate_kept(base, prompt, [other for other in every if other != token], task, rows, progress)
        for token in every
    ]
    return Importance("log_loss" if task.kind in ("words", "head") else task.metric, whole, without)


def _evaluate_kept(
    base: Base,
    prompt: SoftPrompt,
    kept: Sequence[int],
    task: Task,
    rows: Sequence[Row],
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """The figures of a prompt of which only some virtual tokens are left, possibly none; its calibration stays."""
    prompt = prompt.for_labels(task.labels)
    rest = prompt.embeddings[torch.tensor(kept, dtype=torch.long)]
    left = [replace(prompt, embeddings=rest)] if kept or prompt.head is not None else []
    priors = prompt.card.log_priors(task.labels)
    model = PromptedModel(base, left)
    return Evaluator(model, task, rows, log_priors=priors).evaluate(progress)
