"""The command that drops virtual tokens: `prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from softprompt.commands.opening import Asked, open_one
from softprompt.commands.options import TABLE, BaseName, DeviceMap, Dtype, Json, PromptFolder, Quantization, TaskFile
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    pass


def prune(
    prompt: PromptFolder,
    keep: Annotated[int, typer.Option(metavar="N", help="Virtual tokens to keep.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help=f"Labelled rows, {TABLE}, that decide; each is asked P + 2 times.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The new prompt's folder.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace a prompt that is already there.")] = False,
    base: BaseName = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device_map: DeviceMap = None,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Drop the virtual tokens that matter least, measure what is left, and save it as a new prompt."""
    with reporting(libraries=True) as out:
        from softprompt.commands.inspection_tables import describe_pruning
        from softprompt.inspection import prune
        from softprompt.inspection.pruning import check_keep
        from softprompt.progress import progress_bar
        from softprompt.tasks import load_rows

        asked, its_task, load, reading = open_one(prompt, Asked(base, dtype, quantization, device_map), task)
        check_keep(keep, asked)
        if output.exists() and not force:  # before the work and not after it
            raise SoftPromptError(f"{output} exists: choose another --output, or replace it with --force")
        rows = load_rows(data, its_task, reading=reading)
        loaded = load()
        with progress_bar(Console(stderr=True), "Pruning", len(rows) * (asked.num_virtual_tokens + 2)) as advance:
            found = prune(loaded, asked, its_task, rows, keep, progress=advance)
        found.prompt.save(output, force=force)
        document = {"prompt": str(output)} | found.to_json()
        print_result(out, document if as_json else None, *describe_pruning(found, str(output)))
