"""How good prompts are: the methods' table of each task, and what each choice of prompt tuning brings.

    python -m benchmarks.quality [TASK.yaml ...] [--parts methods length options] [--seeds 0 1 2] [--set KEY=VALUE]

Without a task file the demonstration's is taken: sentences about films; the other domains are products, news, tweets.
Finished rows stay in the results and are not repeated, so a run that was interrupted goes on where it stopped. Owns the
variants and their tables; `softprompt.comparison` measures the methods, `softprompt.train` everything else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import softprompt as sp
from benchmarks.measure import RESULTS, default_device, describe, footing, markdown_table, write_results
from softprompt import demo
from softprompt.bases.sources import Snippet, read_snippets
from softprompt.comparison import compare
from softprompt.comparison.methods import METHODS
from softprompt.tasks import load_rows, split_rows, with_validation
from softprompt.training.ensemble import train_ensemble
from softprompt.training.taskfile import TaskFile, load_task_file, make_prompt

NAME = "quality"
MEMBERS = 5  # of an ensemble
_NO_TEXT = ["prompt.init_text=null", "prompt.spread=false"]
_PEFT = ["prompt.init=random", "prompt.distribution=normal", *_NO_TEXT]
_UNRELATED = "Turn left after the bridge and follow the river for two miles until you see the old mill."
# The Trainer's defaults are for fine-tuning: AdamW at 5e-5, decaying linearly from the first step, batches of 8.
_TRAINER = ["recipe.learning_rate=5e-5", "recipe.schedule=linear", "recipe.warmup_steps=0", "recipe.batch_size=8"]
# Each part's variants and the keys of the task file that they set.
VARIANTS: dict[str, dict[str, list[str]]] = {
    "length": {f"P = {count}": [f"prompt.num_virtual_tokens={count}"] for count in (1, 4, 8, 16, 32, 64, 100)},
    "initialisation": {
        "examples": ["prompt.init=examples", *_NO_TEXT],
        "text": ["prompt.init=text", *_NO_TEXT],
        "unrelated text": ["prompt.init=text", f"prompt.init_text={_UNRELATED}", "prompt.spread=false"],
        "labels": ["prompt.init=labels", *_NO_TEXT],
        "vocabulary": ["prompt.init=vocabulary", *_NO_TEXT],
        "random, like the table": ["prompt.init=random", *_NO_TEXT],
        "random, N(0, 1)": _PEFT,
    },
    "answer": {
        "label words": ["task.answer=words"],
        "head": ["task.answer=head"],
        "linear probe": ["task.answer=head", "prompt.num_virtual_tokens=0", "prompt.init=random", *_NO_TEXT],
    },
    "rate": {f"rate {rate}": [f"recipe.learning_rate={rate}"] for rate in (0.003, 0.01, 0.03, 0.1)},
    "recipe": {
        "softprompt's": [],
        "Lester's": ["recipe.name=lester"],
        "PEFT's and the Trainer's defaults": [*_PEFT, *_TRAINER, "recipe.calibrate=false"],
    },
    "options": {
        "none": [],
        f"ensemble of {MEMBERS}": [],
        "calibrated": ["recipe.calibrate=true"],
        "auto length": ["prompt.num_virtual_tokens=auto"],
    },
    "rows": {"32 rows": [], "128 rows": [], "512 rows": [], "all rows": []},
    # The first three see the same rows, in batches of another size.
    "steps": {
        f"{steps} steps of {size}": [
            f"recipe.max_steps={steps}",
            f"recipe.batch_size={size}",
            f"recipe.evaluate_every={steps // 4}",
            "recipe.patience=9",
        ]
        for steps, size in ((120, 16), (240, 8), (480, 4), (480, 16))
    },
}
DOMAINS = {"trained on films": []}
# These are not made by keys of the task file alone.
NOT_BY_KEYS = {f"ensemble of {MEMBERS}", *VARIANTS["rows"], *DOMAINS} - {"all rows"}
PARTS = ("methods", *VARIANTS, "domains")


def measure_variant(
    path: Path, overrides: Sequence[str], part: str, variant: str, seed: int, others: dict[str, list[sp.Row]]
) -> dict[str, Any]:
    """One prompt, or ensemble, trained and tested; a run that diverges has no figures."""
    file = load_task_file(path, [*overrides, f"recipe.seed={seed}"])
    return _setting(file) | _measure(file, part, variant, seed, others)


def _setting(file: TaskFile) -> dict[str, Any]:
    """What a row was trained with, whichever of it the task file names: a change of a default shows."""
    recipe = file.recipe
    return {"steps": recipe.max_steps, "batch_size": recipe.batch_size, "learning_rate": recipe.rate}


def _measured(rows: Sequence[dict[str, Any]], path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """A row of the same settings, which another part has under another name: a seed's run comes out the same again."""

    def settings(row: dict[str, Any]) -> tuple[TaskFile, str]:
        file = load_task_file(path, [*row["set"], f"recipe.seed={row['seed']}"])
        return file, row["variant"] if row["variant"] in NOT_BY_KEYS else ""

    wanted = settings(key)
    return next(
        (
            row
            for row in rows
            if row["task"] == key["task"] and settings(row) == wanted and _setting(wanted[0]).items() <= row.items()
        ),
        None,
    )


def _measure(file: TaskFile, part: str, variant: str, seed: int, others: dict[str, list[sp.Row]]) -> dict[str, Any]:
    rows, validation, test = read_rows(file)
    if part == "rows" and variant != "all rows":
        wanted = int(variant.split()[0])
        if wanted < len(rows):
            rows, _ = split_rows(rows, 1 - wanted / len(rows), seed)
    base = sp.load_base(file.base, dtype=file.recipe.dtype)
    try:
        if variant == f"ensemble of {MEMBERS}":
            seeds = [file.prompt.model_copy(update={"seed": file.prompt.seed + k}) for k in range(MEMBERS)]
            starts = [make_prompt(base, start, file.task, rows) for start in seeds]
            ensemble = train_ensemble(base, starts, file.task, train=rows, validation=validation, recipe=file.recipe)
            return _figures(sp.evaluate(base, ensemble, file.task, test), file)
        run = _train(base, file, rows, validation)
    except sp.DivergedError as error:
        return {"diverged": str(error)}
    found = _figures(sp.evaluate(base, run.prompt, file.task, test), file)
    if part == "domains":
        found["elsewhere"] = {
            name: [_figures(sp.evaluate(base, prompt, file.task, far), file) for prompt in (None, run.prompt)]
            for name, far in others.items()
        }
    count = run.prompt.num_virtual_tokens
    if run.validation is not None:  # what a choice between variants should look at
        found["validation"] = _figures(run.validation, file)
    return found | {"best_step": run.best_step, "num_virtual_tokens": count, "seconds": run.seconds}


def _train(base: sp.Base, file: TaskFile, rows: Sequence[sp.Row], validation: Sequence[sp.Row]) -> sp.Run:
    """A run as `softprompt train` has it; of several lengths the one that is kept."""

    def make(count: int | None) -> sp.SoftPrompt:
        start = file.prompt.model_copy(update={"num_virtual_tokens": count})
        return make_prompt(base, start, file.task, rows)

    settings: dict[str, Any] = {"train": rows, "validation": validation, "recipe": file.recipe}
    if file.prompt.num_virtual_tokens == "auto":
        return sp.grow(base, make, file.task, **settings).run
    return sp.train(base, make(file.prompt.num_virtual_tokens), file.task, **settings)


def read_rows(file: TaskFile) -> tuple[Sequence[sp.Row], Sequence[sp.Row], Sequence[sp.Row]]:
    """The training, validation and test rows of a task file, which needs all three."""
    train, validation = with_validation(file.data.train, file.data.validation, file.task, file.recipe.seed)
    if validation is None or file.data.test is None:
        raise sp.SoftPromptError(f"{file.name}: the benchmark needs data.validation and data.test")
    return train, validation, load_rows(file.data.test, file.task)


def _figures(evaluation: sp.Evaluation, file: TaskFile) -> dict[str, Any]:
    return {"score": getattr(evaluation, file.task.metric), "log_loss": evaluation.log_loss, "n": evaluation.n}


def table(document: dict[str, Any]) -> str:
    """The document as Markdown: each task's methods, then one table for each part, the mean over the seeds."""
    text = ""
    for found in document["methods"]:
        text += f"## {found['name']}: the methods\n\n" + _methods(found) + "\n"
    for part in (*VARIANTS, "domains"):
        rows = [(_label(row), row) for row in document["rows"] if row["part"] == part]
        lines = []
        for label in dict.fromkeys(label for label, _ in rows):
            here = [row for one, row in rows if one == label]
            scores = [row["score"] for row in here if "score" in row]
            spread = f"{stdev(scores):.3f}" if len(scores) > 1 else ""
            mean = f"{fmean(scores):.3f}" if scores else "diverged"
            losses = [row["log_loss"] for row in here if row.get("log_loss") is not None]
            loss = f"{fmean(losses):.3f}" if losses else ""
            lines.append([label, mean, spread, loss, str(len(scores))])
            for name in here[0].get("elsewhere", {}):
                bare, prompted = (fmean(row["elsewhere"][name][i]["score"] for row in here) for i in (0, 1))
                lines.append(
                    [f"{label}, tested on {name}", f"{prompted:.3f} (zero-shot {bare:.3f})", "", "", str(len(here))]
                )
        if lines:
            text += f"## {part}\n\n" + markdown_table([part, "test score", "spread", "log loss", "seeds"], lines) + "\n"
    return text + footing(document)


def _label(row: dict[str, Any]) -> str:
    parts = [row["task"], row["variant"], *other_settings(row)]
    length = f"{row['steps']} steps of {row['batch_size']}"
    return ", ".join(parts if length == row["variant"] else [*parts, length])


def other_settings(row: dict[str, Any]) -> list[str]:
    """What `--set` changed in a row beside its variant's own keys: with any it is not a measurement of the variant."""
    own = VARIANTS.get(row["part"], {}).get(row["variant"], [])
    return [key for key in row["set"] if key not in own]


def _methods(found: dict[str, Any]) -> str:
    lines = []
    for row in found["rows"]:
        if row["status"] != "done":
            lines.append([row["method"], row["status"], "", "", "", ""])
            continue
        low, high = row["interval"] or (float("nan"), float("nan"))
        lines.append(
            [
                row["method"],
                f"{row['test'][found['metric']]:.3f} [{low:.3f}, {high:.3f}]",
                f"{row['trainable_parameters']:,}",
                f"{row['artifact_bytes']:,}",
                f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
                f"{row['train_seconds']:.0f}",
            ]
        )
    head = ["method", f"test {found['metric']} [95%]", "parameters", "bytes", "peak memory", "seconds"]
    return markdown_table(head, lines) + "".join(f"\n{note}\n" for note in found["notes"])


def movie_task(folder: Path) -> Path:
    """The demonstration's task file and data in `folder`, written where they are not there yet."""
    demo.prepare(folder, demo.split(read_snippets("movieReview"), read_snippets("amazonReview")), None, resume=True)
    return folder / "task.yaml"


def domains() -> dict[str, list[sp.Row]]:
    """Sentences of other domains with the movie task's labels, rated by the same people."""

    def rows(kind: str, snippets: Sequence[Snippet]) -> list[sp.Row]:
        chosen = demo.split([], snippets)["out-of-domain.csv"]
        return [
            sp.Row({"text": text}, int(rating > 0), " positive" if rating > 0 else " negative", kind, i)
            for i, (text, rating) in enumerate(chosen, 1)
        ]

    return {
        "products": rows("products", read_snippets("amazonReview")),
        "news": rows("news", read_snippets("nytEditorial")),
        "tweets": rows("tweets", read_snippets("tweets")),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("tasks", nargs="*", type=Path, help="task files; default: the demonstration's")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=[0])
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for every run")
    add("--quick", action="store_true", help="the methods with few steps and one setting each")
    add("--one-setting", action="store_true", help="the methods with one setting each, but all steps")
    add("--variants", nargs="+", default=[], help="these alone of the parts' variants, by name")
    add("--work", type=Path, default=Path("quality-work"), help="folder for what is trained in comparisons")
    add("--out", type=Path, default=RESULTS, help="folder for the results")
    add("--json", action="store_true", help="print JSON instead of the tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    options = parse(arguments)
    before = options.out / f"{NAME}.json"
    old = json.loads(before.read_text(encoding="utf-8")) if before.exists() else {"methods": [], "rows": []}
    document = describe(NAME, arguments, default_device()) | {"methods": old["methods"], "rows": old["rows"]}

    def keep() -> None:
        write_results(options.out, NAME, document, table(document))

    tasks = options.tasks or [movie_task(options.work / "films")]
    for path in tasks:
        name = load_task_file(path, options.overrides).name
        if "methods" in options.parts:
            file = load_task_file(path, options.overrides)
            found = compare(
                file,
                options.methods,
                output=options.work / name,
                seeds=len(options.seeds),
                quick=options.quick,
                one_setting=options.one_setting,
                progress=lambda what, share: print(f"{what} ({share:.0%})", file=sys.stderr),
            )
            document["methods"] = [one for one in document["methods"] if one["name"] != name]
            document["methods"].append(found.to_json())
            keep()
        others = {} if options.tasks or "domains" not in options.parts else domains()
        for part, variants in [*VARIANTS.items(), ("domains", DOMAINS)]:
            if part not in options.parts or (part == "domains" and not others):
                continue
            for seed in options.seeds:
                for variant, keys in variants.items():
                    if options.variants and variant not in options.variants:
                        continue
                    overrides = [*options.overrides, *keys]
                    key = {"part": part, "task": name, "variant": variant, "seed": seed, "set": overrides}
                    now = key | _setting(load_task_file(path, overrides))
                    if any(now.items() <= row.items() for row in document["rows"]):
                        continue
                    print(f"{name}, {part}: {variant}, seed {seed} ...", file=sys.stderr)
                    row = _measured(document["rows"], path, key)
                    row = row or measure_variant(path, overrides, part, variant, seed, others)
                    document["rows"] = [old for old in document["rows"] if not key.items() <= old.items()]
                    document["rows"].append(row | key)
                    keep()
    print(json.dumps(document, indent=1) if options.json else table(document))


if __name__ == "__main__":
    main()
