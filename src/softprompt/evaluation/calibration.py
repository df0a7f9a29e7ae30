"""Calibration: how much a prompt likes each label whatever the text says, measured and taken out of its answers.

Zhou et al. 2023, "Batch Calibration: Rethinking Calibration for In-Context Learning and Prompt Engineering"
(https://arxiv.org/abs/2309.17249), after Zhao et al. 2021, "Calibrate Before Use: Improving Few-Shot Performance of
Language Models" (https://arxiv.org/abs/2102.09690), who measure it on a text without content.

Owns the measurement. The card keeps it, and whoever turns likelihoods into probabilities takes it out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.base import Base
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Rows, as_rows
from softprompt.tasks.task import Task

# The paper finds that a few dozen texts are enough.
_MOST_ROWS = 200


def calibrate(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    data: Rows,
    *,
    progress: Callable[[int], None] | None = None,
) -> SoftPrompt:
    """The same prompt with the labels' priors in its card: `card.calibration`, a log prior for each label.

    A label's prior is its mean probability over texts. `evaluate`, `predict` and the server divide each label's
    likelihood by it. That takes all labels to be equally frequent: it helps where a prompt leans to a label for no
    reason, and harms accuracy where one label really is more frequent than another.

    Args:
        base: the frozen base.
        prompt: it is not changed; a calibration that it has is measured anew.
        task: with labels.
        data: texts such as will be asked, best the training rows, or a file with them; labels are not looked at. Of
            more than 200 rows some 200 are taken, from all over.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: the task has no labels, or the data can't be used.
        WrongBaseError: the prompt was made for another base.
    """
    if task.labels is None:
        raise SoftPromptError("calibration is for tasks with labels: this task generates free text")
    prompt.check_base(base)
    rows = as_rows(data, task, need_targets=False)
    if not rows:
        raise SoftPromptError("calibration needs texts, such as the training rows: there is none")
    some = rows[:: max(1, len(rows) // _MOST_ROWS)]  # from all over: a file may be sorted by label
    evaluator = Evaluator(PromptedModel(base, [prompt]), base.tokenizer, task, some, base.max_positions)
    # A label that no text makes likely has a prior all the same.
    priors = evaluator.probabilities(progress).mean(0).clamp(min=torch.finfo(torch.float64).tiny)
    calibration = dict(zip(task.labels, priors.log().tolist(), strict=True))
    return SoftPrompt(prompt.embeddings, prompt.card.replace(calibration=calibration))
