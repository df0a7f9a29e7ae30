"""Work in a process of its own, so that its peak memory is its own and its failure nobody else's.

Owns starting, listening and stopping. Does not know what the work is, and imports nothing heavy: what a new process
prints, beginning with the warnings of what it imports, goes into a file.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

_CONTEXT = get_context("spawn")


def run(work: Callable[..., None], arguments: tuple[Any, ...], log: Path, heard: Callable[[Any], None]) -> int:
    """Do `work(send, *arguments)` in a new process, which has ended when this returns or raises.

    `work` is a function of a module; its arguments, and what it sends, have to be picklable. `heard` is called with
    each thing that was sent; what the process prints is appended to `log`.

    Returns:
        The process's exit code; below 0: the signal that ended it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_begin, args=(str(log), theirs, pickle.dumps((work, arguments))))
    try:
        with _hidden_main():
            process.start()
        theirs.close()
        with ours:
            while (message := _receive(ours)) is not None:
                heard(message)
        process.join()
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
    return process.exitcode or 0


def _receive(connection: Connection) -> Any:
    """What comes next; None where nothing more comes, as of a process that was killed while it sent."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _begin(log: str, connection: Connection, work: bytes) -> None:
    # Python's resource tracker is the parent's, and tells on its stderr of what a killed process has left. This process
    # gets one of its own, which tells nobody.
    _print_to(os.devnull)
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
    resource_tracker.ensure_running()
    _print_to(log)
    os.set_inheritable(connection.fileno(), False)  # it ends with this process, not with one that this one starts
    function, arguments = pickle.loads(work)  # imports what the work needs
    with connection:
        function(connection.send, *arguments)


def _print_to(path: str) -> None:
    with open(path, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Within it a new process is not told of the program's own script.

    It would run that again, with all that the script imports and, where it has no `if __name__ == "__main__"`, does.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
