"""Calibration: how much a model likes each label whatever the text says, measured and taken out of its answers.

After Zhou et al. 2023, "Batch Calibration: Rethinking Calibration for In-Context Learning and Prompt Engineering"
(https://arxiv.org/abs/2309.17249), and Zhao et al. 2021, "Calibrate Before Use: Improving Few-Shot Performance of
Language Models" (https://arxiv.org/abs/2102.09690). They take all labels to be equally frequent and divide by the mean
probability once; here the labels' own frequencies are met, and exactly.

Owns the measurement. The card keeps it, and whoever turns likelihoods into probabilities takes it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Ask, Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers.answer import label_probabilities
from softprompt.tasks.rows import Row, Rows, as_rows
from softprompt.tasks.task import Task

_ROWS, _ROWS_OF_LABEL = 200, 4
# "auto" leaves two labels alone: measured, it changed nothing there.
_FEW_LABELS = 2
_CLOSE, _MOST_ROUNDS = 1e-6, 1000


def calibrate(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    data: Rows,
    *,
    progress: Callable[[int], None] | None = None,
    ask: Ask | None = None,
) -> SoftPrompt:
    """The same prompt with the labels' priors in its card: `card.calibration`, a log prior for each label.

    `evaluate`, `predict` and the server divide each label's likelihood by its prior. The priors are such that the
    labels' mean probabilities over the rows become the labels' frequencies in them. It helps where a prompt leans to
    some of many labels for no reason.

    Args:
        base: the frozen base.
        prompt: it is not changed; a calibration that it has is measured anew.
        task: with labels.
        data: labelled rows, best those of training, or a file with them. The frequencies are those of all rows; of
            more than 200 rows, or 4 for each label, about that many are asked, from all over.
        progress: called with the number of rows finished since the last call.
        ask: see `Evaluator`.

    Raises:
        SoftPromptError: the task has no labels, or the data can't be used.
        WrongBaseError: the prompt was made for another base.
    """
    check_labels(task, "calibration")
    prompt.check_base(base)
    prompt = prompt.for_labels(task.labels)
    rows = as_rows(data, task)
    model = PromptedModel(base, [prompt], inference=True)
    priors = measure_priors(model, task, rows, progress=progress, ask=ask)
    calibration = dict(zip(task.labels or [], priors, strict=True))
    return replace(prompt, card=prompt.card.replace(calibration=calibration))


def measure_priors(
    model: PromptedModel,
    task: Task,
    rows: Sequence[Row],
    *,
    virtual_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    ask: Ask | None = None,
) -> list[float]:
    """A log prior for each label of the task, as `calibrate` has them, of any model.

    Args:
        model: the base with one prompt, or with none.
        task: with labels.
        rows: labelled rows.
        virtual_tokens: texts are cut as behind so many; None: as many as the model's prompt has.
        progress: called with the number of rows finished since the last call.
        ask: see `Evaluator`.

    Raises:
        SoftPromptError: there are no rows, or they have no labels.
    """
    if not rows or any(row.label is None for row in rows):
        raise SoftPromptError("calibration needs labelled rows, such as the training rows")
    labels = task.labels or []
    counts = Counter(row.label for row in rows)
    # One more of each: a label that no row has may come all the same.
    frequencies = torch.tensor([counts[label] + 1 for label in range(len(labels))], dtype=torch.float64)
    some = [rows[i] for i in rows_of(len(rows), len(labels))]
    likelihoods = Evaluator(model, task, some, virtual_tokens=virtual_tokens, ask=ask).likelihoods(progress)
    return fit_log_priors(likelihoods, frequencies / frequencies.sum())


def fit_log_priors(likelihoods: Tensor, frequencies: Tensor) -> list[float]:
    """The log priors to subtract, so that the labels' mean probabilities become their frequencies.

    Rows and columns are made to sum to what they should in turn: Sinkhorn and Knopp 1967, "Concerning nonnegative
    matrices and doubly stochastic matrices" (https://doi.org/10.2140/pjm.1967.21.343).

    Args:
        likelihoods: `[n, L]` log-likelihoods.
        frequencies: `[L]` float64, above 0, summing to 1.
    """
    least = torch.finfo(torch.float64).tiny  # a label that no text makes likely has a prior all the same
    priors = torch.zeros_like(frequencies)
    for _ in range(_MOST_ROUNDS):
        too_much = label_probabilities(likelihoods, priors.tolist()).mean(0).clamp(min=least).log() - frequencies.log()
        priors += too_much
        if too_much.abs().max() < _CLOSE:
            break
    return [float(prior) for prior in priors]


def rows_of(rows: int, labels: int) -> range:
    """Which of so many rows calibration asks: some from all over, since a file may be sorted by label."""
    return range(0, rows, max(1, rows // max(_ROWS, _ROWS_OF_LABEL * labels)))


def check_labels(task: Task, who: str) -> None:
    """Refuse a task without labels.

    Raises:
        SoftPromptError: it generates free text.
    """
    if task.labels is None or task.kind == "tags":
        what = {"text": "generates free text"}.get(task.kind, f"asks for {task.kind}")
        raise SoftPromptError(f"{who} is for tasks with labels: this task {what}")


def worth_trying(setting: Literal["auto"] | bool, task: Task, *, validates: bool) -> bool:
    """Whether a trained model is to be calibrated: as the setting says, by itself where many words are validated."""
    if setting == "auto":
        return validates and len(task.labels or []) > _FEW_LABELS and task.kind == "words"
    return setting


def worth_keeping(
    setting: Literal["auto"] | bool, calibrated: Evaluation | None, plain: Evaluation | None, metric: str
) -> bool:
    """Whether a calibration is kept: always where it was asked for, by itself where the validation is better."""
    return setting is True or calibrated is None or calibrated.better_than(plain, metric)
