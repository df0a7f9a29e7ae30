"""Methods that learn nothing and go wrong as they are told, as somebody's own method would be written."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.results import Trained
from softprompt.evaluation import Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.training.loop import DivergedError


def succeeds(folder: Path) -> None:
    pass


class Toy(Method):
    """The bare base with one number of its own, which is its rate."""

    usual_rate = 1.0

    def __init__(self, name: str = "toy", deed: Callable[[Path], None] = succeeds) -> None:
        self.name, self.title, self.deed = name, f"A method called {name}", deed

    def train(self, work: Work) -> Trained:
        work.folder.mkdir(parents=True, exist_ok=True)
        self.deed(work.folder)
        (work.folder / "number.txt").write_text(str(work.setting))
        validation, _ = work.ask(self.open(work))
        return work.trained(validation, trainable_parameters=1)

    def open(self, work: Work) -> Evaluator:
        assert float((work.folder / "number.txt").read_text()) == work.setting
        return work.evaluator(PromptedModel(work.base, []))

    def switch(self, work: Work) -> tuple[float, float | None]:
        return 0.5, None


def once(deed: Callable[[Path], None]) -> Callable[[Path], None]:
    """Does it the first time."""
    left = [deed]
    return lambda folder: left.pop()(folder) if left else None


def diverges(folder: Path) -> None:
    raise DivergedError("the loss became NaN or infinite at step 1 with learning rate 1")


def needs_memory(folder: Path) -> None:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def interrupts(folder: Path) -> None:
    raise KeyboardInterrupt


def speaks(folder: Path) -> None:
    print("spoken by a worker")
    print("whispered by a worker", file=sys.stderr)
    os.system("echo sung by the child of a worker")


def leaves(folder: Path) -> None:
    print("last words", flush=True)
    os._exit(3)


def is_killed(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(folder: Path) -> None:
    (folder.parent.parent / "pid").write_text(str(os.getpid()))
    time.sleep(600)
