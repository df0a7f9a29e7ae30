from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from softprompt import Base, SoftPrompt, SoftPromptError, Task
from softprompt.prompts.starts.examples import choose
from softprompt.tasks import Row
from softprompt.training.taskfile import PromptStart, make_prompt

TASK = Task(template="{text}?", labels=["no", "yes"])
FREE = Task(template="{text}:", target=" {colour}")


def worked(base: Base, task: Task, rows: Sequence[Row], count: int, seed: int = 0) -> list[str]:
    return choose(base, [(task.render(row.columns) + (row.target or ""), row.label) for row in rows], count, seed)


def rows(*texts: str) -> list[Row]:
    """Of both labels in turn."""
    return [Row({"text": text}, i % 2, f" {TASK.labels[i % 2]}") for i, text in enumerate(texts)]  # type: ignore[index]


def of_length(tokens: int, label: int) -> str:
    """A text whose example has as many of the byte-level tokenizer's tokens."""
    return "x" * (tokens - len(f"? {TASK.labels[label]}\n"))  # type: ignore[index]


def test_they_are_written_as_the_task_writes_rows(tiny_base: Base) -> None:
    found = worked(tiny_base, TASK, rows("a", "b"), 100)
    assert sorted(found) == ["a? no\n", "b? yes\n"]


@pytest.mark.parametrize("seed", range(5))
def test_they_fit_and_the_labels_take_turns(tiny_base: Base, seed: int) -> None:
    data = rows(*(of_length(10 + i // 2, i % 2) for i in range(60)))
    found = worked(tiny_base, TASK, data, 64, seed)
    lengths = [len(tiny_base.tokenizer(example)["input_ids"]) for example in found]
    assert sum(lengths) >= 64 > sum(lengths[1:])
    assert max(lengths) <= 16
    answers = [example.split("?")[1] for example in found]
    assert set(answers) == {" no\n", " yes\n"}
    assert all(one != other for one, other in pairwise(answers))


def test_where_none_fits_the_shortest_are_taken(tiny_base: Base) -> None:
    found = worked(tiny_base, TASK, rows(*["x" * (100 + i) for i in range(100)]), 16)
    assert len(found) == 1
    assert len(found[0]) < 100 + 2 * 20 + len("? yes\n")


def test_the_seed_draws(tiny_base: Base) -> None:
    data = rows(*(f"text {i}" for i in range(50)))
    drawn = [worked(tiny_base, TASK, data, 32, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_free_text(tiny_base: Base) -> None:
    data = [Row({"text": "coal"}, None, " black"), Row({"text": "snow"}, None, " white")]
    assert sorted(worked(tiny_base, FREE, data, 99)) == ["coal: black\n", "snow: white\n"]


def test_a_prompt_of_them_says_nothing_of_the_rows(tiny_base: Base) -> None:
    data = rows("secret", "hidden")
    prompt = make_prompt(tiny_base, PromptStart(init="examples", num_virtual_tokens=8), TASK, data)
    examples = worked(tiny_base, TASK, data, 8)
    assert prompt.sha256 == SoftPrompt.from_examples(tiny_base, examples, 8).sha256
    assert prompt.card.initialisation == {"method": "examples", "examples": 1}


def test_there_must_be_rows(tiny_base: Base) -> None:
    with pytest.raises(SoftPromptError, match=r"prompt\.init: examples needs training rows"):
        make_prompt(tiny_base, PromptStart(init="examples"), TASK)
