"""What a user sees while something runs: a training run's figures, and bars.

Owns how they look. Knows the Trainer's callbacks and rich, and no other room.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_MOST_ROWS = 20
_LINES_OF_DIAGNOSIS = 3  # on a narrow terminal
_AT_ONCE, _AT_TIMES = 1, 10  # seconds without a sign: on a terminal, elsewhere


class TrainingProgress(TrainerCallback):
    """A training run as it goes: on a terminal a live table, elsewhere a line for each log entry.

    It is a context manager, within which the run has to be. Where there are several processes, the first one shows.

    Args:
        console: where to.
        metric: the figure of each validation that is shown, such as "accuracy".
        validation_rows: rows in each validation; 0: nothing is validated.
        before: rows asked before the first step, such as those that a head is fitted on.
        after: rows asked after the last step: to calibrate, to test, for the report.

    Attributes:
        step: optimiser steps done.
    """

    def __init__(self, console: Console, metric: str, validation_rows: int, *, before: int = 0, after: int = 0) -> None:
        self.step = 0
        self._before, self._after = before, after
        self._phase, self._phase_rows = "before the first step", before
        self._row_seconds, self._row_count = 0.0, 0  # what rows took until now, steps aside
        self._mark = self._said = time.monotonic()  # when the last step or rows ended, and the last line came
        self._console, self._metric, self._validation_rows = console, metric, validation_rows
        self._rows: dict[int, dict[str, str]] = {}
        self._shows, self._running = True, False
        self._validated = 0
        self._diagnoses: list[str] = []
        self._max_steps = self._first_step = 0
        self._begun = self._step_begun = 0.0
        self._seconds, self._tokens = 0.0, 0  # the time that steps took since the last entry; tokens at that entry
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        self._live.stop()

    def answered(self, rows: int) -> None:
        """Take note of rows finished since the last call: in validation, or before the first or after the last step."""
        self._validated += rows
        now = time.monotonic()
        self._row_seconds, self._row_count, self._mark = (
            self._row_seconds + now - self._mark,
            self._row_count + rows,
            now,
        )
        if self._console.is_terminal:
            if self._shows and now - self._said > _AT_ONCE:
                self._start()
        elif self._shows and self._phase and now - self._said > _AT_TIMES:
            self._said = now
            self._console.print(self._now(), highlight=False, markup=False, soft_wrap=True)

    def diagnosed(self, sentences: Sequence[str]) -> None:
        """Take note of all that looks wrong at present, a sentence each."""
        if self._shows and not self._console.is_terminal:
            for sentence in sentences:
                if sentence not in self._diagnoses:
                    self._line(sentence)
        self._diagnoses = list(sentences)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._shows = state.is_world_process_zero
        self.step = self._first_step = state.global_step
        self._rows.clear()  # of an earlier run, where several follow each other
        self._max_steps = state.max_steps
        self._tokens, self._begun = state.num_input_tokens_seen, time.monotonic()
        self._phase, self._validated = "", 0
        if self._shows and self._console.is_terminal:
            self._start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._phase, self._phase_rows, self._validated = "after the last step", self._after, 0
        self._mark = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_begun = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step = state.global_step
        self._mark = time.monotonic()
        self._seconds += self._mark - self._step_begun

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        found: dict[str, str] = {}
        if "loss" in logs:
            found["loss"] = f"{logs['loss']:.4f}"
            if "grad_norm" in logs:
                found["gradient norm"] = f"{logs['grad_norm']:.3g}"
            if "prompt_update_ratio" in logs:
                found["update"] = f"{logs['prompt_update_ratio']:.2%}"
            tokens = state.num_input_tokens_seen - self._tokens
            found["tokens/s"] = f"{tokens / max(self._seconds, 1e-9):,.0f}"
            self._seconds, self._tokens = 0.0, state.num_input_tokens_seen
        if f"eval_{self._metric}" in logs:
            found[f"validation {self._metric}"] = f"{logs[f'eval_{self._metric}']:.4f}"
            self._validated = 0
        if not found:
            return
        found["time left"] = self._time_left()
        self._rows.setdefault(self.step, {}).update(found)
        if self._shows and not self._console.is_terminal:
            self._line(", ".join(f"{key} {value}" for key, value in found.items()))

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        line = f"step {self.step}/{self._max_steps}: {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _start(self) -> None:
        self._running = True
        self._live.start(refresh=True)

    def _time_left(self) -> str:
        """Of the steps that are left at the pace of those done, and of the rows before or after them."""
        of_row = self._row_seconds / max(self._row_count, 1)
        if self._phase:
            seconds = of_row * max(0, self._phase_rows - self._validated)
        else:
            pace = (time.monotonic() - self._begun) / max(self.step - self._first_step, 1)
            seconds = pace * (self._max_steps - self.step) + of_row * self._after
        return str(timedelta(seconds=round(seconds)))

    def _now(self) -> str:
        if self._phase:
            return f"{self._phase}: {self._validated:,} of {self._phase_rows:,} rows, time left {self._time_left()}"
        asked = f", {self._validated:,} rows answered" if self._validated else ""
        return f"step {self.step} of {self._max_steps}{asked}"

    def _render(self) -> RenderableType:
        validation = [f"validation {self._metric}"] if self._validation_rows else []
        watched = ["update"] if any("update" in row for row in self._rows.values()) else []
        columns = ["loss", *validation, "gradient norm", *watched, "tokens/s", "time left"]
        table = Table("step", *columns)
        for column in table.columns:
            column.justify = "right"
        # The newest entries that fit: a live display that is too high loses its end.
        spare = self._console.height - 6 - _LINES_OF_DIAGNOSIS * len(self._diagnoses)
        for step in sorted(self._rows)[-min(_MOST_ROWS, max(1, spare)) :]:
            table.add_row(str(step), *(self._rows[step].get(column, "") for column in columns))
        faults = [Text(sentence, style="yellow") for sentence in self._diagnoses]
        return Group(table, *faults, Text(self._now())) if self._running else table


class ManyProgress:
    """Many tasks as they learn: on a terminal a live table, elsewhere a line for each validation and each state.

    It is a context manager, within which the tasks have to be trained.

    Args:
        console: where to.
        names: of the tasks, which are "waiting" until something else is told.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._rows: dict[str, dict[str, str]] = {name: {"state": "waiting"} for name in names}
        self._answered = 0
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> ManyProgress:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def watch(self, name: str, metric: str) -> Sequence[TrainerCallback]:
        """Callbacks that show one task's training."""
        return [_TaskProgress(self, name, metric)]

    def tell(self, name: str, state: str) -> None:
        """A task has come to another state, such as "done"."""
        self.show(name, {"state": state}, said=state != "measured")

    def answered(self, rows: int) -> None:
        """So many rows are finished since the last call: in validation, or for a head, a test, a report."""
        self._answered += rows

    def show(self, name: str, figures: dict[str, str], *, said: bool) -> None:
        """Put a task's figures into its row; elsewhere than on a terminal they may be said in a line."""
        row = self._rows[name]
        row.update(figures)
        if said and not self._console.is_terminal:
            line = (
                f"{name}: {', '.join(value if key == 'state' else f'{key} {value}' for key, value in figures.items())}"
            )
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        columns = ("state", "step", "loss", "validation", "best")
        table = Table("task", *columns)
        over = [name for name, row in self._rows.items() if row["state"] in ("done", "kept", "failed")]
        busy = [name for name, row in self._rows.items() if name not in over and row["state"] != "waiting"]
        waiting = len(self._rows) - len(over) - len(busy)
        room = max(1, self._console.height - 7)  # a live display that is too high loses its end
        for name in [*busy, *reversed(over)][:room]:
            table.add_row(name, *(self._rows[name].get(column, "") for column in columns))
        failed = sum(self._rows[name]["state"] == "failed" for name in over)
        return Group(
            table,
            Text(
                f"{len(over) - failed} of {len(self._rows)} done, {failed} failed, {len(busy)} under way, "
                f"{waiting} waiting; {self._answered:,} rows answered"
            ),
        )


class _TaskProgress(TrainerCallback):
    """Shows one task's training in its row."""

    def __init__(self, shown: ManyProgress, name: str, metric: str) -> None:
        self._shown, self._name, self._metric = shown, name, metric
        self._best = -math.inf

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        found = {"step": f"{state.global_step}/{state.max_steps}"}
        logs = logs or {}
        if "loss" in logs:
            found["loss"] = f"{logs['loss']:.4f}"
        if (score := logs.get(f"eval_{self._metric}")) is not None:
            self._best = max(self._best, score)
            found |= {"validation": f"{self._metric} {score:.4f}", "best": f"{self._best:.4f}"}
        self._shown.show(self._name, found, said="best" in found)


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for `total` rows, on a terminal and once it takes longer than a second.

    Yields:
        A function to be called with the number of rows finished since the last call.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(what, total=total)
    start = time.monotonic()

    def advance(rows: int) -> None:
        bar.advance(task, rows)
        if console.is_terminal and time.monotonic() - start > 1:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:  # stopped unstarted, it would print an empty line where there is no terminal
            bar.stop()


@contextmanager
def share_bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar for work of which the share that is done is known: on a terminal; elsewhere a line for each part of it.

    Yields:
        A function to be called with what is being done and the share of the whole that is done, from 0 to 1.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task, last = bar.add_task("", total=1.0), ""

    def tell(what: str, share: float) -> None:
        nonlocal last
        bar.update(task, description=what, completed=share)
        if console.is_terminal:
            bar.start()
        elif what != last:
            console.print(f"{what} ({share:.0%} done)", markup=False, highlight=False, soft_wrap=True)
        last = what

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()
