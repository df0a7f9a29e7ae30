"""Between the commands and the terminal: what is printed, and what becomes of an exception.

Owns stdout, stderr and the exit code. Knows no command.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from threading import Timer
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from softprompt.errors import EndedElsewhereError, SoftPromptError
from softprompt.text import printable

_STOPPED = 130  # what a shell has for a program that Ctrl-C ended


@contextmanager
def reporting(*, libraries: bool = False) -> Iterator[TextIO]:
    """Whatever goes wrong inside becomes one line on stderr and exit code 1, or of Ctrl-C 130.

    Args:
        libraries: whether the command needs PyTorch and Transformers, which are then imported first.

    Yields:
        The real stdout, for the command's result. Whatever else is printed inside goes to stderr.
    """
    out = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - a closed stdout: there is nobody to print to
    waiting = Timer(1, _tell_waiting)
    waiting.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        waiting.start()
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings(), _own_log_lines():
            warnings.simplefilter("ignore")
            if libraries:
                _import_libraries()
            yield out
    except (typer.BadParameter, BrokenPipeError):  # wrong usage; a reader that has seen enough: typer exits
        raise
    except EndedElsewhereError:
        raise typer.Exit(1) from None
    except (Exception, KeyboardInterrupt) as error:
        typer.echo(printable(f"error: {_explain(error)}"), err=True)
        stopped = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
        raise typer.Exit(_STOPPED if stopped else 1) from None
    finally:
        waiting.cancel()


def _import_libraries() -> None:
    """Import them with the garbage collector at rest, and keep it from what they have made.

    These are more than a million objects that stay: looking through them again and again while they are made, and once
    more at the end, took a third of the time of a short command.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    gc.disable()
    try:
        import_module("transformers.modeling_utils")
        gc.freeze()
    finally:
        gc.enable()


def _tell_waiting() -> None:
    """That nothing is wrong where the libraries, which take seconds, are not there yet."""
    if "torch" in sys.modules and not hasattr(sys.modules.get("softprompt.bases.load"), "load_base"):
        typer.echo("Loading PyTorch and Transformers", err=True)


@contextmanager
def _own_log_lines() -> Iterator[None]:
    """Within it softprompt's own log lines come on stderr, each once; other libraries tell of errors alone."""
    ours = logging.getLogger("softprompt")
    # Of several processes that train together the first one speaks.
    handler = _Lines() if os.environ.get("RANK", "0") == "0" else logging.NullHandler()
    before = [(logger, logger.level) for logger in (ours, logging.root)]
    logging.root.setLevel(logging.ERROR)
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        for logger, level in before:
            logger.setLevel(level)


class _Lines(logging.Handler):
    """Prints each message once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if message not in self._said:
            self._said.add(message)
            typer.echo(printable(message if record.levelno < logging.WARNING else f"warning: {message}"), err=True)


def _explain(error: BaseException) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, SoftPromptError):
        return message
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return (
            "out of memory: choose a smaller base, recipe.max_tokens or recipe.batch_size, or recipe.dtype bfloat16 in "
            "place of float32"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {message}"


def print_result(out: TextIO, document: Mapping[str, Any] | None, *parts: str | Table) -> None:
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
        return printable(part) + "\n"
    # Without colours: what is left of escape sequences is from the data.
    console = Console(file=out, markup=False, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(part)
    return printable(captured.get())
