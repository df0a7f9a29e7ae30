from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from softprompt import progress
from softprompt.progress import TrainingProgress, progress_bar


class Clock:
    """Time that only goes on when told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, legacy_windows=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def train(shows: TrainingProgress, clock: Clock, steps: range, of: int) -> None:
    """Six tokens and two seconds a step; a log entry after every second, a validation after every fourth."""
    args = TrainingArguments(use_cpu=True)
    state, control = TrainerState(max_steps=of, global_step=steps.start, num_input_tokens_seen=0), TrainerControl()
    shows.on_train_begin(args, state, control)
    for step in steps:
        shows.on_step_begin(args, state, control)
        clock.now += 2
        state.global_step = step + 1
        state.num_input_tokens_seen += 6
        shows.on_step_end(args, state, control)
        if state.global_step % 2 == 0:
            shows.on_log(args, state, control, logs={"loss": 1 / state.global_step, "grad_norm": 0.25})
        if state.global_step % 4 == 0:
            clock.now += 2
            shows.answered(3)
            shows.on_log(args, state, control, logs={"eval_accuracy": 0.5, "eval_n": 3})
    shows.on_log(args, state, control, logs={"train_runtime": 1.0})


def test_a_line_for_each_entry_where_there_is_no_terminal(clock):
    out = console(terminal=False)
    with TrainingProgress(out, "accuracy", 3) as shows:
        train(shows, clock, range(4), of=8)
    assert shows.step == 4
    assert shown(out).splitlines() == [
        "step 2/8: loss 0.5000, gradient norm 0.25, tokens/s 3, time left 0:00:12",
        "step 4/8: loss 0.2500, gradient norm 0.25, tokens/s 3, time left 0:00:08",
        "step 4/8: validation accuracy 0.5000, time left 0:00:10",
    ]


def test_the_time_left_of_a_resumed_run_is_that_of_its_own_steps(clock):
    out = console(terminal=False)
    with TrainingProgress(out, "accuracy", 0) as shows:
        train(shows, clock, range(100, 102), of=110)
    assert (
        shown(out)
        .splitlines()[-1]
        .endswith("step 102/110: loss 0.0098, gradient norm 0.25, tokens/s 3, time left 0:00:16")
    )


def ended(shows: TrainingProgress) -> None:
    shows.on_train_end(TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())


def test_what_comes_after_the_last_step_is_in_the_time_left(clock):
    out = console(terminal=False)
    with TrainingProgress(out, "accuracy", 3, after=30) as shows:
        train(shows, clock, range(4), of=8)  # a validation took two seconds for three rows; a step two
        assert shown(out).splitlines()[-1] == "step 4/8: validation accuracy 0.5000, time left 0:00:30"
        ended(shows)
        for _ in range(5):
            clock.now += 4
            shows.answered(5)
    assert shown(out).splitlines()[3:] == [
        "after the last step: 15 of 30 rows, time left 0:00:12",
    ]


def test_what_comes_before_the_first_step_is_no_silence(clock):
    out = console(terminal=False)
    with TrainingProgress(out, "accuracy", 3, before=100) as shows:
        for _ in range(3):
            clock.now += 6
            shows.answered(20)
        assert shown(out).splitlines() == ["before the first step: 40 of 100 rows, time left 0:00:18"]
        train(shows, clock, range(2), of=8)
    assert shown(out).splitlines()[1].startswith("step 2/8: loss 0.5000")


@pytest.mark.parametrize(("seconds", "visible"), [(3, True), (0.2, False)])
def test_rows_before_the_first_step_show_on_a_terminal_after_a_second(clock, seconds, visible):
    out = console(terminal=True)
    with TrainingProgress(out, "accuracy", 3, before=100) as shows:
        clock.now += seconds
        shows.answered(20)
        shows.answered(20)
    assert ("before the first step" in shown(out)) is visible


def test_a_resumed_run_begins_at_its_step(clock):
    shows = TrainingProgress(console(terminal=False), "accuracy", 0)
    train(shows, clock, range(100, 100), of=110)
    assert shows.step == 100


def test_a_table_on_a_terminal(clock):
    out = console(terminal=True)
    with TrainingProgress(out, "accuracy", 3) as shows:
        train(shows, clock, range(6), of=8)
    final = shown(out)[shown(out).rindex("step") :]
    for what in ("validation accuracy", "gradient norm", "tokens/s", "time left", "0.5000", "0.1667", "0:00:05"):
        assert what in final
    assert shown(out).endswith("\x1b[?25h")  # the cursor is there again


def test_the_table_has_no_more_rows_than_the_terminal(clock):
    out = console(terminal=True)
    with TrainingProgress(out, "accuracy", 3) as shows:
        train(shows, clock, range(200), of=200)
    final = shown(out)[shown(out).rindex("validation accuracy") :]
    assert final.count("\n") <= 30
    assert "0.0050" in final  # the last loss
    assert "0.5000" in final


def test_an_error_leaves_the_terminal_as_it_was(clock):
    out = console(terminal=True)

    def fail() -> None:
        with TrainingProgress(out, "accuracy", 3) as shows:
            train(shows, clock, range(2), of=8)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert shown(out).endswith("\x1b[?25h")


def test_only_the_first_of_several_processes_shows(clock):
    out = console(terminal=False)
    shows = TrainingProgress(out, "accuracy", 0)
    args, control = TrainingArguments(use_cpu=True), TrainerControl()
    state = TrainerState(max_steps=2, is_world_process_zero=False)
    shows.on_train_begin(args, state, control)
    shows.on_log(args, state, control, logs={"loss": 1.0})
    assert shown(out) == ""


@pytest.mark.parametrize(("terminal", "seconds", "visible"), [(True, 3, True), (True, 0.2, False), (False, 3, False)])
def test_a_bar_is_for_a_terminal_and_for_what_takes_longer_than_a_second(clock, terminal, seconds, visible):
    out = console(terminal)
    with progress_bar(out, "Testing", 10) as advance:
        clock.now += seconds
        advance(4)
        advance(4)
    assert ("Testing" in shown(out)) is visible
    assert visible or shown(out) == ""


def test_a_bar_ends_with_an_error(clock):
    out = console(terminal=True)

    def fail() -> None:
        with progress_bar(out, "Testing", 10) as advance:
            clock.now += 2
            advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "\x1b[?25h" in shown(out)
