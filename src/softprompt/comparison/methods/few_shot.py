"""Few-shot, or in-context, learning: labelled examples in the text before a row's own.

Brown et al. 2020, "Language Models are Few-Shot Learners" (https://arxiv.org/abs/2005.14165).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

from softprompt.comparison.measuring import median_seconds
from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.results import Trained
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluator
from softprompt.files import write_file
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row
from softprompt.tasks.special import SpecialTokens
from softprompt.tasks.task import Task

_FILE = "examples.json"
_SHOTS = (1.0, 2.0, 4.0)  # examples for each label; fewer where these do not fit
_FREE_TEXT = 4  # examples of free text for each example that a label would get
_BETWEEN = "\n\n"
# Before each row stands no more than this, nor more than half of the context: every row has to be computed behind it.
_MOST_TOKENS = 1024


class FewShot(Method):
    """The bare base behind examples."""

    name, title, tunes = "few-shot", "Few-shot", "examples a label"

    def grid(self, recipe_rate: float, *, one: bool) -> list[float | None]:
        return [_SHOTS[-1]] if one else [*_SHOTS]

    def train(self, work: Work) -> Trained:
        plan, base = work.plan, work.base
        examples = choose(plan.train, plan.task, int(work.setting or 0), work.seed)
        task, count = with_examples(plan.task, examples, base.tokenizer, base.max_positions)
        write_file(work.folder / _FILE, json.dumps({"template": task.template}))
        validation, _ = work.ask(self.open(work))
        return work.trained(validation, examples=count)

    def open(self, work: Work) -> Evaluator:
        # The examples stand where a prompt would: the text has the whole context.
        return Evaluator(PromptedModel(work.base, [], inference=True), self._task(work), work.rows)

    def switch(self, work: Work) -> tuple[float, float | None]:
        """The other task's text is read and its labels are encoded."""
        return median_seconds(lambda: Encoder(work.base, self._task(work))), 0.0

    def _task(self, work: Work) -> Task:
        kept = json.loads((work.folder / _FILE).read_text(encoding="utf-8"))
        return work.plan.task.model_copy(update={"template": kept["template"]})


def choose(rows: Sequence[Row], task: Task, shots: int, seed: int) -> list[Row]:
    """`shots` rows of each label, or where there are fewer all of them, the labels taking turns.

    Of free text four times as many are taken in all. The seed is that of the choice and the order.
    """
    generator = random.Random(seed)
    of_label: dict[int | None, list[Row]] = defaultdict(list)
    for row in generator.sample(list(rows), len(rows)):
        of_label[row.label].append(row)
    count = shots if task.labels is not None else shots * _FREE_TEXT
    groups = [of_label[label][:count] for label in generator.sample(sorted(of_label, key=str), len(of_label))]
    return [row for row in chain.from_iterable(zip_longest(*groups)) if row is not None]


def with_examples(task: Task, examples: Sequence[Row], tokenizer: Any, context: int | None) -> tuple[Task, int]:
    """The task with as many examples, from the first on, as fit before each row, and how many these are.

    Those that hold the text of a special token are left out. `context` is the base's, in tokens; None: unbounded.

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
