"""The rows of a validation shared by the processes that train together: each asks some, and all have all answers.

Owns who asks which texts. What a process knows of the others is `processes.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softprompt.evaluation.evaluate import Texts
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.answers.answer import Asked, Progress
from softprompt.tasks.encode import Encoded, Ids
from softprompt.training.processes import count, gather, rank


def ask(model: PromptedModel, encoded: Encoded, progress: Progress | None) -> Asked:
    """Texts before a model with at most one prompt; each process asks its share and has the answers to all.

    All texts are asked in each process where the base is spread over them: they have to compute in step.
    """
    shares = count() > 1 and not model.base.sharded
    return (_Shared if shares else Texts)(model, encoded, progress)


class _Shared(Texts):
    """See `ask`. Texts are dealt out by their length, so that no process has all the long ones.

    Places within texts, and embeddings, which are compared with each other, are asked in each process.
    """

    def score(self, continuations: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack(self._gathered(lambda texts: texts.score(continuations)))

    def read_head(self) -> Tensor:
        return super().read_head() if self.places is not None else torch.stack(self._gathered(Texts.read_head))

    def generate(self, max_new_tokens: int) -> list[str]:
        return self._gathered(lambda texts: texts.generate(max_new_tokens) if texts.ids else [])

    def _gathered(self, answers_of: Callable[[Texts], Any]) -> list[Any]:
        """The answer to each text."""
        order = sorted(range(len(self.ids)), key=lambda row: len(self.ids[row]))
        own = Ids(self.ids[row] for row in order[rank() :: count()])
        parts = gather(answers_of(Texts(self.model, replace(self.encoded, input_ids=own), self.progress)))
        if self.progress is not None and len(own) < len(self.ids):
            self.progress(len(self.ids) - len(own))
        found: list[Any] = [None] * len(self.ids)
        for who, part in enumerate(parts):
            for row, answer in zip(order[who :: count()], part, strict=True):
                found[row] = answer
        return found
