"""A table answered by workers on a Ray cluster, as a Ray Data job: each worker holds the base and the prompt.

Owns how rows are given out, and that their answers come back in order. A worker that dies is started again by Ray Data,
and its rows with it. The machines have softprompt, the base and the table at the same paths.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.evaluation.answering import CHUNK, Answered, answer
from softprompt.prompts.ensemble import Ensemble
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Entry
from softprompt.tasks.task import Task

_COLUMN = "rows"


class Worker:
    """Answers some rows at a time in a process of its own.

    Args:
        load: loads the base.
        prompt, task: see `answer`.
    """

    def __init__(self, load: Callable[[], Base], prompt: SoftPrompt | Ensemble, task: Task) -> None:
        self._load, self._prompt, self._task = load, prompt, task
        self._base: Base | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """The answers to a batch of one record, which is some rows; or what keeps them from being answered."""
        (content,) = batch[_COLUMN]
        found: list[Answered] | SoftPromptError
        try:
            self._base = self._base or self._load()
            found = list(answer(self._base, self._prompt, self._task, pickle.loads(content)))
        except SoftPromptError as error:  # an error that is raised here, Ray tells of in dozens of lines
            found = SoftPromptError(str(error))
        return {_COLUMN: [pickle.dumps(found)]}


def answer_over(
    load: Callable[[], Base],
    prompt: SoftPrompt | Ensemble,
    task: Task,
    entries: Iterable[Entry],
    *,
    workers: int,
    done: int = 0,
) -> Iterator[Answered]:
    """The answers of `answer`, in the same order, from workers on the cluster that this process is connected to.

    The rows are read by one task of the cluster, some at a time, and no faster than they are answered.

    Args:
        load: loads the base, on each worker.
        prompt, task, entries: see `answer`; `entries` is sent to where it is read.
        workers: how many, each with a GPU where the cluster has some.
        done: rows at the start that are left out.

    Raises:
        SoftPromptError: the base cannot be loaded, or is not the prompt's.
    """
    import ray
    import ray.data

    def read(_: Mapping[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        waiting = islice(entries, done, None)
        while some := list(islice(waiting, CHUNK)):
            yield {_COLUMN: [pickle.dumps(some)]}

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # each record is a block, which one worker takes: as many rows as `answer` takes
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    # The reader takes no processor: on a small machine the workers have them all.
    found = ray.data.from_items([0]).map_batches(read, batch_size=1, num_cpus=0)
    found = found.map_batches(
        Worker,
        fn_constructor_args=(load, prompt, task),
        batch_size=1,
        num_cpus=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    for batch in found.iter_batches(batch_size=1):
        answers = pickle.loads(batch[_COLUMN][0])
        if isinstance(answers, SoftPromptError):
            raise answers
        yield from answers
