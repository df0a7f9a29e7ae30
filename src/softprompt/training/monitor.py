"""The monitor: watches every virtual token while the prompt learns.

Owns what is measured and when. It only reads: a run with it and one without learn the same, bit for bit. Does not know
the file's form (`trajectory`), what the numbers mean (`diagnosis`), or who shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from softprompt.bases.base import Base
from softprompt.bases.words import word_norms
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.training.diagnosis import Diagnosis, diagnose
from softprompt.training.trajectory import PERCENTILES, Measurement, Start, Trajectory, Validated

_EVALUATION = "eval_"


class Monitor(TrainerCallback):
    """Measures the prompt at each of the Trainer's log entries, and names what looks wrong.

    `gradient` and `measure` are called by the trainer: no callback sees the gradient before it is clipped, nor may one
    add to a log entry before the experiment trackers have it.

    Args:
        base: the frozen base, for the norms of its word embeddings.
        prompt: where the run starts from.
        learning_rate: the run's peak rate.
        steps_per_pass: steps in which every training row is seen once.
        path: the file `monitor.jsonl`; what it holds of a run that goes on is kept.
        diagnosed: called with all present diagnoses after each measurement and validation.

    Attributes:
        trajectory: what was measured so far.
        diagnoses: what looks wrong at present.
    """

    def __init__(
        self,
        base: Base,
        prompt: SoftPrompt,
        learning_rate: float,
        steps_per_pass: float,
        path: Path,
        diagnosed: Callable[[Sequence[Diagnosis]], None] | None = None,
    ) -> None:
        self._path, self._diagnosed, self._rate = path, diagnosed, learning_rate
        self._steps_per_pass = steps_per_pass
        self._start = prompt.embeddings
        self._words = word_norms(base)
        self._mean, self._deviation = float(self._words.mean()), float(self._words.std())
        # Worked examples show the task, as training does: little may be left to learn.
        method = prompt.card.initialisation.get("method")
        self._trained = bool(prompt.card.recipe) or method in ("prompt", "prune", "examples")
        self._gradient = self._before = torch.zeros(0)
        self._writes = True
        self.trajectory = Trajectory.read(path)
        self.diagnoses: list[Diagnosis] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._writes = state.is_world_process_zero
        # What a killed run had measured after its last checkpoint is measured again.
        self.trajectory = self.trajectory.until(state.global_step)
        norm = self._start.norm(dim=1)
        ranks = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
        self.trajectory.start = Start(
            norm=norm.tolist(),
            z=self._z(norm),
            trained=self._trained,
            learning_rate=self._rate,
            steps_per_pass=self._steps_per_pass,
            vocabulary_mean=self._mean,
            vocabulary_deviation=self._deviation,
            vocabulary_percentiles=self._words.double().quantile(ranks).tolist(),
        )
        if self._writes:
            self.trajectory.write(self._path)

    def gradient(self, gradient: Tensor) -> None:
        """Take note of the gradient `[P, H]` of the step under way, as the backward pass left it."""
        self._gradient = gradient.norm(dim=1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._before = as_computed(model)

    def measure(self, model: PromptedModel, step: int, logs: Mapping[str, Any]) -> dict[str, float]:
        """Measure the prompt after a step, and keep that.

        Args:
            model: with the prompt as it is now.
            step: optimiser steps done.
            logs: the Trainer's log entry, with `loss` and `learning_rate`.

        Returns:
            What is to be added to the log entry.
        """
        after = as_computed(model)
        start = self._start.to(after.device)
        norm = after.norm(dim=1)
        numbers = {
            "gradient": self._gradient,
            "update": (after - self._before).norm(dim=1) / self._before.norm(dim=1).clamp(min=1e-12),
            "norm": norm,
            "drift": (after - start).norm(dim=1),
            "cosine": torch.cosine_similarity(after, start, dim=1),
        }
        gradient, update, norms, drift, cosine = torch.stack([*numbers.values()]).cpu().tolist()
        measured = Measurement(
            step=step,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            gradient=gradient,
            update=update,
            norm=norms,
            z=self._z(norm.cpu()),
            drift=drift,
            cosine=cosine,
        )
        self._keep(measured)
        return {
            "prompt_gradient_smallest": min(gradient),
            "prompt_gradient_largest": max(gradient),
            "prompt_update_ratio": median(update),
            "prompt_norm": fmean(norms),
            "prompt_norm_z": fmean(measured.z),
            "prompt_drift": fmean(drift),
            "prompt_cosine_to_start": fmean(cosine),
        }

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {key.removeprefix(_EVALUATION): value for key, value in (metrics or {}).items()}
        self._keep(Validated(step=state.global_step, figures=figures))

    def _keep(self, entry: Measurement | Validated) -> None:
        self.trajectory.add(entry, self._path if self._writes else None)
        self.diagnoses = diagnose(self.trajectory)
        if self._diagnosed is not None:
            self._diagnosed(self.diagnoses)

    def _z(self, norm: Tensor) -> list[float]:
        found: list[float] = ((norm - self._mean) / max(self._deviation, 1e-12)).tolist()
        return found


@torch.no_grad()
def as_computed(model: PromptedModel) -> Tensor:
    """A copy of the `[P, H]` vectors that the base sees of the model's one prompt."""
    return model.vectors()[0].detach().clone()
