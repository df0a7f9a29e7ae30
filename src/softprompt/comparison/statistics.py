"""How sure a figure is: intervals by bootstrap, and a paired test of two methods on the same rows.

Owns the resampling. Knows answers as arrays of numbers; knows nothing of methods, models or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softprompt.evaluation.row_scores import row_scores
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task

_DRAWS = 2000
Indices = NDArray[np.int64]


def interval(task: Task, rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> tuple[float, float] | None:
    """The 95% percentile bootstrap interval of the metric's mean over several runs, each with an answer to every row.

    Efron 1979, "Bootstrap Methods: Another Look at the Jackknife" (https://doi.org/10.1214/aos/1176344552). It covers
    the choice of rows, not that of the seed, and is narrower than it ought to be on a handful of rows. None for BLEU.
    """
    figure = _figure(task, rows, answers)
    if figure is None:
        return None
    generator = np.random.default_rng(0)
    found = [figure(generator.integers(0, len(rows), len(rows))) for _ in range(_DRAWS)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two methods on the same rows: the mean difference, and on how many rows ours is better and worse.

    `p`, two-sided, is the chance of a split as uneven as that if neither were better.
    """

    difference: float
    better: int
    worse: int
    p: float


def paired_test(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Paired:
    """Whether two methods differ on the same rows: the exact sign test, which for right and wrong is McNemar's.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages"
    (https://doi.org/10.1007/BF02295996). Both are `[n]` scores, means over several runs where there are several.
    """
    from scipy.stats import binomtest

    gap = ours - theirs
    # Means over seeds differ by rounding where they are equal.
    better, worse = int((gap > 1e-9).sum()), int((gap < -1e-9).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Paired(float(gap.mean()), better, worse, p)


def _figure(task: Task, rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> Callable[[Indices], float] | None:
    """The metric as a function of the rows that were drawn."""
    if task.metric == "macro_f1":
        labels = len(task.labels or [])
        gold = np.array([row.label for row in rows])
        runs = [gold * labels + np.array(of_run) for of_run in answers]
        return lambda drawn: float(np.mean([_macro_f1(pairs[drawn], labels) for pairs in runs]))
    scores = [row_scores(task.metric, rows, of_run) for of_run in answers]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    mean = np.mean(known, axis=0)
    return lambda drawn: float(mean[drawn].mean())


def _macro_f1(pairs: NDArray[Any], labels: int) -> float:
    """Macro F1 of pairs `gold * L + predicted`, over the labels that occur in either, as in the metric itself."""
    table = np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)
    total = table.sum(0) + table.sum(1)
    return float(np.mean((2 * table.diagonal() / np.maximum(total, 1))[total > 0]))
