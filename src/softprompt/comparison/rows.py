"""The table's rows: what the jobs found, one row for each method, over all seeds.

Owns the rows' keys and the arithmetic between the jobs' results and the table. Knows nothing of processes, files or how
a row is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softprompt.comparison.methods import METHODS
from softprompt.comparison.plan import Plan
from softprompt.comparison.statistics import interval, paired_test
from softprompt.evaluation.row_scores import row_scores

_TASKS = 100


@dataclass(frozen=True)
class Outcome:
    """One method with one seed.

    Attributes:
        trained: the result of the setting that validated best; where none is done, of the first.
        tested: that setting's test; None where nothing could be tested.
        tried: the results of all settings.
    """

    trained: dict[str, Any]
    tested: dict[str, Any] | None
    tried: list[dict[str, Any]]

    @property
    def fault(self) -> dict[str, Any] | None:
        """The result that says what went wrong; None where the test is done."""
        if self.tested is None:
            return self.trained
        return None if self.tested["status"] == "done" else self.tested


def make_rows(plan: Plan, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row for each method, in the order in which they first come.

    Keys of a row: `method`; `status`, "done" or what went wrong, with a `message`; `settings`, the rate or the examples
    for each label of each seed; `edge`, whether the best rate is the least or the greatest that was tried;
    `trainable_parameters`, `base_parameters`, `share`; `artifact_bytes`; `bytes_of_100_tasks`, on disk, the base
    included; `peak_memory_bytes`, the most of all seeds; `train_seconds`, `best_seconds` (until the best validation),
    `switch_seconds` (from disk), `switch_in_memory_seconds`, `validation` and `test`, means over the seeds; `interval`,
    of the test metric; `spread`, its standard deviation over the seeds, None for one; `against_prompt`, see
    `paired_test`; `curve` and `losses` of the first seed; `seeds`, how many are done; `failures`, the settings that
    failed.
    """
    of_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of_method.setdefault(outcome.trained["method"], []).append(outcome)
    scores = {method: _scores(plan, found) for method, found in of_method.items()}
    return [_row(plan, method, found, scores) for method, found in of_method.items()]


def _row(
    plan: Plan, method: str, outcomes: Sequence[Outcome], scores: dict[str, NDArray[np.float64] | None]
) -> dict[str, Any]:
    done = [outcome for outcome in outcomes if outcome.fault is None]
    faults = [outcome.fault for outcome in outcomes if outcome.fault is not None]
    row: dict[str, Any] = {
        "method": method,
        "status": "done" if done else faults[0]["status"],
        "message": faults[0]["message"] if faults else None,
        "seeds": len(done),
        "failures": [
            f"{result['setting']:.3g}: {result['status']}"
            for outcome in outcomes
            for result in outcome.tried
            if result["status"] != "done" and result["setting"] is not None
        ],
    }
    if not done:
        return row | dict.fromkeys(_FIGURES)
    first = done[0].trained
    artifact, base = first["artifact_bytes"], first["base_bytes"]
    trained, tested = [outcome.trained for outcome in done], [outcome.tested or {} for outcome in done]
    metric, labels = plan.task.metric, len(plan.task.labels or [])
    measured = [found["test"][metric] for found in tested]
    answers = [found["answers"] for found in tested]
    ours, prompts = scores[method], scores.get("prompt")
    row |= {
        "settings": [found["setting"] for found in trained],
        "edge": any(_is_edge(outcome) for outcome in done),
        "trainable_parameters": first["trainable_parameters"],
        "base_parameters": first["base_parameters"],
        "share": first["trainable_parameters"] / first["base_parameters"],
        "artifact_bytes": artifact,
        # A fully fine-tuned model needs no base beside it.
        "bytes_of_100_tasks": _TASKS * artifact + (base if METHODS[method].needs_base else 0),
        "peak_memory_bytes": max(found["peak_memory_bytes"] for found in trained),
        "train_seconds": fmean(found["train_seconds"] for found in trained),
        "best_seconds": fmean(found["best_seconds"] for found in trained),
        "switch_seconds": fmean(found["switch_seconds"] for found in tested),
        "switch_in_memory_seconds": _mean([found["switch_in_memory_seconds"] for found in tested]),
        "validation": _mean_figures([found["validation"] for found in trained]),
        "test": _mean_figures([found["test"] for found in tested]),
        "interval": interval(metric, plan.test, answers, labels),
        "spread": stdev(measured) if len(measured) > 1 else None,
        "against_prompt": None if method == "prompt" or ours is None or prompts is None else paired_test(ours, prompts),
        "curve": first["curve"],
        "losses": first["losses"],
    }
    return row


_FIGURES = (
    *("settings", "edge", "trainable_parameters", "base_parameters", "share", "artifact_bytes", "bytes_of_100_tasks"),
    *("peak_memory_bytes", "train_seconds", "best_seconds", "switch_seconds", "switch_in_memory_seconds"),
    *("validation", "test", "interval", "spread", "against_prompt", "curve", "losses"),
)


def _scores(plan: Plan, outcomes: Sequence[Outcome]) -> NDArray[np.float64] | None:
    """Each test row's score, the mean over the seeds; None where there is none."""
    found = [
        row_scores(plan.task.metric, plan.test, outcome.tested["answers"])
        for outcome in outcomes
        if outcome.fault is None and outcome.tested is not None
    ]
    known = [one for one in found if one is not None]
    return np.mean(known, axis=0) if known else None


def _is_edge(outcome: Outcome) -> bool:
    rates = [found["setting"] for found in outcome.tried]
    return (
        METHODS[outcome.trained["method"]].is_trained
        and len(rates) > 1
        and outcome.trained["setting"] in (min(rates), max(rates))
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_figures(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One evaluation as it is; of several the mean of each figure that is a number."""
    if len(evaluations) == 1:
        return evaluations[0]
    numbers = [key for key, value in evaluations[0].items() if isinstance(value, int | float)]
    # Rows are counted, not averaged into fractions.
    kinds: dict[str, Callable[[float], float]] = {"n": int, "truncated": int}
    return {key: kinds.get(key, float)(fmean(found[key] for found in evaluations)) for key in numbers}
