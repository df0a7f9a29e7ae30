"""The seam between a task and its kinds of answers: from rows to what is learned, and from what a base says to figures.

Knows nothing of models: they are asked through `Asked`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from softprompt.errors import SoftPromptError
from softprompt.tasks.metrics import classification_metrics
from softprompt.tasks.rows import Row
from softprompt.tasks.tokens import TaskTokenizer

Progress = Callable[[int], None]


class Prediction(BaseModel):
    """The answer to one text.

    Attributes:
        label, probabilities: for classification, the likeliest label and every label's probability (they sum to 1).
        output: for free text, the generated text; of tags, these.
        embedding: of a text that is embedded, H numbers, whose squares sum to 1.
        truncated: whether the text was cut to fit the base's context.
    """

    model_config = ConfigDict(frozen=True)

    label: str | None = None
    probabilities: dict[str, float] | None = None
    output: str | None = None
    embedding: list[float] | None = None
    truncated: bool = False


class Embedded(NamedTuple):
    """Embeddings of length 1.

    Attributes:
        texts: `[n, H]` float32.
        targets: `[m, H]` of the rows' targets, each once; None where the rows have none.
        own: of each text, which of the targets is its row's.
    """

    texts: Tensor
    targets: Tensor | None
    own: list[int]


class Asked(Protocol):
    """A base behind its prompts, as a kind of answer asks it; texts are token ids.

    Attributes:
        places: of each text the tokens at which the head is read, see `Answer.places`.
        rows: whose texts they are, or windows of such rows.
        owners: of each text its row, counted from 0.
    """

    @property
    def places(self) -> Sequence[Sequence[int]] | None: ...
    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def owners(self) -> Sequence[int]: ...

    def score(self, continuations: Sequence[Sequence[int]]) -> Tensor:
        """`[n, C]` float32: the log-likelihood of each continuation after each text."""

    def read_head(self) -> Tensor:
        """`[n, L]`: the scores that the prompt's head gives for each text, or for each place in turn; see `places`."""

    def embed(self) -> Embedded:
        """The embeddings of the texts and of their rows' targets."""

    def generate(self, max_new_tokens: int) -> list[str]:
        """The likeliest text after each text, without white space around it."""


class Answer(ABC):
    """What an answer to a task is: what follows a text, how an answer is read, and how good it is.

    Args:
        tokens: the task, and how its parts become ids.

    Attributes:
        reserve: tokens to keep free after each text whether or not its row has a target.
        new_tokens: the most tokens that are generated after a text.
        label_ids: each label's target ids, where the labels are words.
        is_text: whether the target takes no room from the text.
        in_windows: whether a text that is too long is read in windows, and not cut.
    """

    reserve = 0
    new_tokens = 0
    label_ids: list[list[int]] | None = None
    is_text = False
    in_windows = False

    def __init__(self, tokens: TaskTokenizer) -> None:
        self.task, self._tokens = tokens.task, tokens

    @abstractmethod
    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        """The ids that follow each row's text; None where the rows have no targets."""

    @abstractmethod
    def gold(self, rows: Sequence[Row]) -> list[Any]:
        """The right answer of each row: a label's index, a text, or the labels' indices of its words."""

    def places(self, rows: Sequence[Row], texts: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """The tokens of each row's text, as ids, at which the head is read; None: each text is read as a whole."""
        return None

    def learned(
        self, text: Sequence[int], target: Sequence[int], gold: Any, places: Sequence[int] | None = None
    ) -> list[int]:
        """What is learned at each token of a text with its target, -100 for nothing: by default the target's ids."""
        return [*(-100 for _ in text), *target]

    def windows(self, row: Row, room: int | None) -> list[Row]:
        """The row in windows that fit the room, where texts are read so."""
        return [row]

    def learned_window(self, row: Row, room: int | None) -> Row:
        """The one of the windows that is learned."""
        return row

    def learned_gold(self, rows: Sequence[Row]) -> list[Any]:
        """What `learned` takes for each row: by default what is right."""
        return self.gold(rows)

    @abstractmethod
    def read(self, asked: Asked, log_priors: Sequence[float] | None = None) -> Any:
        """What the base answers to its texts: n answers in the form that the other methods take.

        Args:
            asked: the base with its texts.
            log_priors: of the task's labels, to be taken out, where it has labels.
        """

    @abstractmethod
    def best(self, found: Any) -> list[Any]:
        """Each answer in the form that `gold` has."""

    @abstractmethod
    def predictions(self, found: Any, cut: Sequence[bool]) -> list[Prediction]:
        """Each answer for people; `cut` says which texts were cut."""

    @abstractmethod
    def figures(self, found: Any, gold: Sequence[Any]) -> dict[str, Any]:
        """How good the answers are: fields of `Evaluation`."""

    def likelihoods(self, asked: Asked) -> Tensor:
        """`[n, L]` float32: each label's log-likelihood given the text, as the base has it.

        Raises:
            SoftPromptError: the task has no labels.
        """
        raise SoftPromptError("this task generates free text: it has no labels to choose from")


class Labels(Answer):
    """One of the task's labels; `found` is `[n, L]` float64, their probabilities."""

    @property
    def labels(self) -> list[str]:
        """The task's L labels."""
        return self.task.labels or []

    def gold(self, rows: Sequence[Row]) -> list[int]:
        return [row.label for row in rows if row.label is not None]

    def read(self, asked: Asked, log_priors: Sequence[float] | None = None) -> Tensor:
        return label_probabilities(self.likelihoods(asked), log_priors)

    def best(self, found: Tensor) -> list[int]:
        return [max(range(len(row)), key=row.__getitem__) for row in found.tolist()]

    def predictions(self, found: Tensor, cut: Sequence[bool]) -> list[Prediction]:
        return [
            Prediction(
                label=self.labels[best], probabilities=dict(zip(self.labels, row, strict=True)), truncated=was_cut
            )
            for row, best, was_cut in zip(found.tolist(), self.best(found), cut, strict=True)
        ]

    def figures(self, found: Tensor, gold: Sequence[int]) -> dict[str, Any]:
        return classification_metrics(gold, found.numpy(), self.labels)


def label_probabilities(likelihoods: Tensor, log_priors: Sequence[float] | None = None) -> Tensor:
    """Likelihoods made to sum to 1 over the labels, float64.

    Args:
        likelihoods: `[..., L]` log-likelihoods.
        log_priors: of the L labels, to be taken out first: subtracted from the log-likelihoods.
    """
    scores = likelihoods.double()
    if log_priors is not None:
        scores = scores - torch.tensor(log_priors, dtype=torch.float64)
    return scores.softmax(-1)
