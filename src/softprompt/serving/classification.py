"""Labels and their probabilities from the likelihoods that an engine gives.

Owns a task's way from a row of input to an answer: template, label tokens, what is too long. Knows nothing of names or
HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.models.scoring import label_probabilities
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import Row, rows_from
from softprompt.tasks.task import Task

if TYPE_CHECKING:
    pass


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
        base: the base.
        task: a task with labels.
        prompt: the prompt that is asked; None: the base alone.

    Attributes:
        labels: the task's.

    Raises:
        SoftPromptError: the labels cannot be told apart, or have no tokens.
    """

    def __init__(self, base: Base, task: Task, prompt: SoftPrompt | None) -> None:
        self._base, self._task = base, task
        self._virtual = 0 if prompt is None else prompt.num_virtual_tokens
        self._reading = Reading.of_card(None if prompt is None else prompt.card.data)
        self._log_priors = None if prompt is None else prompt.card.log_priors(task.labels)
        self._encoder = Encoder(base, task, virtual_tokens=self._virtual)
        if task.labels is None or self._encoder.label_ids is None:
            raise SoftPromptError("the task generates free text: it has no labels to choose from")
        self.labels, self._label_ids = task.labels, self._encoder.label_ids

    def ask(self, inputs: Sequence[str | Mapping[str, str]], *, truncate: bool) -> list[Question]:
        """The questions for rows of input.

        Args:
            inputs: texts, where the template has one column, or the template's columns for each row.
            truncate: cut texts that do not fit the context, as `sp.predict` does, instead of refusing them.

        Raises:
            SoftPromptError: a text is empty or too long, or a column is missing.
        """
        return [self._encode(row, truncate) for row in rows_from(inputs, self._task, reading=self._reading)]

    def answer(self, likelihoods: Sequence[float]) -> tuple[str, dict[str, float]]:
        """The likeliest label and each label's probability, from the log-likelihoods of the continuations."""
        # As `sp.predict` does it, to the last bit.
        found = label_probabilities(torch.tensor(likelihoods, dtype=torch.float32), self._log_priors).tolist()
        probabilities = dict(zip(self.labels, found, strict=True))
        return max(self.labels, key=lambda label: probabilities[label]), probabilities

    def _encode(self, row: Row, truncate: bool) -> Question:
        encoded = self._encoder.encode_rows([row])
        if encoded.cut[0] and not truncate:
            text = self._task.render(row.columns)
            whole = len(self._base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            raise SoftPromptError(
                f"{row.place}: the text has {whole} tokens and its label up to {max(map(len, self._label_ids))}, but "
                f"{self._base.max_positions} fit the context, {self._virtual} of them virtual: shorten it, or send "
                "truncate: true"
            )
        return Question(encoded.input_ids[0], self._label_ids, encoded.cut[0])
