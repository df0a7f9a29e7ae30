"""What a base in fewer bits costs and saves: accuracy on films, memory and time, against bfloat16.

    python -m benchmarks.quantization [--kinds bfloat16 bnb-4bit ...] [--seeds 0 1 2] [--steps 240] [--test-rows 1000]

Each row is measured in a process of its own, so that its memory is its own. Finished rows stay in the results and are
not repeated. Owns the rows' settings and the table; training is `softprompt.train`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

import softprompt as sp
from benchmarks.measure import RESULTS, Kept, footing, markdown_table
from benchmarks.movies import INIT_TEXT, TASK, load_movies
from softprompt import demo
from softprompt.bases.quantization import KINDS
from softprompt.bases.sources import read_snippets
from softprompt.comparison.measuring import Stopwatch, peak_memory

NAME = "quantization"
PLAIN = ("float32", "bfloat16")  # the others are held in bfloat16 where they are not quantised


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=[*PLAIN, *KINDS], choices=[*PLAIN, *KINDS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a row, in the process that measures it
    options = parser.parse_args(arguments)
    settings = {"base": options.base, "steps": options.steps, "test_rows": options.test_rows}
    if options.one is not None:
        print(json.dumps(_measure(settings, *json.loads(options.one))))
        return
    found = Kept(options.results, NAME, arguments, settings, _table, _plot)
    for seed in options.seeds:
        for kind in options.kinds:
            found.add({"kind": kind, "seed": seed}, lambda kind=kind, seed=seed: _apart(settings, kind, seed))  # type: ignore[misc]
    print(found.write())


def _apart(settings: dict[str, Any], kind: str, seed: int) -> dict[str, Any]:
    """`_measure` in a process of its own."""
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "benchmarks.quantization", *words, "--one", json.dumps([kind, seed])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(settings: dict[str, Any], kind: str, seed: int) -> dict[str, Any]:
    dtype, quantization = (kind, None) if kind in PLAIN else ("bfloat16", kind)
    began = time.perf_counter()
    base = sp.load_base(settings["base"], dtype=dtype, quantization=quantization)
    loaded = {"load_seconds": time.perf_counter() - began, "load_peak_bytes": peak_memory(base.device)}
    rows = load_movies()
    validation, train = rows[: demo.VALIDATION_ROWS], rows[demo.VALIDATION_ROWS :]
    test = [
        sp.Row({"text": one.text}, int(one.rating > 0), " positive" if one.rating > 0 else " negative", "films", number)
        for number, one in enumerate(demo.split(read_snippets("movieReview"), [])["test.csv"], 1)
    ][: settings["test_rows"]]
    start = sp.SoftPrompt.from_text(base, INIT_TEXT, 16)
    steps = settings["steps"]
    recipe = sp.Recipe(max_steps=steps, evaluate_every=max(1, steps // 4), monitor=False, seed=seed)
    began = time.perf_counter()
    before = sp.evaluate(base, None, TASK, test)
    seconds = time.perf_counter() - began
    watch = Stopwatch()  # without validations
    run = sp.train(base, start, TASK, train=train, validation=validation, recipe=recipe, callbacks=[watch])
    after = sp.evaluate(base, run.prompt, TASK, test)
    return loaded | {
        "weight_bytes": base.weight_bytes,
        "zero_shot": before.accuracy,
        "trained": after.accuracy,
        "log_loss": after.log_loss,
        "n": after.n,
        "seconds_per_step": watch.seconds / run.steps,
        "rows_per_second": before.n / seconds,
        "peak_bytes": peak_memory(base.device),
        "kernel": run.kernel,
    }


def _table(document: dict[str, Any]) -> str:
    head = ["base held as", "weights", "zero-shot", "trained", "seconds a step", "rows a second", "peak memory"]
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in document["rows"]):
        here = [row for row in document["rows"] if row["kind"] == kind]
        mean = {key: fmean(row[key] for row in here) for key in here[0] if isinstance(here[0][key], float | int)}
        trained = " ".join(f"{row['trained']:.3f}" for row in here)
        lines.append(
            [
                kind,
                f"{mean['weight_bytes'] / 1e6:.0f} MB",
                f"{mean['zero_shot']:.3f}",
                f"{mean['trained']:.3f} ({trained})",
                f"{mean['seconds_per_step']:.3f}",
                f"{mean['rows_per_second']:.1f}",
                f"{mean['peak_bytes'] / 1e6:.0f} MB",
            ]
        )
    settings = document["settings"]
    what = f"{settings['base']}, films, 16 virtual tokens, {settings['steps']} steps of 8, {settings['test_rows']} test"
    return markdown_table(head, lines) + f"\n{what} rows. In brackets each seed.\n" + footing(document)


def _plot(document: dict[str, Any], path: Path) -> None:
    """Trained accuracy against the bytes of the weights."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = NAME
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for kind in dict.fromkeys(row["kind"] for row in document["rows"]):
        here = [row for row in document["rows"] if row["kind"] == kind]
        axes.plot([row["weight_bytes"] / 1e6 for row in here], [row["trained"] for row in here], "o", label=kind)
    axes.legend(fontsize="small")
    axes.set(xlabel="MB of weights", ylabel="test accuracy")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
