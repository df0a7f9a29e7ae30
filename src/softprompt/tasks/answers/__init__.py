"""What an answer to a task can be. A new kind is a file here and a line in the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLASSIFICATION_METRICS = ("accuracy", "macro_f1")
TAG_METRICS = ("f1", "accuracy")
SPAN_METRICS = ("token_f1", "exact_match")
EMBEDDING_METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr")
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l", "bleu")


@dataclass(frozen=True)
class Kind:
    """A kind of answer, as a task names it.

    Attributes:
        where: its subclass of `Answer`, which is imported where it is used.
        labels: whether the task needs labels; else it must have none.
        metrics: what measures it; the first one by default.
        task_type: PEFT's name for it; None: what the base does in words.
        needs: what a base must give: its "words", or the "states" of a text's tokens; None: any base will do.
        head: how many rows its head has: "labels", or a number; 0: it has none.
    """

    where: str
    labels: bool
    metrics: tuple[str, ...]
    task_type: str | None = None
    needs: Literal["words", "states"] | None = "words"
    head: Literal["labels"] | int = 0


KINDS = {
    "words": Kind("softprompt.tasks.answers.words:Words", True, CLASSIFICATION_METRICS),
    "head": Kind("softprompt.tasks.answers.head:Head", True, CLASSIFICATION_METRICS, "SEQ_CLS", None, "labels"),
    "tags": Kind("softprompt.tasks.answers.tags:Tags", True, TAG_METRICS, "TOKEN_CLS", "states", "labels"),
    "span": Kind("softprompt.tasks.answers.span:Span", False, SPAN_METRICS, "QUESTION_ANS", "states", 2),
    "embedding": Kind(
        "softprompt.tasks.answers.embedding:Embedding", False, EMBEDDING_METRICS, "FEATURE_EXTRACTION", "states"
    ),
    "text": Kind("softprompt.tasks.answers.text:FreeText", False, TEXT_METRICS),
}
