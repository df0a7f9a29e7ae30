"""Task files for public data sets: SST-2, SMS spam and BANKING77.

    python -m benchmarks.public_tasks FOLDER OUT
    python -m benchmarks.quality OUT/*/task.yaml --parts methods --one-setting --methods zero-shot prompt lora

FOLDER holds the CSV files, with the columns text and label: `sst2_train.csv`, `sst2_dev.csv`, `sst2_test.csv`,
`sms_spam.csv`, `banking77_train.csv` and `banking77_test.csv`. Nothing of them is in this repository. All training
and test rows are kept; validation rows are drawn at random, the same every time; a label is written with spaces for the
underscores in its name. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

Rows = list[tuple[str, str]]
VALIDATION, SPAM_TEST = 150, 1000
TASK = """\
name: {name}
base: smollm2-135m
task:
  template: "{template}"
  target: " {{label}}"
  labels: {labels}
  metric: accuracy
data: {{train: train.csv, validation: validation.csv, test: test.csv}}
prompt: {{num_virtual_tokens: 32, init: examples, seed: 0}}
recipe: {{max_steps: 360, batch_size: 8, evaluate_every: 120}}
"""


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"].replace("_", " ")) for row in csv.DictReader(file)]


def draw(rows: Rows, count: int) -> Rows:
    return random.Random(0).sample(rows, min(count, len(rows)))


def write(folder: Path, splits: dict[str, Rows], template: str) -> None:
    """A folder with `task.yaml` and its three data files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    labels = json.dumps(sorted({label for rows in splits.values() for _, label in rows}))
    text = TASK.format(name=folder.name, template=template, labels=labels)
    (folder / "task.yaml").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.public_tasks", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the CSV files are")
    parser.add_argument("out", type=Path, help="where each task gets a folder")
    options = parser.parse_args(arguments)

    def rows(name: str) -> Rows:
        return read(options.folder / f"{name}.csv")

    sst2 = {"train": rows("sst2_train"), "validation": rows("sst2_dev"), "test": rows("sst2_test")}
    spam = draw(rows("sms_spam"), 1 << 30)
    held = VALIDATION + SPAM_TEST
    sms = {"train": spam[held:], "validation": spam[:VALIDATION], "test": spam[VALIDATION:held]}
    intents = draw(rows("banking77_train"), 1 << 30)
    banking = {"train": intents[VALIDATION:], "validation": intents[:VALIDATION], "test": rows("banking77_test")}
    for name, splits, template in (
        ("sst2", sst2, "Review: {text}\\nSentiment:"),
        ("sms-spam", sms, "Message: {text}\\nKind:"),
        ("banking77", banking, "Question: {text}\\nIntent:"),
    ):
        write(options.out / name, {**splits, "validation": draw(splits["validation"], VALIDATION)}, template)


if __name__ == "__main__":
    main()
