"""What is wrong with a task file, and what a run costs on this machine.

Owns what takes a base to find; what is wrong with rows and templates is `tasks.problems`'. The stopwatch is
`costs`'; whether prompt tuning is any good at the task is for `compare` to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.comparison.costs import Costs, measure_costs
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.problems import Problem, in_rows, in_words, unseen
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.heads import choose_answer
from softprompt.training.taskfile import PromptStart, TaskFile, make_prompt


@dataclass(frozen=True)
class Check:
    """What `check` has found.

    Attributes:
        name: the task file's.
        rows: of each part of the data ("training", "validation", "test") how many there are.
        problems: what to mend, the gravest first.
        num_virtual_tokens: P of the run that was measured.
        costs: of that run.
    """

    name: str
    rows: dict[str, int]
    problems: list[Problem]
    num_virtual_tokens: int
    costs: Costs

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def check(file: TaskFile, *, progress: Callable[[str, float], None] | None = None) -> Check:
    """Count what is in a task file's rows, look at its template, and take three training steps.

    Args:
        file: the task file. A run with `num_virtual_tokens: auto` is measured with the default number.
        progress: called with what is being done and the share of all work that is done, from 0 to 1.

    Raises:
        SoftPromptError: the rows or the base can't be used, or the steps can't be taken.
    """
    tell = progress or (lambda what, share: None)
    tell("Reading the rows", 0.0)
    parts = file.rows()
    recipe = file.recipe.for_rows(len(parts["training"]))
    tell("Loading the base", 0.1)
    base = load_base(file.base, **file.recipe.loading())
    start = file.prompt
    if start.num_virtual_tokens == "auto":
        start = start.model_copy(update={"num_virtual_tokens": None})
    prompt = make_prompt(base, start, file.task, parts["training"])
    if not base.family.words:
        task = choose_answer(file.task, parts["training"], prompt, base.family)
        file = file.model_copy(update={"task": task})
    problems = [
        *in_rows(parts, file.task),
        *unseen(len(parts["training"]), recipe.max_steps, recipe.batch_size),
        *_cut(parts, file.task, base, prompt),
        *in_words(file.task),
        *_in_start(file.task, start),
    ]
    tell("Taking three training steps", 0.4)
    costs = measure_costs(base, prompt, file.task, parts["training"], parts.get("validation", []), recipe)
    tell("Taking three training steps", 1.0)
    counts = {part: len(rows) for part, rows in parts.items()}
    return Check(file.name, counts, problems, prompt.num_virtual_tokens, costs)


def _cut(parts: Mapping[str, Sequence[Row]], task: Task, base: Base, prompt: SoftPrompt) -> Iterator[Problem]:
    encoder = Encoder(base, task, virtual_tokens=prompt.num_virtual_tokens)
    for part, rows in parts.items():
        cut = encoder.encode_rows(rows, reserve=encoder.answer.new_tokens).truncated
        if cut:
            yield Problem(
                "data",
                f"{cut:,} {part} texts do not fit the base's context of {base.max_positions:,} tokens beside the "
                "prompt and the target: their ends are cut.",
            )


def _in_start(task: Task, start: PromptStart) -> Iterator[Problem]:
    count, labels = start.num_virtual_tokens, task.labels or []
    if start.init == "labels" and isinstance(count, int) and count < len(labels):
        text = f"{len(labels)} labels do not fit {count} virtual tokens: the prompt starts from {count} of them."
        yield Problem("template", text)
