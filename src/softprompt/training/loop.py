"""The training loop: `transformers.Trainer`, taught to train prompts and nothing else.

Owns what differs from the Trainer: rows in an order fixed by the seed, validation by the task's metric, the best of
each prompt kept, several prompts trained side by side as each would be alone, and checkpoints that hold prompts instead
of the base and are never half written. Knows nothing of task files, run folders or commands.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint, set_seed

from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.files import sync_all
from softprompt.models.prompted import PromptedModel
from softprompt.training.monitor import Monitor
from softprompt.training.privacy import Draws, flatten_drawn
from softprompt.training.processes import count
from softprompt.training.recipe import Recipe
from softprompt.training.schedule import Lanes, Schedule, flatten

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
_PROMPTS = "prompt.safetensors"
_STAGING = ".checkpoint-being-written"


class DivergedError(SoftPromptError):
    """The loss or its gradient is no longer a finite number."""


def diverged(what: str, step: int, recipe: Recipe, dtype: torch.dtype) -> DivergedError:
    """The error of a run in which `what` is no longer finite; in float16 the dtype may be the reason."""
    narrow = " on a base in float16, which holds no number above 65504" if dtype == torch.float16 else ""
    other = ", or recipe.dtype float32 or bfloat16" if narrow else ""
    return DivergedError(
        f"{what} became NaN or infinite at step {step} with learning_rate {recipe.rate:g}{narrow}: choose a lower "
        f"recipe.learning_rate{other}"
    )


class Learned(NamedTuple):
    """What a prompt has learned, on the CPU: `[P, H]`, and its head `[L, H]` where it has one."""

    embeddings: Tensor
    head: Tensor | None


@dataclass
class Member:
    """One of the prompts that are trained, and the best that it has been.

    Attributes:
        prompt: `[P, H]` as it is trained.
        head: `[L, H]` likewise, where there is one.
        evaluator: its validation rows; None: no validation.
        best: the best by validation; None before the first one.
        step: the step that the best is from.
        validation: the best's.
        since: validations since then.
    """

    prompt: Tensor
    head: Tensor | None = None
    evaluator: Evaluator | None = None
    best: Learned | None = None
    step: int = 0
    validation: Evaluation | None = None
    since: int = 0

    @property
    def learned(self) -> Learned:
        """What the training gives: the best by validation, or without it the last."""
        return self.now if self.best is None else self.best

    @property
    def now(self) -> Learned:
        """The prompt as it is now."""
        head = None if self.head is None else self.head.detach().cpu().clone()
        return Learned(self.prompt.detach().cpu().clone(), head)

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.prompt, *([] if self.head is None else [self.head])]


class PromptTrainer(Trainer):
    """Trains the prompts of a `PromptedModel`; the base is neither in the optimiser nor in a checkpoint.

    Args:
        model: the base with its prompts.
        recipe: the settings; `batch_size` rows for each prompt.
        schedules: each prompt's rows, in order; or of one prompt those that its privacy's mechanism draws.
        evaluators: each prompt's validation rows, asked every `recipe.evaluate_every` steps; None: no validation.
        folder: where checkpoints go.
        callbacks: further callbacks of the Trainer's kind.
        progress: called with the number of validation rows finished since the last call.
        monitor: measures the one prompt at each log entry; None: nobody does.

    Attributes:
        members: the prompts.
        mechanism: what makes the gradients private; None: nothing does.
    """

    model: PromptedModel

    def __init__(
        self,
        model: PromptedModel,
        recipe: Recipe,
        schedules: Sequence[Schedule] | Draws,
        evaluators: Sequence[Evaluator] | None,
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        progress: Callable[[int], None] | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.recipe, self.monitor = recipe, monitor
        self.mechanism = schedules.mechanism if isinstance(schedules, Draws) else None
        heads = list(model.heads) or [None] * len(model.prompts)
        checks: Sequence[Evaluator | None] = evaluators or [None] * len(heads)
        self.members = [Member(*parts) for parts in zip(model.prompts, heads, checks, strict=True)]
        self._folder, self._progress = folder, progress
        self._writing: Path | None = None
        self._shares = [1.0] * len(self.members)
        args = arguments(recipe, folder, model.base.device, validates=evaluators is not None)
        part = args.per_device_train_batch_size
        if isinstance(schedules, Draws):  # a step is one item; its rows are clipped, each by itself
            args.per_device_train_batch_size, args.max_grad_norm = 1, 0.0
        elif len(schedules) > 1:
            if args.world_size > 1:
                raise SoftPromptError("prompts are trained side by side in one process: start it without a launcher")
            # Each prompt's gradient is clipped by itself, in `part_gradients`.
            args.per_device_train_batch_size, args.max_grad_norm = part * len(schedules), 0.0
        _check_trackers(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=schedules if isinstance(schedules, Draws) else Lanes(schedules, part),
            eval_dataset=None if evaluators is None else evaluators[0].rows,
            data_collator=flatten if self.mechanism is None else flatten_drawn,
            callbacks=[_Turns(self), *([] if monitor is None else [monitor]), *callbacks],
        )
        self.remove_callback(PrinterCallback)

    @property
    def validates(self) -> bool:
        """Whether there are validation rows."""
        return self.members[0].evaluator is not None

    @property
    def ended(self) -> bool:
        """Whether no prompt goes on: the last `patience` validations of each brought nothing better."""
        return self.validates and all(member.since >= self.recipe.patience for member in self.members)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint in the folder."""
        found = get_last_checkpoint(str(self._folder))
        return None if found is None else Path(found)

    def go_on(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint on, where there are steps left, or from the start."""
        if checkpoint is not None:
            self.restore(checkpoint)
            if self.state.global_step >= self.recipe.max_steps or self.ended:
                return
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one step; which share of their targets is each prompt's is noted."""
        batches, total = super().get_batch_samples(*args, **kwargs)
        if len(self.members) > 1:
            counts = torch.zeros(len(self.members))
            for batch in batches:
                of_token = batch["prompt_index"].repeat_interleave(batch["lengths"])
                counts.index_add_(0, of_token, (batch["labels"] != -100).float())
            self._shares = (counts / counts.sum()).tolist()
        return batches, total

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, in which heads are a group of their own with a rate of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            set_rate(optimizer, list(self.model.heads), self.recipe.head_learning_rate)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step, which must leave a finite loss and finite gradients."""
        loss = self._private_step(*args) if self.mechanism else super().training_step(*args, **kwargs)
        grads = [member.prompt.grad for member in self.members]
        bad = [
            k
            for k, member in enumerate(self.members)
            if any(one.grad is not None and not bool(one.grad.isfinite().all()) for one in member.parameters)
        ]
        if bad or not torch.isfinite(loss):
            what = f"the gradient of prompt {bad[0]}" if bad and len(grads) > 1 else "the loss or its gradient"
            raise diverged(what, self.state.global_step + 1, self.recipe, self.model.base.dtype)
        if self.monitor is not None and grads[0] is not None:
            self.monitor.gradient(grads[0])
        return loss

    def _private_step(self, model: Any, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        """The mean loss of a step's rows, which is nobody else's business; the gradients that are left are private."""
        assert self.mechanism is not None
        inputs = self._prepare_inputs(inputs)
        losses, gradients = self.model.row_gradients(inputs["input_ids"], inputs["labels"], inputs["lengths"])
        private = self.mechanism.privatise(gradients, self.state.global_step)
        for one, gradient in zip(self.members[0].parameters, private, strict=True):
            one.grad = gradient
        return losses.mean() if len(losses) else losses.new_zeros(())

    def part_gradients(self) -> None:
        """Of several prompts give each the gradient of its own mean loss, clipped by itself."""
        if len(self.members) == 1:
            return
        for member, share in zip(self.members, self._shares, strict=True):
            trained = [one for one in member.parameters if one.grad is not None]
            for one in trained:
                one.grad.div_(share)  # type: ignore[union-attr]  # the loss is a mean over all prompts' targets
            if self.recipe.max_grad_norm:
                nn.utils.clip_grad_norm_(trained, self.recipe.max_grad_norm)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate each prompt that has not run out of patience, and keep it if it is its best so far."""
        found: list[Evaluation] = []
        for member in self.members:
            if member.evaluator is None:
                raise SoftPromptError("there are no validation rows")
            metric = member.evaluator.task.metric
            if member.since < self.recipe.patience:
                found.append(member.evaluator.evaluate(self._progress))
                member.since += 1
                if found[-1].better_than(member.validation, metric):
                    member.best, member.validation = member.now, found[-1]
                    member.step, member.since = self.state.global_step, 0
        figures = found[0].to_json()
        if len(self.members) > 1:
            figures = {metric: sum(getattr(one, metric) for one in found) / len(found)}
        metrics = {f"eval_{key}": float(value) for key, value in figures.items() if isinstance(value, int | float)}
        if self.mechanism is not None:
            step, delta = self.state.global_step, self.mechanism.settings.delta
            metrics["eval_epsilon"] = self.mechanism.spent(step)
            logger.info(
                "private: epsilon %.3g at delta %.3g is spent after %s steps", metrics["eval_epsilon"], delta, step
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A log entry, to which the monitor adds its figures so that experiment trackers show them."""
        if self.monitor is not None and "loss" in logs:
            logs |= self.monitor.measure(self.model, self.state.global_step, logs)
        super().log(logs, start_time)

    def restore(self, checkpoint: Path) -> None:
        """Take the prompts and the best of each from a checkpoint.

        Raises:
            SoftPromptError: the checkpoint is damaged.
        """
        try:
            with safe_open(checkpoint / _PROMPTS, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
                about = json.loads(file.metadata()["best"])
                if self.mechanism is not None:
                    self.mechanism.secret = int(file.metadata()["secret"])
            self.state = TrainerState.load_from_json(str(checkpoint / STATE))
            validated = [entry["step"] for entry in self.state.log_history if any(map(_is_validation, entry))]
            # Of one prompt an older softprompt wrote it alone.
            for k, best in enumerate(about if isinstance(about, list) else [about]):
                member, suffix = self.members[k], f".{k}" if isinstance(about, list) else ""
                with torch.no_grad():
                    member.prompt.copy_(tensors[f"trained.prompts.{k}"])
                    if member.head is not None:
                        member.head.copy_(tensors[f"trained.heads.{k}"])
                kept = tensors.get(f"best{suffix}")
                member.best = None if kept is None else Learned(kept, tensors.get(f"best.head.{k}"))
                member.step = best["step"]
                member.validation = None if best["evaluation"] is None else Evaluation(**best["evaluation"])
                member.since = sum(step > member.step for step in validated)
        except Exception as error:
            raise SoftPromptError(f"{checkpoint}: the checkpoint is damaged ({error}); remove it") from error

    # The Trainer has no public way to write a checkpoint elsewhere first, nor to leave the base out of it: these four
    # are what its own `_maybe_log_save_evaluate` and `train` call (transformers/trainer.py, since 4.x).

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or self._folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Written under another name and renamed, so that a kill leaves a whole checkpoint or none.
        name = f"checkpoint-{self.state.global_step}"
        self._writing = self._folder / _STAGING
        try:
            if self.args.should_save:
                shutil.rmtree(self._writing, ignore_errors=True)
            self.accelerator.wait_for_everyone()  # each process writes its own random state there
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                sync_all(self._writing / name)
                shutil.rmtree(self._folder / name, ignore_errors=True)
                os.replace(self._writing / name, self._folder / name)
                shutil.rmtree(self._writing, ignore_errors=True)
                for old in self._folder.glob("checkpoint-*"):
                    if old.name != name:
                        shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError, RuntimeError) as error:  # on a full disk torch.save raises a RuntimeError
            raise SoftPromptError(
                f"{self._folder}: the checkpoint can't be written; is the disk full? {error}"
            ) from error
        finally:
            self._writing = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = {f"best.{k}": one.best.embeddings for k, one in enumerate(self.members) if one.best is not None}
        named |= {f"trained.prompts.{k}": one.now.embeddings for k, one in enumerate(self.members)}
        heads = {f"best.head.{k}": one.best.head for k, one in enumerate(self.members) if one.best is not None}
        heads |= {f"trained.heads.{k}": one.now.head for k, one in enumerate(self.members)}
        tensors = named | {name: head for name, head in heads.items() if head is not None}
        about = [
            {"step": one.step, "evaluation": None if one.validation is None else one.validation.to_json()}
            for one in self.members
        ]
        secret = {} if self.mechanism is None else {"secret": str(self.mechanism.secret)}
        save_file(tensors, folder / _PROMPTS, metadata={"best": json.dumps(about), **secret})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.restore(Path(resume_from_checkpoint))


def set_rate(optimizer: torch.optim.Optimizer, heads: Sequence[Tensor], rate: float) -> None:
    """Give heads a group, and a rate, of their own."""
    if not heads:
        return
    own = {id(head) for head in heads}
    for group in optimizer.param_groups:
        group["params"] = [one for one in group["params"] if id(one) not in own]
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.add_param_group(settings | {"lr": rate, "params": list(heads)})


def _is_validation(key: str) -> bool:
    return key.startswith("eval_")


class _Turns(TrainerCallback):
    """What the Trainer has to be told at its turns: to validate the last step too, and when no prompt goes on."""

    def __init__(self, trainer: PromptTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.part_gradients()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and self._trainer.validates:
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._trainer.ended:
            control.should_training_stop = control.should_save = True


def arguments(recipe: Recipe, folder: Path, device: torch.device, validates: bool, **changed: Any) -> TrainingArguments:
    """The Trainer's arguments for a recipe; `changed` are those that are to differ.

    Raises:
        SoftPromptError: the batch can't be shared by the processes and the parts of a step.
    """
    processes = count()
    parts = processes * recipe.gradient_accumulation_steps
    if recipe.batch_size % parts:
        raise SoftPromptError(
            f"recipe.batch_size {recipe.batch_size} can't be shared by {processes} processes in "
            f"{recipe.gradient_accumulation_steps} parts each: choose a multiple of {parts}"
        )
    set_seed(recipe.seed)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.batch_size // parts,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "learning_rate": recipe.rate,
        "optim": "adamw_torch" if recipe.optimizer == "adamw" else "adafactor",
        "lr_scheduler_type": "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "eval_strategy": "steps" if validates else "no",
        "eval_steps": recipe.evaluate_every,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "logging_steps": recipe.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",  # no padding is among them
        "report_to": recipe.report_to or "none",
        "seed": recipe.seed,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",  # the schedule is in order already
        "disable_tqdm": True,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,  # each process's part of a batch has a prompt before it
    }
    return TrainingArguments(**settings | changed)


def _check_trackers(args: TrainingArguments) -> None:
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:  # not installed, or unknown
        raise SoftPromptError(f"recipe.report_to: {error}") from error
