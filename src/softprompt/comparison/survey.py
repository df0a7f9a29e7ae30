"""What a task's rows and words are like: counts that advice is given on.

Owns the counting. Knows rows, tasks and tokenizers; nothing of prompts, and gives no advice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task


@dataclass(frozen=True)
class Survey:
    """Counts.

    Attributes:
        rows: of each part of the data ("training", "validation", "test") how many there are.
        truncated: of each part how many texts are too long for the context.
        shared: of each two parts how many texts of the second are in the first too.
        repeated: training rows whose text came before with the same answer.
        contradictory: training texts that stand there with more than one answer.
        labels: how many training rows each label has, the most frequent first; empty for free text.
        label_tokens: how many tokens each label takes; empty for free text.
    """

    rows: dict[str, int]
    truncated: dict[str, int]
    shared: dict[tuple[str, str], int]
    repeated: int
    contradictory: int
    labels: dict[str, int]
    label_tokens: dict[str, int]


def survey(parts: dict[str, Sequence[Row]], task: Task, tokenizer: Any, room: int | None) -> Survey:
    """Count.

    Args:
        parts: the rows by the part of the data, "training" among them.
        task: what is learned.
        tokenizer: the base's.
        room: tokens of the context that the prompt leaves; None: no bound.

    Raises:
        SoftPromptError: the rows or the labels can't be encoded.
    """
    encoder = Encoder(tokenizer, task, room)
    reserve = 0 if task.labels else task.max_new_tokens
    texts = {name: [task.render(row.columns) for row in rows] for name, rows in parts.items()}
    names = list(parts)
    answers: dict[str, set[str | int | None]] = {}
    repeated = 0
    for text, row in zip(texts["training"], parts["training"], strict=True):
        answer = row.target if row.label is None else row.label
        repeated += answer in answers.setdefault(text, set())
        answers[text].add(answer)
    counts = Counter(row.label for row in parts["training"] if row.label is not None)
    labels = task.labels or []
    return Survey(
        rows={name: len(rows) for name, rows in parts.items()},
        truncated={name: encoder.encode_rows(rows, reserve=reserve).truncated for name, rows in parts.items()},
        shared={
            (one, other): len(set(texts[one]) & set(texts[other]))
            for i, one in enumerate(names)
            for other in names[i + 1 :]
        },
        repeated=repeated,
        contradictory=sum(len(found) > 1 for found in answers.values()),
        labels=dict(sorted(((label, counts[i]) for i, label in enumerate(labels)), key=lambda pair: -pair[1])),
        label_tokens=dict(zip(labels, map(len, encoder.label_ids or []), strict=True)),
    )
