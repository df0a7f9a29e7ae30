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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
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
from softprompt.models.family import Batch, family_of
from softprompt.models.prompted import PromptedModel
from softprompt.models.readout import read_head
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoded, Encoder
from softprompt.tasks.task import Task
from softprompt.training.heads import fit_head, label_weights
from softprompt.training.loop import DivergedError, arguments, set_rate
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Schedule

_PRIORS = "priors.json"
_HEAD = "head.safetensors"


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
        asked = _asked(base, plan.task)
        evaluator = work.evaluator(asked)
        for weight in trained:  # which a prompted model's base has frozen
            weight.requires_grad_(True)

        def keep() -> None:
            shutil.rmtree(work.folder, ignore_errors=True)
            self.save(model, base, work.folder)
            _keep_head(asked, work.folder)

        rows = _encode(work, base)
        asked.label_weights = label_weights(rows, plan.task, recipe)
        with work.watch.timed():
            fit_head(asked, rows, plan.task, recipe)
        heads = list(asked.heads)
        work.folder.parent.mkdir(parents=True, exist_ok=True)
        trainer = _Trainer(
            evaluator,
            keep,
            heads,
            recipe.head_learning_rate,
            model=_Asked(model, asked) if heads or base.family.apart else model,
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
        validation = self._refitted(work, trainer.best) if heads else self._calibrated(work, trainer.best)
        parameters = sum(weight.numel() for weight in (*trained, *heads))
        return work.trained(validation, parameters, trainer.best_step, peak)

    def open(self, work: Work) -> Evaluator:
        file = work.folder / _PRIORS
        priors = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        return work.evaluator(self._loaded(work), priors)

    def _loaded(self, work: Work) -> PromptedModel:
        """What lies in the work's folder, with its head where it has one."""
        asked, file = _asked(self.load(work), work.plan.task), work.folder / _HEAD
        if asked.heads:
            with torch.no_grad():
                asked.heads[0].copy_(load_file(file)["score"])
        return asked

    def _refitted(self, work: Work, plain: Evaluation) -> Evaluation:
        """Fit the head again, as a prompt's training does: kept where the validation is better."""
        asked = self._loaded(work)
        rows = _encode(work, asked.base)
        with work.watch.timed():
            fit_head(asked, rows, work.plan.task, work.recipe)
        evaluation = work.evaluator(asked).evaluate()
        if not evaluation.better_than(plain, work.plan.task.metric):
            return plain
        _keep_head(asked, work.folder)
        return evaluation

    def _calibrated(self, work: Work, plain: Evaluation) -> Evaluation:
        """Calibrate what was learned, as a prompt's training does: kept where the validation is better."""
        plan, setting = work.plan, work.recipe.calibrate
        if not worth_trying(setting, plan.task, validates=True):
            return plain
        model = self._loaded(work)
        priors = measure_priors(model, plan.task, plan.train, virtual_tokens=work.prompt.num_virtual_tokens)
        evaluation = work.evaluator(model, priors).evaluate()
        if not worth_keeping(setting, evaluation, plain, plan.task.metric):
            return plain
        write_file(work.folder / _PRIORS, json.dumps(priors))
        return evaluation


class _Asked(nn.Module):
    """A model whose loss is that of the very states that it is asked by: of other families than causal, and of heads.

    For the rest it is that model.

    Args:
        model: what is trained.
        asked: the base in it, with the head, which is trained along, where it has one.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: nn.Module, asked: PromptedModel) -> None:
        super().__init__()
        self.model, self.heads, self._base = model, asked.heads, asked.base
        self._read, self._weights = asked.read, asked.label_weights

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a padded batch; see `pad_rows`."""
        base, family = self._base.model, family_of(self._base.model)
        asked = labels != -100
        rows, columns = asked.nonzero().cpu().T
        batch = Batch(
            tokens=input_ids[attention_mask.bool()].cpu(),
            lengths=attention_mask.sum(1).tolist(),
            prompt_of_text=[0] * len(input_ids),
            rows=rows,
            columns=columns if self.heads else columns - 1,  # a word is predicted one token before it
            read=self._read,
        )
        nothing = torch.zeros(0, self._base.hidden_size, device=input_ids.device)
        hidden = family.hidden(family.routes[-1], base, [nothing], batch)
        scores = read_head(hidden, self.heads[0]) if self.heads else family.logits(base, hidden)
        losses = functional.cross_entropy(scores, labels[asked], self._weights, reduction="none")
        return {"loss": losses.sum() / (asked.sum() if num_items_in_batch is None else num_items_in_batch)}


def _asked(base: Base, task: Task) -> PromptedModel:
    """The base as it is asked, with a head of zeros where the task is answered by one."""
    return PromptedModel(base, [SoftPrompt.none(base, len(task.labels or []))] if task.kind == "head" else [])


def _keep_head(asked: PromptedModel, folder: Path) -> None:
    for head in asked.heads:
        save_file({"score": head.detach().cpu()}, folder / _HEAD)


def _encode(work: Work, base: Base) -> Encoded:
    virtual = work.prompt.num_virtual_tokens
    encoder = Encoder(base, work.plan.task, virtual_tokens=virtual, max_length=work.recipe.max_length)
    return encoder.encode_rows(work.plan.train)


def pad_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as `input_ids`, `attention_mask` and `labels` `[B, T]`, padded at the right."""
    ids = [torch.tensor(row["ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class _Trainer(Trainer):
    """Transformers' Trainer, which validates by the task's metric and keeps the weights that are the best so far.

    `best` is the best validation, found at `best_step`; `keep` is called then. All else is the Trainer's.
    """

    def __init__(
        self, evaluator: Evaluator, keep: Callable[[], None], heads: Sequence[Tensor], rate: float, **settings: Any
    ) -> None:
        self._heads, self._rate = heads, rate
        self.best: Evaluation | None = None
        self.best_step = 0
        self._evaluator, self._keep = evaluator, keep
        super().__init__(eval_dataset=evaluator.rows, **settings)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, in which heads have a rate of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            set_rate(optimizer, self._heads, self._rate)
        return optimizer

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
