"""The seam between a comparison and its methods: what a method says of itself, and what it is given to work with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from softprompt.bases.load import load_base
from softprompt.comparison.measuring import Stopwatch, peak_memory
from softprompt.comparison.plan import Plan
from softprompt.comparison.results import Trained
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row
from softprompt.training.taskfile import make_prompt

RATE = "rate"
Tell = Callable[[int, int], None]
_STEP = 3.0  # between two rates of a grid: three of them span an order of magnitude


class UnusableError(SoftPromptError):
    """What is wrong with the plan itself, its base, its prompt or its labels: every method would fail alike."""


class Work:
    """One setting of a method with one seed: the plan, a freshly loaded base, and a folder for what is learned.

    The base may be changed. `prompt` is what prompt tuning starts from: the texts of all methods are cut as if it stood
    before them. `rows` are to be answered, for validation or for the test. `recipe` is the plan's with this seed, and
    `watch` belongs among the Trainer's callbacks. `tell` is called with the work that is done and how much there is.

    Raises:
        UnusableError: the plan's base, prompt or labels can't be used.
    """

    def __init__(
        self, plan: Plan, rows: Sequence[Row], setting: float | None, seed: int, folder: Path, tell: Tell
    ) -> None:
        self.plan, self.rows, self.setting, self.seed, self.folder, self._tell = plan, rows, setting, seed, folder, tell
        self.recipe = plan.recipe.model_copy(update={"seed": plan.recipe.seed + seed})
        self.watch = Stopwatch(lambda step: tell(step, self.recipe.max_steps))
        try:
            self.base = load_base(plan.base, **self.recipe.loading())
            start = plan.start.model_copy(update={"seed": plan.start.seed + seed})
            self.prompt = make_prompt(self.base, start, plan.task, plan.train)
            Encoder(self.base, plan.task, virtual_tokens=self.prompt.num_virtual_tokens)
        except SoftPromptError as error:
            raise UnusableError(str(error)) from None
        self._base_parameters = self.base.model.num_parameters()
        self._base_bytes = self.base.weight_bytes

    def evaluator(self, model: PromptedModel, log_priors: Sequence[float] | None = None) -> Evaluator:
        """The rows before a model with one prompt or none; `log_priors` are the labels', where it is calibrated.

        They are answered by the model's head where it has one, else by words.
        """
        virtual, task = self.prompt.num_virtual_tokens, self.plan.task.answered_by("head" if model.heads else "words")
        return Evaluator(model, task, self.rows, virtual_tokens=virtual, log_priors=log_priors)

    def ask(self, evaluator: Evaluator) -> tuple[Evaluation, list[int] | list[str]]:
        """The figures, and what they are of: the label's index or the text for each row."""
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            self._tell(done, len(self.rows))

        return evaluator.evaluate_answers(told)

    def trained(
        self,
        validation: Evaluation,
        trainable_parameters: int = 0,
        best_step: int = 0,
        peak: int | None = None,
        examples: int | None = None,
    ) -> Trained:
        """What training found, once what was learned lies in the folder; `peak` is the memory's where it rose since."""
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return Trained(
            trainable_parameters=trainable_parameters,
            base_parameters=self._base_parameters,
            base_bytes=self._base_bytes,
            artifact_bytes=sum(file.stat().st_size for file in files),
            peak_memory_bytes=peak_memory(self.base.device) if peak is None else peak,
            train_seconds=self.watch.seconds,
            best_seconds=self.watch.seconds_at(best_step),
            best_step=best_step,
            validation=validation,
            curve=self.watch.curve,
            losses=self.watch.losses,
            examples=examples,
        )


class Method(ABC):
    """A way to do a task. What a comparison has to know of it stands here: nobody asks which one it is.

    Attributes:
        name, title: as it is asked for, and as it is shown.
        tunes: what the settings of its grid are; None where there is nothing to choose.
        usual_rate: the middle of a grid of rates; None: that of the recipe, which is meant for the prompt.
        needs_base: whether the base is needed beside what it has learned.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    tunes: ClassVar[str | None] = RATE
    usual_rate: ClassVar[float | None] = None
    needs_base: ClassVar[bool] = True

    def grid(self, recipe_rate: float, *, one: bool) -> list[float | None]:
        """The settings to be tried: three where there are any, or the usual one alone."""
        usual = recipe_rate if self.usual_rate is None else self.usual_rate
        return [usual] if one else [usual / _STEP, usual, usual * _STEP]

    @abstractmethod
    def train(self, work: Work) -> Trained:
        """Learn the plan's task with the work's setting, leave what is learned in its folder, and validate that."""

    @abstractmethod
    def open(self, work: Work) -> Evaluator:
        """What lies in the work's folder, ready to answer the work's rows."""

    @abstractmethod
    def switch(self, work: Work) -> tuple[float, float | None]:
        """The median seconds in which a running program switches to what lies in the work's folder.

        From disk, and where it has been read before; None where nothing but reading helps.
        """
