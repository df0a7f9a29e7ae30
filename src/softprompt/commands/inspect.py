"""The command that looks into a prompt: `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console

from softprompt.commands.opening import Asked, base_of, load_one, open_one
from softprompt.commands.options import TABLE, BaseName, DeviceMap, Dtype, Json, PromptFolder, Quantization, TaskFile
from softprompt.commands.terminal import print_result, reporting

if TYPE_CHECKING:
    from collections.abc import Callable

    from softprompt.bases.base import Base
    from softprompt.prompts import SoftPrompt
    from softprompt.tasks import Row, Task
    from softprompt.tasks.reading import Reading


def inspect(
    prompt: PromptFolder,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"Labelled rows, {TABLE}, to measure how much each virtual token matters; each row is asked "
            "P + 1 times.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A library, to compare with its prompts.", show_default=False)
    ] = None,
    leak: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"Instead: what the prompt gives away of the rows that it has learned, {TABLE}.",
            show_default=False,
        ),
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help=f"With --leak: rows of the same kind that it has not learned, {TABLE}.",
            show_default=False,
        ),
    ] = None,
    base: BaseName = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device_map: DeviceMap = None,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Look at a prompt: its norms and drift, the words nearest to it, what matters in it, what it says by itself."""
    with reporting(libraries=True) as out:
        from softprompt.commands.inspection_tables import describe_inspection
        from softprompt.inspection import inspect
        from softprompt.progress import progress_bar
        from softprompt.prompts import PromptLibrary
        from softprompt.tasks import load_rows

        if unseen is not None and leak is None:
            raise typer.BadParameter("--unseen is for --leak")
        if leak is not None and (data is not None or library is not None):
            raise typer.BadParameter("--leak is not asked together with --data or --library")
        if task is not None and data is None and leak is None:
            raise typer.BadParameter("--task is for --data and --leak")
        options = Asked(base, dtype, quantization, device_map)
        if leak is not None:
            _look_for_leaks(out, open_one(prompt, options, task), leak, unseen, as_json)
            return
        its_task: Task | None = None
        rows: list[Row] | None = None
        if data is None:
            asked = load_one(prompt)
            load = base_of(prompt, asked, options)
        else:
            asked, its_task, load, reading = open_one(prompt, options, task)
            rows = load_rows(data, its_task, reading=reading)
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
        print_result(out, found.to_json() if as_json else None, *describe_inspection(found))


def _look_for_leaks(
    out: TextIO,
    opened: tuple[SoftPrompt, Task, Callable[[], Base], Reading],
    seen: str,
    unseen: str | None,
    as_json: bool,
) -> None:
    from softprompt.commands.inspection_tables import describe_leakage
    from softprompt.inspection.leakage import leakage, rows_asked
    from softprompt.progress import progress_bar
    from softprompt.tasks import load_rows

    prompt, task, load, reading = opened
    rows = load_rows(seen, task, reading=reading)
    others = None if unseen is None else load_rows(unseen, task, reading=reading)
    base = load()
    with progress_bar(Console(stderr=True), "Looking for leaks", rows_asked(task, rows, others)) as advance:
        found = leakage(base, prompt, rows, unseen=others, task=task, progress=advance)
    print_result(out, found.to_json() if as_json else None, *describe_leakage(found))
