"""What a method of the comparison is, and what it works with.

Owns the seam: a new method is a file beside this one with a class of `Method`, and a line in `METHODS`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import ClassVar

import torch

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.comparison.plan import Plan
from softprompt.comparison.stopwatch import Stopwatch
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe
from softprompt.training.taskfile import make_prompt

_STEP = 3.0  # between two rates of a grid: three of them span an order of magnitude
TIMES = 5  # a switch is measured


class Work:
    """One job: the base, freshly loaded, and the rows.

    Args:
        plan: the comparison's.
        setting: that the method is tried with; None: it has none.
        seed: of the order of the rows and of what is drawn.
        artifact: where what is learned goes: a file or folder of this name.
        tell: called with the work that is done and how much there is.
    """

    def __init__(
        self, plan: Plan, setting: float | None, seed: int, artifact: Path, tell: Callable[[int, int], None]
    ) -> None:
        self.plan, self.setting, self.seed, self.artifact, self._tell = plan, setting, seed, artifact, tell
        self.task = plan.task
        self.recipe: Recipe = plan.recipe.model_copy(update={"seed": plan.recipe.seed + seed})
        self.base = self.load(plan.base)
        start = plan.start.model_copy(update={"seed": plan.start.seed + seed})
        self.prompt: SoftPrompt = make_prompt(self.base, start, plan.task, plan.train)
        weights = list(self.base.model.parameters())
        self.base_parameters = self.base.model.num_parameters()
        self.base_bytes = sum(weight.numel() * weight.element_size() for weight in weights)

    def load(self, name: str, dtype: str | None = None) -> Base:
        """A base, in the recipe's dtype unless said."""
        return load_base(name, dtype=dtype or self.recipe.dtype)

    def evaluator(
        self, model: PromptedModel, task: Task, test: bool, log_priors: Sequence[float] | None = None
    ) -> Evaluator:
        """The test or the validation rows before a model. The same texts for all: those without a prompt are cut as if
        there were one, unless the template is another."""
        virtual = self.prompt.num_virtual_tokens if task is self.task else 0
        rows = self.plan.test if test else self.plan.validation
        return Evaluator(model, task, rows, virtual_tokens=virtual, log_priors=log_priors)

    def watch(self) -> Stopwatch:
        """A clock that tells of each step."""
        return Stopwatch(lambda steps: self._tell(steps, self.recipe.max_steps))

    def told(self, total: int) -> Callable[[int], None]:
        """What takes the number of rows finished since the last call, of so many in all."""
        done = 0

        def told(rows: int) -> None:
            nonlocal done
            done += rows
            self._tell(done, total)

        return told


@dataclass(frozen=True)
class Learned:
    """What training brought.

    Attributes:
        trainable: numbers that were trained.
        validation: of what is kept.
        best_step: that it is from.
        watch: the training's clock and curves; None where nothing was trained.
        peak: bytes of memory at the end of training; None: measured when all is done.
        more: further keys of the result.
    """

    trainable: int
    validation: Evaluation
    best_step: int = 0
    watch: Stopwatch | None = None
    peak: int | None = None
    more: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Switch:
    """How long a running program takes to switch to another task, medians in seconds.

    Attributes:
        from_disk: read the other task's file and put it in place.
        in_memory: put in place what was read before; None where nothing but reading it helps.
    """

    from_disk: float
    in_memory: float | None


class Method(ABC):
    """One way to do a task.

    Attributes:
        name: in `--methods` and files.
        title: in tables.
        marker, colour: in figures, matplotlib's; the colours are Okabe and Ito's.
        unit: of its settings.
        is_trained: whether these are learning rates.
        needs_base: whether what is learned needs the base beside it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    marker: ClassVar[str]
    colour: ClassVar[str]
    unit: ClassVar[str] = "rate"
    is_trained: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    def settings(self, recipe: Recipe, *, one: bool) -> list[float | None]:
        """What it is tried with: three settings, or one; a method that has none gives [None]."""
        middle = self.rate(recipe)
        return [middle] if one else [middle / _STEP, middle, middle * _STEP]

    def rate(self, recipe: Recipe) -> float:
        """The middle of its learning rates."""
        return recipe.rate

    @abstractmethod
    def train(self, work: Work) -> Learned:
        """Learn the task, and keep what is learned at `work.artifact`.

        Raises:
            DivergedError: the loss is no longer finite.
        """

    @abstractmethod
    def open(self, work: Work) -> Evaluator:
        """The test rows, before what was learned."""

    @abstractmethod
    def switch(self, work: Work) -> Switch:
        """Measure a switch; may change the base."""


def seconds(work: Callable[[], object], times: int = TIMES) -> float:
    """The median time of `work`, after one call that warms up."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])
