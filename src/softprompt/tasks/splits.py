"""Rows for training and rows for validation.

Owns what may be trained on, and how rows are set aside. Does not know how rows are read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from softprompt.errors import SoftPromptError
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import Row, Rows, as_rows
from softprompt.tasks.task import Task
from softprompt.text import counted, shown

logger = logging.getLogger(__name__)

_FEWEST_TO_SPLIT = 20  # rows, where nothing is said
_SET_ASIDE = 0.1  # of the training rows, for validation, where nothing is said


def check_trainable(rows: Sequence[Row], task: Task) -> None:
    """Refuse training rows that show one label only.

    Raises:
        SoftPromptError: All rows of a classification task have the same label.
    """
    seen = {row.label for row in rows if row.label is not None}
    if task.kind == "tags":
        return
    if task.labels is not None and len(seen) < 2:
        raise SoftPromptError(
            f"{rows[0].source}: all {len(rows)} rows have the label {shown([task.labels[i] for i in seen])}; "
            "training needs rows of two labels or more"
        )


def with_validation(
    train: Rows,
    validation: Rows | float | Literal["auto"] | None,
    task: Task,
    seed: int,
    *,
    reading: Reading | None = None,
) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """The training and the validation rows.

    Args:
        train: Labelled rows, or where they are read from.
        validation: Likewise, or the fraction of the training rows to set aside; "auto": a tenth where that is
            enough, which is said; None: there are none.
        task: What is learned.
        seed: Of the split.
        reading: How the tables are read.

    Raises:
        SoftPromptError: As `load_rows` and `split_rows`.
    """
    rows = as_rows(train, task, reading=reading)
    if isinstance(validation, float):
        return split_rows(rows, validation, seed)
    if isinstance(validation, str) and validation == "auto":
        return _set_aside(rows, seed)
    return rows, None if validation is None else as_rows(validation, task, reading=reading)


def _set_aside(rows: Sequence[Row], seed: int) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """A tenth of the rows for validation, or where there are many labels one of each; labels of one row stay behind."""
    counts = Counter(row.label for row in rows)
    pool = [row for row in rows if counts[row.label] > 1]
    fraction = max(_SET_ASIDE, sum(count > 1 for count in counts.values()) / max(len(pool), 1))
    try:
        _, held = split_rows(pool if len(rows) >= _FEWEST_TO_SPLIT else [], fraction, seed)
    except SoftPromptError:  # they are too few
        found = counted(len(rows), "row is", "rows are")
        logger.warning("data.validation: %s too few to set some aside: nothing is validated", found)
        return rows, None
    logger.info(
        "data.validation: %s aside, of all labels alike; give data.validation to choose",
        counted(len(held), f"of the {len(rows):,} training rows is set", f"of the {len(rows):,} training rows are set"),
    )
    aside = {id(row) for row in held}
    return [row for row in rows if id(row) not in aside], held


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into training and validation, the labels in the same proportions in both.

    Args:
        rows: The rows; their order is kept within both parts.
        fraction: Share of the rows for validation, between 0 and 1; at least one row.
        seed: The same seed and rows give the same split.

    Raises:
        SoftPromptError: The fraction is not between 0 and 1, a part would have fewer rows than there are
            labels, or a label has one row only.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise SoftPromptError(f"validation: a fraction is between 0 and 1, not {fraction}")
    labels = [row.label for row in rows]
    counts = Counter(labels)
    held = max(1, round(len(rows) * fraction))
    if min(held, len(rows) - held) < len(counts):
        raise SoftPromptError(
            f"validation: {fraction} of {len(rows)} rows is too little for {len(counts)} labels; "
            "give more rows, another fraction or a file"
        )
    if len(counts) > 1 and min(counts.values()) < 2:
        alone = next(row for row in rows if counts[row.label] == 1)
        raise SoftPromptError(
            f"{alone.place}: the only row of its label cannot be in training and validation alike; "
            "add rows, or give a file for validation"
        )
    train, validation = train_test_split(
        range(len(rows)), test_size=held, random_state=seed, stratify=labels if len(counts) > 1 else None
    )
    return [rows[i] for i in sorted(train)], [rows[i] for i in sorted(validation)]
