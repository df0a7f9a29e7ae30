"""The peers: LoRA by PEFT and full fine-tuning, both by Transformers' Trainer, on prompt tuning's rows and batches.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685).

Owns what is made trainable and what of it is saved. Validation is that of a prompt, with no prompt before the rows;
knows nothing of grids, tests or reports.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
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
from softprompt.comparison.methods import LORA_RANK
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.training.loop import DivergedError, arguments
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule


class Peer:
    """A base with something else than a prompt to train.

    Attributes:
        model: what the Trainer trains: a `PeftModel` with LoRA on all linear layers, or the base itself, unfrozen.
        judge: the same weights as a model without a prompt, to be measured like one with a prompt.

    Args:
        method: "lora" or "full".
        base: freshly loaded; its weights are changed.
        seed: of LoRA's first values.
    """

    def __init__(self, method: str, base: Base, seed: int) -> None:
        self.base = base
        set_seed(seed)
        self.model: PeftModel | PreTrainedModel = base.model
        if method == "lora":
            config = LoraConfig(
                task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear"
            )
            self.model = get_peft_model(base.model, config)
        else:
            base.model.requires_grad_(True)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.judge = PromptedModel(base, [])
        for weight in trained:  # which a prompted model's base has frozen
            weight.requires_grad_(True)

    @property
    def trainable_parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)

    def save(self, folder: Path) -> None:
        """Replace what is in `folder` by the weights as they are now: an adapter, or a whole model."""
        shutil.rmtree(folder, ignore_errors=True)
        self.model.save_pretrained(str(folder))
        if self.model is self.base.model:  # a model without its tokenizer answers nothing
            self.base.tokenizer.save_pretrained(str(folder))


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


class PeerTrainer(Trainer):
    """Trains a peer on a schedule of rows, validates by the task's metric and saves the best weights.

    Attributes:
        best: the best validation; None before the first one.
        best_step: the step it was found at.

    Args:
        peer: what is trained.
        recipe: the settings, with the peer's own rate.
        schedule: the rows, in order.
        evaluator: the validation rows, behind the peer's `judge`.
        metric: the figure that makes weights the best.
        folder: where the best weights go.
        callbacks: further callbacks of the Trainer's kind.
        precision: "bf16" or "fp16" for mixed precision, or None.
    """

    def __init__(
        self,
        peer: Peer,
        recipe: Recipe,
        schedule: Schedule,
        evaluator: Evaluator,
        metric: str,
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        precision: str | None = None,
    ) -> None:
        self.best: Evaluation | None = None
        self.best_step = 0
        self._peer, self._recipe, self._schedule, self._evaluator = peer, recipe, schedule, evaluator
        self._metric, self._artifact = metric, folder
        changed: dict[str, Any] = {"save_strategy": "no", "include_num_input_tokens_seen": "non_padding"}
        if precision is not None:
            changed[precision] = True
        if recipe.gradient_checkpointing:
            # Renamed in Transformers 5.24.
            known = {option.name for option in fields(TrainingArguments)}
            name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
            changed |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
        super().__init__(
            model=peer.model,
            args=arguments(recipe, folder.parent, peer.base.device, validates=True, **changed),
            train_dataset=schedule,
            eval_dataset=evaluator.rows,
            data_collator=pad_rows,
            callbacks=[_LastStep(), *callbacks],
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
        if evaluation.better_than(self.best, self._metric):
            self.best, self.best_step = evaluation, self.state.global_step
            self._peer.save(self._artifact)
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


def open_peer(method: str, base: Base, artifact: Path, load: Callable[[str], Base]) -> PromptedModel:
    """What a peer has learned, ready to be measured.

    Args:
        method: "lora" or "full".
        base: the base, into which LoRA's adapter is put.
        artifact: the adapter's folder, or the model's, which is loaded instead of the base.
        load: loads a base.
    """
    if method == "full":
        return PromptedModel(load(str(artifact)), [])
    model: Any = PeftModel.from_pretrained(base.model, str(artifact))
    return PromptedModel(replace(base, model=model.get_base_model()), [])
