"""A training run's clock and curves, the same for every method.

Owns what is counted as training time: the steps alone. Loading, validating and saving differ by what a user chooses,
not by method, and are left out. Knows the Trainer's callbacks and nothing of what is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Stopwatch(TrainerCallback):
    """Times the steps and notes each validation and each logged loss.

    Attributes:
        seconds: spent in steps so far.
        curve: of each validation its step, the seconds until then and its figures.
        losses: of each log entry its step and the training loss.

    Args:
        tell: called with the number of steps done.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self.losses: list[dict[str, float]] = []
        self._tell, self._begun = tell, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        _wait()
        self._begun = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _wait()
        self.seconds += time.perf_counter() - self._begun
        self._tell(state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {key.removeprefix("eval_"): value for key, value in (metrics or {}).items()}
        self.curve.append(figures | {"step": state.global_step, "seconds": self.seconds})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "loss" in (logs or {}):
            self.losses.append({"step": state.global_step, "loss": float((logs or {})["loss"])})

    def seconds_at(self, step: int) -> float:
        """The seconds in steps until the validation at `step`."""
        return next((entry["seconds"] for entry in self.curve if entry["step"] == step), self.seconds)


def _wait() -> None:
    """A GPU computes behind the program's back: wait for it, so that its time is counted."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
