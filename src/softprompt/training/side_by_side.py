"""K prompts trained in one batch: each learns what it would learn in a run of its own.

Owns the batch of all prompts' rows, and the parting of what the Trainer would mix: the loss's denominator, the
clipping, the best step. Knows nothing of what the prompts are for (`ensemble`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row, check_trainable
from softprompt.tasks.task import Task
from softprompt.training.recipe import Recipe
from softprompt.training.trainer import Schedule, arguments, diverged, flatten


@dataclass
class Member:
    """One of the prompts.

    Attributes:
        embeddings: `[P, H]` on the CPU: the best by validation, or without it the last.
        step: the step they are from.
        validation: their validation; None without validation rows.
    """

    embeddings: Tensor
    step: int = 0
    validation: Evaluation | None = None
    _since: int = field(default=0, repr=False)  # validations since the best


def train_side_by_side(
    base: Base,
    prompts: Sequence[SoftPrompt],
    task: Task,
    *,
    train: Sequence[Row],
    validation: Sequence[Row] | None,
    recipe: Recipe,
    seeds: Sequence[int],
    callbacks: Sequence[TrainerCallback] = (),
) -> list[Member]:
    """Train K prompts together, each as `train` would alone with its seed.

    Args:
        base: the frozen base.
        prompts: where to start from; they are not changed.
        task: what is learned.
        train: labelled rows.
        validation: likewise; None: the last prompts are kept.
        recipe: the settings; `batch_size` rows for each prompt. Its monitor has no part in this.
        seeds: of the order of each prompt's rows.
        callbacks: callbacks of the Trainer's kind.

    Raises:
        SoftPromptError: the rows can't be used, the recipe asks for what only a run of one prompt has, or there are
            several processes.
        WrongBaseError: a prompt was made for another base.
        DivergedError: a prompt's gradient became NaN or infinite.
    """
    if recipe.calibrate is True:
        raise SoftPromptError("recipe.calibrate is for one prompt alone, not for several side by side")
    for prompt in prompts:
        prompt.check_base(base)
    check_trainable(train, task)
    model = PromptedModel(
        base, prompts, max_tokens=recipe.max_tokens, gradient_checkpointing=recipe.gradient_checkpointing
    )
    schedules = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        encoder = Encoder(base, task, virtual_tokens=prompt.num_virtual_tokens, max_length=recipe.max_length)
        encoded = encoder.encode_rows(train)
        schedules.append(Schedule(encoded, recipe.batch_size, recipe.max_steps, seed))
    evaluators = None
    if validation is not None:
        # Each prompt is asked alone: the very tensor that is trained, before the same base.
        evaluators = [Evaluator(PromptedModel(base, [prompt]), task, validation) for prompt in model.prompts]
    with tempfile.TemporaryDirectory(prefix="softprompt-") as folder:
        trainer = _Trainer(model, recipe, schedules, evaluators, task.metric, Path(folder), callbacks)
        trainer.train()
    return trainer.members


class _Lanes(Dataset[dict[str, Any]]):
    """The prompts' schedules, a part of each prompt's batch at a time."""

    def __init__(self, schedules: Sequence[Schedule], part: int) -> None:
        self._schedules, self._part = schedules, part

    def __len__(self) -> int:
        return len(self._schedules) * len(self._schedules[0])

    def __getitem__(self, place: int) -> dict[str, Any]:
        batch, within = divmod(place, self._part * len(self._schedules))
        lane, row = divmod(within, self._part)
        return self._schedules[lane][batch * self._part + row] | {"prompt": lane}


class _Trainer(Trainer):
    """Trains all prompts of a `PromptedModel`, none of which touches another."""

    model: PromptedModel

    def __init__(
        self,
        model: PromptedModel,
        recipe: Recipe,
        schedules: Sequence[Schedule],
        evaluators: Sequence[Evaluator] | None,
        metric: str,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.members = [Member(prompt.detach().cpu().clone()) for prompt in model.prompts]
        self._recipe, self._evaluators, self._metric = recipe, evaluators, metric
        self._shares = torch.ones(len(schedules))
        settings = arguments(
            recipe,
            folder,
            model.base.device,
            validates=evaluators is not None,
            save_strategy="no",
            # Clipping is where each prompt gets its own gradient back, so it has always to take place.
            max_grad_norm=recipe.max_grad_norm or math.inf,
        )
        if settings.world_size > 1:
            raise SoftPromptError("prompts are trained side by side in one process: start it without a launcher")
        part = settings.per_device_train_batch_size
        settings.per_device_train_batch_size = part * len(schedules)
        self._lanes = _Lanes(schedules, part)
        super().__init__(
            model=model,
            args=settings,
            train_dataset=self._lanes,
            eval_dataset=None if evaluators is None else evaluators[0].rows,
            data_collator=flatten,
            callbacks=[_Ends(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one step; how many of their targets are each prompt's is noted."""
        batches, total = super().get_batch_samples(*args, **kwargs)
        counts = torch.zeros(len(self.members))
        for batch in batches:
            of_token = batch["prompt_index"].repeat_interleave(batch["lengths"])
            counts.index_add_(0, of_token, (batch["labels"] != -100).float())
        self._shares = counts / counts.sum()
        return batches, total

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """The gradients as each prompt's own mean loss has them, each clipped by itself; the largest norm."""
        norms = []
        for i, (prompt, share) in enumerate(zip(self.model.prompts, self._shares.tolist(), strict=True)):
            if prompt.grad is None:
                continue
            prompt.grad.div_(share)  # the loss is a mean over all prompts' targets
            if not bool(prompt.grad.isfinite().all()):
                step, dtype = self.state.global_step + 1, self.model.base.dtype
                raise diverged(f"the gradient of prompt {i}", step, self._recipe, dtype)
            norms.append(nn.utils.clip_grad_norm_([prompt], self.args.max_grad_norm))
        return torch.stack(norms).max()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate each prompt that has not run out of patience, and keep it if it is its best so far."""
        assert self._evaluators is not None, "there are validation rows"
        for member, evaluator, prompt in zip(self.members, self._evaluators, self.model.prompts, strict=True):
            if member._since >= self._recipe.patience:
                continue
            found = evaluator.evaluate()
            member._since += 1
            if found.better_than(member.validation, self._metric):
                member.embeddings, member.step = prompt.detach().cpu().clone(), self.state.global_step
                member.validation, member._since = found, 0
        scores = [getattr(member.validation, self._metric) for member in self.members if member.validation]
        metrics = {f"eval_{self._metric}": sum(scores) / len(scores)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def ended(self) -> bool:
        """Whether no prompt goes on."""
        return all(member._since >= self._recipe.patience for member in self.members)

    def take_last(self) -> None:
        """Without validation the last prompts are the result."""
        if self._evaluators is None:
            for member, prompt in zip(self.members, self.model.prompts, strict=True):
                member.embeddings, member.step = prompt.detach().cpu().clone(), self.state.global_step

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self._lanes)


class _Ends(TrainerCallback):
    """Validates the last step too, and ends the run when all prompts are out of patience."""

    def __init__(self, trainer: _Trainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and self._trainer._evaluators is not None:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or self._trainer.ended()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.take_last()
