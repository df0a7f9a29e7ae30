"""Answers and figures: a base behind a prompt, asked about the rows of a task.

Owns the way from rows to predictions and from predictions to an `Evaluation`. Knows nothing of training, reports or
servers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.models.readout import read_heads
from softprompt.models.scoring import embeddings, final_states, score
from softprompt.prompts.ensemble import Ensemble, vote
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers.answer import Asked, Embedded, Prediction, Progress, label_probabilities
from softprompt.tasks.encode import Encoded, Encoder
from softprompt.tasks.rows import Row, Rows, as_rows, rows_from
from softprompt.tasks.task import Task

logger = logging.getLogger(__name__)
Ask = Callable[[PromptedModel, Encoded, Progress | None], Asked]
_MOST_IN_CARD = 12  # labels, of which a card keeps all figures: they grow with their square


class Evaluation(BaseModel):
    """Figures of one evaluation, each from 0 to 1 unless said; those that the kind of task has not are None.

    Attributes:
        n: rows.
        accuracy, macro_f1, log_loss, per_label, confusion: see `classification_metrics`.
        exact_match, token_f1, rouge_l, bleu: see `text_metrics`.
        f1, precision, recall: of tags, those of whole entities; see `tasks/answers/tags.py`. Their accuracy is that of
            words.
        recall_at_1, recall_at_5, recall_at_10: of embeddings, the share of texts whose own target is among the so many
            nearest of all targets.
        mrr: the mean of 1 / the own target's rank.
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
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    recall_at_1: float | None = None
    recall_at_5: float | None = None
    recall_at_10: float | None = None
    mrr: float | None = None
    truncated: int = 0
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The figures that the task has, for `--json` and cards."""
        return self.model_dump(exclude_none=True)

    def for_card(self) -> dict[str, Any]:
        """The figures as a card keeps them: of many labels, without those of each label and pair of labels."""
        many = len(self.per_label or ()) > _MOST_IN_CARD
        return self.model_dump(exclude_none=True, exclude={"per_label", "confusion"} if many else None)

    def merit(self, metric: str) -> tuple[float, float]:
        """What a choice goes by, see `merit`."""
        return merit(getattr(self, metric), self.log_loss)

    def better_than(self, other: Evaluation | None, metric: str) -> bool:
        """Whether this is the one to keep; it is where there is no other."""
        return other is None or self.merit(metric) > other.merit(metric)


def merit(score: float, log_loss: float | None) -> tuple[float, float]:
    """What a choice goes by, the more the better: the task's metric; of equals, the lower log loss."""
    return score, -(log_loss or 0.0)


class Evaluator:
    """Rows of a task, encoded once, to be asked as often as wanted (as in validation during training).

    Args:
        model: the base with one prompt, or with none.
        task: what is asked.
        rows: from `load_rows` or `rows_from`.
        virtual_tokens: texts are cut as behind so many; None: as many as the model's prompt has.
        log_priors: of the task's labels, from the prompt's card where that is calibrated.
        ask: what makes of a model, texts and `progress` that which is asked; default: all texts in this process.
    """

    def __init__(
        self,
        model: PromptedModel,
        task: Task,
        rows: Sequence[Row],
        *,
        virtual_tokens: int | None = None,
        log_priors: Sequence[float] | None = None,
        ask: Ask | None = None,
    ) -> None:
        self._ask = ask or Texts
        task = task.resolved(head=bool(model.heads)) if model.prompts else task.answered_by("words")
        self.model, self.task, self.rows, self._log_priors = model, task, rows, log_priors
        virtual = len(model.vectors()[0]) if virtual_tokens is None else virtual_tokens
        encoder = Encoder(model.base, task, virtual_tokens=virtual)
        self.answer = encoder.answer
        self._encoded = encoder.encode_rows(rows, reserve=self.answer.new_tokens, whole=True)
        tell_cut(self._encoded, encoder.max_tokens)

    @property
    def truncated(self) -> int:
        """Texts that were cut to fit the context."""
        return self._encoded.truncated

    def likelihoods(self, progress: Progress | None = None) -> torch.Tensor:
        """`[n, L]` float32: each label's log-likelihood given the text, as the model has it."""
        return self.answer.likelihoods(self._ask(self.model, self._encoded, progress))

    def answers(self, progress: Progress | None = None) -> Any:
        """The answers in the form that the task's kind of answer (`answer`) takes them.

        Of labels `[n, L]` float64: each label's likelihood given the text, divided by the label's prior where the
        prompt is calibrated, made to sum to 1 over the labels. Of free text n texts.
        """
        return self.answer.read(self._ask(self.model, self._encoded, progress), self._log_priors)

    def predict(self, progress: Progress | None = None) -> list[Prediction]:
        """The answer to each row."""
        cut = [False] * len(self.rows) if self.answer.in_windows else self._encoded.cut
        return self.answer.predictions(self.answers(progress), cut)

    def evaluate(self, progress: Progress | None = None) -> Evaluation:
        """The figures over all rows, which need targets."""
        return self.evaluate_answers(progress)[0]

    def evaluate_answers(self, progress: Progress | None = None) -> tuple[Evaluation, list[Any]]:
        """The figures, and what they are of: for each row the label's index, or the text."""
        start = time.perf_counter()
        found = self.answers(progress)
        figures = self.answer.figures(found, self._encoded.gold or [])
        seconds = time.perf_counter() - start
        return Evaluation(**figures, truncated=self.truncated, seconds=seconds), self.answer.best(found)


@dataclass(frozen=True)
class Texts:
    """Texts before a model, to be asked by a kind of answer; see `Asked`. With K prompts each is asked behind each.

    Attributes:
        model: the base with its prompts.
        encoded: the texts.
        progress: called with the number of texts finished since the last call.
    """

    model: PromptedModel
    encoded: Encoded
    progress: Progress | None

    @property
    def ids(self) -> Sequence[Sequence[int]]:
        return self.encoded.input_ids

    def score(self, continuations: Sequence[Sequence[int]]) -> torch.Tensor:
        return score(self.model, self._every, continuations, self._index, self._told())

    def read_head(self) -> torch.Tensor:
        if not self.model.heads:
            raise SoftPromptError("the task is answered by a head, which this prompt has not: train it with one")
        heads = [head.detach().cpu() for head in self.model.heads]
        places, of_place = self.places, self._index
        if places is not None:
            places = [*places] * len(heads)
            of_place = [k for k, some in zip(of_place, places, strict=True) for _ in some]
        states = final_states(self.model, self._every, self._index, self._told(), places)
        return read_heads(states, heads, of_place)

    @property
    def rows(self) -> Sequence[Row]:
        return self.encoded.rows

    @property
    def owners(self) -> Sequence[int]:
        return self.encoded.owners

    @property
    def places(self) -> Sequence[Sequence[int]] | None:
        return self.encoded.places

    def embed(self) -> Embedded:
        of_rows = [tuple(ids) for ids in self.encoded.target_ids or []]
        number = {ids: i for i, ids in enumerate(dict.fromkeys(of_rows))}
        texts = embeddings(self.model, [*self.ids, *number])
        if self.progress is not None:
            self.progress(len(self.ids))
        own = [number[ids] for ids in of_rows]
        return Embedded(texts[: len(self.ids)], texts[len(self.ids) :] if of_rows else None, own)

    @property
    def _index(self) -> list[int]:
        return [k for k in range(max(1, len(self.model.prompts))) for _ in self.ids]

    @property
    def _every(self) -> Sequence[Sequence[int]]:
        count = len(self.model.prompts)
        return self.ids if count < 2 else [*self.ids] * count

    def _told(self) -> Progress | None:
        """Tells of rows: with K prompts K texts are one."""
        count, done = max(1, len(self.model.prompts)), 0

        def advance(finished: int) -> None:
            nonlocal done
            before, done = done // count, done + finished
            if self.progress is not None:
                self.progress(done // count - before)

        return advance

    def generate(self, max_new_tokens: int) -> list[str]:
        base = self.model.base
        answers = generate(
            self.model, self.ids, max_new_tokens=max_new_tokens, ends=base.end_ids, progress=self.progress
        )
        texts: list[str] = base.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]


class _Vote(Evaluator):
    """The same of an ensemble, whose members all answer in the same batches."""

    def __init__(self, base: Base, ensemble: Ensemble, task: Task, rows: Sequence[Row]) -> None:
        if task.labels is None:
            raise SoftPromptError("an ensemble votes on labels: this task generates free text")
        model = PromptedModel(base, [prompt.for_labels(task.labels) for prompt in ensemble.prompts], inference=True)
        super().__init__(model, task, rows, virtual_tokens=ensemble.num_virtual_tokens)
        self._priors = [prompt.card.log_priors(task.labels) for prompt in ensemble.prompts]

    def answers(self, progress: Progress | None = None) -> torch.Tensor:
        found = self.answer.likelihoods(Texts(self.model, self._encoded, progress))
        of_member = zip(found.view(len(self._priors), len(self.rows), -1), self._priors, strict=True)
        return vote(torch.stack([label_probabilities(scores, priors) for scores, priors in of_member]))


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
    base: Base,
    prompt: SoftPrompt | Ensemble | None,
    task: Task,
    data: Rows,
    *,
    progress: Progress | None = None,
    ask: Ask | None = None,
) -> Evaluation:
    """Measure a prompt on labelled rows.

    Args:
        base: the frozen base.
        prompt: the prompt, or the ensemble, checked against the base; None measures the bare base (zero-shot).
        task: what is asked.
        data: a file or `hub:OWNER/NAME:SPLIT` (see `load_rows`), or rows.
        progress: called with the number of rows finished since the last call.
        ask: see `Evaluator`; an ensemble's texts are all asked in this process.

    Raises:
        SoftPromptError: the data cannot be used.
        WrongBaseError: the prompt was made for another base.
    """
    rows = as_rows(data, task)
    return _evaluator(base, prompt, task, rows, ask).evaluate(progress)


def predict(
    base: Base,
    prompt: SoftPrompt | Ensemble | None,
    task: Task,
    inputs: Iterable[Any],
    *,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answer texts.

    Args:
        base: the frozen base.
        prompt: the prompt, or the ensemble, checked against the base; None asks the bare base.
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


def _evaluator(
    base: Base, prompt: SoftPrompt | Ensemble | None, task: Task, rows: Sequence[Row], ask: Ask | None = None
) -> Evaluator:
    if prompt is not None:
        prompt.check_base(base)
    if isinstance(prompt, Ensemble):
        return _Vote(base, prompt, task, rows)
    model = PromptedModel(base, [] if prompt is None else [prompt.for_labels(task.labels)], inference=True)
    log_priors = None if prompt is None else prompt.card.log_priors(task.labels)
    return Evaluator(model, task, rows, log_priors=log_priors, ask=ask)
