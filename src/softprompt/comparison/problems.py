"""What is wrong with a task file's data and template, and what a run costs on this machine.

Owns the counting and what is said. The stopwatch is `costs`'; whether prompt tuning is any good at the task is for
`compare` to measure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.comparison.costs import Costs, measure_costs
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row, check_trainable, load_rows, with_validation
from softprompt.tasks.task import LABEL_COLUMN, Task
from softprompt.text import shown
from softprompt.training.taskfile import PromptStart, TaskFile, make_prompt

FEW_ROWS = 100  # of validation or test: below, the standard error of a share is 5% and more
RARE = 10  # training rows of a label
UNEVEN = 3  # times as many rows of the most frequent label as of the rarest


@dataclass(frozen=True)
class Problem:
    """Something to mend.

    Attributes:
        about: "data" or "template".
        text: the sentence.
    """

    about: str
    text: str


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
    parts = _rows(file)
    tell("Loading the base", 0.1)
    base = load_base(file.base, dtype=file.recipe.dtype)
    start = file.prompt
    if start.num_virtual_tokens == "auto":
        start = start.model_copy(update={"num_virtual_tokens": None})
    prompt = make_prompt(base, start, file.task, parts["training"])
    problems = [*_in_rows(parts, file.task), *_cut(parts, file.task, base, prompt), *_in_words(file.task, start)]
    tell("Taking three training steps", 0.4)
    costs = measure_costs(base, prompt, file.task, parts["training"], parts.get("validation", []), file.recipe)
    tell("Taking three training steps", 1.0)
    counts = {part: len(rows) for part, rows in parts.items()}
    return Check(file.name, counts, problems, prompt.num_virtual_tokens, costs)


def _rows(file: TaskFile) -> dict[str, Sequence[Row]]:
    """The task file's rows by the part of the data."""
    train = load_rows(file.data.train, file.task)
    check_trainable(train, file.task)
    rows, checks = with_validation(train, file.data.validation, file.task, file.recipe.seed)
    test = None if file.data.test is None else load_rows(file.data.test, file.task)
    parts = {"training": rows, "validation": checks, "test": test}
    return {part: found for part, found in parts.items() if found is not None}


def _in_rows(parts: Mapping[str, Sequence[Row]], task: Task) -> Iterator[Problem]:
    texts = {part: [task.render(row.columns) for row in rows] for part, rows in parts.items()}
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if shared := len(set(texts[one]) & set(texts[other])):
                yield Problem(
                    "data",
                    f"{shared:,} texts of the {other} rows are among the {one} rows too: take them out of one of the "
                    "two, else figures on them are of what was learned by heart.",
                )
    answers: dict[str, set[str | int | None]] = {}
    repeated = 0
    for text, row in zip(texts["training"], parts["training"], strict=True):
        answer = row.target if row.label is None else row.label
        repeated += answer in answers.setdefault(text, set())
        answers[text].add(answer)
    if contradictory := sum(len(found) > 1 for found in answers.values()):
        yield Problem("data", f"{contradictory:,} training texts stand there with more than one answer.")
    if repeated:
        yield Problem("data", f"{repeated:,} training rows repeat an earlier one.")
    yield from _in_labels(parts["training"], task)
    if "validation" not in parts:
        yield Problem(
            "data",
            "There are no validation rows: the last prompt is kept whether or not it is the best, and nothing stops "
            "the run early. Give data.validation, a file or a fraction such as 0.1.",
        )
    if "test" not in parts:
        yield Problem(
            "data",
            "There are no test rows: figures will be those of the validation rows, on which the best step is chosen, "
            "and too good. Give data.test.",
        )
    for part in names[1:]:
        if len(parts[part]) < FEW_ROWS:
            yield Problem(
                "data",
                f"{len(parts[part])} {part} rows measure a share of right answers with a standard error of up to "
                f"{0.5 / math.sqrt(len(parts[part])):.1%}: smaller differences tell nothing.",
            )


def _in_labels(rows: Sequence[Row], task: Task) -> Iterator[Problem]:
    if task.labels is None:
        return
    counted = Counter(row.label for row in rows)
    counts = {label: counted[i] for i, label in enumerate(task.labels)}
    if missing := [label for label, count in counts.items() if not count]:
        yield Problem("data", f"No training row has the label {shown(missing)}: add rows, or drop it.")
    if rare := [label for label, count in counts.items() if 0 < count < RARE]:
        yield Problem("data", f"Fewer than {RARE} training rows have the label {shown(rare)}: add rows.")
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if task.metric == "accuracy" and counts[most] >= UNEVEN * counts[least]:
        yield Problem(
            "data",
            f"The labels are uneven ({counts[most]:,} rows of {shown(most)}, {counts[least]:,} of {shown(least)}): "
            f"always answering {shown(most)} is right for {counts[most] / len(rows):.1%}. Set task.metric: macro_f1, "
            "in which each label counts alike.",
        )


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


def _in_words(task: Task, start: PromptStart) -> Iterator[Problem]:
    if task.template.endswith(" "):
        yield Problem(
            "template",
            "The template ends with a space, which belongs to the word after it in most tokenizers: end the template "
            'without it, and begin the target with it, as in target: " {label}".',
        )
    elif task.suffix and not task.template[-1].isspace() and not task.target[:1].isspace():
        joint = task.suffix.split("\n")[-1] + task.render_target({LABEL_COLUMN: task.labels[0]}) if task.labels else ""
        yield Problem(
            "template",
            f"Nothing separates the template's end from the target{joint and f', as in {shown(joint)}'}: where words "
            'are written with spaces, begin the target with one, as in target: " {label}".',
        )
    count, labels = start.num_virtual_tokens, task.labels or []
    if start.init == "labels" and isinstance(count, int) and count < len(labels):
        text = f"{len(labels)} labels do not fit {count} virtual tokens: the prompt starts from {count} of them."
        yield Problem("template", text)
