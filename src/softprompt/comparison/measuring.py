"""Time and memory, measured the same way for every method.

Owns what counts as training time: the steps, and the fits of a head. Loading, validating and saving differ by what a
user chooses, not by method, and are left out. Knows the Trainer's callbacks and nothing of what is trained.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: allocated tensors on a GPU, resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss starts at the parent's peak
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def median_seconds(work: Callable[[], object], times: int = 5) -> float:
    """The median time of `work`, after one call that warms up."""
    taken = []
    for _ in range(times + 1):
        begun = _now()
        work()
        taken.append(_now() - begun)
    return median(taken[1:])


class Stopwatch(TrainerCallback):
    """Times a training run's steps; `tell` is called with the number of those done.

    Attributes:
        seconds: spent in steps, and in fits of a head, so far.
        curve: of each validation its step, the seconds until then and its figures.
        losses: of each log entry its step and the training loss.
    """

    def __init__(self, tell: Callable[[int], None] = lambda step: None) -> None:
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self.losses: list[dict[str, float]] = []
        self._tell, self._begun = tell, 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Within it time is training's too."""
        begun = _now()
        yield
        self.seconds += _now() - begun

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += _now() - self._begun
        self._tell(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        figures = {key.removeprefix("eval_"): value for key, value in (metrics or {}).items()}
        self.curve.append(figures | {"step": state.global_step, "seconds": self.seconds})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.losses.append({"step": state.global_step, "loss": float(logs["loss"])})

    def seconds_at(self, step: int) -> float:
        """The seconds in steps until the validation at `step`."""
        return next((entry["seconds"] for entry in self.curve if entry["step"] == step), self.seconds)


def _now() -> float:
    """The time at which all that was begun is done: a GPU computes behind the program's back."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
