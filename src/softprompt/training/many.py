"""Many runs in one loop: tasks that share a base and a shape learn side by side, each in a run's folder of its own.

Owns what tasks must share for that, and the checkpoint that a group has together. Knows no task files and no reports.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.files import write_file
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.answers import KINDS
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.training.folder import RECORD, Replaced, check_folder, locked, open_run, write_problems
from softprompt.training.interruption import Interruption
from softprompt.training.loop import DivergedError, PromptTrainer
from softprompt.training.recipe import Recipe
from softprompt.training.run import Prepared, Run, finish, prepare, with_last_good

logger = logging.getLogger(__name__)

_RECORDS = "runs.json"
# What each run of a group may have its own of.
_OWN = {"seed", "patience", "fit_rows", "calibrate", "max_length", "monitor", "epochs"}


@dataclass(frozen=True)
class Job:
    """A run to make beside others.

    Attributes:
        prompt: where it starts from, with virtual tokens.
        task: with a kind of answer that is not `auto`.
        data: the rows for training, validation and test.
        recipe: with `max_steps`.
        output: the run's folder.
        callbacks: callbacks of the Trainer's kind, told of this run alone.
        finished: it is finished, and only here because its group goes on; nothing is told or written of it.
    """

    prompt: SoftPrompt
    task: Task
    data: tuple[Sequence[Row], Sequence[Row] | None, Sequence[Row] | None]
    recipe: Recipe
    output: Path
    callbacks: Sequence[TrainerCallback] = ()
    finished: bool = False


def shape(task: Task, recipe: Recipe) -> Hashable | None:
    """What runs must share, besides the base and its dtype, to learn side by side; None: such a run learns alone.

    Args:
        task: with a kind of answer that is not `auto`.
        recipe: with `max_steps`.
    """
    # A tracker's run, a loss's weights and a promise of privacy are of one task.
    if recipe.report_to or recipe.class_weights != "none" or recipe.private is not None:
        return None
    kind = KINDS[task.kind]
    head = (kind.task_type, len(task.labels or []) if kind.head == "labels" else kind.head)
    return (head, *recipe.model_dump(exclude=_OWN | {"report_to"}).items())


@contextmanager
def said_of(name: str) -> Iterator[None]:
    """Within it softprompt's log lines begin with the name of the task that they are about."""
    before = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if record.name.startswith("softprompt"):
            record.msg = f"{name}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def train_jobs(
    base: Base,
    jobs: Sequence[Job],
    checkpoints: Path,
    done: Callable[[int, Run | Exception], None],
    *,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Train several prompts side by side, each as `train` would alone: what it learns, its folder, its early end.

    A run that can't begin, or whose gradient is no longer finite, is told of and leaves the others as they are.

    Args:
        base: the frozen base.
        jobs: K runs of one `shape`.
        checkpoints: the folder of the group's checkpoints; it is removed at the end.
        done: called once with the index of each run, and the run or what went wrong with it.
        resume: go on from the group's last checkpoint, where the runs are the same; else they start again.
        force: replace runs that are in their folders.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: a checkpoint can't be written or read.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        ready: dict[int, Prepared] = {}
        for k, job in enumerate(jobs):
            try:
                with said_of(job.output.name):
                    found = prepare(base, job.prompt, job.task, job.recipe, job.data)
                stack.enter_context(locked(job.output))
                again = resume and (job.output / RECORD).exists()
                check_folder(job.output, found.about, resume=again, force=force)
                ready[k] = found
            except Exception as error:
                done(k, error)
        last = _last_checkpoint(checkpoints, [one.about for one in ready.values()]) if resume else None
        if last is None:
            ready = {k: run for k, run in ready.items() if not jobs[k].finished}
            _begin(jobs, ready, checkpoints, done, resume, progress)
        if not ready:
            return
        replaced = [Replaced(jobs[k].output / RECORD) for k in ready]
        trainer = _trainer(base, jobs, ready, checkpoints, replaced, progress)
        interruption = Interruption()
        trainer.add_callback(interruption)
        with ExitStack() as both:
            for one in replaced:
                both.enter_context(one.put_back_on_failure(True))
            both.enter_context(interruption)
            trainer.go_on(last)
        for place, (k, run) in enumerate(ready.items()):
            replaced[place].put_back()  # where it ended before its first step was through
            if jobs[k].finished:
                continue
            try:
                with said_of(jobs[k].output.name):
                    came = _finished(run, trainer, place, jobs[k].output, progress, began)
                done(k, came)
            except Exception as error:
                done(k, error)
        shutil.rmtree(checkpoints, ignore_errors=True)
        with suppress(OSError):  # what is not empty stays
            checkpoints.parent.rmdir()


def _last_checkpoint(folder: Path, abouts: Sequence[dict[str, Any]]) -> Path | None:
    """The group's newest checkpoint, where it is of the same runs in the same order."""
    try:
        same = json.loads((folder / _RECORDS).read_text(encoding="utf-8")) == json.loads(json.dumps(abouts))
    except (OSError, ValueError):
        return None
    found = sorted(folder.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    return found[-1] if found and same else None


def _begin(
    jobs: Sequence[Job],
    ready: dict[int, Prepared],
    checkpoints: Path,
    done: Callable[[int, Run | Exception], None],
    resume: bool,
    progress: Callable[[int], None] | None,
) -> None:
    """Fit the heads and open the folders of runs that start; one that can't is told of and left out."""
    for k, run in list(ready.items()):
        folder = jobs[k].output
        try:
            with said_of(folder.name):
                run.fit_head(progress)
            if resume and (folder / RECORD).exists():
                logger.info("%s: begun before, without a checkpoint of the same group: it starts again", folder)
            else:
                open_run(folder, run.about)
            write_problems(folder, run.problems)
        except Exception as error:
            del ready[k]
            done(k, error)
    shutil.rmtree(checkpoints, ignore_errors=True)
    write_file(checkpoints / _RECORDS, json.dumps([run.about for run in ready.values()]))


def _trainer(
    base: Base,
    jobs: Sequence[Job],
    ready: dict[int, Prepared],
    checkpoints: Path,
    replaced: Sequence[Replaced],
    progress: Callable[[int], None] | None,
) -> PromptTrainer:
    """The loop over the very tensors that each run's own model has."""
    runs = list(ready.values())
    recipe = runs[0].recipe
    model = PromptedModel(
        base,
        [prompt for run in runs for prompt in run.model.prompts],
        max_tokens=recipe.max_tokens,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )
    model.heads = nn.ParameterList(head for run in runs for head in run.model.heads)
    lanes = [
        run.lane(jobs[k].output, [*jobs[k].callbacks, one])
        for (k, run), one in zip(ready.items(), replaced, strict=True)
    ]
    return PromptTrainer(model, recipe, lanes, checkpoints, progress=progress, apart=True)


def _finished(
    run: Prepared,
    trainer: PromptTrainer,
    place: int,
    folder: Path,
    progress: Callable[[int], None] | None,
    began: float,
) -> Run | DivergedError:
    member = trainer.members[place]
    if member.error is not None and not member.ended:  # not one step was good
        return member.error
    found = finish(run, trainer, place, folder, progress, began)
    return found if member.error is None else with_last_good(member.error, found)
