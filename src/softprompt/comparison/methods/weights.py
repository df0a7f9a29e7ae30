"""Training weights instead of a prompt, by the Trainer on the same batches: what LoRA and full fine-tuning share.

Owns the loop and what is calibrated and kept of it. Knows nothing of which weights are trained.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import set_seed

from softprompt.bases.base import Base
from softprompt.comparison.memory import peak_memory
from softprompt.comparison.methods.method import Learned, Method, Work
from softprompt.evaluation.calibration import measure_priors, worth_keeping, worth_trying
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.files import write_file
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.training.loop import DivergedError, arguments
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule

_PRIORS = "priors.json"


@dataclass(frozen=True)
class Weights:
    """A base some of whose weights are trained.

    Attributes:
        base: freshly loaded; its weights are changed.
        model: what the Trainer trains: the base's own model, or a `PeftModel` around it.
        precision: "bf16" or "fp16" for mixed precision, or None.
    """

    base: Base
    model: PeftModel | PreTrainedModel
    precision: str | None = None

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)

    def judge(self) -> PromptedModel:
        """The same weights as a model without a prompt, to be measured like one with a prompt."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        model = PromptedModel(self.base, [])
        for weight in trained:  # which a prompted model's base has frozen
            weight.requires_grad_(True)
        return model

    def save(self, folder: Path) -> None:
        """Replace what is in `folder` by the weights as they are now: an adapter, or a whole model."""
        shutil.rmtree(folder, ignore_errors=True)
        self.model.save_pretrained(str(folder))
        if self.model is self.base.model:  # a model without its tokenizer answers nothing
            self.base.tokenizer.save_pretrained(str(folder))


class WeightTuning(Method):
    """A method that trains weights."""

    @abstractmethod
    def prepare(self, work: Work) -> Weights:
        """The weights to train, AdamW's."""

    @abstractmethod
    def load(self, work: Work, *, again: bool) -> Base:
        """A base with what was learned; `again`: the work's own base has been changed by training."""

    def train(self, work: Work) -> Learned:
        set_seed(work.recipe.seed)
        weights = self.prepare(work)
        recipe = work.recipe.model_copy(update={"learning_rate": work.setting, "optimizer": "adamw"})
        virtual = work.prompt.num_virtual_tokens
        encoder = Encoder(weights.base, work.task, virtual_tokens=virtual, max_length=recipe.max_length)
        schedule = Schedule(encoder.encode_rows(work.plan.train), recipe.batch_size, recipe.max_steps, recipe.seed)
        watch = work.watch()
        evaluator = work.evaluator(weights.judge(), work.task, test=False)
        work.artifact.parent.mkdir(parents=True, exist_ok=True)
        trainer = WeightTrainer(weights, recipe, schedule, evaluator, work.artifact, watch)
        trainer.train()
        assert trainer.best is not None, "the last step is validated"
        peak = peak_memory(work.base.device)  # before a second base is loaded
        return Learned(weights.trainable, self._calibrated(work, trainer.best), trainer.best_step, watch, peak)

    def open(self, work: Work) -> Evaluator:
        file = work.artifact / _PRIORS
        priors = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        return work.evaluator(PromptedModel(self.load(work, again=False), []), work.task, test=True, log_priors=priors)

    def _calibrated(self, work: Work, plain: Evaluation) -> Evaluation:
        """Calibrate what was learned, as a prompt's training does: kept where the validation is better."""
        setting = work.recipe.calibrate
        if not worth_trying(setting, work.task, validates=True):
            return plain
        model = PromptedModel(self.load(work, again=True), [])
        priors = measure_priors(model, work.task, work.plan.train, virtual_tokens=work.prompt.num_virtual_tokens)
        evaluation = work.evaluator(model, work.task, test=False, log_priors=priors).evaluate()
        if not worth_keeping(setting, evaluation, plain, work.task.metric):
            return plain
        write_file(work.artifact / _PRIORS, json.dumps(priors))
        return evaluation


def with_model(base: Base, model: Any) -> Base:
    """The base with another model in it."""
    return replace(base, model=model)


def pad_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as `input_ids`, `attention_mask` and `labels` `[B, T]`, padded at the right; the target alone is learned."""
    width = max(len(row["text"]) + len(row["target"]) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for i, row in enumerate(rows):
        start, stop = len(row["text"]), len(row["text"]) + len(row["target"])
        input_ids[i, :stop] = torch.tensor(row["text"] + row["target"])
        mask[i, :stop] = 1
        labels[i, start:stop] = torch.tensor(row["target"])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


class WeightTrainer(Trainer):
    """Trains weights on a schedule of rows, validates by the task's metric and saves the best weights.

    Attributes:
        best: the best validation; None before the first one.
        best_step: the step it was found at.

    Args:
        weights: what is trained.
        recipe: the settings, with the method's own rate.
        schedule: the rows, in order.
        evaluator: the validation rows, before the weights' `judge`.
        folder: where the best weights go.
        watch: the clock.
    """

    def __init__(
        self,
        weights: Weights,
        recipe: Recipe,
        schedule: Schedule,
        evaluator: Evaluator,
        folder: Path,
        watch: TrainerCallback,
    ) -> None:
        self.best: Evaluation | None = None
        self.best_step = 0
        self._weights, self._recipe, self._schedule, self._evaluator = weights, recipe, schedule, evaluator
        self._artifact = folder
        changed: dict[str, Any] = {"save_strategy": "no", "include_num_input_tokens_seen": "non_padding"}
        if weights.precision is not None:
            changed[weights.precision] = True
        if recipe.gradient_checkpointing:
            # Renamed in Transformers 5.24.
            known = {option.name for option in fields(TrainingArguments)}
            name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
            changed |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
        super().__init__(
            model=weights.model,
            args=arguments(recipe, folder.parent, weights.base.device, validates=True, **changed),
            train_dataset=schedule,
            eval_dataset=evaluator.rows,
            data_collator=pad_rows,
            callbacks=[_LastStep(), watch],
        )
        self.remove_callback(PrinterCallback)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step, which must leave a finite loss."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became NaN or infinite at step {self.state.global_step + 1} with learning rate "
                f"{self._recipe.rate:g}"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, and save the weights if they are the best so far."""
        evaluation = self._evaluator.evaluate()
        if evaluation.better_than(self.best, self._evaluator.task.metric):
            self.best, self.best_step = evaluation, self.state.global_step
            self._weights.save(self._artifact)
        figures = {key: value for key, value in evaluation.to_json().items() if isinstance(value, int | float)}
        metrics = {f"eval_{key}": float(value) for key, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self._schedule)  # the schedule is in order already


class _LastStep(TrainerCallback):
    """Validates the last step too, as a prompt's training does."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
