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
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
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
from softprompt.training.schedule import Lanes, Schedule, flatten, of_prompts

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


@dataclass(frozen=True)
class Lane:
    """What one of the prompts is trained on, and who looks on.

    Attributes:
        schedule: its rows, in order; of the only prompt also those that its privacy's mechanism draws.
        evaluator: its validation rows, asked every `recipe.evaluate_every` steps; None: no validation.
        monitor: measures the prompt at each log entry; None: nobody does.
        callbacks: callbacks of the Trainer's kind. Of several prompts each one's are told of the start, of a step's
            end, of log entries and of validations, of this prompt alone.
        patience: validations without a better one after which it ends; None: as the recipe says.
    """

    schedule: Schedule | Draws
    evaluator: Evaluator | None = None
    monitor: Monitor | None = None
    callbacks: Sequence[TrainerCallback] = ()
    patience: int | None = None


@dataclass
class Member:
    """One of the prompts that are trained, and the best that it has been.

    Attributes:
        prompt: `[P, H]` as it is trained.
        head: `[L, H]` likewise, where there is one.
        evaluator: its validation rows; None: no validation.
        patience: validations without a better one after which it ends.
        best: the best by validation; None before the first one.
        step: the step that the best is from.
        validation: the best's.
        since: validations since then.
        ended: of several prompts, the step after which this one did not go on; None: it does.
        error: why, where its gradient was no longer finite.
        history: of several prompts, this one's log entries.
    """

    prompt: Tensor
    head: Tensor | None = None
    evaluator: Evaluator | None = None
    patience: int = 1
    best: Learned | None = None
    step: int = 0
    validation: Evaluation | None = None
    since: int = 0
    ended: int | None = None
    error: DivergedError | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether it still learns."""
        return self.error is None and (self.evaluator is None or self.since < self.patience)

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

    @property
    def is_finite(self) -> bool:
        """Whether its gradients, where there are any, are numbers."""
        return all(one.grad is None or bool(one.grad.isfinite().all()) for one in self.parameters)


class PromptTrainer(Trainer):
    """Trains the prompts of a `PromptedModel`; the base is neither in the optimiser nor in a checkpoint.

    Args:
        model: the base with its prompts.
        recipe: the settings; `batch_size` rows for each prompt.
        lanes: each prompt's rows, and who looks on.
        folder: where checkpoints go.
        callbacks: further callbacks of the Trainer's kind.
        progress: called with the number of validation rows finished since the last call.
        apart: of several prompts one whose gradient is no longer finite ends alone; else it ends them all.

    Attributes:
        members: the prompts.
        mechanism: what makes the gradients private; None: nothing does.
    """

    model: PromptedModel

    def __init__(
        self,
        model: PromptedModel,
        recipe: Recipe,
        lanes: Sequence[Lane],
        folder: Path,
        callbacks: Sequence[TrainerCallback] = (),
        progress: Callable[[int], None] | None = None,
        apart: bool = False,
    ) -> None:
        drawn = lanes[0].schedule if isinstance(lanes[0].schedule, Draws) else None
        self.mechanism = None if drawn is None else drawn.mechanism
        self.recipe, self._lanes, self._apart = recipe, lanes, apart
        heads = list(model.heads) or [None] * len(lanes)
        self.members = [
            Member(prompt, head, lane.evaluator, lane.patience or recipe.patience)
            for prompt, head, lane in zip(model.prompts, heads, lanes, strict=True)
        ]
        self._folder, self._progress = folder, progress
        self._writing: Path | None = None
        self._sides = None if len(lanes) == 1 else _Sides(len(lanes))
        self.monitor = lanes[0].monitor if self._sides is None else None
        args = arguments(recipe, folder, model.base.device, validates=self.validates)
        part = args.per_device_train_batch_size
        if drawn is not None:  # a step is one item; its rows are clipped, each by itself
            args.per_device_train_batch_size, args.max_grad_norm = 1, 0.0
        elif self._sides is not None:
            if args.world_size > 1:
                raise SoftPromptError("prompts are trained side by side in one process: start it without a launcher")
            # Each prompt's gradient is clipped by itself, in `part_gradients`.
            args.per_device_train_batch_size, args.max_grad_norm = part * len(lanes), 0.0
        _check_trackers(args)
        schedules = [lane.schedule for lane in lanes if isinstance(lane.schedule, Schedule)]
        self._finite = _Finite(late=model.base.device.type != "cpu")
        own = [] if self._sides is not None else [*_each(self.monitor), *lanes[0].callbacks]
        super().__init__(
            model=model,
            args=args,
            train_dataset=Lanes(schedules, part) if drawn is None else drawn,
            eval_dataset=next((lane.evaluator.rows for lane in lanes if lane.evaluator is not None), None),
            data_collator=flatten if drawn is None else flatten_drawn,
            callbacks=[_Turns(self), *own, *callbacks],
        )
        self.remove_callback(PrinterCallback)

    @property
    def validates(self) -> bool:
        """Whether there are validation rows."""
        return any(member.evaluator is not None for member in self.members)

    @property
    def ended(self) -> bool:
        """Whether no prompt goes on: the last `patience` validations of each brought nothing better."""
        return not any(member.goes_on for member in self.members)

    def monitor_of(self, k: int) -> Monitor | None:
        """Who measures one of the prompts."""
        return self._lanes[k].monitor

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

    def get_train_dataloader(self) -> Any:
        """The Trainer's; a batch stays on the CPU, where the model plans the packed row."""
        loader: Any = super().get_train_dataloader()
        loader.device = None
        return loader

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # the Trainer's would bring them to the device, before the model has planned the row

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if self.args.world_size > 1:  # the Trainer's adds the processes up, and waits for the device
            super()._track_num_input_tokens(inputs)  # type: ignore[no-untyped-call]
        else:
            self.state.num_input_tokens_seen += inputs["input_ids"].numel()

    def get_batch_samples(self, iterator: Any, count: int, device: torch.device) -> Any:
        """The batches of one step, of several prompts the rows of those that go on."""
        # One process counts the targets on the CPU; several add them up over their devices.
        device = device if self.args.world_size > 1 else torch.device("cpu")
        batches, total = super().get_batch_samples(iterator, count, device)
        if self._sides is not None:
            batches = [of_prompts(batch, [k for k, _ in self._going()]) for batch in batches]
            self._sides.take(batches, total)
        return batches, total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's; of several prompts it is noted what each one's part is."""
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._sides is not None:
            self._sides.note(inputs["prompt_index"], output.row_loss)
        return (loss, output) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's, in which heads are a group of their own with a rate of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            set_rate(optimizer, list(self.model.heads), self.recipe.head_learning_rate)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; of one prompt it must leave a finite loss and finite gradients.

        Of a GPU that is asked without waiting for the answer, which is looked at a step later; what would evaluate, log
        or keep the prompt waits for it.
        """
        loss = self._private_step(*args) if self.mechanism else super().training_step(*args, **kwargs)
        if self._sides is not None:  # see `part_gradients`
            return loss
        if self._finite.late:
            self.check_finite()
        gradients = [one.grad for one in self.members[0].parameters if one.grad is not None]
        self._finite.ask(self.state.global_step + 1, [loss, *gradients])
        if not self._finite.late:
            self.check_finite()
        if self.monitor is not None and self.members[0].prompt.grad is not None:
            self.monitor.gradient(self.members[0].prompt.grad)
        return loss

    def check_finite(self) -> None:
        """Make sure that the last step left finite numbers.

        Raises:
            DivergedError: it did not.
        """
        if (step := self._finite.failed()) is not None:
            raise diverged("the loss or its gradient", step, self.recipe, self.model.base.dtype)

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
        """Of several prompts give each the gradient of its own mean loss, clipped by itself.

        Raises:
            DivergedError: a prompt's gradient is not finite, and it was not to end alone.
        """
        if self._sides is None:
            return
        if not self._sides.is_finite() or not all(member.is_finite for _, member in self._going()):
            self._one_by_one()
        shares = self._sides.shares
        for k, member in enumerate(self.members):
            if not member.goes_on:
                for one in member.parameters:
                    one.grad = None
                continue
            trained = [one for one in member.parameters if one.grad is not None]
            for one in trained:
                one.grad.div_(shares[k])  # type: ignore[union-attr]  # the loss is a mean over all prompts' targets
            if (monitor := self._lanes[k].monitor) is not None and member.prompt.grad is not None:
                monitor.gradient(member.prompt.grad)
            norm = nn.utils.get_total_norm([one.grad for one in trained if one.grad is not None])
            if self.recipe.max_grad_norm:
                nn.utils.clip_grads_with_norm_(trained, self.recipe.max_grad_norm, norm)
            self._sides.norms[k] = float(norm)
            self.tell(k, "on_pre_optimizer_step")
        self._sides.end_step()

    def _one_by_one(self) -> None:
        """Each prompt's gradient again, from its own rows alone: one that is not finite spoils no other's."""
        assert self._sides is not None, "there are several prompts"
        self._sides.forget_step()
        for k, member in self._going():
            for one in member.parameters:
                one.grad = None
            for batch in self._sides.batches:
                rows = self._prepare_inputs(of_prompts(batch, [k]))
                output = self.model(**rows, num_items_in_batch=self._sides.total)
                output.loss.backward()
                self._sides.note(rows["prompt_index"], output.row_loss)
            if member.is_finite and self._sides.is_finite(k):
                continue
            error = self._diverged("the loss or its gradient" if self._apart else f"the gradient of prompt {k}")
            if not self._apart:
                raise error
            member.error, member.ended = error, self.state.global_step

    def _diverged(self, what: str) -> DivergedError:
        return diverged(what, self.state.global_step + 1, self.recipe, self.model.base.dtype)

    def _going(self) -> list[tuple[int, Member]]:
        """The prompts that go on, with their index."""
        return [(k, member) for k, member in enumerate(self.members) if member.goes_on]

    def tell_of_each(self, event: str) -> None:
        """Tell of an event those who look on at several prompts, of each that goes on."""
        for k, _ in self._going() if self._sides is not None else []:
            self.tell(k, event)

    def tell(self, k: int, event: str, **more: Any) -> None:
        """Tell of an event those who look on at one of several prompts."""
        for callback in [*_each(self._lanes[k].monitor), *self._lanes[k].callbacks]:
            getattr(callback, event)(self.args, self.state, self.control, model=self._alone(k), **more)

    def _alone(self, k: int) -> PromptedModel:
        found = self._sides.alone if self._sides is not None else {}
        if k not in found:
            found[k] = self.model.alone(k)
        return found[k]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate each prompt that has not run out of patience, and keep it if it is its best so far."""
        self.check_finite()
        found: list[tuple[str, Evaluation]] = []
        if not self.validates:
            raise SoftPromptError("there are no validation rows")
        for k, member in self._going():
            if member.evaluator is None:
                continue
            metric = member.evaluator.task.metric
            new = member.evaluator.evaluate(self._progress)
            found.append((metric, new))
            member.since += 1
            if new.better_than(member.validation, metric):
                member.best, member.validation = member.now, new
                member.step, member.since = self.state.global_step, 0
            if self._sides is not None:
                member.ended = None if member.goes_on else self.state.global_step
                self._tell_validated(k, new)
        if self._sides is None:
            metrics = _prefixed(found[0][1])
        else:  # the mean of those that are measured alike
            alike = {name: [getattr(one, name) for other, one in found if other == name] for name, _ in found}
            metrics = {f"eval_{name}": fmean(scores) for name, scores in alike.items()}
        if self.mechanism is not None:
            step, delta = self.state.global_step, self.mechanism.settings.delta
            metrics["eval_epsilon"] = self.mechanism.spent(step)
            logger.info(
                "private: epsilon %.3g at delta %.3g is spent after %s steps", metrics["eval_epsilon"], delta, step
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _tell_validated(self, k: int, found: Evaluation) -> None:
        metrics = _prefixed(found)
        self._tell_logged(k, metrics)
        self.tell(k, "on_evaluate", metrics=metrics)

    def _tell_logged(self, k: int, logs: dict[str, Any]) -> None:
        logs = {"epoch": self.state.epoch} | logs
        self.members[k].history.append(logs | {"step": self.state.global_step})
        self.tell(k, "on_log", logs=logs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A log entry, to which the monitor adds its figures so that experiment trackers show them."""
        self.check_finite()
        if self.monitor is not None and "loss" in logs:
            logs |= self.monitor.measure(self.model, self.state.global_step, logs)
        super().log(logs, start_time)
        if self._sides is None or "loss" not in logs:
            return
        losses = self._sides.mean_losses()
        for k, _ in self._going():
            own = {"loss": losses[k], "grad_norm": self._sides.norms[k], "learning_rate": logs["learning_rate"]}
            if (monitor := self._lanes[k].monitor) is not None:
                own |= monitor.measure(self._alone(k), self.state.global_step, own)
            self._tell_logged(k, own)

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
                member.history, member.ended = best.get("history", []), best.get("ended")
                member.error = None if best.get("error") is None else DivergedError(best["error"])
                entries = self.state.log_history if self._sides is None else member.history
                member.since = sum(one["step"] > member.step for one in entries if any(map(_is_validation, one)))
        except Exception as error:
            raise SoftPromptError(f"{checkpoint}: the checkpoint is damaged ({error}); remove it") from error

    # The Trainer has no public way to write a checkpoint elsewhere first, nor to leave the base out of it: these four
    # are what its own `_maybe_log_save_evaluate` and `train` call (transformers/trainer.py, since 4.x).

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing or self._folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Written under another name and renamed, so that a kill leaves a whole checkpoint or none.
        self.check_finite()
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
            {
                "step": one.step,
                "evaluation": None if one.validation is None else one.validation.to_json(),
                "ended": one.ended,
                "error": None if one.error is None else str(one.error),
                "history": one.history,
            }
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


def _prefixed(found: Evaluation) -> dict[str, float]:
    """The figures of a validation, as the Trainer's log has them."""
    return {f"eval_{key}": float(value) for key, value in found.to_json().items() if isinstance(value, int | float)}


def _each(monitor: Monitor | None) -> list[Monitor]:
    return [] if monitor is None else [monitor]


class _Finite:
    """Whether the numbers of a step are finite, asked of their device and answered when it has come so far.

    Args:
        late: the answer is looked at after a later question's step has been started, so that nobody waits for it.
    """

    def __init__(self, late: bool) -> None:
        self.late = late
        self._asked: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def ask(self, step: int, numbers: Sequence[Tensor]) -> None:
        """Ask it of a step's numbers; the answer to the last question has been looked at."""
        answer, arrived = torch.stack([one.isfinite().all() for one in numbers]).all(), None
        if answer.is_cuda:
            answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(answer, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._asked = step, answer, arrived

    def failed(self) -> int | None:
        """The step that was asked about last, if its numbers are not finite; asks no more of it."""
        if self._asked is None:
            return None
        step, answer, arrived = self._asked
        self._asked = None
        if arrived is not None:
            arrived.synchronize()
        return None if bool(answer) else step


class _Sides:
    """What is kept of several prompts between the calls of the Trainer: the step's batches, each prompt's losses.

    Attributes:
        batches: of the step under way, in parts.
        total: targets in the step, of all prompts.
        shares: of each prompt, in the step's targets.
        norms: of each prompt's gradient, before it was clipped.
        alone: each prompt before the base, made when it is first asked for.
    """

    def __init__(self, count: int) -> None:
        self.batches: list[dict[str, Tensor]] = []
        self.total: Any = 0
        self.shares, self.norms = [1.0] * count, [0.0] * count
        self.alone: dict[int, PromptedModel] = {}
        self._counts = torch.zeros(count)
        self._step, self._sum, self._steps = torch.zeros(count), torch.zeros(count), 0

    def take(self, batches: list[dict[str, Tensor]], total: Any) -> None:
        """The batches of a step, and the targets by which the Trainer divides their loss."""
        self.batches, self.total = batches, total
        self._counts.zero_()
        for batch in batches:
            of_token = batch["prompt_index"].repeat_interleave(batch["lengths"])
            self._counts.index_add_(0, of_token, (batch["labels"] != -100).float())
        self.shares = (self._counts / float(total)).tolist()
        self.forget_step()

    def note(self, prompt_index: Tensor, row_loss: Tensor) -> None:
        """The losses of a part's rows."""
        self._step.index_add_(0, prompt_index.cpu(), row_loss.float().cpu())

    def forget_step(self) -> None:
        """The step's losses are taken again."""
        self._step.zero_()

    def is_finite(self, k: int | None = None) -> bool:
        """Whether the step's losses are numbers, or that of one prompt is."""
        return bool((self._step if k is None else self._step[k]).isfinite().all())

    def end_step(self) -> None:
        """Add the step's losses to those since the last log entry."""
        self._sum += self._step / self._counts.clamp(min=1)
        self._steps += 1

    def mean_losses(self) -> list[float]:
        """Each prompt's mean loss over the steps since the last call."""
        found: list[float] = (self._sum / max(self._steps, 1)).tolist()
        self._sum.zero_()
        self._steps = 0
        return found


class _Turns(TrainerCallback):
    """What the Trainer has to be told at its turns: to validate the last step too, and when no prompt goes on."""

    def __init__(self, trainer: PromptTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.part_gradients()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.tell_of_each("on_train_begin")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.check_finite()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.tell_of_each("on_step_end")
        if state.global_step >= state.max_steps and self._trainer.validates:
            control.should_evaluate = True
        if self._trainer.ended:
            control.should_training_stop = control.should_save = True

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
        "dataloader_pin_memory": False,  # a step's tensors are pinned once they are planned, see `models/transfer.py`
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
