from __future__ import annotations

from collections import Counter

import pytest

from softprompt import Base, SoftPromptError, Task
from softprompt.comparison.methods.few_shot import choose, with_examples
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row

TASK = Task(template="{text}:", labels=["yes", "no"])
ROWS = [Row({"text": f"t{i}"}, int(i > 15), " no" if i > 15 else " yes") for i in range(20)]


def test_examples_are_balanced_and_fixed_by_the_seed() -> None:
    chosen = choose(ROWS, TASK, 3, seed=1)
    assert Counter(row.label for row in chosen) == {0: 3, 1: 3}
    assert chosen[0].label != chosen[1].label
    assert chosen == choose(ROWS, TASK, 3, seed=1)
    assert chosen != choose(ROWS, TASK, 3, seed=2)
    assert len(choose(ROWS, TASK, 100, seed=0)) == 20
    free = Task(template="{text}", target="{answer}")
    assert len(choose([Row({"text": "a"}, None, "b")] * 30, free, 2, seed=0)) == 8


def test_the_task_shows_them_before_each_row(tiny_base: Base) -> None:
    braces = Row({"text": "a {b} c"}, 0, " yes")
    task, shown = with_examples(TASK, [braces, ROWS[19]], tiny_base.tokenizer, 256)
    assert shown == 2
    assert task.render({"text": "new"}) == "a {b} c: yes\n\nt19: no\n\nnew:"
    assert Encoder(tiny_base, task).answer.label_ids == Encoder(tiny_base, TASK).answer.label_ids


def test_those_with_special_tokens_are_left_out(tiny_base: Base) -> None:
    special = Row({"text": "a<eos>"}, 0, " yes")
    task, shown = with_examples(TASK, [special, ROWS[19]], tiny_base.tokenizer, 256)
    assert (shown, task.render({"text": "new"})) == (1, "t19: no\n\nnew:")
    with pytest.raises(SoftPromptError, match="every example holds the text of a special token"):
        with_examples(TASK, [special], tiny_base.tokenizer, 256)


def test_as_many_as_fit_half_of_the_context(tiny_base: Base) -> None:
    assert with_examples(TASK, ROWS, tiny_base.tokenizer, 40)[1] == 2  # of 9 and 10 tokens each
    with pytest.raises(SoftPromptError, match="the first example alone"):
        with_examples(TASK, ROWS, tiny_base.tokenizer, 16)
