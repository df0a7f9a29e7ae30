"""The training loop: `transformers.Trainer`, taught to train prompts and nothing else.

Owns what differs from the Trainer: batches of rows of like length in an order fixed by the seed, validation by the
task's metric, the best prompt kept, and checkpoints that hold prompts instead of the base and are never half written.
Knows nothing of task files, output folders or commands.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint, set_seed

from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation, Evaluator, merit
from softprompt.files import sync_all
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoded
from softprompt.training.monitor import Monitor
from softprompt.training.processes import count
from softprompt.training.recipe import Recipe

STATE = "trainer_state.json"
_PROMPT = "prompt.safetensors"
_TRAINED = "trained.prompts.0"
_STAGING = ".checkpoint-being-written"
# Batches whose rows are sorted by length together: enough for little padding, few enough to stay shuffled.
_SORTED_BATCHES = 50


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


class Schedule(Dataset[dict[str, Any]]):
    """The rows of a whole run in the order in which they are learned, a function of the seed alone.

    Every row is seen once before any is seen again. Rows of like length stand in one batch; the batches are shuffled.

    Args:
        encoded: the training rows.
        batch_size: rows in a batch.
        batches: batches in the run.
        seed: of the order.
    """

    def __init__(self, encoded: Encoded, batch_size: int, batches: int, seed: int) -> None:
        if encoded.target_ids is None:
            raise SoftPromptError("training rows need targets")
        self._texts, self._targets = encoded.input_ids, encoded.target_ids
        lengths = torch.tensor([len(x) + len(y) for x, y in zip(self._texts, self._targets, strict=True)])
        generator = torch.Generator().manual_seed(seed)
        passes = math.ceil(batches * batch_size / len(lengths))
        rows = torch.cat([torch.randperm(len(lengths), generator=generator) for _ in range(passes)])
        chunks = []
        for some in rows[: batches * batch_size].split(_SORTED_BATCHES * batch_size):
            together = some[lengths[some].argsort(descending=True, stable=True)].split(batch_size)
            chunks += [together[i] for i in torch.randperm(len(together), generator=generator).tolist()]
        self._order: list[int] = torch.cat(chunks).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self._order[place]
        return {"text": self._texts[row], "target": self._targets[row]}


def flatten(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as a flat batch: `input_ids` and `labels` `[N]`, text after text, and their `lengths` `[B]`.

    The target alone is learned. Where rows name their prompt, `prompt_index` `[B]` says which.
    """
    ids = [token for row in rows for token in (*row["text"], *row["target"])]
    labels = [label for row in rows for label in (*(-100 for _ in row["text"]), *row["target"])]
    batch = {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "lengths": torch.tensor([len(row["text"]) + len(row["target"]) for row in rows]),
    }
    return batch | ({"prompt_index": torch.tensor([row["prompt"] for row in rows])} if "prompt" in rows[0] else {})


class PromptTrainer(Trainer):
    """Trains the one prompt of a `PromptedModel`; the base is neither in the optimiser nor in a checkpoint.

    Attributes:
        best: the best prompt so far, `[P, H]` on the CPU; None before the first validation.
        best_evaluation: its validation.
        best_step: the step it was found at.

    Args:
        model: the base with one prompt.
        recipe: the settings.
        schedule: the rows, in order.
        evaluator: the validation rows, asked every `recipe.evaluate_every` steps; None: no validation.
        metric: the figure of an `Evaluation` that makes a prompt the best.
        folder: where checkpoints go.
        callbacks: further callbacks of the Trainer's kind.
        progress: called with the number of validation rows finished since the last call.
        monitor: measures the prompt at each log entry; None: nobody does.
    """

    model: PromptedModel

    def __init__(
        self,
        model: PromptedModel,
        recipe: Recipe,
        schedule: Schedule,
        evaluator: Evaluator | None,
        metric: str,
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        progress: Any = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.recipe, self.evaluator, self.metric, self.monitor = recipe, evaluator, metric, monitor
        self.best: Tensor | None = None
        self.best_evaluation: Evaluation | None = None
        self.best_step = 0
        self._folder, self._schedule = folder, schedule
        self._writing: Path | None = None
        self._progress = progress
        args = arguments(recipe, folder, model.base.device, validates=evaluator is not None)
        _check_trackers(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=schedule,
            eval_dataset=None if evaluator is None else evaluator.rows,
            data_collator=flatten,
            callbacks=[_Validations(self), *([] if monitor is None else [monitor]), *callbacks],
        )
        self.remove_callback(PrinterCallback)

    @property
    def prompt(self) -> Tensor:
        """The prompt as it would be saved now, `[P, H]` on the CPU."""
        prompt: Tensor = self.model.prompts[0].detach().cpu().clone()
        return prompt

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint in the folder."""
        found = get_last_checkpoint(str(self._folder))
        return None if found is None else Path(found)

    def out_of_patience(self, history: Sequence[dict[str, Any]]) -> bool:
        """Whether the last `patience` validations of a log brought nothing better, as `Evaluation` has it."""
        name = f"eval_{self.metric}"
        merits = [merit(entry[name], entry.get("eval_log_loss")) for entry in history if name in entry]
        return bool(merits) and len(merits) - 1 - merits.index(max(merits)) >= self.recipe.patience

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate the prompt on all validation rows and keep it if it is the best so far."""
        if self.evaluator is None:
            raise SoftPromptError("there are no validation rows")
        evaluation = self.evaluator.evaluate(self._progress)
        if evaluation.better_than(self.best_evaluation, self.metric):
            self.best, self.best_evaluation, self.best_step = self.prompt, evaluation, self.state.global_step
        figures = {key: value for key, value in evaluation.to_json().items() if isinstance(value, int | float)}
        metrics = {f"eval_{key}": float(value) for key, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step, which must leave a finite loss and gradient."""
        loss = super().training_step(*args, **kwargs)
        grad = self.model.prompts[0].grad
        if not (torch.isfinite(loss) and (grad is None or bool(torch.isfinite(grad).all()))):
            step = self.state.global_step + 1
            raise diverged("the loss or its gradient", step, self.recipe, self.model.base.dtype)
        if self.monitor is not None and grad is not None:
            self.monitor.gradient(grad)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A log entry, to which the monitor adds its figures so that experiment trackers show them."""
        if self.monitor is not None and "loss" in logs:
            logs |= self.monitor.measure(self.model, self.state.global_step, logs)
        super().log(logs, start_time)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self._schedule)  # the schedule is in order already

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
        tensors = {} if self.best is None else {"best": self.best}
        tensors[_TRAINED] = self.prompt
        evaluation = None if self.best_evaluation is None else self.best_evaluation.to_json()
        about = json.dumps({"step": self.best_step, "evaluation": evaluation})
        save_file(tensors, folder / _PROMPT, metadata={"best": about})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Take the prompt and the best prompt from a checkpoint.

        Raises:
            SoftPromptError: the checkpoint is damaged.
        """
        try:
            with safe_open(checkpoint / _PROMPT, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
                best = json.loads(file.metadata()["best"])
            self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        except Exception as error:
            raise SoftPromptError(f"{checkpoint}: the checkpoint is damaged ({error}); remove it") from error
        with torch.no_grad():
            self.model.prompts[0].copy_(tensors[_TRAINED])
        self.best, self.best_step = tensors.get("best"), best["step"]
        if best["evaluation"] is not None:
            self.best_evaluation = Evaluation(**best["evaluation"])


class _Validations(TrainerCallback):
    """Validates the last step too, and stops a run that is out of patience."""

    def __init__(self, trainer: PromptTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and self._trainer.evaluator is not None:
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._trainer.out_of_patience(state.log_history):
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
