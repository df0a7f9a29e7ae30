"""What LoRA and full fine-tuning share: Transformers' Trainer on prompt tuning's rows and batches, and its validation.

Which weights are trained, and what of them is kept, the two say themselves.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from softprompt.bases.base import Base
from softprompt.comparison.measuring import peak_memory
from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.results import Trained
from softprompt.evaluation.calibration import measure_priors, worth_keeping, worth_trying
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.files import write_file
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.training.loop import DivergedError, arguments
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule

_PRIORS = "priors.json"


class FineTuning(Method):
    """A base whose own weights change, or that gets others among them."""

    @abstractmethod
    def adapt(self, work: Work) -> tuple[Base, PreTrainedModel | PeftModel]:
        """A base, which is changed, and the model to train, in which what is to be learned asks for a gradient."""

    @abstractmethod
    def load(self, work: Work) -> Base:
        """The base with what was learned in it."""

    def save(self, model: Any, base: Base, folder: Path) -> None:
        """Put what has been learned so far into an empty folder."""
        model.save_pretrained(str(folder))

    def release(self, model: Any) -> None:
        """Make the trained model's base fit for `load`."""

    def train(self, work: Work) -> Trained:
        plan, recipe = work.plan, work.recipe.model_copy(update={"learning_rate": work.setting, "optimizer": "adamw"})
        set_seed(recipe.seed)
        base, model = self.adapt(work)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        evaluator = work.evaluator(PromptedModel(base, []))
        for weight in trained:  # which a prompted model's base has frozen
            weight.requires_grad_(True)

        def keep() -> None:
            shutil.rmtree(work.folder, ignore_errors=True)
            self.save(model, base, work.folder)

        virtual = work.prompt.num_virtual_tokens
        encoder = Encoder(base, plan.task, virtual_tokens=virtual, max_length=recipe.max_length)
        rows = encoder.encode_rows(plan.train)
        work.folder.parent.mkdir(parents=True, exist_ok=True)
        trainer = _Trainer(
            evaluator,
            keep,
            model=model,
            args=arguments(
                recipe, work.folder.parent, base.device, validates=True, **_options(recipe, work.base, base)
            ),
            train_dataset=Schedule(rows, recipe.batch_size, recipe.max_steps, recipe.seed),
            data_collator=pad_rows,
            callbacks=[_LastStep(), work.watch],
        )
        trainer.train()
        assert trainer.best is not None, "the last step is validated"
        peak = peak_memory(base.device)  # before another model is loaded
        self.release(model)
        validation = self._calibrated(work, trainer.best)
        return work.trained(validation, sum(weight.numel() for weight in trained), trainer.best_step, peak)

    def open(self, work: Work) -> Evaluator:
        file = work.folder / _PRIORS
        priors = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        return work.evaluator(PromptedModel(self.load(work), []), priors)

    def _calibrated(self, work: Work, plain: Evaluation) -> Evaluation:
        """Calibrate what was learned, as a prompt's training does: kept where the validation is better."""
        plan, setting = work.plan, work.recipe.calibrate
        if not worth_trying(setting, plan.task, validates=True):
            return plain
        model = PromptedModel(self.load(work), [])
        priors = measure_priors(model, plan.task, plan.train, virtual_tokens=work.prompt.num_virtual_tokens)
        evaluation = work.evaluator(model, priors).evaluate()
        if not worth_keeping(setting, evaluation, plain, plan.task.metric):
            return plain
        write_file(work.folder / _PRIORS, json.dumps(priors))
        return evaluation


def pad_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as `input_ids`, `attention_mask` and `labels` `[B, T]`, padded at the right; the target alone is learned."""
    ids = [torch.tensor(row["text"] + row["target"]) for row in rows]
    labels = [torch.tensor([-100] * len(row["text"]) + row["target"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class _Trainer(Trainer):
    """Transformers' Trainer, which validates by the task's metric and keeps the weights that are the best so far.

    `best` is the best validation, found at `best_step`; `keep` is called then. All else is the Trainer's.
    """

    def __init__(self, evaluator: Evaluator, keep: Callable[[], None], **settings: Any) -> None:
        self.best: Evaluation | None = None
        self.best_step = 0
        self._evaluator, self._keep = evaluator, keep
        super().__init__(eval_dataset=evaluator.rows, **settings)
        self.remove_callback(PrinterCallback)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step, which must leave a finite loss."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became NaN or infinite at step {self.state.global_step + 1} with learning rate "
                f"{self.args.learning_rate:g}"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, and keep the weights if they are the best so far."""
        evaluation = self._evaluator.evaluate()
        if evaluation.better_than(self.best, self._evaluator.task.metric):
            self.best, self.best_step = evaluation, self.state.global_step
            self._keep()
        figures = {key: value for key, value in evaluation.to_json().items() if isinstance(value, int | float)}
        metrics = {f"eval_{key}": float(value) for key, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _LastStep(TrainerCallback):
    """Validates the last step too, as a prompt's training does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def _options(recipe: Recipe, asked: Base, base: Base) -> dict[str, Any]:
    """What differs from the Trainer's arguments for a prompt; `asked` is the base in the dtype that was asked for."""
    options: dict[str, Any] = {"save_strategy": "no", "include_num_input_tokens_seen": "non_padding"}
    if base.dtype != asked.dtype:  # the weights are kept in 32 bits, the products are computed in 16
        options["bf16" if asked.dtype == torch.bfloat16 else "fp16"] = True
    if recipe.gradient_checkpointing:
        # Renamed in Transformers 5.24.
        renamed = hasattr(TrainingArguments, "activation_checkpointing")
        name = "activation_checkpointing" if renamed else "gradient_checkpointing"
        options |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return options
