"""One job of a comparison: a method with one setting and one seed, trained and tested in a process of its own.

Owns the way from a plan to a job's results. Does not know which jobs there are, nor what is made of the results.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import set_seed

from softprompt.comparison import processes
from softprompt.comparison.folder import Folder
from softprompt.comparison.methods.method import Method, Tell, UnusableError, Work
from softprompt.comparison.plan import Plan
from softprompt.comparison.results import Fault, Measured, Part, Result
from softprompt.text import first_line
from softprompt.training.loop import DivergedError


@dataclass(frozen=True)
class Job:
    """A method with one of its settings, and a seed: of the order of rows, of draws, of the choice of examples."""

    method: Method
    setting: float | None
    seed: int

    @property
    def name(self) -> str:
        """A file's name for it."""
        setting = "" if self.setting is None else f"-{self.setting:.3g}"
        return f"{self.method.name}{setting}-seed-{self.seed}"

    def __str__(self) -> str:
        if self.setting is None:
            return f"{self.method.name}, seed {self.seed}"
        return f"{self.method.name} {self.setting:.3g}"


def run_job(plan: Plan, job: Job, folder: Folder, parts: Sequence[Part], tell: Tell) -> dict[Part, Result]:
    """Do parts of a job, in order, in a process of its own, and keep their results in the folder.

    After one that went wrong the others are not done. Of a process that died the last result says so. `tell` is called
    with the work that is done and how much there is.
    """
    results: dict[Part, Result] = {}
    about: dict[str, Any] = {"method": job.method.name, "setting": job.setting, "seed": job.seed}

    def heard(message: tuple[int, int] | Result) -> None:
        if isinstance(message, tuple):
            tell(*message)
        else:
            part = parts[len(results)]
            results[part] = message
            folder.write(job.name, part, about | message.model_dump(exclude_none=True))

    log = folder.log(job.name)
    code = processes.run(perform, (plan, job, folder.artifact(job.name), parts), log, heard)
    if len(results) < len(parts) and not any(isinstance(result, Fault) for result in results.values()):
        heard(_died(job, code, log))
    return results


def perform(send: Callable[[object], None], plan: Plan, job: Job, artifact: Path, parts: Sequence[Part]) -> None:
    """Do parts of a job: send each one's result, and before it pairs of the work that is done and how much there is.

    Whatever a method stumbles over is its result, so that the other methods go on.
    """
    set_seed(job.seed)
    for number, part in enumerate(parts):

        def tell(done: int, of: int, before: int = number) -> None:
            send((before * of + done, len(parts) * of))

        result: Result
        try:
            rows = plan.validation if part == "trained" else plan.test
            work = Work(plan, rows, job.setting, job.seed, artifact, tell)
            result = job.method.train(work) if part == "trained" else _test(job.method, work)
            del work
        except DivergedError as error:
            result = Fault(status="diverged", message=str(error))
        except UnusableError as error:
            result = Fault(status="unusable", message=str(error))
        except Exception as error:
            result = Fault(status="out of memory" if _is_memory(error) else "failed", message=first_line(error))
        send(result)
        if isinstance(result, Fault):
            return


def _test(method: Method, work: Work) -> Measured:
    test, answers = work.ask(method.open(work))
    from_disk, in_memory = method.switch(work)
    return Measured(test=test, answers=answers, switch_seconds=from_disk, switch_in_memory_seconds=in_memory)


def _is_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def _died(job: Job, code: int, log: Path) -> Fault:
    """What is said of a process that ended before its work did."""
    if code == -signal.SIGKILL:  # what Linux sends to the process that takes the last memory
        message = f"{job.name}: its process was killed (signal 9), as for want of memory"
        return Fault(status="out of memory", message=message)
    how = f"with signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    words = lines[-1] if lines else "no message"
    return Fault(status="failed", message=f"{job.name}: its process ended {how}: {words}")
