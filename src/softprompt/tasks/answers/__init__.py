"""What an answer to a task can be. A new kind is a file here and a line in the table."""

from __future__ import annotations

from dataclasses import dataclass

CLASSIFICATION_METRICS = ("accuracy", "macro_f1")
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l", "bleu")


@dataclass(frozen=True)
class Kind:
    """A kind of answer, as a task names it.

    Attributes:
        where: its subclass of `Answer`, which is imported where it is used.
        labels: whether the task needs labels; else it must have none.
        metrics: what measures it; the first one by default.
    """

    where: str
    labels: bool
    metrics: tuple[str, ...]


KINDS = {
    "words": Kind("softprompt.tasks.answers.words:Words", True, CLASSIFICATION_METRICS),
    "head": Kind("softprompt.tasks.answers.head:Head", True, CLASSIFICATION_METRICS),
    "text": Kind("softprompt.tasks.answers.text:FreeText", False, TEXT_METRICS),
}
