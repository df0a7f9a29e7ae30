"""What a row costs to classify: 2 labels in words, 77 labels in words, 77 labels by a head.

    python -m benchmarks.heads [--dtype auto] [--rows 32] [--virtual-tokens 32] [--rounds 3]

The same rows behind the same prompt, the sides taking turns in one process after a warm-up. Owns the labels and the
clock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, seconds, write_results
from benchmarks.movies import load_movies

NAME = "heads"
_SUBJECTS = ("card", "transfer", "account", "payment", "refund", "top up", "exchange rate")
_QUESTIONS = (
    "not arrived",
    "declined",
    "charged twice",
    "limits",
    "how to cancel",
    "fee",
    "not recognised",
    "pending",
    "supported countries",
    "stolen",
    "verification",
)
LABELS = [f"{subject} {question}" for subject in _SUBJECTS for question in _QUESTIONS]  # 77


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--virtual-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = default_device()
    base = sp.load_base("smollm2-135m", dtype=options.dtype, device=device)
    texts = [row.columns["text"] for row in load_movies()[: options.rows]]
    words = sp.SoftPrompt.random(base, options.virtual_tokens)
    head = replace(words, head=torch.randn(len(LABELS), base.hidden_size))
    few, many = (sp.Task(template="{text}\nIntent:", labels=labels) for labels in (LABELS[:2], LABELS))
    sides = {
        "2 labels, words": (words, few.answered_by("words")),
        f"{len(LABELS)} labels, words": (words, many.answered_by("words")),
        f"{len(LABELS)} labels, head": (head, many.answered_by("head")),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds + 1):
        for name, (prompt, task) in sides.items():
            times[name].append(seconds(lambda prompt=prompt, task=task: sp.predict(base, prompt, task, texts), device))  # type: ignore[misc]
    medians = {name: median(some[1:]) for name, some in times.items()}
    first = next(iter(medians.values()))
    document = describe(NAME, arguments, device) | {"seconds": medians, "rows": options.rows, "dtype": str(base.dtype)}
    table = markdown_table(
        ("", "seconds a row", "times 2 labels in words"),
        [(name, f"{value / options.rows:.4f}", f"{value / first:.2f}") for name, value in medians.items()],
    )
    write_results(options.results, NAME, document, f"{table}\n\n{footing(document)}")
    print(table)


if __name__ == "__main__":
    main()
