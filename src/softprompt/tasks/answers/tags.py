"""Tags: a label for each word of a text, by a head at the first token of each word. PEFT's TOKEN_CLS.

The template is one column of words, as one text with white space between them or as a list; the labels stand in the
data's column `label`, likewise, one for each word. A word's other tokens are neither learned nor asked. Of labels such
as B-PER and I-PER the F1 is that of whole entities, by the seqeval library (CoNLL's: Tjong Kim Sang and De Meulder
2003, https://aclanthology.org/W03-0419).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers.answer import Answer, Asked, Prediction
from softprompt.tasks.rows import Row
from softprompt.tasks.tokens import TaskTokenizer

OUTSIDE = "O"
_ENTITY = re.compile(r"[BIES]-.+")


def is_entities(labels: Sequence[str]) -> bool:
    """Whether labels name the beginnings and insides of entities."""
    return all(label == OUTSIDE or _ENTITY.fullmatch(label) for label in labels)


class Tags(Answer):
    """See the module; `found` is n lists of labels' indices. A word that was cut off with its text has the first label,
    or "O" where there is one.

    Raises:
        SoftPromptError: the template is more than a column, the tokenizer does not say where its tokens start, or F1 is
            asked for of labels that are no entities'.
    """

    def __init__(self, tokens: TaskTokenizer) -> None:
        super().__init__(tokens)
        self.labels = self.task.labels or []
        if self.task.template != f"{{{self.task.columns[0]}}}":
            raise SoftPromptError(
                f"task.template: for tags it is one column of words, such as {{{self.task.columns[0]}}}"
            )
        if not tokens.tokenizer.is_fast:
            raise SoftPromptError("tags need a fast tokenizer: this one does not say where its tokens start")
        if self.task.metric == "f1" and not is_entities(self.labels):
            raise SoftPromptError(
                "task.metric: f1 is of entities, whose labels are O, B-NAME and I-NAME: choose accuracy for these"
            )

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        return [[] for _ in rows] if len(self.gold(rows)) == len(rows) else None

    def gold(self, rows: Sequence[Row]) -> list[list[int]]:
        index = {label: i for i, label in enumerate(self.labels)}
        return [[index[tag] for tag in row.target.split()] for row in rows if row.target is not None]

    def places(self, rows: Sequence[Row], texts: Sequence[Sequence[int]]) -> list[list[int]]:
        found = []
        for row, text in zip(rows, texts, strict=True):
            value = row.columns[self.task.columns[0]]
            starts = self._tokens.special.starts(value)
            before, after = self._tokens.around(text)
            at = [bisect_right(starts, match.start()) - 1 for match in re.finditer(r"\S+", value)]
            # Of several tokens that start together, such as a character's bytes, the first.
            first = [before + bisect_left(starts, starts[token]) for token in at]
            found.append([place for place in first if place < len(text) - after])
        return found

    def learned(
        self, text: Sequence[int], target: Sequence[int], gold: Sequence[int], places: Sequence[int] | None = None
    ) -> list[int]:
        labels = [-100] * len(text)
        for place, label in reversed(list(zip(places or (), gold, strict=False))):
            labels[place] = label
        return labels

    def read(self, asked: Asked, log_priors: Sequence[float] | None = None) -> list[list[int]]:
        scores: Sequence[Tensor] = asked.read_head().split([len(places) for places in asked.places or ()])
        return [some.argmax(-1).tolist() for some in scores]

    def best(self, found: list[list[int]]) -> list[list[int]]:
        return found

    def predictions(self, found: list[list[int]], cut: Sequence[bool]) -> list[Prediction]:
        return [
            Prediction(output=" ".join(self.labels[i] for i in tags), truncated=was_cut)
            for tags, was_cut in zip(found, cut, strict=True)
        ]

    def figures(self, found: list[list[int]], gold: Sequence[Sequence[int]]) -> dict[str, Any]:
        if not gold:
            raise SoftPromptError("there are no rows to measure")
        rest = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        said = [[*tags, *[rest] * (len(right) - len(tags))] for tags, right in zip(found, gold, strict=True)]
        pairs = [pair for tags, right in zip(said, gold, strict=True) for pair in zip(tags, right, strict=True)]
        figures: dict[str, Any] = {"n": len(gold), "accuracy": sum(a == b for a, b in pairs) / len(pairs)}
        if is_entities(self.labels):
            from seqeval.metrics.sequence_labeling import (  # type: ignore[import-untyped]
                precision_recall_fscore_support,
            )

            words = [[[self.labels[i] for i in tags] for tags in some] for some in (gold, said)]
            # A run that finds no entity has an F1 of 0.
            precision, recall, f1, _ = precision_recall_fscore_support(*words, average="micro", zero_division=0)
            figures |= {"f1": float(f1), "precision": float(precision), "recall": float(recall)}
        return figures
