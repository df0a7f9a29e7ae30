"""The console script: the commands of `softprompt.commands`, put together.

Owns their names and order. Nobody imports it.
"""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from softprompt import __version__
from softprompt.commands.asking import evaluate, predict
from softprompt.commands.comparing import check, compare
from softprompt.commands.init import init
from softprompt.commands.library import library_app
from softprompt.commands.looking import inspect, prune
from softprompt.commands.serving import serve
from softprompt.commands.training import demo, report, train

app = typer.Typer(
    name="softprompt",
    help="One frozen language model, any number of tasks, a few kilobytes each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (init, train, evaluate, predict, inspect, prune, report, demo, compare, check, serve):
    app.command()(command)
app.add_typer(library_app, name="library")


def main() -> None:
    """The console script `softprompt`."""
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(variable, "error")  # they print what they log, whatever the root logger's level
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
