"""The arguments and options that several commands share.

Owns their names, help and defaults. Knows no command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TABLE = "a table (CSV, TSV, JSON, Parquet, a sheet) or hub:OWNER/NAME:SPLIT"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a run that is already in the folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder from its last checkpoint.")]
PromptFolder = Annotated[
    Path,
    typer.Argument(
        metavar="PROMPT",
        help="The prompt's folder, or a run's, or a name in ./library such as mood or mood@2.",
        show_default=False,
    ),
]
BaseName = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="BASE", help="Hub id, folder or GGUF file. Default: the prompt's.", show_default=False
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Of the base: auto, float32, bfloat16 or float16. Default: the prompt's.", show_default=False),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="Hold the base as torchao-int8, torchao-int4, bnb-8bit, bnb-4bit, or none. Default: as for the prompt.",
        show_default=False,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="auto", help="Spread the base over GPUs, memory and disk. Default: on one device.", show_default=False
    ),
]
TaskFile = Annotated[
    Path | None,
    typer.Option("--task", metavar="FILE", help="A task file. Default: the prompt's own task.", show_default=False),
]
TaskArgument = Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", show_default=False)]
TaskOrTable = Annotated[
    Path, typer.Argument(metavar="TASK.yaml", help="The task file, or a table: `init` comes first.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of the task file: recipe.max_steps=300.", show_default=False
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="DATA",
        help=f"Labelled rows, {TABLE}, best those of training, on which to measure how much each label is liked "
        "whatever a text says; that is taken out of the answers.",
        show_default=False,
    ),
]
LibraryFolder = Annotated[Path, typer.Option("--library", metavar="DIR", help="The library's folder.")]
LIBRARY = Path("library")
PromptName = Annotated[str, typer.Argument(metavar="NAME", help="The prompt's name.", show_default=False)]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@VERSION]", help="The prompt's name, or one version of it: mood@3.", show_default=False
    ),
]
Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="A repository of the Hugging Face hub: OWNER/NAME.", show_default=False)
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster, such as 10.0.0.1:6379; local: one on this machine. Default: in this process.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Of --ray. Default: the cluster's GPUs, or its machines.", show_default=False
    ),
]
