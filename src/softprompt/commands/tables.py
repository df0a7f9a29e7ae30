"""What an evaluation or a training run looks like on a terminal.

Owns the tables. Does not know how anything is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from softprompt.evaluation import Evaluation
    from softprompt.training import Growth


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


def labels_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """One row for each label; of how many of them there are rows is said where it is not all."""
    there = sum(of_label["support"] > 0 for of_label in figures.values())
    caption = None if there == len(figures) else f"{len(figures)} labels, {there} in the file"
    table = Table("label", "precision", "recall", "F1", "rows", caption=caption)
    for label, of_label in figures.items():
        shares = (f"{of_label[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(label, *shares, f"{of_label['support']:.0f}")
    return table
