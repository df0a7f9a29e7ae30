"""Runs `softprompt train TASK` again and again in a forked process that kills itself at one moment and is then resumed.

A moment is just before a file is opened for writing, made, renamed or removed. The first run is killed at the first
moment, the next ones STRIDE moments later each, until a run comes through. Prints a JSON list of what happened.

    python -m tests.killing TASK STRIDE
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

# All imports are made once, here. No tensor is computed before the forks, which PyTorch's threads would not survive.
import datasets  # noqa: F401
import sklearn.metrics
import sklearn.model_selection  # noqa: F401
import transformers.trainer  # noqa: F401

import softprompt.progress
import softprompt.reporting.run_report
import softprompt.training.growth
import softprompt.training.run
import softprompt.training.taskfile  # noqa: F401
from softprompt.cli import app

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def command(*words: str, kill_at: int | None = None) -> int:
    """The exit code of `softprompt WORDS` in a forked process; below 0 where it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if kill_at is not None:
        _kill(kill_at)
    try:
        app(list(words))
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(99)


def _kill(kill_at: int) -> None:
    seen = 0

    def count(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes and str(details[0]) != os.devnull) or event in _CHANGES:
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main(task: str, stride: int) -> None:
    found, killed = [], True
    while killed:
        kill_at = 1 + stride * len(found)
        folder = f"killed-at-{kill_at}"
        words = ["train", task, "--output", folder]
        killed = command(*words, kill_at=kill_at) == -signal.SIGKILL
        resumes = os.path.exists(os.path.join(folder, "run.json"))
        code = command(*words, *(["--resume"] if resumes else []))
        found.append({"kill_at": kill_at, "folder": folder, "killed": killed, "resumed": resumes, "exit": code})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
