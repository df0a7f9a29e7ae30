"""Zero-shot: the base as it is, asked with the task's template. Nothing is learned and nothing is kept."""

from __future__ import annotations

from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.results import Trained
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel


class ZeroShot(Method):
    """The bare base."""

    name, title, tunes = "zero-shot", "Zero-shot", None

    def grid(self, recipe_rate: float, *, one: bool) -> list[float | None]:
        return [None]

    def train(self, work: Work) -> Trained:
        validation, _ = work.ask(self.open(work))
        return work.trained(validation)

    def open(self, work: Work) -> Evaluator:
        return work.evaluator(PromptedModel(work.base, [], inference=True))

    def switch(self, work: Work) -> tuple[float, float | None]:
        return 0.0, 0.0
