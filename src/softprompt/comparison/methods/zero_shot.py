"""The bare base, asked in the task's template."""

from __future__ import annotations

from typing import ClassVar

from softprompt.comparison.methods.method import Learned, Method, Switch, Work
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.training.recipe import Recipe


class ZeroShot(Method):
    """Nothing is learned; its validation is all that there is."""

    name: ClassVar[str] = "zero-shot"
    title: ClassVar[str] = "Zero-shot"
    marker: ClassVar[str] = "o"
    colour: ClassVar[str] = "#808080"
    is_trained: ClassVar[bool] = False

    def settings(self, recipe: Recipe, *, one: bool) -> list[float | None]:
        return [None]

    def train(self, work: Work) -> Learned:
        evaluator = work.evaluator(PromptedModel(work.base, []), work.task, test=False)
        return Learned(0, evaluator.evaluate(work.told(len(work.plan.validation))))

    def open(self, work: Work) -> Evaluator:
        return work.evaluator(PromptedModel(work.base, []), work.task, test=True)

    def switch(self, work: Work) -> Switch:
        return Switch(0.0, 0.0)
