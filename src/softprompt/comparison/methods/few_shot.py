"""Labelled examples in the text before a row's own: few-shot, or in-context, learning.

Brown et al. 2020, "Language Models are Few-Shot Learners" (https://arxiv.org/abs/2005.14165).

Owns which examples are taken and how they are joined. The answer is a task like the one it came from, whose template
begins with the examples; knows nothing of models.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import ClassVar

from softprompt.bases.base import Base
from softprompt.comparison.methods.method import Learned, Method, Switch, Work, seconds
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluator
from softprompt.files import write_file
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row
from softprompt.tasks.special import SpecialTokens
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe

_BETWEEN = "\n\n"
_FREE_TEXT = 4  # examples of free text for each example that a label would get
# Before each row stands no more than this, nor more than half of the context: every row has to be computed behind it.
_MOST_TOKENS = 1024
# Examples for each label; of free text four times as many in all. As few as fit are taken.
_SHOTS = (1.0, 2.0, 4.0)
_EXAMPLES = "examples.json"


class FewShot(Method):
    """Nothing is learned: examples stand in the text before each row."""

    name: ClassVar[str] = "few-shot"
    title: ClassVar[str] = "Few-shot"
    marker: ClassVar[str] = "s"
    colour: ClassVar[str] = "#B07A00"
    unit: ClassVar[str] = "examples a label"
    is_trained: ClassVar[bool] = False

    def settings(self, recipe: Recipe, *, one: bool) -> list[float | None]:
        return [_SHOTS[-1]] if one else list(_SHOTS)

    def train(self, work: Work) -> Learned:
        examples = choose(work.plan.train, work.task, int(work.setting or 0), work.seed)
        task, shown = with_examples(work.task, examples, work.base)
        write_file(work.artifact / _EXAMPLES, json.dumps({"template": task.template}))
        evaluator = work.evaluator(PromptedModel(work.base, []), task, test=False)
        return Learned(0, evaluator.evaluate(work.told(len(work.plan.validation))), more={"examples": shown})

    def open(self, work: Work) -> Evaluator:
        return work.evaluator(PromptedModel(work.base, []), self._task(work), test=True)

    def switch(self, work: Work) -> Switch:
        """Read the other task's text and encode its labels."""
        return Switch(seconds(lambda: Encoder(work.base, self._task(work))), 0.0)

    def _task(self, work: Work) -> Task:
        template = json.loads((work.artifact / _EXAMPLES).read_text(encoding="utf-8"))["template"]
        return work.task.model_copy(update={"template": template})


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


def with_examples(task: Task, examples: Sequence[Row], base: Base) -> tuple[Task, int]:
    """The task with as many of the examples, from the first on, as fit before each row.

    Args:
        task: the task.
        examples: labelled rows; those that hold the text of a special token are left out.
        base: the base.

    Returns:
        The task, and how many of the examples it shows.

    Raises:
        SoftPromptError: not even one fits.
    """
    context, tokenizer = base.max_positions, base.tokenizer
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
