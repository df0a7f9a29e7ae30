"""Learning rates from a text start: the same training with each of several rates, on the movie snippets.

    python -m benchmarks.learning_rate [--rates 0.01 0.02] [--seeds 0 1] [--steps 200]

Finished rows stay in the results and are not repeated, so a run that was interrupted goes on where it stopped. Owns the
grid and its table; training is `softprompt.train` with its defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, write_results
from benchmarks.movies import INIT_TEXT, TASK, load_movies

NAME = "learning_rate"
RATES = [0.003, 0.01, 0.02, 0.03, 0.05, 0.1]


def train_once(base: sp.Base, rows: Sequence[sp.Row], setting: dict[str, Any]) -> dict[str, Any]:
    """One training run; its setting and what came of it. A run that diverges has no figures."""
    held = setting["validation_rows"]
    prompt = sp.SoftPrompt.from_text(base, INIT_TEXT, setting["num_virtual_tokens"])
    recipe = sp.Recipe(
        learning_rate=setting["rate"],
        max_steps=setting["steps"],
        batch_size=setting["batch_size"],
        seed=setting["seed"],
        evaluate_every=setting["evaluate_every"],
        patience=setting["steps"],  # never stop early: every rate gets the same number of steps
    )
    try:
        run = sp.train(base, prompt, TASK, train=rows[held:], validation=rows[:held], recipe=recipe)
    except sp.DivergedError as error:
        return setting | {"diverged": str(error)}
    validations = [entry for entry in run.history if "eval_accuracy" in entry]
    return setting | {
        "accuracy": validations[-1]["eval_accuracy"],
        "loss": validations[-1]["eval_log_loss"],
        "best_accuracy": max(entry["eval_accuracy"] for entry in validations),
        "best_step": run.best_step,
        "curve": [[entry["step"], entry["eval_accuracy"], entry["eval_log_loss"]] for entry in validations],
        "seconds": run.seconds,
    }


def table(document: dict[str, Any]) -> str:
    """The document as Markdown, one line a run."""
    head = [
        "base, dtype, P, steps, batch size, rate, seed",
        "last accuracy",
        "last loss",
        "best accuracy",
        "at step",
        "seconds",
    ]
    keys = ["base", "dtype", "num_virtual_tokens", "steps", "batch_size", "rate", "seed"]
    lines = []
    for row in sorted(document["rows"], key=lambda row: [row[key] for key in keys]):
        line = [", ".join(str(row[key]) for key in keys)]
        if "diverged" in row:
            lines.append([*line, "diverged", "", "", "", ""])
            continue
        line += [f"{row['accuracy']:.4f}", f"{row['loss']:.4f}", f"{row['best_accuracy']:.4f}"]
        lines.append([*line, str(row["best_step"]), f"{row['seconds']:.0f}"])
    return markdown_table(head, lines) + footing(document)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_rate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rates", nargs="+", type=float, default=RATES)
    add("--seeds", nargs="+", type=int, default=[0])
    add("--steps", type=int, default=sp.Recipe().max_steps)
    add("--batch-size", type=int, default=sp.Recipe().batch_size)
    add("--num-virtual-tokens", type=int, default=16)
    add("--validation-rows", type=int, default=500)
    add("--evaluate-every", type=int, default=50)
    add("--base", default="smollm2-135m", help="what load_base takes")
    add("--device", type=torch.device, default=default_device(), help="default: a GPU where there is one")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = tuple(sys.argv[1:]), rows: Sequence[sp.Row] | None = None) -> None:
    options = parse(arguments)
    rows = load_movies() if rows is None else rows
    base = sp.load_base(options.base, device=options.device)
    before = options.out / f"{NAME}.json"
    finished = json.loads(before.read_text(encoding="utf-8"))["rows"] if before.exists() else []
    document = describe(NAME, arguments, options.device) | {"rows": finished}
    for seed in options.seeds:
        for rate in options.rates:
            setting = {
                "rate": rate,
                "seed": seed,
                "steps": options.steps,
                "batch_size": options.batch_size,
                "num_virtual_tokens": options.num_virtual_tokens,
                "validation_rows": options.validation_rows,
                "evaluate_every": min(options.evaluate_every, options.steps),
                "base": options.base,
                "fingerprint": base.identity.fingerprint,
                "dtype": str(base.dtype).removeprefix("torch."),
            }
            if any(setting.items() <= row.items() for row in finished):
                continue
            print(f"rate {rate:g}, seed {seed} ...", file=sys.stderr)
            finished.append(train_once(base, rows, setting))
            write_results(options.out, NAME, document, table(document))
    print(json.dumps(document, indent=1) if options.json else table(document))


if __name__ == "__main__":
    main()
