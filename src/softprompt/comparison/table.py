"""The table's rows: what the jobs found, one row for each method, over all seeds.

Owns the rows' keys and the arithmetic between the jobs' results and the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from softprompt.comparison.jobs import Job
from softprompt.comparison.methods.method import RATE, Method
from softprompt.comparison.plan import Plan
from softprompt.comparison.results import Fault, Measured, Result, Trained
from softprompt.comparison.statistics import Paired, interval, paired_test
from softprompt.evaluation.evaluate import Evaluation
from softprompt.evaluation.row_scores import row_scores

REFERENCE = "prompt"  # the method that the others are held against
_TASKS = 100
_FIGURES = (
    *("settings", "edge", "trainable_parameters", "base_parameters", "share", "artifact_bytes", "bytes_of_100_tasks"),
    *("peak_memory_bytes", "train_seconds", "best_seconds", "switch_seconds", "switch_in_memory_seconds"),
    *("validation", "test", "interval", "spread", "against_prompt", "curve", "losses"),
)
_Kind = TypeVar("_Kind", bound=BaseModel)
_Scores = NDArray[np.float64] | None


@dataclass(frozen=True)
class Outcome:
    """One method with one seed.

    Attributes:
        job: that of the setting that validated best; where none is done, the first.
        found: what that setting was found to be, or what went wrong with it.
        tried: what training found with each setting.
    """

    job: Job
    found: tuple[Trained, Measured] | Fault
    tried: Mapping[Job, Result]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the least or the greatest that was tried."""
        settings = [job.setting or 0 for job in self.tried]
        at_end = self.job.setting in (min(settings), max(settings))
        return self.job.method.tunes == RATE and len(settings) > 1 and at_end


@dataclass(frozen=True)
class Figures:
    """What was measured of a method: means over the seeds, and what is counted as with the first.

    Attributes:
        trained, tested: the peak memory is the most of all seeds.
        settings, edge: each seed's choice, and whether one of them is a rate at an end of its grid.
        bytes_of_100_tasks: on disk, the base included where it is needed.
        interval, spread: of the test metric; the spread is its standard deviation over several seeds.
        against_prompt: this method against prompt tuning.
    """

    trained: Trained
    tested: Measured
    settings: list[float | None]
    edge: bool
    bytes_of_100_tasks: int
    interval: tuple[float, float] | None
    spread: float | None
    against_prompt: Paired | None

    @property
    def share(self) -> float:
        """Of the base's parameters, that which is trained."""
        return self.trained.trainable_parameters / self.trained.base_parameters

    def to_json(self) -> dict[str, Any]:
        """All figures beside each other."""
        evaluations = {"validation": self.trained.validation.to_json(), "test": self.tested.test.to_json()}
        against = None if self.against_prompt is None else asdict(self.against_prompt)
        found = vars(self) | vars(self.trained) | vars(self.tested) | evaluations
        found |= {"share": self.share, "against_prompt": against}
        return {key: found[key] for key in _FIGURES}


@dataclass(frozen=True)
class TableRow:
    """One method of the table; it has figures where at least one seed is done.

    Attributes:
        status, message: "done", or what went wrong; a message also where that was with some seeds.
        seeds: how many are done.
        failures: the settings that failed.
    """

    method: Method
    status: str
    message: str | None
    seeds: int
    failures: list[str]
    figures: Figures | None

    def to_json(self) -> dict[str, Any]:
        """All keys beside each other; of a method that is not done every figure is None."""
        row = {key: value for key, value in vars(self).items() if key != "figures"} | {"method": self.method.name}
        return row | (dict.fromkeys(_FIGURES) if self.figures is None else self.figures.to_json())


def make_rows(plan: Plan, outcomes: Sequence[Outcome]) -> list[TableRow]:
    """One row for each method, in the order in which they first come."""
    of_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of_method.setdefault(outcome.job.method.name, []).append(outcome)
    scores = {name: _scores(plan, found) for name, found in of_method.items()}
    return [_row(plan, found, scores[name], scores.get(REFERENCE)) for name, found in of_method.items()]


def _row(plan: Plan, outcomes: Sequence[Outcome], ours: _Scores, prompts: _Scores) -> TableRow:
    method, figures = outcomes[0].job.method, None
    done = [(outcome, *outcome.found) for outcome in outcomes if not isinstance(outcome.found, Fault)]
    faults = [outcome.found for outcome in outcomes if isinstance(outcome.found, Fault)]
    tried = [pair for outcome in outcomes for pair in outcome.tried.items()]
    if done:
        best, trained, tested = zip(*done, strict=True)
        first, scores = trained[0], [getattr(one.test, plan.task.metric) for one in tested]
        peak = max(one.peak_memory_bytes for one in trained)
        validation = _mean_evaluation([one.validation for one in trained])
        against = None if method.name == REFERENCE or ours is None or prompts is None else paired_test(ours, prompts)
        figures = Figures(
            trained=_mean(trained, peak_memory_bytes=peak, validation=validation),
            tested=_mean(tested, test=_mean_evaluation([one.test for one in tested])),
            settings=[one.job.setting for one in best],
            edge=any(one.at_edge for one in best),
            bytes_of_100_tasks=_TASKS * first.artifact_bytes + (first.base_bytes if method.needs_base else 0),
            interval=interval(plan.task, plan.test, [one.answers for one in tested]),
            spread=stdev(scores) if len(scores) > 1 else None,
            against_prompt=against,
        )
    return TableRow(
        method=method,
        status="done" if done else faults[0].status,
        message=faults[0].message if faults else None,
        seeds=len(done),
        failures=[f"{job.setting:.3g}: {one.status}" for job, one in tried if isinstance(one, Fault) and job.setting],
        figures=figures,
    )


def _scores(plan: Plan, outcomes: Sequence[Outcome]) -> _Scores:
    """Each test row's score, the mean over the seeds; None where there is none."""
    tested = [outcome.found[1] for outcome in outcomes if not isinstance(outcome.found, Fault)]
    found = [row_scores(plan.task.metric, plan.test, one.answers) for one in tested]
    known = [one for one in found if one is not None]
    return np.mean(known, axis=0) if known else None


def _mean(found: Sequence[_Kind], **others: Any) -> _Kind:
    """The first of several results, with the mean of every fraction and the others as they are given."""
    means = {key: fmean(getattr(one, key) for one in found) for key, value in found[0] if isinstance(value, float)}
    return found[0].model_copy(update=means | others)


def _mean_evaluation(found: Sequence[Evaluation]) -> Evaluation:
    """One evaluation as it is; of several the mean of each figure that is a number."""
    if len(found) == 1:
        return found[0]
    truncated = int(fmean(one.truncated for one in found))  # rows are counted, not averaged into fractions
    return _mean(found, truncated=truncated, per_label=None, confusion=None)
