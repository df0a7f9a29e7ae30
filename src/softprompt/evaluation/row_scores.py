"""How good each single answer is, so that two prompts or methods can be compared on the same rows.

Owns the score of a row. Knows answers as indices and texts; nothing of prompts or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softprompt.tasks.metrics import text_metrics
from softprompt.tasks.rows import Row


def row_scores(metric: str, rows: Sequence[Row], answers: Sequence[Any]) -> NDArray[np.float64] | None:
    """How good each answer is, `[n]` from 0 to 1: right or wrong, or for free text the metric of that row alone.

    None for BLEU and for the F1 of entities, which are figures of a whole corpus.
    """
    if answers and isinstance(answers[0], list):  # labels of words
        return None
    if metric in ("accuracy", "macro_f1"):
        return np.array([float(answer == row.label) for row, answer in zip(rows, answers, strict=True)])
    if metric == "bleu":
        return None
    if metric == "mrr" or metric.startswith("recall_at_"):  # the answers are ranks
        most = int(metric.rpartition("_")[2]) if metric != "mrr" else None
        return np.array([1 / rank if most is None else float(rank <= most) for rank in answers])
    # Of spans too: that their exact match takes no notice of case and punctuation is a matter of their whole.
    pairs = zip(answers, rows, strict=True)
    return np.array([text_metrics([answer], [row.target or ""])[metric] for answer, row in pairs])
