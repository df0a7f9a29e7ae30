"""The bare base and a head that is fitted in closed form, the honest baseline of all that is trained: a linear probe.

Alain, Bengio 2016, "Understanding intermediate layers using linear classifier probes"
(https://arxiv.org/abs/1610.01644).
"""

from __future__ import annotations

from softprompt.comparison.methods.method import Work
from softprompt.comparison.methods.prompt import PromptTuning
from softprompt.comparison.results import Trained
from softprompt.errors import SoftPromptError
from softprompt.prompts.prompt import SoftPrompt


class LinearProbe(PromptTuning):
    """No virtual tokens; the head is all."""

    name, title, tunes = "probe", "Linear probe", None

    def grid(self, recipe_rate: float, *, one: bool) -> list[float | None]:
        return [None]

    def train(self, work: Work) -> Trained:
        labels = work.plan.task.labels
        if labels is None:
            raise SoftPromptError("a linear probe needs labels: this task generates free text")
        return self.learn(work, SoftPrompt.none(work.base, len(labels)), work.recipe)
