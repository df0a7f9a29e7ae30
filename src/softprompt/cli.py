"""The commands: each parses its arguments, calls the library and prints what comes back.

Owns the arguments, what is printed and the exit codes. Nobody imports it. It imports PyTorch and Transformers only
within the commands that need them, so that help and wrong usage answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from softprompt import __version__
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompt.evaluation import Evaluation, Prediction
    from softprompt.models.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Row, Task

app = typer.Typer(
    name="softprompt",
    help="One frozen language model, any number of tasks, a few kilobytes each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace a run that is already in the folder.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder from its last checkpoint.")]
_Prompt = Annotated[Path, typer.Argument(metavar="PROMPT", help="The prompt's folder.", show_default=False)]
_Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="BASE", help="Hub id, folder or GGUF file. Default: the prompt's.", show_default=False
    ),
]
_TaskFile = Annotated[
    Path | None,
    typer.Option("--task", metavar="FILE", help="A task file. Default: the prompt's own task.", show_default=False),
]


def main() -> None:
    """The console script `softprompt`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"softprompt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    task: Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="The run's folder. Default: runs/ and the task's name.", show_default=False)
    ] = None,
    resume: _Resume = False,
    force: _Force = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of the task file: recipe.max_steps=300.", show_default=False
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Train a prompt as a task file says, and measure it on the test rows."""
    _check_choice(resume, force)
    with _reporting() as out:
        from softprompt.evaluation import evaluate
        from softprompt.models.base import load_base
        from softprompt.progress import TrainingProgress, progress_bar
        from softprompt.tasks import load_rows, split_rows
        from softprompt.training import train
        from softprompt.training.run import RECORD
        from softprompt.training.taskfile import load_task_file, make_prompt

        overrides = overrides or []
        file = load_task_file(task, overrides)
        folder = output or Path("runs") / file.name
        # All rows first: a mistake in the test rows is not to come out after the training.
        rows = load_rows(file.data.train, file.task)
        validation: list[Row] | None = None
        if isinstance(file.data.validation, float):
            rows, validation = split_rows(rows, file.data.validation, file.recipe.seed)
        elif file.data.validation is not None:
            validation = load_rows(file.data.validation, file.task)
        test_rows = [] if file.data.test is None else load_rows(file.data.test, file.task)
        base = load_base(file.base, dtype=file.recipe.dtype)
        start = make_prompt(base, file.prompt, file.task)
        console = Console(stderr=True)
        progress = TrainingProgress(console, file.task.metric, len(validation or []))
        test: Evaluation | None = None
        try:
            with progress:
                run = train(
                    base,
                    start,
                    file.task,
                    train=rows,
                    validation=validation,
                    recipe=file.recipe,
                    output=folder,
                    resume=resume,
                    force=force,
                    callbacks=[progress],
                    progress=progress.validated,
                )
            if test_rows:
                with progress_bar(console, "Testing", len(test_rows)) as advance:
                    test = evaluate(base, run.prompt, file.task, test_rows, progress=advance)
        except KeyboardInterrupt:
            if not (folder / RECORD).exists():
                raise
            settings = [word for override in overrides for word in ("--set", override)]
            again = ["softprompt", "train", str(task), *settings, "--output", str(folder), "--resume"]
            raise SoftPromptError(f"interrupted at step {progress.step}; go on with: {shlex.join(again)}") from None
        document = run.to_json() | {"test": None if test is None else test.to_json()}
        cut = f"; {run.truncated} training texts were cut to fit the context" if run.truncated else ""
        _print(
            out,
            document if as_json else None,
            *([_figures({"validation": run.validation, "test": test})] if run.validation or test else []),
            f"{run.steps} steps in {run.seconds:.0f} s; the prompt is from step {run.best_step}{cut}",
            f"{document['trainable_parameters']:,} parameters, {document['artifact_bytes']:,} bytes in {run.path}",
            f"Next: softprompt predict {shlex.quote(str(run.path))} TEXT",
        )


@app.command()
def evaluate(
    prompt: _Prompt,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Labelled rows: a .csv, .tsv, .jsonl or .parquet file or hub:OWNER/NAME:SPLIT.",
            show_default=False,
        ),
    ],
    base: _Base = None,
    task: _TaskFile = None,
    as_json: _Json = False,
) -> None:
    """Measure a prompt on labelled rows."""
    with _reporting() as out:
        from softprompt.evaluation import evaluate
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows

        asked, its_task, load = _open(prompt, base, task)
        rows = load_rows(data, its_task)
        loaded = load()
        with progress_bar(Console(stderr=True), "Evaluating", len(rows)) as advance:
            found = evaluate(loaded, asked, its_task, rows, progress=advance)
        tables = [_figures({data: found}), *([_per_label(found.per_label)] if found.per_label else [])]
        _print(out, found.to_json() if as_json else None, *tables)


@app.command()
def predict(
    prompt: _Prompt,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="The texts to answer.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Instead: a file with the template's columns, or - for the lines of stdin.",
            show_default=False,
        ),
    ] = None,
    base: _Base = None,
    task: _TaskFile = None,
    as_json: _Json = False,
) -> None:
    """Answer texts: the label and its probability, or the generated text."""
    if bool(texts) == (file is not None):
        raise typer.BadParameter("give either TEXT or --input FILE")
    with _reporting() as out:
        from softprompt.evaluation import predict
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows, rows_from

        asked, its_task, load = _open(prompt, base, task)
        if file is None:
            rows = rows_from(texts or [], its_task)
        elif file == "-":
            rows = rows_from(_read_lines(), its_task, source="stdin")
        else:
            rows = load_rows(file, its_task, need_targets=False)
        loaded = load()
        with progress_bar(Console(stderr=True), "Predicting", len(rows)) as advance:
            answers = predict(loaded, asked, its_task, [row.columns for row in rows], progress=advance)
        predictions = [_describe(row, answer, its_task) for row, answer in zip(rows, answers, strict=True)]
        _print(out, {"predictions": predictions} if as_json else None, *map(_line, predictions))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder for the data, the task file and the run.")] = Path(
        "softprompt-demo"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps. Default: a few minutes' worth.", show_default=False)
    ] = None,
    resume: _Resume = False,
    force: _Force = False,
    as_json: _Json = False,
) -> None:
    """The whole story on real data: train a prompt on movie reviews, in a few minutes on two CPU cores."""
    _check_choice(resume, force)
    with _reporting() as out:
        from softprompt.demo import show

        document = show(Console(file=sys.stderr if as_json else out), output, steps, resume=resume, force=force)
        _print(out, document if as_json else None)


@contextmanager
def _reporting() -> Iterator[TextIO]:
    """Whatever goes wrong inside becomes one line on stderr and exit code 1.

    Yields:
        The real stdout, for the command's result. Whatever else is printed inside goes to stderr.
    """
    out = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - a closed stdout: there is nobody to print to
    muted = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield out
    except (typer.BadParameter, BrokenPipeError):  # wrong usage; a reader that has seen enough: typer exits
        raise
    except (Exception, KeyboardInterrupt) as error:
        typer.echo(f"error: {_explain(error)}", err=True)
        raise typer.Exit(1) from None
    finally:
        logging.disable(muted)


def _explain(error: BaseException) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, SoftPromptError):
        return message
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return "out of memory: choose a smaller base, recipe.max_tokens or recipe.batch_size"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {message}"


def _print(out: TextIO, document: Mapping[str, Any] | None, *parts: str | Table) -> None:
    """Print the JSON document or, without one, the parts."""
    text = "".join(_rendered(part, out) for part in parts) if document is None else json.dumps(document) + "\n"
    try:
        out.write(text)
        out.flush()
    except OSError:
        # What could not be written would be tried again when Python exits, and fail with a traceback.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), out.fileno())
        raise


def _rendered(part: str | Table, out: TextIO) -> str:
    if isinstance(part, str):  # rich would wrap a line and replace its tabs
        return part + "\n"
    console = Console(file=out, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(part)
    return captured.get()


def _check_choice(resume: bool, force: bool) -> None:
    if resume and force:
        raise typer.BadParameter("give either --resume or --force")


def _open(path: Path, base: str | None, task_file: Path | None) -> tuple[SoftPrompt, Task, Callable[[], Base]]:
    """A prompt, its task and what loads its base. Its card says what the arguments don't."""
    from softprompt.models.base import load_base
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Task
    from softprompt.training.taskfile import load_task_file

    prompt = SoftPrompt.load(path)
    card = prompt.card
    if task_file is not None:
        task = load_task_file(task_file).task
    elif card.task is not None:
        task = Task.from_dict(card.task, f"{path / 'card.json'}: task")
    else:
        raise SoftPromptError(f"{path} doesn't say what its task is: give a task file with --task")
    if base is None:
        if card.base is None:
            raise SoftPromptError(f"{path} doesn't say which base it is for: give it with --base")
        base = card.base.name
    # In the dtype that it was trained in, where that was chosen.
    return prompt, task, partial(load_base, base, dtype=str(card.recipe.get("dtype", "auto")))


def _read_lines() -> list[str]:
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SoftPromptError(f"stdin: line {line} is not UTF-8") from None
    if not text.strip():
        raise SoftPromptError("stdin: there is no text")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _describe(row: Row, answer: Prediction, task: Task) -> dict[str, Any]:
    """One row and its answer, as `--json` shows them."""
    several = len(task.columns) > 1
    shown = (
        {"text": task.render(row.columns), "columns": row.columns}
        if several
        else {"text": row.columns[task.columns[0]]}
    )
    return shown | answer.model_dump(exclude_none=True)


def _line(prediction: Mapping[str, Any]) -> str:
    if "label" not in prediction:
        return str(prediction["output"])
    text = " ".join(prediction["text"].split())
    return f"{prediction['label']}\t{prediction['probabilities'][prediction['label']]:.3f}\t{text}"


def _figures(evaluations: Mapping[str, Evaluation | None]) -> Table:
    """One row for each evaluation, one column for each figure."""
    found = {
        name: {
            key: value
            for key, value in evaluation.to_json().items()
            if isinstance(value, int | float) and key not in ("truncated", "seconds")
        }
        for name, evaluation in evaluations.items()
        if evaluation is not None
    }
    keys = list(next(iter(found.values())))
    table = Table("rows", *keys)
    for name, figures in found.items():
        table.add_row(name, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in figures.values()))
    return table


def _per_label(figures: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("label", "precision", "recall", "F1", "rows")
    for label, of_label in figures.items():
        shares = (f"{of_label[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(label, *shares, f"{of_label['support']:.0f}")
    return table


if __name__ == "__main__":
    main()
