"""What a report shows of a trained prompt beyond the run's own files: its words, its mistakes, its test figures.

Owns `report.json` in the run's folder, so that a report can be made again without the base and the data. Does not know
how any of it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation import Evaluation, predict
from softprompt.files import write_file
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.text import shorten

FINDINGS = "report.json"
_MOST_MISTAKES = 20
LONGEST_TEXT = 300  # characters of a text that a report shows


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Word(_Frozen):
    """A word near a virtual token, with their cosine."""

    token: str
    similarity: float


class Token(_Frozen):
    """A virtual token, as `softprompt inspect` describes it; see `TokenFindings`."""

    index: int
    norm: float
    drift: float | None = None
    start: str | None = None
    nearest: list[Word]


class InspectionSummary(_Frozen):
    """What `softprompt inspect` found."""

    tokens: list[Token]
    caption: str
    similarity: list[list[float]]
    continuation: str | None
    drift_unknown: str | None = None


class Mistake(_Frozen):
    """A row that was answered wrong.

    Attributes:
        place: where it stands in the data.
        text: its text, shortened.
        right: the right label or text.
        given: the answer.
        probability: of the answer, from 0 to 1; None for free text.
    """

    place: str
    text: str
    right: str
    given: str
    probability: float | None = None


class Findings(_Frozen):
    """All of `report.json`; None where something was not looked for.

    Attributes:
        prompt: the SHA-256 of the prompt that was looked at, as on its card.
    """

    prompt: str | None = None
    inspection: InspectionSummary | None = None
    mistakes: list[Mistake] | None = None
    test: Evaluation | None = None

    @classmethod
    def read(cls, folder: Path) -> Findings:
        """The findings in a run's folder; empty ones where there are none.

        Raises:
            SoftPromptError: the file is damaged or cannot be read.
        """
        path = folder / FINDINGS
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise SoftPromptError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError:
            raise SoftPromptError(f"{path} is damaged: delete it") from None

    def write(self, folder: Path) -> None:
        """Put the findings into a run's folder, at once or not at all."""
        write_file(folder / FINDINGS, self.model_dump_json(indent=1) + "\n")


def find_mistakes(
    base: Base,
    prompt: SoftPrompt,
    task: Task,
    rows: Sequence[Row],
    progress: Callable[[int], None] | None = None,
) -> list[Mistake]:
    """The rows that are answered wrong, the most confident answers first; at most 20.

    Free text is wrong where it isn't the target to the letter, white space around it aside; such rows come in their
    order.
    """
    if task.kind == "embedding":  # no answer is wrong by itself
        return []
    answers = predict(base, prompt, task, rows, progress=progress)
    found = []
    for row, answer in zip(rows, answers, strict=True):
        if task.labels is not None and row.label is not None and answer.label is not None:
            right, given = task.labels[row.label], answer.label
            probability: float | None = (answer.probabilities or {})[given]
        else:
            right, given, probability = (row.target or "").strip(), answer.output or "", None
        if right != given:
            found.append(
                Mistake(
                    place=row.place,
                    text=shorten(_text(row, task), LONGEST_TEXT),
                    right=shorten(right, LONGEST_TEXT),
                    given=shorten(given, LONGEST_TEXT),
                    probability=probability,
                )
            )
    found.sort(key=lambda mistake: -(mistake.probability or 0.0))
    return found[:_MOST_MISTAKES]


def _text(row: Row, task: Task) -> str:
    return row.columns[task.columns[0]] if len(task.columns) == 1 else task.render(row.columns)
