"""A group of tasks, trained and measured: side by side where it has several, and what comes of each.

Owns a run's `result.json`, by which a task is known to be finished. Knows no command and no cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation import evaluate
from softprompt.files import write_file
from softprompt.many.entries import Entry
from softprompt.prompts.prompt import SoftPrompt
from softprompt.reporting.run_report import write_report
from softprompt.training.folder import RECORD
from softprompt.training.growth import Growth, grow
from softprompt.training.many import Job, said_of, train_jobs
from softprompt.training.run import Run, train
from softprompt.training.taskfile import make_prompt

logger = logging.getLogger(__name__)

RESULT = "result.json"
_SHARED = ".side-by-side"  # where groups have their checkpoints


class Watcher(Protocol):
    """Who is told how it goes."""

    def watch(self, name: str, metric: str) -> Sequence[TrainerCallback]:
        """Callbacks that are told of one task's training."""

    def tell(self, name: str, state: str) -> None:
        """A task has come to another state, such as "done"."""

    def answered(self, rows: int) -> None:
        """So many rows are finished since the last call."""


def kept(entry: Entry) -> dict[str, Any] | None:
    """What came of a task that is finished; None: it is not.

    Raises:
        SoftPromptError: it was finished with other settings or rows.
    """
    try:
        found: dict[str, Any] = json.loads((entry.output / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.pop("digest", None) != entry.digest:
        raise SoftPromptError(
            f"{entry.output}: finished with other settings or rows: --force replaces it, or choose another --output"
        )
    return found | {"status": "kept"}


def train_group(
    base: Base, group: Sequence[Entry], watcher: Watcher, *, resume: bool = False, force: bool = False
) -> list[dict[str, Any]]:
    """Train a group's tasks, and measure and report each as `softprompt train` does.

    Args:
        base: the frozen base, in the entries' dtype.
        group: tasks that share a base and a shape, from `groups`.
        watcher: who is told.
        resume: runs that are there go on, or start again.
        force: replace runs that are there.

    Returns:
        What came of each: `name`, `task`, `status` ("trained", "kept" or "failed"), and the run's document or `error`.
    """
    found = [kept(entry) if resume else None for entry in group]
    results: dict[int, dict[str, Any]] = {k: one for k, one in enumerate(found) if one is not None}

    def done(k: int, came: Run | Growth | Exception) -> None:
        entry = group[k]
        if not isinstance(came, Exception):
            try:
                watcher.tell(entry.file.name, "measured")
                results[k] = _keep(base, entry, came, watcher.answered)
            except Exception as error:
                came = error
        if isinstance(came, Exception):
            results[k] = failure(entry.file.name, entry.path, came)
        watcher.tell(entry.file.name, "done" if results[k]["status"] == "trained" else "failed")

    if len(group) > 1:
        try:
            _side_by_side(base, group, watcher, done, set(results), resume=resume, force=force)
        except Exception as error:
            logger.warning("side by side: %s; its tasks are trained one after another", error)
            shutil.rmtree(_checkpoints(group), ignore_errors=True)
            force = not resume  # what they have begun goes
    for k, entry in enumerate(group):
        if k not in results:
            try:
                with said_of(entry.file.name):
                    came = _alone(base, entry, watcher, resume=resume, force=force)
                done(k, came)
            except Exception as error:
                done(k, error)
    return [results[k] for k in range(len(group))]


def unfinished(groups: Sequence[Sequence[Entry]], finished: Collection[str]) -> list[Sequence[Entry]]:
    """What is left of groups of which some tasks, by their names, are finished.

    A group that can go on from its checkpoint stays whole: the checkpoint is of all its tasks.
    """
    left = [[entry for entry in group if entry.file.name not in finished] for group in groups]
    return [group if has_begun(group) else some for group, some in zip(groups, left, strict=True) if some]


def has_begun(group: Sequence[Entry]) -> bool:
    """Whether there is a checkpoint from which a group can go on."""
    place = _checkpoints(group) if len(group) > 1 else group[0].output
    return next(place.glob("**/checkpoint-*"), None) is not None


def _checkpoints(group: Sequence[Entry]) -> Path:
    names = hashlib.sha256("\n".join(entry.file.name for entry in group).encode()).hexdigest()[:16]
    return group[0].output.parent / _SHARED / names


def failure(name: str, path: Path, error: Exception) -> dict[str, Any]:
    """What came of a task that failed."""
    message = " ".join(str(error).split())
    if not isinstance(error, SoftPromptError):
        message = f"{type(error).__name__}: {message}"
    return {"name": name, "task": str(path), "status": "failed", "error": message}


def _start(base: Base, entry: Entry, count: int | None) -> SoftPrompt:
    start = entry.file.prompt.model_copy(update={"num_virtual_tokens": count})
    made = make_prompt(base, start, entry.file.task, entry.rows[0])
    return replace(made, card=made.card.replace(data=entry.file.data.for_card()))


def _side_by_side(
    base: Base,
    group: Sequence[Entry],
    watcher: Watcher,
    done: Callable[[int, Run | Exception], None],
    finished: Collection[int],
    *,
    resume: bool,
    force: bool,
) -> None:
    jobs: dict[int, Job] = {}
    for k, entry in enumerate(group):
        name = entry.file.name
        try:
            count = entry.file.prompt.num_virtual_tokens
            prompt = _start(base, entry, count if isinstance(count, int) else None)
            callbacks = watcher.watch(name, entry.task.metric)
            jobs[k] = Job(prompt, entry.task, entry.rows, entry.recipe, entry.output, callbacks, k in finished)
            watcher.tell(name, "training")
        except Exception as error:
            done(k, error)
    places = list(jobs)
    train_jobs(
        base,
        list(jobs.values()),
        _checkpoints(group),
        lambda i, came: done(places[i], came),
        resume=resume,
        force=force,
        progress=watcher.answered,
    )


def _alone(base: Base, entry: Entry, watcher: Watcher, *, resume: bool, force: bool) -> Run | Growth:
    watcher.tell(entry.file.name, "training")
    rows, validation, test = entry.rows
    common: dict[str, Any] = {
        "train": rows,
        "validation": validation,
        "test": test,
        "recipe": entry.recipe,
        "output": entry.output,
        "resume": resume and (entry.output / RECORD).exists(),
        "force": force,
        "callbacks": watcher.watch(entry.file.name, entry.task.metric),
        "progress": watcher.answered,
    }
    if entry.file.prompt.num_virtual_tokens == "auto":
        return grow(base, lambda count: _start(base, entry, count), entry.task, **common)
    return train(base, _start(base, entry, entry.file.prompt.num_virtual_tokens), entry.task, **common)


def _keep(base: Base, entry: Entry, came: Run | Growth, progress: Callable[[int], None]) -> dict[str, Any]:
    """Measure a run on the test rows, write its report and then its result."""
    run, folder = (came.run, came.folder or entry.output) if isinstance(came, Growth) else (came, entry.output)
    _, validation, test_rows = entry.rows
    test = None if test_rows is None else evaluate(base, run.prompt, entry.task, test_rows, progress=progress)
    report = write_report(folder, base=base, validation=validation, test=test, progress=progress)
    document = {"name": entry.file.name, "task": str(entry.path), "status": "trained"} | came.to_json()
    document |= {"metric": entry.task.metric, "test": None if test is None else test.to_json(), "report": str(report)}
    write_file(entry.output / RESULT, json.dumps(document | {"digest": entry.digest}, indent=1))
    return document
