"""What an evaluation or a training run looks like on a terminal.

Owns the tables. Does not know how anything is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from softprompt.text import shorten

if TYPE_CHECKING:
    from softprompt.evaluation import Evaluation, Prediction
    from softprompt.tasks import Row, Task
    from softprompt.training.growth import Growth

_MOST_LABELS = 20  # of which a table has rows
_LONGEST_TEXT = 200


def figures_table(evaluations: Mapping[str, Evaluation | None]) -> Table:
    """One row for each evaluation, one column for each figure."""
    any_cut = any(evaluation is not None and evaluation.truncated for evaluation in evaluations.values())
    found = {
        name: {
            key: value
            for key, value in evaluation.to_json().items()
            if isinstance(value, int | float) and key != "seconds" and (key != "truncated" or any_cut)
        }
        for name, evaluation in evaluations.items()
        if evaluation is not None
    }
    keys = list(next(iter(found.values())))
    table = Table("rows", *("texts cut" if key == "truncated" else key for key in keys))
    for name, figures in found.items():
        table.add_row(name, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in figures.values()))
    return table


def lengths_table(growth: Growth, metric: str) -> Table:
    """One row for each number of virtual tokens that was tried."""
    table = Table("virtual tokens", f"validation {metric}", "better by", "noise", "")
    for length in growth.lengths:
        figures = (length.score, length.gain, length.noise)
        shown = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        is_kept = length.num_virtual_tokens == growth.run.prompt.num_virtual_tokens
        remark = "kept" if is_kept else "diverged" if length.score is None else ""
        table.add_row(str(length.num_virtual_tokens), *shown, remark)
    return table


def tasks_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each of many tasks: what came of it."""
    table = Table("task", "", "steps", "best step", "metric", "validation", "test", "seconds")
    for one in results:
        if one["status"] == "failed":
            table.add_row(one["name"], "failed")
            continue
        metric = one["metric"]
        scores = [None if one[part] is None else one[part].get(metric) for part in ("validation", "test")]
        shown = ["" if score is None else f"{score:.4f}" for score in scores]
        steps = (str(one["steps"]), str(one["best_step"]))
        table.add_row(one["name"], one["status"], *steps, metric, *shown, f"{one['seconds']:.0f}")
    return table


def labels_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """One row for each label, or of many those with the worst F1, which is said."""
    there = sum(of_label["support"] > 0 for of_label in figures.values())
    captions = [] if there == len(figures) else [f"{len(figures)} labels, {there} in the file"]
    labels = list(figures)
    if len(labels) > _MOST_LABELS:
        captions.append(f"the {_MOST_LABELS} of {len(labels)} labels with the lowest F1")
        labels = sorted(labels, key=lambda label: (not figures[label]["support"], figures[label]["f1"]))[:_MOST_LABELS]
    table = Table("label", "precision", "recall", "F1", "rows", caption="; ".join(captions) or None)
    for label in labels:
        shares = (f"{figures[label][key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(label, *shares, f"{figures[label]['support']:.0f}")
    return table


def answers_table(task: Task, rows: Sequence[Row], answers: Sequence[Prediction]) -> Table:
    """Generated answers beside their texts and what was to be answered."""
    table = Table("text", "right", "answer")
    for row, answer in zip(rows, answers, strict=True):
        texts = (task.render(row.columns), row.target or "", answer.output or "")
        table.add_row(*(shorten(text, _LONGEST_TEXT) for text in texts))
    return table
