"""Prompt tuning, as `train` does it."""

from __future__ import annotations

from typing import ClassVar

import torch

from softprompt.comparison.methods.method import Learned, Method, Switch, Work, seconds
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.training.run import train


class Prompt(Method):
    """P virtual tokens."""

    name: ClassVar[str] = "prompt"
    title: ClassVar[str] = "Prompt tuning"
    marker: ClassVar[str] = "D"
    colour: ClassVar[str] = "#0072B2"

    def train(self, work: Work) -> Learned:
        watch, plan = work.watch(), work.plan
        recipe = work.recipe.model_copy(update={"learning_rate": work.setting})
        run = train(
            work.base,
            work.prompt,
            work.task,
            train=plan.train,
            validation=plan.validation,
            recipe=recipe,
            callbacks=[watch],
        )
        run.prompt.save(work.artifact, force=work.artifact.exists())
        assert run.validation is not None, "there are validation rows"
        return Learned(run.prompt.embeddings.numel(), run.validation, run.best_step, watch)

    def open(self, work: Work) -> Evaluator:
        prompt = SoftPrompt.load(work.artifact, work.base)
        log_priors = prompt.card.log_priors(work.task.labels)
        return work.evaluator(PromptedModel(work.base, [prompt]), work.task, test=True, log_priors=log_priors)

    def switch(self, work: Work) -> Switch:
        """The `[P, H]` numbers are read, checked against the base and copied into the model."""
        other = SoftPrompt.load(work.artifact, work.base)
        model = PromptedModel(work.base, [other])

        @torch.no_grad()
        def swap(prompt: SoftPrompt) -> None:
            model.prompts[0].copy_(prompt.embeddings)

        from_disk = seconds(lambda: swap(SoftPrompt.load(work.artifact, work.base)))
        return Switch(from_disk, seconds(lambda: swap(other)))
