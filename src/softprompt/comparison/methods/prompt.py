"""Prompt tuning, as `softprompt train` does it.

Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning"
(https://aclanthology.org/2021.emnlp-main.243).
"""

from __future__ import annotations

import torch

from softprompt.comparison.measuring import median_seconds
from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.results import Trained
from softprompt.evaluation.evaluate import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.training.recipe import Recipe
from softprompt.training.run import train


class PromptTuning(Method):
    """`[P, H]` numbers before each row, learned by the plan's recipe."""

    name, title = "prompt", "Prompt tuning"

    def train(self, work: Work) -> Trained:
        return self.learn(work, work.prompt, work.recipe.model_copy(update={"learning_rate": work.setting}))

    def learn(self, work: Work, prompt: SoftPrompt, recipe: Recipe) -> Trained:
        """Train a prompt on the plan's rows, and keep it in the folder."""
        plan = work.plan
        task = plan.task if prompt.head is None else plan.task.answered_by("head")
        run = train(
            work.base,
            prompt,
            task,
            train=plan.train,
            validation=plan.validation,
            recipe=recipe,
            callbacks=[work.watch],
        )
        work.watch.seconds += run.fit_seconds
        run.prompt.save(work.folder, force=work.folder.exists())
        assert run.validation is not None, "there are validation rows"
        return work.trained(run.validation, run.prompt.trainable_parameters, run.best_step)

    def open(self, work: Work) -> Evaluator:
        prompt = SoftPrompt.load(work.folder, work.base)
        return work.evaluator(
            PromptedModel(work.base, [prompt], inference=True), prompt.card.log_priors(work.plan.task.labels)
        )

    def switch(self, work: Work) -> tuple[float, float | None]:
        """The other prompt's numbers are read, checked against the base and copied into the model."""
        other = SoftPrompt.load(work.folder, work.base)
        model = PromptedModel(work.base, [other], inference=True)

        @torch.no_grad()
        def put(prompt: SoftPrompt) -> None:
            model.prompts[0].copy_(prompt.embeddings)
            for head in model.heads:
                head.copy_(prompt.head)

        from_disk = median_seconds(lambda: put(SoftPrompt.load(work.folder, work.base)))
        return from_disk, median_seconds(lambda: put(other))
