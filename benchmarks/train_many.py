"""Prompts an hour: many small tasks one by one against side by side, taking turns in one process.

    python -m benchmarks.train_many [--base smollm2-135m] [--tasks 4] [--steps 20] [--rounds 2] [--tokens 16]

Each task is the movie snippets' with rows, an order and a template of its own. A side's time is that of training all
tasks with validation, run folders and reports, the base loaded already. Prints each turn, the medians and the ratio.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

import softprompt as sp
from benchmarks.measure import default_device, describe, seconds
from benchmarks.movies import load_movies
from softprompt.many.entries import Entry, groups, read_entries
from softprompt.many.group import train_group
from softprompt.progress import ManyProgress

_TRAIN, _CHECKS = 64, 16
_TEMPLATES = (
    "Review: {text}\nSentiment:",
    "{text}\nIs this review negative or positive? It is",
    "Film: {text}\nVerdict:",
)
ONE_BY_ONE, SIDE_BY_SIDE = "one by one", "side by side"


def write_tasks(folder: Path, base: str, tasks: int, steps: int, tokens: int) -> list[Path]:
    """Task files, each with a table of its own rows."""
    rows, paths, needed = load_movies(), [], _TRAIN + _CHECKS
    for k in range(tasks):
        own = [rows[(k * needed + i) % len(rows)] for i in range(needed)]
        for part, some in (("train", own[_CHECKS:]), ("dev", own[:_CHECKS])):
            lines = [json.dumps({"text": row.columns["text"], "label": (row.target or "").strip()}) for row in some]
            (folder / f"{part}-{k}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        content = {
            "name": f"task-{k}",
            "base": base,
            "task": {
                "template": _TEMPLATES[k % len(_TEMPLATES)],
                "target": " {label}",
                "labels": ["negative", "positive"],
            },
            "data": {"train": f"train-{k}.jsonl", "validation": f"dev-{k}.jsonl"},
            "prompt": {"num_virtual_tokens": tokens},
            "recipe": {"max_steps": steps, "evaluate_every": steps, "seed": k, "warmup_steps": 2},
        }
        paths.append(folder / f"task-{k}.yaml")
        paths[-1].write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return paths


def train_all(base: sp.Base, entries: Sequence[Entry], at_once: int, shown: ManyProgress) -> None:
    """Train all tasks, at most so many side by side."""
    for group in groups(entries, at_once):
        for one in train_group(base, group, shown, force=True):
            if one["status"] != "trained":
                raise SystemExit(f"{one['name']}: {one['error']}")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_many", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    for name, default in (("tasks", 4), ("steps", 20), ("rounds", 2), ("tokens", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    device = default_device()
    print(json.dumps(describe("train_many", arguments, device)))
    base = sp.load_base(options.base, dtype=options.dtype)
    times: dict[str, list[float]] = {ONE_BY_ONE: [], SIDE_BY_SIDE: []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_tasks(Path(folder), options.base, options.tasks, options.steps, options.tokens)
        entries = read_entries(paths, Path(folder, "runs"), lambda path, error: sys.exit(f"{path}: {error}"))
        with open(os.devnull, "w") as nowhere:
            shown = ManyProgress(Console(file=nowhere), [entry.file.name for entry in entries])
            for turn in range(options.rounds + 1):
                for side, at_once in ((ONE_BY_ONE, 1), (SIDE_BY_SIDE, options.tasks)):
                    took = seconds(partial(train_all, base, entries, at_once, shown), device)
                    print(f"{side}: {took:.1f} s{' (warm-up, not counted)' if not turn else ''}", flush=True)
                    if turn:
                        times[side].append(took)
    for side, every in times.items():
        print(f"{side}: {options.tasks * 3600 / median(every):,.0f} prompts an hour (median of {len(every)})")
    ratios = [one / other for one, other in zip(times[ONE_BY_ONE], times[SIDE_BY_SIDE], strict=True)]
    print(f"side by side makes {median(ratios):.2f} times as many; in each round: {[round(one, 2) for one in ratios]}")


if __name__ == "__main__":
    logging.getLogger("softprompt").setLevel(logging.ERROR)
    main(sys.argv[1:])
