"""Pruning: the same prompt with fewer virtual tokens, and what that costs.

Owns which virtual tokens go. Does not know how their importance is measured (`importance`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.calibration import calibrate
from softprompt.evaluation.evaluate import Evaluation, evaluate
from softprompt.inspection.importance import measure_importance
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Rows, as_rows
from softprompt.tasks.task import Task


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Attributes:
        prompt: the virtual tokens that were kept, in order. Its card tells where they come from, and both figures.
        kept: their places in the prompt before, from 0.
        dropped: the places of the others.
        before, after: the figures of the prompt before and of this one on the same rows.
    """

    prompt: SoftPrompt
    kept: list[int]
    dropped: list[int]
    before: Evaluation
    after: Evaluation

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "num_virtual_tokens": self.prompt.num_virtual_tokens,
            "kept": self.kept,
            "dropped": self.dropped,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def prune(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    data: Rows,
    keep: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Pruned:
    """Keep the `keep` virtual tokens whose absence costs most, each left out alone, and measure what is left.

    Several tokens that matter little one by one may matter together: `after` is measured, not added up. That many
    virtual tokens can go is found by Ma et al. 2022, "XPrompt: Exploring the Extreme of Prompt Tuning"
    (https://aclanthology.org/2022.emnlp-main.758).
    A calibrated prompt is calibrated anew, on these rows.

    Args:
        base: the prompt's base.
        prompt: P virtual tokens; it is not changed.
        task: what is asked.
        data: labelled rows, or a file or `hub:OWNER/NAME:SPLIT` with them, better not those of training; each row is
            asked P + 2 times, and some once more where the prompt is calibrated.
        keep: from 1 to P.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: `keep` is out of bounds, or the data can't be used.
        WrongBaseError: the prompt was made for another base.
    """
    check_keep(keep, prompt)
    prompt.check_base(base)
    rows = as_rows(data, task)
    found = measure_importance(base, prompt, task, rows, progress)
    # Of equals the first ones stay.
    order = sorted(range(prompt.num_virtual_tokens), key=lambda token: -found.scores[token])
    kept, dropped = sorted(order[:keep]), sorted(order[keep:])
    card = prompt.card.replace(
        base=base.identity.model_dump(),
        task=task.model_dump(exclude_none=True),
        initialisation={
            "method": "prune",
            "sha256": prompt.sha256,
            "num_virtual_tokens": prompt.num_virtual_tokens,
            "kept": kept,
            "initialisation": prompt.card.initialisation,
        },
        calibration=None,
    )
    left = replace(prompt, embeddings=prompt.embeddings[torch.tensor(kept)], card=card)
    if prompt.card.calibration is not None:  # it was measured with all virtual tokens
        left = calibrate(base, left, task, rows, progress=progress)
    after = evaluate(base, left, task, rows, progress=progress)
    metrics = {"validation": after.for_card(), "before_pruning": found.whole.for_card()}
    left = replace(left, card=left.card.replace(metrics=metrics))
    return Pruned(left, kept, dropped, found.whole, after)


def check_keep(keep: int, prompt: SoftPrompt) -> None:
    """Check a number of virtual tokens to keep.

    Raises:
        SoftPromptError: it is not from 1 to P.
    """
    count = prompt.num_virtual_tokens
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= count:
        raise SoftPromptError(f"keep is {keep!r}: the prompt has {count} virtual tokens; keep 1 to {count} of them")
