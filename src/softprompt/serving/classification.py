"""Labels and their probabilities from the likelihoods that an engine gives.

Owns a task's way from a row of input to an answer: template, label tokens, what is too long. Knows nothing of names or
HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.ensemble import vote
from softprompt.prompts.prompt import SoftPrompt
from softprompt.serving.engine import Engine
from softprompt.serving.streams import together
from softprompt.tasks.answers.answer import label_probabilities
from softprompt.tasks.encode import Encoder
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import rows_from
from softprompt.tasks.task import Task


@dataclass(frozen=True)
class Question:
    """A row as an engine takes it.

    Attributes:
        ids: the text's token ids.
        continuations: each label's token ids; None: the prompt's head is asked.
        truncated: whether the text was cut.
    """

    ids: list[int]
    continuations: list[list[int]] | None
    truncated: bool


class Classifier:
    """One task's questions and answers.

    Args:
        base: the base.
        task: a task with labels.
        prompts: the prompts that are asked, which vote; None: the base alone.

    Attributes:
        task: what is asked.
        labels: the task's.

    Raises:
        SoftPromptError: the labels cannot be told apart, or have no tokens.
    """

    def __init__(self, base: Base, task: Task, *prompts: SoftPrompt | None) -> None:
        has_head = all(one is not None and one.head is not None for one in prompts)
        task = task.resolved(head=has_head)
        if (task.kind == "head") != has_head:
            task = task.answered_by("words")
        self._base, self.task, self._prompts = base, task, prompts
        self._reading = Reading.of_card(None if prompts[0] is None else prompts[0].card.data)
        self._log_priors = [None if one is None else one.card.log_priors(task.labels) for one in prompts]
        self._virtual = max(0 if one is None else one.num_virtual_tokens for one in prompts)
        self._encoder = Encoder(base, task, virtual_tokens=self._virtual)
        if task.labels is None:
            raise SoftPromptError("the task generates free text: it has no labels to choose from")
        self.labels, self._label_ids = task.labels, self._encoder.answer.label_ids

    def ask(self, inputs: Sequence[str | Mapping[str, str]], *, truncate: bool) -> list[Question]:
        """The questions for rows of input.

        Args:
            inputs: texts, where the template has one column, or the template's columns for each row.
            truncate: cut texts that do not fit the context, as `sp.predict` does, instead of refusing them.

        Raises:
            SoftPromptError: a text is empty or too long, or a column is missing.
        """
        rows = rows_from(inputs, self.task, reading=self._reading)
        encoded = self._encoder.encode_rows(rows)
        if encoded.truncated and not truncate:
            row = rows[encoded.cut.index(True)]
            text = self.task.render(row.columns)
            whole = len(self._base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            label = f" and its label up to {self._encoder.answer.reserve}" if self._label_ids else ""
            raise SoftPromptError(
                f"{row.place}: the text has {whole} tokens{label}, but "
                f"{self._base.max_positions} fit the context, {self._virtual} of them virtual: shorten it, or send "
                "truncate: true"
            )
        return [Question(ids, self._label_ids, cut) for ids, cut in zip(encoded.input_ids, encoded.cut, strict=True)]

    async def classify(self, engine: Engine, question: Question) -> tuple[str, dict[str, float]]:
        """The likeliest label and each label's probability, the members of an ensemble asked together.

        Raises: as `Engine.classify`.
        """
        works = [partial(engine.classify, prompt, question.ids, question.continuations) for prompt in self._prompts]
        return self.answer(await together(works))

    def answer(self, likelihoods: Sequence[Sequence[float]]) -> tuple[str, dict[str, float]]:
        """The same from each prompt's log-likelihoods of the continuations."""
        # As `sp.predict` does it, to the last bit.
        pairs = zip(torch.tensor(likelihoods, dtype=torch.float32), self._log_priors, strict=True)
        members = torch.stack([label_probabilities(scores, priors) for scores, priors in pairs])
        found = (members if len(members) == 1 else vote(members[:, None]))[0].tolist()
        probabilities = dict(zip(self.labels, found, strict=True))
        return max(self.labels, key=lambda label: probabilities[label]), probabilities
