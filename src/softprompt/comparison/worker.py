"""What runs in a process of its own: one job of a comparison, trained and, when asked, tested.

    python -m softprompt.comparison.worker FOLDER METHOD SETTING SEED trained tested

Owns the way from a plan to a job's two results, which it writes into the folder, and what it says on stdout while it
goes on: JSON lines. Does not know which jobs there are, nor what is made of the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer_utils import set_seed

from softprompt.comparison.jobs import Job
from softprompt.comparison.memory import peak_memory
from softprompt.comparison.methods import METHODS
from softprompt.comparison.methods.method import Method, Work
from softprompt.comparison.plan import Plan, artifact, read_plan, read_result, result_file
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.files import write_file
from softprompt.tasks.encode import Encoder
from softprompt.tasks.metrics import classification_metrics, text_metrics
from softprompt.text import first_line
from softprompt.training.loop import DivergedError

Tell = Callable[[int, int], None]


def perform(folder: Path, job: Job, parts: list[str], tell: Tell) -> None:
    """Do a job and write its results.

    Each result has a `status`: "done"; "diverged", "out of memory" or "failed" with a `message`; or "unusable", where
    the fault is the plan's and every other method would fail alike.

    Args:
        folder: the comparison's, with its plan.
        job: what is learned.
        parts: "trained", "tested" or both.
        tell: called with the work that is done and how much there is.
    """
    plan = read_plan(folder)
    for number, part in enumerate(parts):

        def told(done: int, of: int, before: int = number) -> None:
            tell(before * of + done, len(parts) * of)

        try:
            found = _do(part, plan, job, folder, told)
        except DivergedError as error:
            found = {"status": "diverged", "message": str(error)}
        except _UnusableError as error:
            found = {"status": "unusable", "message": str(error)}
        except Exception as error:  # whatever a method stumbles over: its row says so, and the others go on
            found = {"status": "out of memory" if _is_memory(error) else "failed", "message": first_line(error)}
        write_file(result_file(folder, part, job.name), json.dumps(asdict(job) | found))
        if found["status"] != "done":
            return


class _UnusableError(Exception):
    """What is wrong with the plan itself: its base, its prompt, its labels."""


def _do(part: str, plan: Plan, job: Job, folder: Path, tell: Tell) -> dict[str, Any]:
    try:
        work = Work(plan, job.setting, job.seed, artifact(folder, job.name), tell)
        Encoder(work.base, plan.task, virtual_tokens=work.prompt.num_virtual_tokens)
    except SoftPromptError as error:
        raise _UnusableError(str(error)) from None
    method = METHODS[job.method]
    if part == "trained":
        return {"status": "done", **_train(method, work)}
    if read_result(result_file(folder, "trained", job.name)) is None:
        raise SoftPromptError(f"{job.name} has not been trained")
    return {"status": "done", **_test(method, work)}


def _train(method: Method, work: Work) -> dict[str, Any]:
    found = method.train(work)
    watch, kept = found.watch, work.artifact
    files = [file for file in kept.rglob("*") if file.is_file()] if kept.exists() else []
    return {
        "trainable_parameters": found.trainable,
        "base_parameters": work.base_parameters,
        "base_bytes": work.base_bytes,
        "artifact_bytes": sum(file.stat().st_size for file in files),
        "peak_memory_bytes": peak_memory(work.base.device) if found.peak is None else found.peak,
        "train_seconds": watch.seconds if watch else 0.0,
        "best_seconds": watch.seconds_at(found.best_step) if watch else 0.0,
        "best_step": found.best_step,
        "validation": found.validation.to_json(),
        "curve": watch.curve if watch else [],
        "losses": watch.losses if watch else [],
        **found.more,
    }


def _test(method: Method, work: Work) -> dict[str, Any]:
    evaluator = method.open(work)
    evaluation, answers = _ask(evaluator, work)
    del evaluator
    switch = method.switch(work)
    return {
        "test": evaluation.to_json(),
        "answers": answers,
        "switch_seconds": switch.from_disk,
        "switch_in_memory_seconds": switch.in_memory,
    }


def _ask(evaluator: Evaluator, work: Work) -> tuple[Evaluation, list[Any]]:
    """The figures, and what they are of: the label's index or the text for each row."""
    rows, labels, start = work.plan.test, work.task.labels, time.perf_counter()
    told = work.told(len(rows))
    answers: list[Any]
    if labels is None:
        answers = evaluator.outputs(told)
        figures = text_metrics(answers, [row.target or "" for row in rows])
    else:
        probabilities = evaluator.probabilities(told).numpy()
        answers = probabilities.argmax(1).tolist()
        figures = classification_metrics([row.label or 0 for row in rows], probabilities, labels)
    return Evaluation(**figures, truncated=evaluator.truncated, seconds=time.perf_counter() - start), answers


def _is_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("setting")
    parser.add_argument("seed", type=int)
    parser.add_argument("parts", nargs="+", choices=["trained", "tested"])
    options = parser.parse_args()
    job = Job(options.method, None if options.setting == "none" else float(options.setting), options.seed)
    out = sys.stdout

    def tell(done: int, total: int) -> None:
        print(json.dumps({"done": done, "of": total}), file=out, flush=True)

    set_seed(job.seed)
    with redirect_stdout(sys.stderr):
        perform(options.folder, job, options.parts, tell)


if __name__ == "__main__":
    main()
