"""Embeddings: a text and what belongs to it, as a question and its passage, are to lie close to each other.

The template renders the one and the target the other; the prompt stands before both. Texts are compared by the cosine
of their embeddings (`models/embedding.py`); how often a text's own target is among the k nearest of all targets is its
recall at k. PEFT's FEATURE_EXTRACTION.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers.answer import Answer, Asked, Embedded, Prediction
from softprompt.tasks.rows import Row

RECALLS = (1, 5, 10)  # the k of recall at k
_AT_ONCE = 1024  # rows compared with all targets


class Embedding(Answer):
    """See the module; `found` is what `Asked.embed` gives."""

    is_text = True

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        texts = self.gold(rows)
        if len(texts) < len(rows):
            return None
        return self._tokens.texts([self.task.target_parts(text) for text in texts])

    def gold(self, rows: Sequence[Row]) -> list[str]:
        return [row.target for row in rows if row.target is not None]

    def learned(
        self, text: Sequence[int], target: Sequence[int], gold: Any, places: Sequence[int] | None = None
    ) -> list[int]:
        return [*(-100 for _ in text), 0, *(-100 for _ in target[1:])]

    def read(self, asked: Asked, log_priors: Sequence[float] | None = None) -> Embedded:
        return asked.embed()

    def best(self, found: Embedded) -> list[int]:
        """The rank of each text's own target among all, from 1; of equally near ones the worst."""
        if found.targets is None:
            raise SoftPromptError("the rows have no targets to be compared with")
        ranks: list[int] = []
        own = torch.tensor(found.own)
        for start in range(0, len(own), _AT_ONCE):
            scores = found.texts[start : start + _AT_ONCE] @ found.targets.T
            right = scores.gather(1, own[start : start + _AT_ONCE, None])
            ranks += (scores >= right).sum(1).tolist()
        return ranks

    def predictions(self, found: Embedded, cut: Sequence[bool]) -> list[Prediction]:
        rows = zip(found.texts.tolist(), cut, strict=True)
        return [Prediction(embedding=vector, truncated=was_cut) for vector, was_cut in rows]

    def figures(self, found: Embedded, gold: Sequence[str]) -> dict[str, Any]:
        if not gold:
            raise SoftPromptError("there are no rows to measure")
        ranks = self.best(found)
        recalls = {f"recall_at_{k}": fmean(rank <= k for rank in ranks) for k in RECALLS}
        return {"n": len(ranks), **recalls, "mrr": fmean(1 / rank for rank in ranks)}
