"""The commands that ask a prompt: `evaluate` and `predict`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from softprompt.commands.opening import load_calibrated, open_prompt
from softprompt.commands.options import BaseName, Calibrate, Dtype, Json, PromptFolder, TaskFile
from softprompt.commands.tables import figures_table, labels_table
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompt.evaluation import Prediction
    from softprompt.tasks import Row, Task


def evaluate(
    prompt: PromptFolder,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Labelled rows: a .csv, .tsv, .jsonl or .parquet file or hub:OWNER/NAME:SPLIT.",
            show_default=False,
        ),
    ],
    calibrate: Calibrate = None,
    base: BaseName = None,
    dtype: Dtype = None,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Measure a prompt on labelled rows."""
    with reporting() as out:
        from softprompt.evaluation import evaluate
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows

        asked, its_task, load = open_prompt(prompt, base, dtype, task)
        rows = load_rows(data, its_task)
        asked, loaded = load_calibrated(asked, its_task, load, calibrate)
        with progress_bar(Console(stderr=True), "Evaluating", len(rows)) as advance:
            found = evaluate(loaded, asked, its_task, rows, progress=advance)
        tables = [figures_table({data: found}), *([labels_table(found.per_label)] if found.per_label else [])]
        print_result(out, found.to_json() if as_json else None, *tables)


def predict(
    prompt: PromptFolder,
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
    calibrate: Calibrate = None,
    base: BaseName = None,
    dtype: Dtype = None,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Answer texts: the label and its probability, or the generated text."""
    if bool(texts) == (file is not None):
        raise typer.BadParameter("give either TEXT or --input FILE")
    with reporting() as out:
        from softprompt.evaluation import predict
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows, rows_from

        if found := next((text for text in texts or [] if _is_file(text)), None):
            raise SoftPromptError(f"{found} is a file: to answer its rows write --input {shlex.quote(found)}")
        asked, its_task, load = open_prompt(prompt, base, dtype, task)
        if file is None:
            rows = rows_from(texts or [], its_task)
        elif file == "-":
            rows = rows_from(_read_lines(), its_task, source="stdin")
        else:
            rows = load_rows(file, its_task, need_targets=False)
        asked, loaded = load_calibrated(asked, its_task, load, calibrate)
        with progress_bar(Console(stderr=True), "Predicting", len(rows)) as advance:
            answers = predict(loaded, asked, its_task, [row.columns for row in rows], progress=advance)
        predictions = [_describe(row, answer, its_task) for row, answer in zip(rows, answers, strict=True)]
        print_result(out, {"predictions": predictions} if as_json else None, *map(_line, predictions))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character in it
        return False


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
