"""What is wrong with a task's rows and its template, whatever the base: said by `train` and by `check`.

Owns the counting and what is said. What takes a base or a recipe's prompt to find is `check`'s.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from softprompt.tasks.rows import Row
from softprompt.tasks.task import LABEL_COLUMN, Task
from softprompt.text import counted, shown

FEW_ROWS = 100  # of validation or test: below, the standard error of a share is 5% and more
RARE = 10  # training rows of a label
UNEVEN = 3  # times as many rows of the most frequent label as of the rarest


@dataclass(frozen=True)
class Problem:
    """Something to mend.

    Attributes:
        about: "data" or "template".
        text: the sentence.
        is_fault: whether it makes figures or prompts wrong; else it makes them less sure.
    """

    about: str
    text: str
    is_fault: bool = True


def in_rows(parts: Mapping[str, Sequence[Row]], task: Task) -> Iterator[Problem]:
    """What is wrong with rows.

    Args:
        parts: the rows by the part of the data: "training", and where there are such "validation" and "test".
        task: what is learned.
    """
    texts = {part: [task.render(row.columns) for row in rows] for part, rows in parts.items()}
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if shared := len(set(texts[one]) & set(texts[other])):
                yield Problem(
                    "data",
                    f"{counted(shared, f'text of the {other} rows is', f'texts of the {other} rows are')} among the "
                    f"{one} rows too: take what is in both out of one of them, else figures are of texts whose answers "
                    "were learned.",
                )
    answers: dict[str, set[str | int | None]] = {}
    repeated = 0
    for text, row in zip(texts["training"], parts["training"], strict=True):
        answer = row.target if row.label is None else row.label
        repeated += answer in answers.setdefault(text, set())
        answers[text].add(answer)
    if contradictory := sum(len(found) > 1 for found in answers.values()):
        texts_with = counted(contradictory, "training text stands", "training texts stand")
        yield Problem("data", f"{texts_with} there with more than one answer: decide on one.")
    if repeated:
        rows_that = counted(repeated, "training row repeats", "training rows repeat")
        yield Problem("data", f"{rows_that} an earlier one: drop what is repeated.")
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
            is_fault=False,
        )
    for part in names[1:]:
        if len(parts[part]) < FEW_ROWS:
            rows_measure = counted(len(parts[part]), f"{part} row measures", f"{part} rows measure")
            yield Problem(
                "data",
                f"{rows_measure} a share of right answers with a standard error of up to "
                f"{0.5 / math.sqrt(len(parts[part])):.1%}: smaller differences tell nothing.",
                is_fault=False,
            )


def _in_labels(rows: Sequence[Row], task: Task) -> Iterator[Problem]:
    if task.labels is None or task.kind == "tags":
        return
    found = Counter(row.label for row in rows)
    counts = {label: found[i] for i, label in enumerate(task.labels)}
    if missing := [label for label, count in counts.items() if not count]:
        yield Problem("data", f"No training row has the label {shown(missing)}: add rows, or drop it.")
    if rare := [label for label, count in counts.items() if 0 < count < RARE]:
        yield Problem(
            "data", f"Fewer than {RARE} training rows have the label {shown(rare)}: add rows.", is_fault=False
        )
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if task.metric == "accuracy" and counts[most] >= UNEVEN * counts[least]:
        yield Problem(
            "data",
            f"The labels are uneven ({counts[most]:,} rows of {shown(most)}, {counts[least]:,} of {shown(least)}): "
            f"always answering {shown(most)} is right for {counts[most] / len(rows):.1%}. Set task.metric: macro_f1, "
            "in which each label counts alike.",
        )


def unseen(rows: int, steps: int, batch_size: int) -> Iterator[Problem]:
    """That a run of so many steps ends before it has seen each training row once."""
    if (seen := steps * batch_size) < rows:
        yield Problem(
            "data",
            f"{counted(steps, f'step of {batch_size} rows sees', f'steps of {batch_size} rows see')} {seen:,} of the "
            f"{rows:,} training rows ({seen / rows:.0%}): set recipe.epochs to 1, or raise recipe.max_steps.",
        )


def in_words(task: Task) -> Iterator[Problem]:
    """What is wrong with the template and the target."""
    for key, text in (("template", task.template), ("target", task.target)):
        if found := re.search(r"\\[nt]", text):
            yield Problem(
                "template",
                f"The {key} holds a backslash and the letter {found[0][1]} where a line end or tab may be meant, which "
                "YAML reads in double quotes alone: write it in double quotes, or as a block after |.",
            )
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
