"""The commands that ask a prompt: `evaluate` and `predict`."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from softprompt.commands.opening import Asked, load_calibrated, open_prompt
from softprompt.commands.options import (
    TABLE,
    BaseName,
    Calibrate,
    DeviceMap,
    Dtype,
    Json,
    PromptFolder,
    Quantization,
    Ray,
    TaskFile,
    Workers,
)
from softprompt.commands.tables import figures_table, labels_table
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError
from softprompt.text import counted, shown

if TYPE_CHECKING:
    from softprompt.bases.base import Base
    from softprompt.evaluation.answering import Answered
    from softprompt.prompts import SoftPrompt
    from softprompt.prompts.ensemble import Ensemble
    from softprompt.tasks import Task
    from softprompt.tasks.rows import Entries


def evaluate(
    prompt: PromptFolder,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=f"Labelled rows: {TABLE}.",
            show_default=False,
        ),
    ],
    calibrate: Calibrate = None,
    base: BaseName = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device_map: DeviceMap = None,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Measure a prompt on labelled rows."""
    with reporting(libraries=True) as out:
        from softprompt.evaluation import evaluate
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows

        asked, its_task, load, reading = open_prompt(prompt, Asked(base, dtype, quantization, device_map), task)
        rows = load_rows(data, its_task, reading=reading)
        asked, loaded = load_calibrated(asked, its_task, load, calibrate, reading)
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
            "-i",
            metavar="DATA",
            help=f"Instead, rows with the template's columns: {TABLE}, or - for the lines of stdin, /dev/stdin for a "
            "table there.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the rows with their answers to a .csv, .tsv, .jsonl or .parquet file; where that was stopped "
            "it goes on.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that is already there.")] = False,
    ray: Ray = None,
    workers: Workers = None,
    calibrate: Calibrate = None,
    base: BaseName = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device_map: DeviceMap = None,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Answer texts: the label and its probability, or the generated text."""
    if bool(texts) == (file is not None):
        raise typer.BadParameter("give either TEXT or --input FILE")
    if ray is None and workers is not None:
        raise typer.BadParameter("--workers goes with --ray")
    with reporting(libraries=True) as out:
        from softprompt.evaluation.answering import AnswerFile, answer
        from softprompt.progress import progress_bar
        from softprompt.tasks.rows import Entries

        if found := next((text for text in texts or [] if _is_file(text)), None):
            raise SoftPromptError(f"{found} is a file: to answer its rows write --input {shlex.quote(found)}")
        if ray is not None and base is not None and os.path.exists(base):
            base = os.path.abspath(base)
        asked, its_task, load, reading = open_prompt(prompt, Asked(base, dtype, quantization, device_map), task)
        source: Any = file
        if texts or file == "-":
            source = _mappings(texts or _read_lines(its_task), its_task)
        # All of them are looked at first: a file that cannot be read is not to come out after the base is loaded.
        entries = Entries(source, its_task, reading, None if ray is None else Path.cwd())  # workers have another folder
        if texts or entries.bad == entries.count:
            entries.refuse_bad()
        about = {"prompt": asked.sha256, "task": its_task.model_dump(), "rows": entries.digest, "calibrate": calibrate}
        kept = None if output is None else AnswerFile(output, about, force=force)
        done = 0 if kept is None else kept.done
        if done:
            typer.echo(f"{output}: {counted(done, 'row is', 'rows are')} answered already", err=True)
        given: Generator[Answered, None, None]
        if ray is None:
            asked, loaded = load_calibrated(asked, its_task, load, calibrate, reading)
            given = answer(loaded, asked, its_task, islice(entries, done, None))
        else:
            if calibrate is not None:
                asked, _ = load_calibrated(asked, its_task, load, calibrate, reading)
            given = _over(ray, workers, load, asked, its_task, entries, done)
        answers: list[Answered] = []
        failed = 0 if kept is None else kept.failed
        with progress_bar(Console(stderr=True), "Predicting", entries.count - done) as advance, closing(given):
            for one in given:
                advance(1)
                failed += bool(one.error)
                if kept is not None:
                    kept.add(one)
                elif as_json:
                    answers.append(one)
                else:
                    print_result(out, None, _line(_describe(one, its_task)))
        if kept is None and as_json:
            print_result(out, {"predictions": [_describe(one, its_task) for one in answers]})
        elif kept is not None:
            kept.finish()
            document = {"output": str(output), "rows": entries.count, "errors": failed}
            print_result(
                out,
                document if as_json else None,
                f"{counted(entries.count, 'row with its answer', 'rows with their answers')}: {output}",
            )
        if failed:
            of = f"of {counted(entries.count, 'row', 'rows')}"
            have = counted(failed, f"{of} has an error", f"{of} have an error")
            typer.echo(f"warning: {have} in place of an answer", err=True)


def _over(
    address: str,
    workers: int | None,
    load: Callable[[], Base],
    prompt: SoftPrompt | Ensemble,
    task: Task,
    entries: Entries,
    done: int,
) -> Generator[Answered, None, None]:
    """The answers of a Ray cluster's workers to the rows after the first `done`."""
    from softprompt.evaluation.rays import answer_over
    from softprompt.many.rays import cluster

    rows = cut = 0
    with cluster(address) as devices:
        count = workers or devices
        typer.echo(f"on {counted(count, 'Ray worker', 'Ray workers')}", err=True)
        for one in answer_over(load, prompt, task, entries, workers=count, done=done):
            rows += 1
            cut += one.prediction is not None and one.prediction.truncated
            yield one
    if cut:
        typer.echo(f"warning: {cut:,} of {rows:,} texts were cut to the base's context", err=True)


def _mappings(texts: list[str], task: Task) -> list[dict[str, str]]:
    if len(task.columns) > 1:
        raise SoftPromptError(
            f"the template needs the columns {shown(task.columns)}: give a table with them, --input FILE"
        )
    return [{task.columns[0]: text} for text in texts]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character in it
        return False


def _read_lines(task: Task) -> list[str]:
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SoftPromptError(f"stdin: line {line} is not UTF-8") from None
    if not text.strip():
        raise SoftPromptError("stdin: there is no text")
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    header = [name.strip() for name in re.split("[,;\t]", lines[0])]
    if len(header) > 1 and set(task.columns) <= set(header):
        raise SoftPromptError("stdin begins with the names of columns: for a table give --input /dev/stdin")
    return lines


def _describe(answered: Answered, task: Task) -> dict[str, Any]:
    """One row and its answer, as `--json` shows them."""
    row = answered.entry.row
    if row is None or answered.prediction is None:
        return {"text": None if row is None else task.render(row.columns), "error": answered.error}
    several = len(task.columns) > 1
    asked = (
        {"text": task.render(row.columns), "columns": row.columns}
        if several
        else {"text": row.columns[task.columns[0]]}
    )
    return asked | answered.prediction.model_dump(exclude_none=True)


def _line(prediction: Mapping[str, Any]) -> str:
    if "error" in prediction:
        return f"error\t\t{prediction['error']}"
    if "embedding" in prediction:
        return json.dumps(prediction["embedding"])
    if "label" not in prediction:
        return str(prediction["output"])
    text = " ".join(prediction["text"].split())
    return f"{prediction['label']}\t{prediction['probabilities'][prediction['label']]:.3f}\t{text}"
