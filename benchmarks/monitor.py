"""What the monitor costs: the same training with it and without, in turns, and the time that it takes itself.

    python -m benchmarks.monitor [--steps 10] [--rounds 3]

Owns the turns and the clock around the monitor's methods; training is `softprompt.train`. A step's time varies by more
than the monitor takes, so that both are told: the difference between the turns, and the time inside the monitor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, seconds, write_results
from benchmarks.movies import INIT_TEXT, TASK, load_movies
from softprompt.training.monitor import Monitor

NAME = "monitor"
_STEP = ("gradient", "on_pre_optimizer_step", "measure")
_START = ("__init__", "on_train_begin")


class Clock(TrainerCallback):
    """The time from the beginning of each step to that of the next, which covers logging."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@contextmanager
def timed(device: torch.device) -> Iterator[dict[str, float]]:
    """The seconds spent in each of the monitor's methods inside."""
    spent = dict.fromkeys((*_STEP, *_START), 0.0)
    originals = {name: getattr(Monitor, name) for name in spent}

    def wrapped(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            answer: list[Any] = []
            work = partial(originals[name], *args, **kwargs)
            spent[name] += seconds(lambda: answer.append(work()), device)
            return answer[0]

        return call

    try:
        for name in spent:
            setattr(Monitor, name, wrapped(name))
        yield spent
    finally:
        for name, original in originals.items():
            setattr(Monitor, name, original)


def measure_case(base: sp.Base, rows: Sequence[sp.Row], length: int, log_every: int, options: Any) -> dict[str, Any]:
    """One prompt length and interval: runs with the monitor and without in turns; the first step of each is warm-up."""
    prompt = sp.SoftPrompt.from_text(base, INIT_TEXT, length)
    rows = rows[: options.steps * options.batch_size]  # encoding the others would take longer than the training
    times: dict[bool, list[float]] = {True: [], False: []}
    inside, start = [], []
    for _ in range(options.rounds):
        for watched in (True, False):
            clock = Clock()
            recipe = sp.Recipe(
                max_steps=options.steps,
                batch_size=options.batch_size,
                log_every=log_every,
                save_every=options.steps,
                monitor=watched,
            )
            with timed(base.device) as spent:
                sp.train(base, prompt, TASK, train=rows, recipe=recipe, callbacks=[clock])
            times[watched] += clock.steps[1:]
            if watched:
                inside.append(sum(spent[name] for name in _STEP) / options.steps)
                start.append(sum(spent[name] for name in _START))
    without = median(times[False])
    return {
        "P": length,
        "log_every": log_every,
        "step_milliseconds_with": 1000 * median(times[True]),
        "step_milliseconds_without": 1000 * without,
        "difference_of_medians": median(times[True]) / without - 1,
        "monitor_milliseconds_per_step": 1000 * median(inside),
        "monitor_share_of_step": median(inside) / without,
        "monitor_seconds_at_start": median(start),
    }


def table(document: dict[str, Any]) -> str:
    """The document as Markdown, one line a case."""
    head = [
        "P, entry every",
        "step with",
        "step without",
        "difference",
        "monitor per step",
        "share of the step",
        "once",
    ]
    rows = [
        [
            f"{case['P']}, {case['log_every']} steps",
            f"{case['step_milliseconds_with']:.0f} ms",
            f"{case['step_milliseconds_without']:.0f} ms",
            f"{case['difference_of_medians']:+.1%}",
            f"{case['monitor_milliseconds_per_step']:.3f} ms",
            f"{case['monitor_share_of_step']:.3%}",
            f"{case['monitor_seconds_at_start']:.2f} s",
        ]
        for case in document["cases"]
    ]
    return markdown_table(head, rows) + footing(document)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=10, help="steps in each turn")
    add("--rounds", type=int, default=3, help="turns with and without")
    add("--prompt-lengths", nargs="+", type=int, default=[16, 100])
    add("--log-every", nargs="+", type=int, default=[1, 10])
    add("--batch-size", type=int, default=16)
    add("--base", default="smollm2-135m", help="what load_base takes")
    add("--device", type=torch.device, default=default_device(), help="default: a GPU where there is one")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = tuple(sys.argv[1:]), rows: Sequence[sp.Row] | None = None) -> None:
    options = parse(arguments)
    rows = load_movies() if rows is None else rows
    base = sp.load_base(options.base, device=options.device)
    document = describe(NAME, arguments, options.device) | {"cases": []}
    for length in options.prompt_lengths:
        for log_every in options.log_every:
            print(f"{length} virtual tokens, an entry every {log_every} steps ...", file=sys.stderr)
            document["cases"].append(measure_case(base, rows, length, log_every, options))
            write_results(options.out, NAME, document, table(document))
    print(json.dumps(document, indent=1) if options.json else table(document))


if __name__ == "__main__":
    main()
