"""Free text: the likeliest continuation, token by token, up to the end-of-text token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softprompt.tasks.answers.answer import Answer, Asked, Prediction
from softprompt.tasks.metrics import text_metrics
from softprompt.tasks.rows import Row
from softprompt.tasks.tokens import TaskTokenizer


class FreeText(Answer):
    """See the module; `found` is n texts. The end-of-text token ends every target."""

    def __init__(self, tokens: TaskTokenizer) -> None:
        super().__init__(tokens)
        self.new_tokens = self.task.max_new_tokens

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        texts = self.gold(rows)
        if len(texts) < len(rows):
            return None
        end = self._tokens.end_of_text("free text")
        return [ids + end for ids in self._tokens.following([self.task.target_parts(text) for text in texts])]

    def gold(self, rows: Sequence[Row]) -> list[str]:
        return [row.target for row in rows if row.target is not None]

    def read(self, asked: Asked, log_priors: Sequence[float] | None = None) -> list[str]:
        return asked.generate(self.new_tokens)

    def best(self, found: list[str]) -> list[str]:
        return found

    def predictions(self, found: list[str], cut: Sequence[bool]) -> list[Prediction]:
        return [Prediction(output=text, truncated=was_cut) for text, was_cut in zip(found, cut, strict=True)]

    def figures(self, found: list[str], gold: Sequence[str]) -> dict[str, Any]:
        return text_metrics(found, gold)
