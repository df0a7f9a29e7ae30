"""How many virtual tokens: trained with few, then with more, for as long as validation improves by more than its noise.

Owns the lengths and the decision. Each length is a run like any other (`run`), in a folder of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import predict
from softprompt.evaluation.row_scores import row_scores
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row, Rows
from softprompt.tasks.splits import with_validation
from softprompt.tasks.task import Task
from softprompt.training import processes
from softprompt.training.diagnosis import Diagnosis
from softprompt.training.folder import PROMPT, RECORD, Replaced, check_folder, locked, open_run
from softprompt.training.loop import DivergedError
from softprompt.training.privacy import refuse_private
from softprompt.training.recipe import Recipe
from softprompt.training.run import Run
from softprompt.training.run import train as learn

LENGTHS = (8, 16, 32)


@dataclass(frozen=True)
class Length:
    """A number of virtual tokens that was tried.

    Attributes:
        num_virtual_tokens: P.
        score: the task's metric on the validation rows; None: its training diverged.
        gain: how much better a validation row is answered than by the length before, the mean over the rows; None for
            the first length.
        noise: the gain's standard error.
        steps: optimiser steps done.
        seconds: time taken.
    """

    num_virtual_tokens: int
    score: float | None
    gain: float | None
    noise: float | None
    steps: int
    seconds: float


@dataclass(frozen=True)
class Growth:
    """What growing left.

    Attributes:
        run: the run of the length that was kept; its `folder` is the one given to `grow`, in which the prompt is.
        lengths: what was tried, in order.
        folder: the kept length's own folder, with its log and checkpoint; None where no folder was asked for.
    """

    run: Run
    lengths: list[Length]
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of it: the kept run, and the lengths."""
        kept = self.run.prompt.num_virtual_tokens
        return self.run.to_json() | {
            "num_virtual_tokens": kept,
            "lengths": [asdict(length) for length in self.lengths],
        }


def grow(
    base: Base,
    make: Callable[[int], SoftPrompt],
    task: Task,
    *,
    train: Rows,
    validation: Rows | float,
    test: Rows | None = None,
    recipe: Recipe | None = None,
    lengths: Sequence[int] = LENGTHS,
    output: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Callable[[int], None] | None = None,
    diagnosed: Callable[[Sequence[Diagnosis]], None] | None = None,
) -> Growth:
    """Train prompts of growing length, each from its own start, and keep the last that was worth its length.

    Each length gets the recipe's `max_steps`, so that it has the same budget as the one before and a gain is the
    length's; all together take at most `len(lengths)` times as long as one run. A length is worth it if the mean over
    the validation rows of (score of the row with it - score with the length before) is greater than that mean's
    standard error, sd / sqrt(rows): the noise of a choice of rows, on the same rows for both. A row's score is right
    or wrong, of free text the task's metric. The first length that is not worth it ends the growth. The choice of the
    seed makes noise of its own, which one run of each length cannot tell.

    Args:
        base: the frozen base.
        make: the prompt to start from with a number of virtual tokens.
        task: what is learned; any metric but BLEU, which is no figure of a row.
        train: labelled rows, or a file or `hub:OWNER/NAME:SPLIT` with them.
        validation: likewise, or the fraction of the training rows to set aside.
        test: see `train`.
        recipe: the settings of each run; default `Recipe()`.
        lengths: to be tried in turn; default 8, 16, 32.
        output: the folder: `N-virtual-tokens` with the run of each length, and `prompt`; None: all stays in memory.
        resume: go on with what is in `output`; the result is that of a growth never interrupted.
        force: replace what is in `output`.
        callbacks: of each run, see `train`.
        progress: of each run, see `train`.
        diagnosed: of each run, see `train`.

    Raises:
        SoftPromptError: the data or the lengths can't be used, or see `train`.
        WrongBaseError: a prompt was made for another base.
        DivergedError: the training of the first length diverged; a later one that diverges is not worth it.
    """
    refuse_private(recipe := recipe or Recipe(), "prompt.num_virtual_tokens: auto, which trains several times")
    rows, found = with_validation(train, validation, task, recipe.seed)
    checks = _check(lengths, task, found)
    folder = None if output is None else Path(output)
    start = make(lengths[0])
    processes.start(base.device)
    replaced = None if folder is None else Replaced(folder / RECORD)
    also = [*callbacks, *([] if replaced is None else [replaced])]
    settings: dict[str, Any] = {"train": rows, "validation": checks, "test": test, "recipe": recipe, "callbacks": also}

    def run_of(count: int) -> Run:
        own = None if folder is None else folder / f"{count}-virtual-tokens"
        begun = resume and own is not None and (own / RECORD).exists()
        with nullcontext() if replaced is None else replaced.put_back_on_failure(processes.is_first()):
            prompt = start if count == lengths[0] else make(count)
            told: dict[str, Any] = {"progress": progress, "diagnosed": diagnosed}
            return learn(base, prompt, task, output=own, resume=begun, **settings, **told)

    with ExitStack() as stack:
        with processes.together():
            if folder is not None and processes.is_first():
                stack.enter_context(locked(folder))
                about = {"lengths": list(lengths), "prompt": start.sha256}
                check_folder(folder, about, resume=resume, force=force)
                if not resume:
                    open_run(folder, about)
        kept, tried = _longest_worth_it(lengths, run_of, partial(_scores, base, task, checks), task.metric)
        if folder is None:
            return Growth(kept, tried, None)
        with processes.together():
            if processes.is_first():
                kept.prompt.save(folder / PROMPT, force=(folder / PROMPT).exists())
        return Growth(replace(kept, folder=folder), tried, kept.folder)


def _check(lengths: Sequence[int], task: Task, checks: Sequence[Row] | None) -> Sequence[Row]:
    """The validation rows, once it is known that a length can be chosen by them."""
    if not lengths or any(one >= other for one, other in pairwise(lengths)):
        raise SoftPromptError(f"lengths are {list(lengths)}: at least one is needed, each greater than the one before")
    if task.metric == "bleu":
        raise SoftPromptError("the length is chosen by a metric that each row has, which bleu is not: take another")
    if checks is None or len(checks) < 2:
        count = len(checks or [])
        raise SoftPromptError(f"the length is chosen by validation, which has a noise from 2 rows on, not {count}")
    return checks


def _longest_worth_it(
    lengths: Sequence[int],
    run_of: Callable[[int], Run],
    score: Callable[[Run], NDArray[np.float64]],
    metric: str,
) -> tuple[Run, list[Length]]:
    """The run of the last length that was worth it, and all that were tried."""
    kept = run_of(lengths[0])
    scores, tried = score(kept), [_length(lengths[0], kept, metric, None, None)]
    for count in lengths[1:]:
        try:
            run = run_of(count)
        except DivergedError:
            return kept, [*tried, Length(count, None, None, None, 0, 0.0)]
        found = score(run)
        gain, noise = _compare(found, scores)
        tried.append(_length(count, run, metric, gain, noise))
        if gain <= noise:
            break
        kept, scores = run, found
    return kept, tried


def _length(count: int, run: Run, metric: str, gain: float | None, noise: float | None) -> Length:
    assert run.validation is not None, "there are validation rows"
    return Length(count, getattr(run.validation, metric), gain, noise, run.steps, run.seconds)


def _scores(base: Base, task: Task, rows: Sequence[Row], run: Run) -> NDArray[np.float64]:
    """How good the answer of a run's prompt to each row is, `[n]` from 0 to 1."""
    answers: list[Any] = []
    for found in predict(base, run.prompt, task, rows):
        answers.append(found.output if task.labels is None else task.labels.index(found.label or ""))
    scores = row_scores(task.metric, rows, answers)
    assert scores is not None, "BLEU was refused"
    return scores


def _compare(scores: NDArray[np.float64], before: NDArray[np.float64]) -> tuple[float, float]:
    """The mean difference of two runs' scores on the same rows, and its standard error."""
    difference = scores - before
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))
