"""The console script: the commands of `softprompt.commands`, put together.

Owns their names and order. Nobody imports it.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated

import typer

from softprompt import __version__
from softprompt.commands.asking import evaluate, predict
from softprompt.commands.check import check
from softprompt.commands.compare import compare
from softprompt.commands.init import init
from softprompt.commands.inspect import inspect
from softprompt.commands.library import library_app
from softprompt.commands.many import train_many
from softprompt.commands.prune import prune
from softprompt.commands.serve import serve
from softprompt.commands.training import demo, report, train

_STORY = """One frozen language model, any number of tasks, a few kilobytes each.

From a table to an endpoint:

  softprompt init tickets.csv         writes a task file, tickets.yaml

  softprompt train tickets.yaml       learns it, in runs/tickets, and reports

  softprompt predict runs/tickets "Where is it?"

  softprompt library add tickets runs/tickets

  softprompt serve                    answers over HTTP, as OpenAI's API

softprompt demo shows all of it on real data. COMMAND --help tells of each

command; the documentation is in docs/, task files in docs/task-files.md.
"""

app = typer.Typer(
    name="softprompt",
    help=_STORY,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in (init, train, train_many, predict, evaluate):
    app.command(rich_help_panel="From a table to answers")(command)
app.add_typer(library_app, name="library", rich_help_panel="To an endpoint")
app.command(rich_help_panel="To an endpoint")(serve)
for look in (check, report, inspect, prune, compare, demo):
    app.command(rich_help_panel="Look closer")(look)


def main() -> None:
    """The console script `softprompt`."""
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(variable, "error")  # they print what they log, whatever the root logger's level
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows the rest all the same
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    finally:
        # All is done and told: another Ctrl-C while the interpreter is taken down would end in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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


if __name__ == "__main__":
    main()
