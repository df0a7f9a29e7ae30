"""Worked examples to start a prompt from: training rows with their targets, short enough that several fit.

Owns which rows are taken and how they are written. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from softprompt.errors import SoftPromptError
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task

_BETWEEN = "\n"
_TOKENS = 16  # about as many for each example
_MOST_ROWS = 2000  # that are looked at
_CHOICE = 20  # rows of a label that are drawn from: the longest ones that fit, or where none does the shortest ones


def worked_examples(
    tokenizer: Any, task: Task, rows: Sequence[Row], num_virtual_tokens: int, seed: int = 0
) -> list[str]:
    """Rows as the task writes them, with their targets, that together have P tokens or, where there are few rows, less.

    The labels take turns, and each example has a share of about 16 tokens.

    Args:
        tokenizer: the base's.
        task: which says how rows are written.
        rows: the training rows.
        num_virtual_tokens: P.
        seed: of what is drawn.

    Returns:
        The examples, the one to stand last at the end.

    Raises:
        SoftPromptError: there are no rows.
    """
    if not rows:
        raise SoftPromptError("prompt.init: examples needs training rows to take them from")
    generator = random.Random(seed)
    drawn = generator.sample(list(rows), min(len(rows), _MOST_ROWS))
    texts = [task.render(row.columns) + (row.target or "") + _BETWEEN for row in drawn]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    of_label: dict[int | None, list[tuple[int, str]]] = defaultdict(list)
    for row, text, length in zip(drawn, texts, lengths, strict=True):
        of_label[row.label].append((length, text))
    share = num_virtual_tokens // max(1, round(num_virtual_tokens / _TOKENS))
    pools = []
    for label in generator.sample(sorted(of_label, key=str), len(of_label)):
        ordered = sorted(of_label[label])
        fitting = [one for one in ordered if one[0] <= share][-_CHOICE:] or ordered[:_CHOICE]
        pools.append(generator.sample(fitting, len(fitting)))
    found: list[str] = []
    tokens = 0
    for length, text in (one for turn in zip_longest(*pools) for one in turn if one is not None):
        found.append(text)
        tokens += length
        if tokens >= num_virtual_tokens:
            break
    return found[::-1]
