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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from softprompt import __version__
from softprompt.errors import SoftPromptError, UnknownPromptError

if TYPE_CHECKING:
    from softprompt.evaluation import Evaluation, Prediction
    from softprompt.models.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.prompts.library import Entry
    from softprompt.serving.engine import Engine
    from softprompt.serving.service import Service
    from softprompt.tasks import Row, Task
    from softprompt.training import Growth

app = typer.Typer(
    name="softprompt",
    help="One frozen language model, any number of tasks, a few kilobytes each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_library = typer.Typer(
    help="Named prompts in versions that never change: keep, list, check, go back, share.", no_args_is_help=True
)
app.add_typer(_library, name="library")

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
_Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="FILE",
        help="Texts, best the training rows, on which to measure how much each label is liked whatever a text says; "
        "that is taken out of the answers.",
        show_default=False,
    ),
]
_Library = Annotated[Path, typer.Option("--library", metavar="DIR", help="The library's folder.")]
_LIBRARY = Path("library")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The prompt's name.", show_default=False)]
_Reference = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@VERSION]", help="The prompt's name, or one version of it: mood@3.", show_default=False
    ),
]
_Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="A repository of the Hugging Face hub: OWNER/NAME.", show_default=False)
]


class _Engine(str, Enum):
    LOCAL = "local"
    VLLM = "vllm"


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
        from softprompt.reporting.run_report import REPORT, write_report
        from softprompt.tasks import load_rows, split_rows
        from softprompt.training import grow, train
        from softprompt.training.run import RECORD
        from softprompt.training.screening import choose_start
        from softprompt.training.taskfile import load_task_file

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
        console = Console(stderr=True)
        progress = TrainingProgress(console, file.task.metric, len(validation or []))
        common: dict[str, Any] = {
            "train": rows,
            "validation": validation,
            "recipe": file.recipe,
            "output": folder,
            "resume": resume,
            "force": force,
            "callbacks": [progress],
            "progress": progress.validated,
            "diagnosed": lambda found: progress.diagnosed([diagnosis.sentence for diagnosis in found]),
        }

        def make(count: int | None) -> SoftPrompt:
            start = file.prompt.model_copy(update={"num_virtual_tokens": count})
            return choose_start(base, start, file.task, rows, validation, file.recipe)

        growth: Growth | None = None
        test: Evaluation | None = None
        try:
            with progress:
                if file.prompt.num_virtual_tokens == "auto":
                    growth = grow(base, make, file.task, **common)
                    run = growth.run
                else:
                    run = train(base, make(file.prompt.num_virtual_tokens), file.task, **common)
            if test_rows:
                with progress_bar(console, "Testing", len(test_rows)) as advance:
                    test = evaluate(base, run.prompt, file.task, test_rows, progress=advance)
            # Of several lengths each has a run, and so a report, of its own.
            reported = folder if growth is None or growth.folder is None else growth.folder
            report = reported / REPORT
            if os.environ.get("RANK", "0") == "0":  # of several processes the first one writes it
                with progress_bar(console, "Writing the report", len(validation or [])) as advance:
                    write_report(reported, base=base, validation=validation, test=test, progress=advance)
        except KeyboardInterrupt:
            if not (folder / RECORD).exists():
                raise
            settings = [word for override in overrides for word in ("--set", override)]
            again = ["softprompt", "train", str(task), *settings, "--output", str(folder), "--resume"]
            raise SoftPromptError(f"interrupted at step {progress.step}; go on with: {shlex.join(again)}") from None
        document = (run if growth is None else growth).to_json()
        document |= {"test": None if test is None else test.to_json(), "report": str(report)}
        cut = f"; {run.truncated} training texts were cut to fit the context" if run.truncated else ""
        _print(
            out,
            document if as_json else None,
            *([] if growth is None else [_lengths(growth, file.task.metric)]),
            *([_figures({"validation": run.validation, "test": test})] if run.validation or test else []),
            *(f"{diagnosis.name}: {diagnosis.sentence}" for diagnosis in run.diagnoses),
            f"{run.steps} steps in {run.seconds:.0f} s; the prompt is from step {run.best_step}{cut}",
            f"{document['trainable_parameters']:,} parameters, {document['artifact_bytes']:,} bytes in {run.path}",
            f"The whole run, for a browser: {report}",
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
    calibrate: _Calibrate = None,
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
        asked, loaded = _loaded(asked, its_task, load, calibrate)
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
    calibrate: _Calibrate = None,
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
        asked, loaded = _loaded(asked, its_task, load, calibrate)
        with progress_bar(Console(stderr=True), "Predicting", len(rows)) as advance:
            answers = predict(loaded, asked, its_task, [row.columns for row in rows], progress=advance)
        predictions = [_describe(row, answer, its_task) for row, answer in zip(rows, answers, strict=True)]
        _print(out, {"predictions": predictions} if as_json else None, *map(_line, predictions))


@app.command()
def inspect(
    prompt: _Prompt,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Labelled rows, to measure how much each virtual token matters; each row is asked P + 1 times.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A library, to compare with its prompts.", show_default=False)
    ] = None,
    base: _Base = None,
    task: _TaskFile = None,
    as_json: _Json = False,
) -> None:
    """Look at a prompt: its norms and drift, the words nearest to it, what matters in it, what it says by itself."""
    with _reporting() as out:
        from softprompt.inspection import inspect
        from softprompt.inspection_tables import describe_inspection
        from softprompt.progress import progress_bar
        from softprompt.prompts import PromptLibrary, SoftPrompt
        from softprompt.tasks import load_rows

        if task is not None and data is None:
            raise typer.BadParameter("--task is for --data")
        its_task: Task | None = None
        rows: list[Row] | None = None
        if data is None:
            asked = SoftPrompt.load(prompt)
            load = _base_of(prompt, asked, base)
        else:
            asked, its_task, load = _open(prompt, base, task)
            rows = load_rows(data, its_task)
        loaded = load()
        total = len(rows or []) * (asked.num_virtual_tokens + 1)
        with progress_bar(Console(stderr=True), "Inspecting", total) as advance:
            found = inspect(
                loaded,
                asked,
                task=its_task,
                data=rows,
                library=None if library is None else PromptLibrary(library),
                progress=advance,
            )
        _print(out, found.to_json() if as_json else None, *describe_inspection(found))


@app.command()
def prune(
    prompt: _Prompt,
    keep: Annotated[int, typer.Option(metavar="N", help="Virtual tokens to keep.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            metavar="VALIDATION",
            help="Labelled rows that decide; each is asked P + 2 times.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new prompt's folder.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a prompt that is already there.")] = False,
    base: _Base = None,
    task: _TaskFile = None,
    as_json: _Json = False,
) -> None:
    """Drop the virtual tokens that matter least, measure what is left, and save it as a new prompt."""
    with _reporting() as out:
        from softprompt.inspection import prune
        from softprompt.inspection.pruning import check_keep
        from softprompt.inspection_tables import describe_pruning
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows

        asked, its_task, load = _open(prompt, base, task)
        check_keep(keep, asked)
        if output.exists() and not force:  # before the work and not after it
            raise SoftPromptError(f"{output} exists: choose another --output, or replace it with --force")
        rows = load_rows(data, its_task)
        loaded = load()
        with progress_bar(Console(stderr=True), "Pruning", len(rows) * (asked.num_virtual_tokens + 2)) as advance:
            found = prune(loaded, asked, its_task, rows, keep, progress=advance)
        found.prompt.save(output, force=force)
        document = {"prompt": str(output)} | found.to_json()
        _print(out, document if as_json else None, *describe_pruning(found, str(output)))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Write a run's report.html again, also of a run that was stopped or is under way."""
    with _reporting() as out:
        from softprompt.reporting.run_report import write_report

        path = write_report(run)
        _print(out, {"report": str(path)} if as_json else None, f"The run, for a browser: {path}")


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


@app.command()
def compare(
    task: Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", show_default=False)],
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="The methods, with commas between them.")
    ] = "zero-shot,few-shot,prompt,lora,full",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How often each method is trained.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps, one setting for each method, few rows to measure on.")
    ] = False,
    one_setting: Annotated[
        bool, typer.Option("--one-setting", help="One setting for each method, but all steps and rows.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The comparison's folder; what is finished in it is not repeated. Default: comparisons/ and the "
            "task's name.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another comparison in the folder.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of the task file: recipe.max_steps=300.", show_default=False
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Measure prompt tuning beside its peers on your task: same rows, same steps, each method in its own process."""
    with _reporting() as out:
        from softprompt.comparison import compare
        from softprompt.comparison.report import cells, remarks
        from softprompt.progress import share_bar
        from softprompt.training.taskfile import load_task_file

        file = load_task_file(task, overrides or [])
        folder = output or Path("comparisons") / file.name
        asked = [method.strip() for method in methods.split(",") if method.strip()]
        try:
            with share_bar(Console(stderr=True)) as progress:
                found = compare(
                    file,
                    asked,
                    output=folder,
                    seeds=seeds,
                    quick=quick,
                    one_setting=one_setting,
                    force=force,
                    progress=progress,
                )
        except KeyboardInterrupt:
            raise SoftPromptError(f"interrupted; the same command goes on where it stopped, in {folder}") from None
        head, body = cells(found.metric, found.rows)
        figures = Table(*head)
        for line in body:
            figures.add_row(*line)
        _print(
            out,
            found.to_json() if as_json else None,
            figures,
            *remarks(found.rows, found.notes),
            f"The report for a browser: {found.report}",
        )


@app.command()
def advise(
    task: Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of the task file: recipe.max_steps=300.", show_default=False
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Look at a task before training: how many virtual tokens, what to mend in the data, what to try, what it costs."""
    with _reporting() as out:
        from softprompt.comparison import advise
        from softprompt.progress import share_bar
        from softprompt.training.taskfile import load_task_file

        file = load_task_file(task, overrides or [])
        with share_bar(Console(stderr=True)) as progress:
            found = advise(file, progress=progress)
        lines = [f"{one.about}: {one.text} [{one.source}]" for one in found.statements]
        _print(out, found.to_json() if as_json else None, *lines)


@_library.command("list")
def list_prompts(folder: _Library = _LIBRARY, as_json: _Json = False) -> None:
    """List the current version of each prompt."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        library = PromptLibrary(folder)
        entries, damaged = [], []
        for name in library.names():
            try:
                entries.append(library.entry(name))
            except UnknownPromptError:  # removed a moment ago
                continue
            except SoftPromptError:
                damaged.append(name)
        lines = [f"{name} is damaged: see softprompt library verify" for name in damaged]
        if not entries and not damaged:
            lines = [f"No prompts in {folder}. Next: softprompt library add NAME PROMPT"]
        document = {"prompts": [_entry(entry) for entry in entries], "damaged": damaged}
        _print(out, document if as_json else None, *([_entries(entries)] if entries else []), *lines)


@_library.command("add")
def add_prompt(name: _Name, prompt: _Prompt, folder: _Library = _LIBRARY, as_json: _Json = False) -> None:
    """Keep a prompt as a new version of NAME, which becomes the current one."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        entry = PromptLibrary(folder).add(name, prompt)
        _print(out, _entry(entry) if as_json else None, f"Added {entry.name}@{entry.version}, {entry.bytes:,} bytes")


@_library.command("show")
def show_prompt(name: _Reference, folder: _Library = _LIBRARY, as_json: _Json = False) -> None:
    """Show what is known of a prompt, and its versions."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        library = PromptLibrary(folder)
        entry = library.entry(name)
        versions = library.versions(entry.name)
        document = _entry(entry) | {
            "versions": [_entry(version) for version in versions],
            "card": entry.card.model_dump(mode="json"),
        }
        card = json.dumps(document["card"], indent=2, ensure_ascii=False)
        _print(out, document if as_json else None, _entries(versions), f"{entry.name}@{entry.version}: {card}")


@_library.command("remove")
def remove_prompt(name: _Reference, folder: _Library = _LIBRARY, as_json: _Json = False) -> None:
    """Delete a prompt with all its versions, or one version."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        PromptLibrary(folder).remove(name)
        _print(out, {"removed": name} if as_json else None, f"Removed {name}")


@_library.command("rollback")
def rollback_prompt(
    name: _Name,
    version: Annotated[
        int | None,
        typer.Argument(metavar="[VERSION]", min=1, help="Default: the one before the current one.", show_default=False),
    ] = None,
    folder: _Library = _LIBRARY,
    as_json: _Json = False,
) -> None:
    """Make an earlier version of a prompt, or any other, the current one."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        entry = PromptLibrary(folder).rollback(name, version)
        _print(out, _entry(entry) if as_json else None, f"{entry.name} is {entry.name}@{entry.version} now")


@_library.command("verify")
def verify_library(folder: _Library = _LIBRARY, as_json: _Json = False) -> None:
    """Read every file and name what is damaged, missing or not the library's; exit 1 where anything is."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        faults = PromptLibrary(folder).verify()
        documents = [
            {"name": fault.name, "version": fault.version, "path": str(fault.path), "problem": fault.problem}
            for fault in faults
        ]
        lines = [f"{fault.path} {fault.problem}" for fault in faults] or [f"{folder} is whole"]
        _print(out, {"faults": documents} if as_json else None, *lines)
        if faults:
            raise SoftPromptError(f"faults in {folder}: {len(faults)}, named above")


@_library.command("push")
def push_prompt(
    name: _Reference,
    repository: _Repository,
    public: Annotated[bool, typer.Option("--public", help="For all to see. Default: a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Default: the main branch.", show_default=False)
    ] = None,
    folder: _Library = _LIBRARY,
    as_json: _Json = False,
) -> None:
    """Put a prompt on the Hugging Face hub. Log in first: `hf auth login`, or HF_TOKEN."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        url = PromptLibrary(folder).push(name, repository, private=not public, revision=revision)
        _print(out, {"commit": url} if as_json else None, f"Pushed {name}: {url}")


@_library.command("pull")
def pull_prompt(
    repository: _Repository,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The name to add it under. Default: the repository's.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, tag or commit.", show_default=False)
    ] = None,
    folder: _Library = _LIBRARY,
    as_json: _Json = False,
) -> None:
    """Add a prompt from the Hugging Face hub, one saved by PEFT too."""
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        entry = PromptLibrary(folder).pull(repository, name, revision=revision)
        _print(out, _entry(entry) if as_json else None, f"Added {entry.name}@{entry.version} from {repository}")


@app.command()
def serve(
    base: Annotated[
        str, typer.Option("--base", metavar="BASE", help="Hub id, folder or GGUF file.", show_default=False)
    ],
    folder: _Library = _LIBRARY,
    engine: Annotated[_Engine, typer.Option(help="What computes: the embedded engine, or vLLM.")] = _Engine.LOCAL,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="A key that requests need; give several times for several. Default: SOFTPROMPT_API_KEY, separated by "
            "commas.",
            show_default=False,
        ),
    ] = None,
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="Let other machines in without any key.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    state_memory: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Memory for the prompts' kept states (local engine).")
    ] = 1024,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get a 429.")] = 1024,
    time_limit: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="For each answer.")] = 60.0,
    body_limit: Annotated[int, typer.Option(min=1, metavar="BYTES", help="The largest request.")] = 10_000_000,
    rate_limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Requests a minute for each key, or address.", show_default="none"),
    ] = None,
    playground: Annotated[
        bool | None,
        typer.Option(
            help="A page at / to try the prompts in a browser. Default: where the extra `playground` is installed.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where the playground looks for training runs.")] = Path(
        "runs"
    ),
    flags: Annotated[
        list[str] | None,
        typer.Option(
            "--vllm", metavar="KEY=VALUE", help="A flag of vLLM's: tensor_parallel_size=2.", show_default=False
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Serve a library's prompts over HTTP, as OpenAI's API, until Ctrl-C or SIGTERM."""
    if flags and engine is not _Engine.VLLM:
        raise typer.BadParameter("--vllm is for --engine vllm")
    keys = api_keys or [key.strip() for key in os.environ.get("SOFTPROMPT_API_KEY", "").split(",") if key.strip()]
    with _reporting() as out:
        from softprompt.prompts.library import PromptLibrary
        from softprompt.serving.playground import check_installed, is_installed
        from softprompt.serving.server import serve

        if playground:
            check_installed()
        if not folder.is_dir():
            raise SoftPromptError(
                f"there is no library at {folder}: make one with `softprompt library add NAME PROMPT`"
            )
        logging.disable(logging.NOTSET)  # the log is part of what a server gives

        def make_engine() -> Engine:
            settings: dict[str, Any] = {"max_waiting": max_waiting, "time_limit": time_limit}
            if engine is _Engine.VLLM:
                from softprompt.serving.vllm import VllmEngine

                return VllmEngine(base, dtype=dtype, **settings, **_parse_flags(flags or []))
            from softprompt.models.base import load_base
            from softprompt.serving.local import LocalEngine

            return LocalEngine(load_base(base, dtype=dtype), state_bytes=state_memory << 20, **settings)

        def tell(url: str, service: Service) -> None:
            refused = service.catalogue.refused
            document = {
                "url": url,
                "base": service.engine.base.name,
                "engine": service.engine.name,
                "prompts": [served.id for served in service.catalogue.prompts],
                "refused": refused,
            }
            line = f"Serving {document['base']} and {len(document['prompts'])} prompts at {url} (Ctrl-C stops)"
            more = [f"Refused: {name}: {reason}" for name, reason in sorted(refused.items())]
            _print(out, document if as_json else None, line, *more)

        serve(
            make_engine,
            PromptLibrary(folder),
            host=host,
            port=port,
            ready=tell,
            api_keys=keys,
            allow_no_key=allow_no_key,
            body_limit=body_limit,
            requests_per_minute=rate_limit,
            patience=time_limit,
            runs=runs if playground or (playground is None and is_installed()) else None,
        )


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
    return prompt, task, _base_of(path, prompt, base)


def _loaded(prompt: SoftPrompt, task: Task, load: Callable[[], Base], calibrate: str | None) -> tuple[SoftPrompt, Base]:
    """A prompt's base, and the prompt calibrated on a file's rows where one is given."""
    from softprompt import evaluation
    from softprompt.tasks import load_rows

    rows = None if calibrate is None else load_rows(calibrate, task, need_targets=False)
    base = load()
    return (prompt if rows is None else evaluation.calibrate(base, prompt, task, rows)), base


def _base_of(path: Path, prompt: SoftPrompt, base: str | None) -> Callable[[], Base]:
    """What loads a prompt's base, which its card names where `base` does not."""
    from softprompt.models.base import load_base

    card = prompt.card
    if base is None:
        if card.base is None:
            raise SoftPromptError(f"{path} doesn't say which base it is for: give it with --base")
        base = card.base.name
    # In the dtype that it was trained in, where that was chosen.
    return partial(load_base, base, dtype=str(card.recipe.get("dtype", "auto")))


def _parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """vLLM's flags from KEY=VALUE, the values as YAML reads them."""
    import yaml

    found: dict[str, Any] = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not (key.isidentifier() and equals):
            raise SoftPromptError(f"--vllm {flag}: write KEY=VALUE, such as tensor_parallel_size=2")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SoftPromptError(f"--vllm {flag}: the value cannot be read") from None
    return found


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


def _lengths(growth: Growth, metric: str) -> Table:
    """One row for each number of virtual tokens that was tried."""
    table = Table("virtual tokens", f"validation {metric}", "better by", "noise", "")
    for length in growth.lengths:
        figures = (length.score, length.gain, length.noise)
        shown = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        is_kept = length.num_virtual_tokens == growth.run.prompt.num_virtual_tokens
        remark = "kept" if is_kept else "diverged" if length.score is None else ""
        table.add_row(str(length.num_virtual_tokens), *shown, remark)
    return table


def _per_label(figures: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("label", "precision", "recall", "F1", "rows")
    for label, of_label in figures.items():
        shares = (f"{of_label[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(label, *shares, f"{of_label['support']:.0f}")
    return table


def _entry(entry: Entry) -> dict[str, Any]:
    """One version in the library, as `--json` shows it."""
    return {
        "name": entry.name,
        "version": entry.version,
        "current": entry.current,
        "base": None if entry.card.base is None else entry.card.base.name,
        "num_virtual_tokens": entry.num_virtual_tokens,
        "bytes": entry.bytes,
        "path": str(entry.path),
        "created": entry.card.created,
        "sha256": entry.card.sha256,
    }


def _entries(entries: Sequence[Entry]) -> Table:
    table = Table("prompt", "base", "virtual tokens", "bytes", "created")
    for entry in entries:
        found = _entry(entry)
        name = f"{entry.name}@{entry.version}{' (current)' if entry.current else ''}"
        table.add_row(name, found["base"] or "?", str(entry.num_virtual_tokens), f"{entry.bytes:,}", found["created"])
    return table


if __name__ == "__main__":
    main()
