"""The command that holds the methods against each other: `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from softprompt.commands.options import Json, Overrides, TaskArgument
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError


def compare(
    task: TaskArgument,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="The methods, with commas between them: of zero-shot, few-shot, probe, prompt, lora, full.",
            show_default="all",
        ),
    ] = None,
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
            "--output",
            "-o",
            metavar="DIR",
            help="The comparison's folder; what is finished in it is not repeated. Default: comparisons/ and the "
            "task's name.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another comparison in the folder.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Measure prompt tuning beside its peers on your task: same rows, same steps, each method in its own process."""
    with reporting(libraries=True) as out:
        from softprompt.comparison import compare
        from softprompt.comparison.report import cells, remarks
        from softprompt.progress import share_bar
        from softprompt.training.taskfile import load_task_file

        file = load_task_file(task, overrides or [])
        folder = output or Path("comparisons") / file.name
        asked = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
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
        print_result(
            out,
            found.to_json() if as_json else None,
            figures,
            *remarks(found.rows, found.notes),
            f"The report for a browser: {found.report}",
        )
