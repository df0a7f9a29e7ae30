"""Labels and their probabilities from the likelihoods that an engine gives.

Owns a task's way from a row of input to an answer: template, label tokens, what is too long. Knows nothing of names or
HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from softprompt.errors import SoftPromptError
from softprompt.models.scoring import shares
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row, rows_from
from softprompt.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """A row as an engine takes it.

    Attributes:
        ids: the text's token ids.
        continuations: each label's token ids.
        truncated: whether the text was cut.
    """

    ids: list[int]
    continuations: list[list[int]]
    truncated: bool


class Classifier:
    """One task's questions and answers.

    Args:
        tokenizer: the base's.
        task: a task with labels.
        virtual: P, the prompt's virtual tokens.
        context: the base's context in tokens; None: unbounded.
        log_priors: of the task's labels, from the prompt's card where that is calibrated.

    Attributes:
        labels: the task's.

    Raises:
        SoftPromptError: the labels cannot be told apart, or have no tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        virtual: int,
        context: int | None,
        log_priors: Sequence[float] | None = None,
    ) -> None:
        self._task, self._virtual, self._context, self._log_priors = task, virtual, context, log_priors
        self._whole = Encoder(tokenizer, task)
        self._cutting = Encoder(tokenizer, task, None if context is None else context - virtual)
        if task.labels is None or self._whole.label_ids is None:
            raise SoftPromptError("the task generates free text: it has no labels to choose from")
        self.labels, self._label_ids = task.labels, self._whole.label_ids
        self._longest = max(map(len, self._label_ids))

    def ask(self, inputs: Sequence[str | Mapping[str, str]], *, truncate: bool) -> list[Question]:
        """The questions for rows of input.

        Args:
            inputs: texts, where the template has one column, or the template's columns for each row.
            truncate: cut texts that do not fit the context, as `sp.predict` does, instead of refusing them.

        Raises:
            SoftPromptError: a text is empty or too long, or a column is missing.
        """
        return [self._encode(row, truncate) for row in rows_from(inputs, self._task)]

    def answer(self, likelihoods: Sequence[float]) -> tuple[str, dict[str, float]]:
        """The likeliest label and each label's probability, from the log-likelihoods of the continuations."""
        # As `sp.predict` does it, to the last bit.
        found = shares(torch.tensor(likelihoods, dtype=torch.float32), self._log_priors).tolist()
        probabilities = dict(zip(self.labels, found, strict=True))
        return max(self.labels, key=lambda label: probabilities[label]), probabilities

    def _encode(self, row: Row, truncate: bool) -> Question:
        if truncate:
            encoded = self._cutting.encode_rows([row])
            return Question(encoded.input_ids[0], self._label_ids, encoded.cut[0])
        ids = self._whole.encode_rows([row]).input_ids[0]
        if self._context is not None and self._virtual + len(ids) + self._longest > self._context:
            raise SoftPromptError(
                f"{row.place}: the text has {len(ids)} tokens and its label up to {self._longest}, but {self._context} "
                f"fit the context, {self._virtual} of them virtual: shorten it, or send truncate: true"
            )
        return Question(ids, self._label_ids, False)
