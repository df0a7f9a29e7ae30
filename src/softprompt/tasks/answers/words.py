"""Labels as words: the likelihood of each label's text after the input, as Lester et al. 2021 have it.

A label's likelihood is that of its whole token sequence; all labels share the text's computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers.answer import Asked, Labels
from softprompt.tasks.rows import Row
from softprompt.tasks.task import LABEL_COLUMN
from softprompt.tasks.tokens import TaskTokenizer
from softprompt.text import shown


class Words(Labels):
    """See the module.

    Labels get the end-of-text token only where one label's ids begin another's, and then all of them do: the shorter
    label could otherwise never be the less likely.

    Raises:
        SoftPromptError: Two labels have the same ids, a label has none, or an end-of-text token is needed and the
            tokenizer has none.
    """

    label_ids: list[list[int]]

    def __init__(self, tokens: TaskTokenizer) -> None:
        super().__init__(tokens)
        self.label_ids = self._encode(self.labels)
        # Whether or not the row has a label, so that training, evaluation and prediction cut alike.
        self.reserve = max(map(len, self.label_ids))

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        gold = self.gold(rows)
        return [list(self.label_ids[label]) for label in gold] if len(gold) == len(rows) else None

    def likelihoods(self, asked: Asked) -> Tensor:
        return asked.score(self.label_ids)

    def _encode(self, labels: Sequence[str]) -> list[list[int]]:
        rendered = [self.task.render_target({LABEL_COLUMN: label}) for label in labels]
        found = self._tokens.following([[(target, False)] for target in rendered])
        owners: dict[tuple[int, ...], str] = {}
        for label, ids in zip(labels, found, strict=True):
            if not ids:
                raise SoftPromptError(f"task.labels: the tokenizer finds no tokens in {shown(label)}")
            other = owners.setdefault(tuple(ids), label)
            if other != label:
                raise SoftPromptError(
                    f"task.labels: {shown(other)} and {shown(label)} are the same tokens to this base; rename one"
                )
        # In sorted order a list comes right before the lists that it begins.
        if any(after[: len(before)] == before for before, after in pairwise(sorted(found))):
            end = self._tokens.end_of_text("a label that begins another one")
            found = [ids + end for ids in found]
        return found
