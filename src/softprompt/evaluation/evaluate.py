"""Answers and figures: a base behind a prompt, asked about the rows of a task.

Owns the way from rows to predictions and from predictions to an `Evaluation`. Knows nothing of training, reports or
servers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import label_probabilities, score
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoded, Encoder
from softprompt.tasks.metrics import classification_metrics, text_metrics
from softprompt.tasks.rows import Row, Rows, as_rows, rows_from
from softprompt.tasks.task import Task

Progress = Callable[[int], None]
logger = logging.getLogger(__name__)


class Evaluation(BaseModel):
    """Figures of one evaluation, each from 0 to 1 unless said; those that the kind of task has not are None.

    Attributes:
        n: rows.
        accuracy, macro_f1, log_loss, per_label, confusion: see `classification_metrics`.
        exact_match, token_f1, rouge_l, bleu: see `text_metrics`.
        truncated: texts that were cut to fit the context.
        seconds: time taken.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    accuracy: float | None = None
    macro_f1: float | None = None
    log_loss: float | None = None
    per_label: dict[str, dict[str, float]] | None = None
    confusion: list[list[int]] | None = None
    exact_match: float | None = None
    token_f1: float | None = None
    rouge_l: float | None = None
    bleu: float | None = None
    truncated: int = 0
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures that the task has, for `--json` and cards."""
        return self.model_dump(exclude_none=True)

    def merit(self, metric: str) -> tuple[float, float]:
        """What a choice goes by, see `merit`."""
        return merit(getattr(self, metric), self.log_loss)

    def better_than(self, other: Evaluation | None, metric: str) -> bool:
        """Whether this is the one to keep; it is where there is no other."""
        return other is None or self.merit(metric) > other.merit(metric)


def merit(score: float, log_loss: float | None) -> tuple[float, float]:
    """What a choice goes by, the more the better: the task's metric; of equals, the lower log loss."""
    return score, -(log_loss or 0.0)


class Prediction(BaseModel):
    """The answer to one text.

    Attributes:
        label, probabilities: for classification, the likeliest label and every label's probability (they sum to 1).
        output: for free text, the generated text.
        truncated: whether the text was cut to fit the base's context.
    """

    model_config = ConfigDict(frozen=True)

    label: str | None = None
    probabilities: dict[str, float] | None = None
    output: str | None = None
    truncated: bool = False


class Evaluator:
    """Rows of a task, encoded once, to be asked as often as wanted (as in validation during training).

    Args:
        model: the base with one prompt, or with none.
        task: what is asked.
        rows: from `load_rows` or `rows_from`.
        virtual_tokens: texts are cut as behind so many; None: as many as the model's prompt has.
        log_priors: of the task's labels, from the prompt's card where that is calibrated.
    """

    def __init__(
        self,
        model: PromptedModel,
        task: Task,
        rows: Sequence[Row],
        *,
        virtual_tokens: int | None = None,
        log_priors: Sequence[float] | None = None,
    ) -> None:
        self.model, self.task, self.rows, self._log_priors = model, task, rows, log_priors
        virtual = len(model.vectors()[0]) if virtual_tokens is None else virtual_tokens
        self._encoder = Encoder(model.base, task, virtual_tokens=virtual)
        self._encoded = self._encoder.encode_rows(rows, reserve=0 if task.labels else task.max_new_tokens)
        tell_cut(self._encoded, self._encoder.max_tokens)

    @property
    def truncated(self) -> int:
        """Texts that were cut to fit the context."""
        return self._encoded.truncated

    def probabilities(self, progress: Progress | None = None) -> torch.Tensor:
        """`[n, L]` float64: each label's likelihood given the text, made to sum to 1 over the labels.

        A label's likelihood is that of its whole token sequence, divided by the label's prior where the prompt is
        calibrated; all labels share the text's computation.
        """
        return label_probabilities(self.likelihoods(progress), self._log_priors)

    def likelihoods(self, progress: Progress | None = None) -> torch.Tensor:
        """`[n, L]` float32: each label's log-likelihood given the text, as the model has it."""
        labels = self._encoder.label_ids
        if labels is None:
            raise SoftPromptError("this task generates free text: it has no labels to choose from")
        return score(self.model, self._encoded.input_ids, labels, progress=progress)

    def outputs(self, progress: Progress | None = None) -> list[str]:
        """The generated text for each row, at most `task.max_new_tokens` tokens, without white space around it."""
        answers = generate(
            self.model,
            self._encoded.input_ids,
            max_new_tokens=self.task.max_new_tokens,
            ends=self.model.base.end_ids,
            progress=progress,
        )
        texts: list[str] = self.model.base.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def predict(self, progress: Progress | None = None) -> list[Prediction]:
        """The answer to each row."""
        labels, cut = self.task.labels, self._encoded.cut
        if labels is None:
            answers = zip(self.outputs(progress), cut, strict=True)
            return [Prediction(output=output, truncated=was_cut) for output, was_cut in answers]
        return [
            Prediction(
                label=max(zip(row, labels, strict=True), key=lambda pair: pair[0])[1],
                probabilities=dict(zip(labels, row, strict=True)),
                truncated=was_cut,
            )
            for row, was_cut in zip(self.probabilities(progress).tolist(), cut, strict=True)
        ]

    def evaluate(self, progress: Progress | None = None) -> Evaluation:
        """The figures over all rows, which need targets."""
        start = time.perf_counter()
        if self.task.labels is None:
            figures = text_metrics(self.outputs(progress), self._encoded.references or [])
        else:
            figures = classification_metrics(
                self._encoded.label or [], self.probabilities(progress).numpy(), self.task.labels
            )
        return Evaluation(**figures, truncated=self.truncated, seconds=time.perf_counter() - start)


def tell_cut(encoded: Encoded, room: int | None) -> None:
    """Say how many texts were cut to fit their room, if any were."""
    if encoded.truncated:
        logger.warning(
            "%s of %s texts were cut: the base's context has room for %s tokens of text and answer",
            f"{encoded.truncated:,}",
            f"{len(encoded.cut):,}",
            f"{room:,}",
        )


def evaluate(
    base: Base, prompt: SoftPrompt | None, task: Task, data: Rows, *, progress: Progress | None = None
) -> Evaluation:
    """Measure a prompt on labelled rows.

    Args:
        base: the frozen base.
        prompt: the prompt, checked against the base; None measures the bare base (zero-shot).
        task: what is asked.
        data: a file or `hub:OWNER/NAME:SPLIT` (see `load_rows`), or rows.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: the data cannot be used.
        WrongBaseError: the prompt was made for another base.
    """
    rows = as_rows(data, task)
    return _evaluator(base, prompt, task, rows).evaluate(progress)


def predict(
    base: Base,
    prompt: SoftPrompt | None,
    task: Task,
    inputs: Iterable[Any],
    *,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answer texts.

    Args:
        base: the frozen base.
        prompt: the prompt, checked against the base; None asks the bare base.
        task: what is asked.
        inputs: texts, where the template has one column, or a mapping of its columns for each row, or rows; or a data
            frame, a `datasets.Dataset`, or a file as a `Path`.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: a text is empty or a column is missing.
        WrongBaseError: the prompt was made for another base.
    """
    rows = rows_from(inputs, task)
    return _evaluator(base, prompt, task, rows).predict(progress) if rows else []


def _evaluator(base: Base, prompt: SoftPrompt | None, task: Task, rows: Sequence[Row]) -> Evaluator:
    if prompt is not None:
        prompt.check_base(base)
    model = PromptedModel(base, [] if prompt is None else [prompt])
    log_priors = None if prompt is None else prompt.card.log_priors(task.labels)
    return Evaluator(model, task, rows, log_priors=log_priors)
