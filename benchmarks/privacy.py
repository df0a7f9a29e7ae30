"""What a prompt gives away of its training rows, and what differential privacy costs: sentences about films.

    python -m benchmarks.privacy [TASK.yaml] [--epsilons 1 3 8 inf] [--seeds 0 1 2] [--parts epsilon starts canaries]

Finished rows stay in the results and are not repeated, so a run that was interrupted goes on where it stopped. Owns the
settings and the tables; the training is `softprompt.train`, the figures are `softprompt.leakage`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import matplotlib
import torch

import softprompt as sp
from benchmarks.measure import RESULTS, Kept, footing, markdown_table, seconds
from benchmarks.movies import INIT_TEXT, TASK, load_movies
from benchmarks.quality import read_rows
from softprompt import demo
from softprompt.bases.sources import read_snippets
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.training.privacy import make_mechanism
from softprompt.training.schedule import flatten, learned_rows
from softprompt.training.taskfile import PromptStart, load_task_file, make_prompt

NAME = "privacy"
PARTS = ("epsilon", "starts", "canaries", "cost")
DELTA = 1e-5
LEAK_ROWS = 200  # of each kind, that are told apart
# Of the private runs, and of those that they are compared with: few numbers to learn, many rows in a step, few steps.
PRIVATE = {"num_virtual_tokens": 2, "max_steps": 80, "batch_size": 128, "max_grad_norm": 1.0}
RATES = {"learning_rate": 0.001, "head_learning_rate": 0.03}
_MAX_TOKENS = 2048  # computed at one time: a copy of the prompt for each row takes memory
_NAMES = {"inf": "no privacy", "zero-shot": "zero-shot, words", "start": "the start, which has learned nothing, words"}
STARTS = ("text", "labels", "examples", "random")
# So few rows so often that they are learned by heart.
OVERFIT = {"rows": 8, "canaries": 4, "repeats": 4, "max_steps": 100, "batch_size": 24, "learning_rate": 0.03}


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", type=Path, help="a task file, for the epsilons alone; default: films")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1, 3, 8, float("inf")])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    base = sp.load_base(options.base)
    settings = {
        "private": PRIVATE | RATES,
        "delta": DELTA,
        "overfit": OVERFIT,
        "leak_rows": LEAK_ROWS,
        "dtype": str(base.dtype),
    }
    found = Kept(options.results, NAME, arguments, settings, _table, _plot)
    data = _Data.read(options.task)
    if options.task is not None:
        options.parts = [part for part in options.parts if part == "epsilon"]
    if "epsilon" in options.parts:
        key = {"part": "epsilon", "task": data.name}
        found.add(key | {"epsilon": "zero-shot", "seed": 0}, lambda: _accuracy(base, None, data))
        for seed in options.seeds:
            found.add(key | {"epsilon": "start", "seed": seed}, lambda seed=seed: _untrained(base, data, seed))  # type: ignore[misc]
            for epsilon in options.epsilons:
                found.add(
                    key | {"epsilon": str(epsilon), "seed": seed},
                    lambda epsilon=epsilon, seed=seed: _private(base, data.by_head(), epsilon, seed),  # type: ignore[misc]
                )
    if "starts" in options.parts:
        for init in STARTS:
            found.add({"part": "starts", "start": init, "seed": 0}, lambda init=init: _start(base, data, init))  # type: ignore[misc]
    if "canaries" in options.parts:
        for epsilon in (float("inf"), 8.0):
            key = {"part": "canaries", "epsilon": str(epsilon), "seed": 0}
            found.add(key, lambda epsilon=epsilon: _canaries(base, data, epsilon))  # type: ignore[misc]
    if "cost" in options.parts:
        found.add({"part": "cost", "seed": 0}, lambda: _cost(base, data))
    print(found.write())


def _table(document: dict[str, Any]) -> str:
    rows = document["rows"]
    tables = [_epsilon_table(rows), _start_table(rows), _canary_table(rows), _cost_table(rows)]
    return "\n".join(table for table in tables if table.count("\n") > 2) + footing(document)


@dataclass
class _Data:
    """A task with two labels and its rows."""

    name: str
    task: sp.Task
    train: Sequence[sp.Row]
    validation: Sequence[sp.Row]
    test: Sequence[sp.Row]

    @classmethod
    def read(cls, path: Path | None) -> _Data:
        """A task file's; None: the demonstration's."""
        if path is not None:
            file = load_task_file(path)
            return cls(file.name, file.task, *read_rows(file))
        rows = load_movies()
        held = demo.split(read_snippets("movieReview"), [])["test.csv"]
        labelled = ((one.text, int(one.rating > 0)) for one in held)
        test = [sp.Row({"text": text}, label, f" {(TASK.labels or [])[label]}") for text, label in labelled]
        return cls("films", TASK, rows[demo.VALIDATION_ROWS :], rows[: demo.VALIDATION_ROWS], test)

    def by_head(self) -> _Data:
        """The same, answered by a head."""
        return replace(self, task=self.task.model_copy(update={"answer": "head"}))


def _accuracy(base: sp.Base, prompt: sp.SoftPrompt | None, data: _Data) -> dict[str, Any]:
    found = sp.evaluate(base, prompt, data.task, data.test)
    return {"accuracy": found.accuracy, "log_loss": found.log_loss, "n": found.n}


def _recipe(epsilon: float, seed: int) -> sp.Recipe:
    """A run at an epsilon, or without privacy with the same steps, batches and rate."""
    steps = int(PRIVATE["max_steps"])
    private = {"epsilon": epsilon, "delta": DELTA, "max_grad_norm": PRIVATE["max_grad_norm"], "seed": seed}
    return sp.Recipe(
        max_steps=steps,
        batch_size=int(PRIVATE["batch_size"]),
        **RATES,
        max_tokens=_MAX_TOKENS,
        warmup_steps=steps // 10,
        evaluate_every=steps // 2,
        monitor=False,
        seed=seed,
        private=None if epsilon == float("inf") else private,
    )


def _start_of(base: sp.Base) -> sp.SoftPrompt:
    return sp.SoftPrompt.from_text(base, INIT_TEXT, int(PRIVATE["num_virtual_tokens"]))


def _learned(recipe: sp.Recipe, start: sp.SoftPrompt, data: _Data) -> list[int]:
    """The rows that a run learns; they are the same at each epsilon."""
    mechanism = make_mechanism(recipe, start, len(data.train))
    if mechanism is None:
        return learned_rows(len(data.train), recipe.batch_size, recipe.max_steps, recipe.seed)
    return sorted({row for step in range(recipe.max_steps) for row in mechanism.drawn(step)})


def _private(base: sp.Base, data: _Data, epsilon: float, seed: int) -> dict[str, Any]:
    recipe, start = _recipe(epsilon, seed), _start_of(base)
    # Without chance in it a run of so many rows learns them all: some are kept from it, to tell learned rows from.
    given = data if recipe.private else replace(data, train=data.train[:-LEAK_ROWS])
    run = sp.train(base, start, data.task, train=given.train, validation=data.validation, recipe=recipe)
    leaks = _leaks(base, run.prompt, _learned(recipe, start, given), data)
    return _accuracy(base, run.prompt, data) | leaks | {"seconds": run.seconds, "best_step": run.best_step}


def _untrained(base: sp.Base, data: _Data, seed: int) -> dict[str, Any]:
    """What membership looks like where nothing was learned: by chance, and by how the rows differ anyway."""
    start = _start_of(base)
    return _accuracy(base, start, data) | _leaks(base, start, _learned(_recipe(8, seed), start, data), data)


def _leaks(base: sp.Base, prompt: sp.SoftPrompt, learned: Sequence[int], data: _Data) -> dict[str, Any]:
    """Training rows that were learned against others that were not: rows of the test may differ from both anyway."""
    left = sorted({*range(len(data.train))} - {*learned})
    seen, unseen = ([data.train[row] for row in some[:LEAK_ROWS]] for some in (learned, left))
    return _told(sp.leakage(base, prompt, seen, unseen=unseen, task=data.task))


def _told(found: sp.Leakage) -> dict[str, Any]:
    return {"leakage": {key: value for key, value in found.to_json().items() if key != "caption"}}


def _start(base: sp.Base, data: _Data, init: str) -> dict[str, Any]:
    """A run of the demonstration's settings, from one of the starts; its words are looked for in all rows."""
    text = {"init_text": INIT_TEXT} if init == "text" else {}
    start = make_prompt(base, PromptStart(num_virtual_tokens=32, init=init, **text), TASK, data.train)
    recipe = sp.Recipe(max_steps=demo.STEPS, batch_size=demo.BATCH_SIZE, evaluate_every=demo.EVALUATE_EVERY)
    run = sp.train(base, start, TASK, train=data.train, validation=data.validation, recipe=recipe)
    learned = learned_rows(len(data.train), demo.BATCH_SIZE, demo.STEPS, recipe.seed)
    found = _leaks(base, run.prompt, learned, data)
    before, after = (sp.leakage(base, one, data.train, task=TASK).recovery for one in (start, run.prompt))
    words = {name: asdict(one) for name, one in (("before", before), ("after", after)) if one is not None}
    return _accuracy(base, run.prompt, data) | found | {"words": words}


def _canaries(base: sp.Base, data: _Data, epsilon: float) -> dict[str, Any]:
    """A prompt that is made to learn few rows by heart, canaries among them, with and without privacy."""
    count = int(OVERFIT["rows"])
    rows = sp.plant_canaries(data.train[:count], TASK, int(OVERFIT["canaries"]), repeats=int(OVERFIT["repeats"]))
    unseen = data.train[count : count + LEAK_ROWS]
    private = {"epsilon": epsilon, "delta": 1e-3, "max_grad_norm": PRIVATE["max_grad_norm"], "seed": 0}
    recipe = sp.Recipe(
        monitor=False,
        **{key: OVERFIT[key] for key in ("max_steps", "batch_size", "learning_rate")},
        private=None if epsilon == float("inf") else private,
    )
    start = sp.SoftPrompt.from_text(base, INIT_TEXT, 32)
    run = sp.train(base, start, TASK, train=rows, recipe=recipe)
    return _told(sp.leakage(base, run.prompt, rows, unseen=unseen, task=TASK, references=255))


def _cost(base: sp.Base, data: _Data) -> dict[str, Any]:
    """The seconds of a step's gradient, plain and row by row, taking turns."""
    size = int(PRIVATE["batch_size"])
    start = sp.SoftPrompt.from_text(base, INIT_TEXT, int(PRIVATE["num_virtual_tokens"]))
    model = PromptedModel(base, [start], max_tokens=4096)
    encoded = Encoder(base, TASK, virtual_tokens=start.num_virtual_tokens).encode_rows(data.train[:size])
    flat = flatten([encoded.example(row) | {"prompt": 0} for row in range(size)])
    batch = {key: value.to(base.device) for key, value in flat.items()}

    def plain() -> None:
        model.zero_grad()
        model(batch["input_ids"], labels=batch["labels"], lengths=batch["lengths"]).loss.backward()

    def by_row() -> None:
        model.row_gradients(batch["input_ids"], batch["labels"], batch["lengths"])

    times: dict[str, list[float]] = {"plain": [], "row by row": []}
    for _ in range(6):
        for name, work in (("plain", plain), ("row by row", by_row)):
            times[name].append(seconds(work, base.device))
    return {"seconds": {name: median(some[1:]) for name, some in times.items()}, "batch_size": size}


def _of(rows: Sequence[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == part]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _auc(row: dict[str, Any]) -> str:
    told = row["leakage"]["membership"]
    return "{:.3f} [{:.3f}, {:.3f}]".format(told["auc"], *told["auc_interval"])


def _epsilon_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _of(rows, "epsilon"):
        groups.setdefault((row["task"], row["epsilon"]), []).append(row)
    for (task, epsilon), some in sorted(groups.items(), key=_place):
        told = [row["leakage"]["membership"] for row in some if "leakage" in row]
        spent = [row["leakage"]["private"] for row in some if "leakage" in row and row["leakage"]["private"]]
        lines.append(
            [
                f"{task}, {_NAMES.get(epsilon) or f'epsilon {float(epsilon):g}'}",
                f"{spent[0]['noise_multiplier']:.2f}" if spent else "",
                _spread([row["accuracy"] for row in some]),
                _spread([one["auc"] for one in told]) if told else "",
                _spread([one["tpr"] for one in told]) if told else "",
                str(len(some)),
            ]
        )
    head = ("task", "noise", "test accuracy", "membership AUC", "found at 1% false alarms", "seeds")
    return markdown_table(head, lines)


def _place(group: tuple[tuple[str, str], Any]) -> tuple[str, float]:
    """Where a task's group stands: nothing learned, then from the smallest epsilon on."""
    (task, epsilon), _ = group
    return task, float({"zero-shot": -1, "start": 0}.get(epsilon, epsilon))


def _start_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            row["start"],
            *(f"{row['words'][when]['by_cosine']} of {row['words'][when]['tokens']}" for when in ("before", "after")),
            "" if (kept := row["words"]["after"]["kept"]) is None else f"{kept} of {row['words']['after']['tokens']}",
            f"{row['accuracy']:.3f}",
            _auc(row),
        ]
        for row in _of(rows, "starts")
    ]
    head = ("start", "read as training texts: before", "after training", "still at its word", "accuracy", "AUC")
    return markdown_table(head, lines)


def _canary_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in _of(rows, "canaries"):
        found = row["leakage"]["canaries"]
        name = "no privacy" if row["epsilon"] == "inf" else f"epsilon {float(row['epsilon']):g}"
        exposure = f"{fmean(found['exposures']):.2f} of {found['most']:.1f}"
        lines.append([name, exposure, f"{found['p_value']:.2g}", _auc(row)])
    return markdown_table(("learned by heart", "mean exposure, bits", "p", "membership AUC"), lines)


def _cost_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [name, f"{value:.2f}", f"{value / row['seconds']['plain']:.2f}"]
        for row in _of(rows, "cost")
        for name, value in row["seconds"].items()
    ]
    return markdown_table(("gradient", f"seconds, {PRIVATE['batch_size']} rows", "times plain"), lines)


def _plot(document: dict[str, Any], path: Path) -> None:
    """Accuracy against epsilon, each seed a point."""
    rows = document["rows"]
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = NAME
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for number, task in enumerate(dict.fromkeys(row["task"] for row in _of(rows, "epsilon"))):
        here = [row for row in _of(rows, "epsilon") if row["task"] == task]
        points = [(float(row["epsilon"]), row["accuracy"]) for row in here if row["epsilon"] not in _NAMES]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=f"C{number}", label=task)
        for epsilon, style in (("zero-shot", ":"), ("inf", "--")):
            values = [row["accuracy"] for row in here if row["epsilon"] == epsilon]
            if values:
                axes.axhline(fmean(values), linestyle=style, color=f"C{number}", label=f"{task}, {_NAMES[epsilon]}")
    axes.legend(fontsize="small", ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.set(xscale="log", xlabel=f"epsilon (delta {DELTA:g})", ylabel="test accuracy")
    axes.set_xticks([1, 3, 8], ["1", "3", "8"])
    axes.minorticks_off()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
