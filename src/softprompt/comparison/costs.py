"""What a prompt would cost on this machine: its size, and the time and memory of a few real steps.

Owns the measurement. Nothing of it is kept: the prompt that it trains for three steps is thrown away.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from softprompt.bases.base import Base
from softprompt.comparison.measuring import Stopwatch, peak_memory
from softprompt.evaluation.evaluate import evaluate
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.heads import choose_answer, with_head
from softprompt.training.recipe import Recipe
from softprompt.training.run import rows_around, train

STEPS = 2
ROWS = 16


@dataclass(frozen=True)
class Costs:
    """What a run costs.

    Attributes:
        trainable_parameters: P x H.
        base_parameters: of the frozen base.
        artifact_bytes: of the prompt's folder, before its card tells of the training.
        step_seconds: of one optimiser step.
        row_seconds: of one validation row.
        train_seconds: of all steps, validations and calibration, if no validation ends the run before.
        peak_memory_bytes: of the process that took these steps: libraries, base and all; on a GPU allocated tensors.
    """

    trainable_parameters: int
    base_parameters: int
    artifact_bytes: int
    step_seconds: float
    row_seconds: float
    train_seconds: float
    peak_memory_bytes: int


def measure_costs(
    base: Base, prompt: SoftPrompt, task: Task, train_rows: Sequence[Row], checks: Sequence[Row], recipe: Recipe
) -> Costs:
    """Take one step to warm up and two that count, and answer 16 rows.

    Args:
        base: the frozen base.
        prompt: where a run would start from; it is not changed.
        task: what would be learned.
        train_rows: the training rows.
        checks: the validation rows; none: training rows are answered, and no validation is counted.
        recipe: the run's settings.

    Raises:
        SoftPromptError: the rows can't be trained on.
    """

    task = choose_answer(task, train_rows, prompt, base.family)
    prompt = with_head(prompt, task, base)

    def take(steps: int) -> float:
        watch = Stopwatch()
        settings = {"max_steps": steps, "save_every": steps, "log_every": steps, "monitor": False, "report_to": []}
        settings |= {"calibrate": False}
        with _unsaid(train.__module__):
            train(base, prompt, task, train=train_rows, recipe=recipe.model_copy(update=settings), callbacks=[watch])
        return watch.seconds / steps

    take(1)
    step_seconds = take(STEPS)
    asked = (checks or train_rows)[:ROWS]
    row_seconds = evaluate(base, prompt, task, asked).seconds / len(asked)
    answers = math.ceil(recipe.max_steps / recipe.evaluate_every) * len(checks)
    answers += sum(rows_around(task, recipe, len(train_rows), len(checks)))
    with tempfile.TemporaryDirectory(prefix="softprompt-") as folder:
        files = list(prompt.save(Path(folder) / "prompt").iterdir())
        artifact_bytes = sum(file.stat().st_size for file in files)
    return Costs(
        trainable_parameters=prompt.trainable_parameters,
        base_parameters=base.model.num_parameters(),
        artifact_bytes=artifact_bytes,
        step_seconds=step_seconds,
        row_seconds=row_seconds,
        train_seconds=recipe.max_steps * step_seconds + answers * row_seconds,
        peak_memory_bytes=peak_memory(base.device),
    )


@contextmanager
def _unsaid(module: str) -> Iterator[None]:
    """Within it a module's faults of the data, which here are those of so few steps, are not logged."""
    logger = logging.getLogger(module)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
