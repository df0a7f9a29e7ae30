"""Labelled examples in the text before a row's own: few-shot, or in-context, learning.

Brown et al. 2020, "Language Models are Few-Shot Learners" (https://arxiv.org/abs/2005.14165).

Owns which examples are taken and how they are joined. The answer is a task like the one it came from, whose template
begins with the examples; knows nothing of models.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

from softprompt.errors import SoftPromptError
from softprompt.tasks.rows import Row
from softprompt.tasks.special import SpecialTokens
from softprompt.tasks.task import Task

_BETWEEN = "\n\n"
_FREE_TEXT = 4  # examples of free text for each example that a label would get
# Before each row stands no more than this, nor more than half of the context: every row has to be computed behind it.
_MOST_TOKENS = 1024


def choose(rows: Sequence[Row], task: Task, shots: int, seed: int) -> list[Row]:
    """`shots` rows of each label, or where there are fewer all of them, the labels taking turns.

    Args:
        rows: the training rows.
        task: whose labels are balanced; of free text `4 * shots` rows are taken.
        shots: for each label.
        seed: of the choice and the order.
    """
    generator = random.Random(seed)
    of_label: dict[int | None, list[Row]] = defaultdict(list)
    for row in generator.sample(list(rows), len(rows)):
        of_label[row.label].append(row)
    count = shots if task.labels is not None else shots * _FREE_TEXT
    groups = [of_label[label][:count] for label in generator.sample(sorted(of_label, key=str), len(of_label))]
    return [row for row in chain.from_iterable(zip_longest(*groups)) if row is not None]


def with_examples(task: Task, examples: Sequence[Row], tokenizer: Any, context: int | None) -> tuple[Task, int]:
    """The task with as many of the examples, from the first on, as fit before each row.

    Args:
        task: the task.
        examples: labelled rows; those that hold the text of a special token are left out.
        tokenizer: the base's.
        context: the base's context in tokens; None: unbounded.

    Returns:
        The task, and how many of the examples it shows.

    Raises:
        SoftPromptError: not even one fits.
    """
    room = _MOST_TOKENS if context is None else min(_MOST_TOKENS, context // 2)
    shown: list[str] = []
    special = SpecialTokens(tokenizer)
    for row in examples:
        # In a template the text of a special token would be that token, which no row's text is.
        if special.in_values([(value, True) for value in (*row.columns.values(), row.target or "")]):
            continue
        text = task.render(row.columns) + (row.target or "") + _BETWEEN
        room -= len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if room < 0:
            break
        shown.append(text)
    if not shown and room >= 0:
        raise SoftPromptError("few-shot: every example holds the text of a special token, such as </s>")
    if not shown:
        raise SoftPromptError("few-shot: the first example alone is longer than the room for examples")
    # In a template braces name columns; written twice they are braces.
    before = "".join(shown).replace("{", "{{").replace("}", "}}")
    return task.model_copy(update={"template": before + task.template}), len(shown)
