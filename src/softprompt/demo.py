"""The whole story on real data: a prompt learns whether a sentence about a film is kind, and is asked about products.

Owns the demonstration's data, sizes and words, and the folder it leaves, with which `softprompt train`, `evaluate`
and `predict` go on; the run in it has a report, as after `softprompt train`. Knows nothing of arguments and exit codes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rich.console import Console
from rich.table import Table

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.bases.reading import EMBEDDED
from softprompt.bases.sources import Snippet, read_snippets
from softprompt.errors import SoftPromptError
from softprompt.evaluation import Evaluation, Prediction, evaluate, predict
from softprompt.files import write_file
from softprompt.progress import TrainingProgress, progress_bar
from softprompt.prompts import SoftPrompt
from softprompt.reporting.run_report import write_report
from softprompt.tasks import load_rows
from softprompt.training.folder import RECORD
from softprompt.training.run import train
from softprompt.training.taskfile import TaskFile, load_task_file, make_prompt

BASE = EMBEDDED
# Two slow cores get through about 8 sentences a second in training and 20 otherwise, and all of it is to take less
# than six minutes. The test rows are asked twice, the validation rows at every validation.
STEPS = 160
BATCH_SIZE = 8
EVALUATE_EVERY = 40
VALIDATION_ROWS = 160
TEST_ROWS = 400
OUT_OF_DOMAIN_ROWS = 200

_TASK_FILE = "task.yaml"
_TRAIN, _VALIDATION, _TEST, _OUT_OF_DOMAIN = "train.csv", "validation.csv", "test.csv", "out-of-domain.csv"

# Of our own; they are not in the data.
SENTENCES = [
    "I expected little and walked out grinning.",
    "Two hours that I would very much like to have back.",
    "The actors do what they can, but the story never gets going.",
]

_TASK = """\
# Written by `softprompt demo`. Change it, and train with: softprompt train task.yaml --output ANOTHER_FOLDER
name: movie-sentiment
base: {base}
task:
  template: "Review: {{text}}\\nSentiment:"
  target: " {{label}}"
  labels: [negative, positive]
  metric: accuracy
data:
  train: train.csv
  validation: validation.csv
  test: test.csv                        # out-of-domain.csv has sentences about products
prompt:
  num_virtual_tokens: 32
  init: examples                        # from short training rows with their answers
recipe:
  max_steps: {steps}
  batch_size: {batch_size}
  learning_rate: auto
  evaluate_every: {evaluate_every}
  log_every: 5
"""


def show(
    console: Console, output: Path, steps: int | None = None, *, resume: bool = False, force: bool = False
) -> dict[str, Any]:
    """Run the demonstration and tell it as it goes.

    Args:
        console: where it is told.
        output: the folder for the data, `task.yaml` and the run, in `run`.
        steps: training steps; default `STEPS`, or with `resume` as many as before.
        resume: go on with the one in `output`, however far it came.
        force: replace the one in `output`.

    Returns:
        All that was told, for `--json`: what `softprompt train` prints and more.

    Raises:
        SoftPromptError: `output` exists (without `resume` or `force`), has nothing to resume, or can't be written; a
            download fails; or it was interrupted, and the line says how to go on.
    """
    _check(output, resume=resume, force=force)
    _say(console, "Loading the base and the data. The first time, this downloads 100 MB.")
    base = load_base(BASE)
    files = split(read_snippets("movieReview"), read_snippets("amazonReview"))
    file = prepare(output, files, steps, resume=resume)
    progress = TrainingProgress(console, file.task.metric, VALIDATION_ROWS)
    try:
        return _tell(console, base, file, output, progress, resume=resume, force=force)
    except KeyboardInterrupt:
        again = shlex.join(["softprompt", "demo", "--output", str(output), "--resume"])
        raise SoftPromptError(f"interrupted at step {progress.step}; go on with: {again}") from None


def prepare(output: Path, files: Mapping[str, Sequence[Snippet]], steps: int | None, *, resume: bool) -> TaskFile:
    """Write the task file and the data, or with `resume` what is missing of them, and read the task file.

    Raises:
        SoftPromptError: the folder can't be written.
    """
    settings = {"steps": steps or STEPS, "batch_size": BATCH_SIZE, "evaluate_every": EVALUATE_EVERY}
    texts = {_TASK_FILE: _TASK.format(base=json.dumps(BASE), **settings)}
    texts |= {name: _to_csv(snippets) for name, snippets in files.items()}
    for name, text in texts.items():
        if not (resume and (output / name).exists()):
            write_file(output / name, text)
    return load_task_file(output / _TASK_FILE, [] if steps is None else [f"recipe.max_steps={steps}"])


def split(movies: Sequence[Snippet], products: Sequence[Snippet]) -> dict[str, list[Snippet]]:
    """The demonstration's files and what is in each; no sentence is there twice.

    Left out are sentences whose mean rating is 0. The rest stand in the order of their SHA-256: as good as shuffled,
    and the same everywhere.
    """

    def shuffled(snippets: Sequence[Snippet]) -> list[Snippet]:
        rated = {one.text: one for one in snippets if one.rating != 0}
        return sorted(rated.values(), key=lambda one: hashlib.sha256(one.text.encode()).digest())

    of_movies = shuffled(movies)
    held = TEST_ROWS + VALIDATION_ROWS
    return {
        _TEST: of_movies[:TEST_ROWS],
        _VALIDATION: of_movies[TEST_ROWS:held],
        _TRAIN: of_movies[held:],
        _OUT_OF_DOMAIN: shuffled(products)[:OUT_OF_DOMAIN_ROWS],
    }


def accuracy_interval(accuracy: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for an accuracy that was measured on `n` rows (https://doi.org/10.2307/2276774)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = accuracy + z * z / (2 * n)
    spread = z * (accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def _check(output: Path, *, resume: bool, force: bool) -> None:
    is_demo = (output / _TASK_FILE).exists()
    if resume and not is_demo:
        raise SoftPromptError(f"{output}: there is no demo to resume; leave out --resume to start one")
    if resume or not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise SoftPromptError(f"{output} exists: choose another --output, --resume its demo or --force to replace it")
    if not is_demo:
        raise SoftPromptError(f"{output} is not a demo's folder (it has no {_TASK_FILE}): --force does not replace it")


def _to_csv(snippets: Sequence[Snippet]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows((one.text, "positive" if one.rating > 0 else "negative") for one in snippets)
    return text.getvalue()


def _tell(
    console: Console,
    base: Base,
    file: TaskFile,
    output: Path,
    progress: TrainingProgress,
    *,
    resume: bool,
    force: bool,
) -> dict[str, Any]:
    folder, task = output / "run", file.task
    rows, validation, *tests = (load_rows(output / name, task) for name in (_TRAIN, _VALIDATION, _TEST, _OUT_OF_DOMAIN))

    def measure(prompt: SoftPrompt | None, what: str) -> tuple[list[Evaluation], list[Prediction]]:
        with progress_bar(console, what, sum(map(len, tests))) as advance:
            evaluations = [evaluate(base, prompt, task, rows, progress=advance) for rows in tests]
        return evaluations, predict(base, prompt, task, SENTENCES)

    _say(console, f"The base {BASE} has {base.model.num_parameters():,} parameters. They stay as they are.")
    before, answers_before = measure(None, "Without a prompt")
    _say(
        console,
        f"Without a prompt it is right on {_accuracy(before[0].to_json())} of {before[0].n} sentences about films.",
    )
    _say(console, f"Now a prompt is trained: {file.recipe.max_steps} steps of {file.recipe.batch_size} sentences.")
    with progress:
        run = train(
            base,
            make_prompt(base, file.prompt, task, rows),
            task,
            train=rows,
            validation=validation,
            recipe=file.recipe,
            output=folder,
            resume=resume and (folder / RECORD).exists(),
            force=force,
            callbacks=[progress],
            progress=progress.answered,
            diagnosed=lambda found: progress.diagnosed([diagnosis.sentence for diagnosis in found]),
        )
    after, answers_after = measure(run.prompt, "With the prompt")
    with progress_bar(console, "Writing the report", len(validation)) as advance:
        report = write_report(folder, base=base, validation=validation, test=after[0], progress=advance)

    document = run.to_json() | {
        "report": str(report),
        "test": after[0].to_json(),
        "out_of_domain": after[1].to_json(),
        "zero_shot": {"test": before[0].to_json(), "out_of_domain": before[1].to_json()},
        "base_parameters": base.model.num_parameters(),
        "base_bytes": base.weight_bytes,
        "sentences": [
            {
                "text": text,
                "zero_shot": bare.model_dump(exclude_none=True),
                "prompt": prompted.model_dump(exclude_none=True),
            }
            for text, bare, prompted in zip(SENTENCES, answers_before, answers_after, strict=True)
        ],
    }
    _conclude(console, output, document)
    return document


def _conclude(console: Console, output: Path, found: Mapping[str, Any]) -> None:
    figures = Table("accuracy [95% interval]", "rows", "without a prompt", "with the prompt")
    for name, key in (("films", "test"), ("products (never seen)", "out_of_domain")):
        bare, prompted = found["zero_shot"][key], found[key]
        figures.add_row(name, str(bare["n"]), _accuracy(bare), _accuracy(prompted))
    sentences = Table("sentence", "without a prompt", "with the prompt")
    for one in found["sentences"]:
        sentences.add_row(one["text"], _answer(one["zero_shot"]), _answer(one["prompt"]))
    console.print(figures, sentences)
    share = found["trainable_parameters"] / found["base_parameters"]
    prompt, task, data = (
        shlex.quote(str(path)) for path in (found["prompt"], output / _TASK_FILE, output / _OUT_OF_DOMAIN)
    )
    for line in (
        *(f"{diagnosis['name']}: {diagnosis['sentence']}" for diagnosis in found["diagnoses"]),
        f"Trained: {found['trainable_parameters']:,} parameters, {share:.3%} of the base's.",
        f"On disk: {found['artifact_bytes']:,} bytes; the base's weights are {found['base_bytes']:,} bytes.",
        f"The whole run, for a browser: {found['report']}",
        f"The prompt is in {found['prompt']}. Next, try:",
        f'  softprompt predict {prompt} "A film to fall asleep to."',
        f"  softprompt evaluate {prompt} {data}",
        f"  softprompt train {task} --set recipe.max_steps=360 --output runs/longer",
    ):
        _say(console, line)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    low, high = accuracy_interval(evaluation["accuracy"], evaluation["n"])
    return f"{evaluation['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def _answer(prediction: Mapping[str, Any]) -> str:
    return f"{prediction['label']} {prediction['probabilities'][prediction['label']]:.2f}"
