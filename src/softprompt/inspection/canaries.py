"""Canaries: random strings planted among training rows, to see whether a prompt has learned them by heart.

Carlini, Liu, Erlingsson, Kos, Song 2019, "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
Networks" (https://arxiv.org/abs/1802.08232). Owns what a canary looks like. Knows nothing of prompts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from string import ascii_lowercase

from softprompt.errors import SoftPromptError
from softprompt.tasks.rows import Row
from softprompt.tasks.task import LABEL_COLUMN, Task

_WORDS, _LETTERS = 3, 5
_CANARY = re.compile(rf"canary(?: [a-z]{{{_LETTERS}}}){{{_WORDS}}}")


def plant_canaries(rows: Sequence[Row], task: Task, count: int = 8, *, repeats: int = 1, seed: int = 0) -> list[Row]:
    """Training rows with canaries among them, which `leakage` recognises by their form and measures.

    A canary is a row with random letters in each column of the template and, in turn, each of the task's labels (for
    free text: random letters as the target).

    Args:
        rows: the training rows; the canaries stand at their end.
        task: what is learned.
        count: different canaries.
        repeats: how often each is there.
        seed: of the letters.

    Raises:
        SoftPromptError: count or repeats is less than 1.
    """
    if count < 1 or repeats < 1:
        raise SoftPromptError(f"{count} canaries {repeats} times: both must be at least 1")
    drawn = random.Random(f"canaries {seed}")
    found = [random_row(task, None if task.labels is None else i % len(task.labels), drawn) for i in range(count)]
    return [*rows, *found * repeats]


def random_row(task: Task, label: int | None, drawn: random.Random) -> Row:
    """A row in a canary's form, with the label of that index, or for free text with a target of random letters."""

    def letters() -> str:
        words = ("".join(drawn.choices(ascii_lowercase, k=_LETTERS)) for _ in range(_WORDS))
        return f"canary {' '.join(words)}"

    columns = {column: letters() for column in task.columns}
    if task.labels is None or label is None:
        return Row(columns, None, " " + letters(), "canaries")
    return Row(columns, label, task.render_target({LABEL_COLUMN: task.labels[label]}), "canaries")


def is_canary(row: Row, task: Task) -> bool:
    """Whether a row is a canary."""
    return all(_CANARY.fullmatch(row.columns[column]) for column in task.columns)
