"""Groups of tasks on a Ray cluster: one worker a device holds the base, and a dead worker's group goes on elsewhere.

Owns how work is given out and given out again. The workers see the folder of the runs, and have softprompt installed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import TrainerCallback

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.many.entries import Entry
from softprompt.many.group import Watcher, failure, has_begun, train_group

logger = logging.getLogger(__name__)

_TRIES = 3
_ANSWERS = 10.0  # seconds in which a cluster's address has to answer
_WAITS = 30.0  # seconds without news after which it is said what is waited for


class Worker:
    """Trains groups in a process of its own, which holds one base at a time."""

    def __init__(self) -> None:
        self._base: Base | None = None
        self._of: Hashable = None

    def ready(self) -> None:
        """Comes back when the process is there."""

    def train(self, group: Sequence[Entry], resume: bool, force: bool) -> tuple[list[dict[str, Any]], list[str]]:
        """What came of each task, and what was said meanwhile."""
        with _listening() as said:
            wanted = group[0].base_key
            try:
                if self._base is None or self._of != wanted:
                    self._base = None  # its memory is needed
                    self._base, self._of = group[0].load_base(), wanted
                results = train_group(self._base, group, _Unwatched(), resume=resume, force=force)
            except Exception as error:
                results = [failure(entry.file.name, entry.path, error) for entry in group]
        return results, said


class _Unwatched:
    """Nobody is told: the results tell."""

    def watch(self, name: str, metric: str) -> Sequence[TrainerCallback]:
        return []

    def tell(self, name: str, state: str) -> None:
        pass

    def answered(self, rows: int) -> None:
        pass


@contextmanager
def _listening() -> Iterator[list[str]]:
    said: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (line := record.getMessage()) not in said:
                said.append(line)

    ours, handler = logging.getLogger("softprompt"), Lines(logging.INFO)
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield said
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


@dataclass
class _Work:
    """A group to be trained, and how often that was begun."""

    group: Sequence[Entry]
    tries: int = 0


@dataclass
class _Hands:
    """The workers: what each is at, by the reference of what it will give; None: it is starting."""

    make: Any
    busy: dict[Any, tuple[Any, _Work | None]] = field(default_factory=dict)

    def start(self) -> None:
        worker = self.make()
        self.busy[worker.ready.remote()] = (worker, None)


@contextmanager
def cluster(address: str) -> Iterator[int]:
    """Within it a Ray cluster is there.

    Args:
        address: as Ray knows it, such as "10.0.0.1:6379" or "auto"; "local" starts one on this machine.

    Yields:
        The number of its GPUs, or without any of its machines.

    Raises:
        SoftPromptError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # softprompt sends nothing anywhere
    try:
        import ray
    except ImportError:
        raise SoftPromptError('--ray needs Ray: install it with pip install "softprompt[ray]"') from None
    try:
        host, colon, port = address.rpartition("://")[2].rpartition(":")
        if colon and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS).close()
        own = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        raise SoftPromptError(
            f"--ray {address}: no cluster can be reached there ({error}): start one with `ray start --head`, or give "
            "--ray local"
        ) from None
    try:
        machines = sum(bool(node["Alive"]) for node in ray.nodes())
        yield int(ray.cluster_resources().get("GPU", 0)) or machines
    finally:
        ray.shutdown()


def train_groups(
    groups: Sequence[Sequence[Entry]], workers: int, watcher: Watcher, *, resume: bool = False, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Train groups on the cluster; what came of each task is given as its group ends, in no order.

    A group whose worker died goes on from its checkpoint at another worker, up to three times.

    Args:
        groups: from `groups`.
        workers: processes that train, each with a GPU where the cluster has some.
        watcher: who is told.
        resume: runs that are there go on, or start again.
        force: replace runs that are there.
    """
    import ray

    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(Worker).options(num_cpus=1, num_gpus=gpus)
    waiting = deque(_Work([replace(entry, output=entry.output.resolve()) for entry in group]) for group in groups)
    hands = _Hands(remote.remote)
    for _ in range(min(workers, len(waiting))):
        hands.start()
    while waiting or any(work is not None for _, work in hands.busy.values()):
        finished, _ = ray.wait(list(hands.busy), timeout=_WAITS)
        if not finished and all(work is None for _, work in hands.busy.values()):
            logger.warning("the cluster has no room for a worker yet: waiting for one")
        for reference in finished:
            worker, work = hands.busy.pop(reference)
            try:
                came = ray.get(reference)
            except ray.exceptions.RayActorError:
                hands.start()
                if work is not None:
                    yield from _again(work, waiting, watcher)
                continue
            if work is not None:
                yield from _told(came[0], came[1], watcher)
            if waiting:
                _give(hands, worker, waiting.popleft(), watcher, resume=resume, force=force)


def _give(hands: _Hands, worker: Any, work: _Work, watcher: Watcher, *, resume: bool, force: bool) -> None:
    work.tries += 1
    if work.tries > 1 and not resume:  # what is there is of the try before: gone on with, or made anew
        resume = has_begun(work.group)
        force = not resume
    for entry in work.group:
        watcher.tell(entry.file.name, "training")
    hands.busy[worker.train.remote(work.group, resume, force)] = (worker, work)


def _again(work: _Work, waiting: deque[_Work], watcher: Watcher) -> Iterator[dict[str, Any]]:
    names = ", ".join(entry.file.name for entry in work.group)
    if work.tries < _TRIES:
        logger.warning("a worker died: %s: another goes on with it from the last checkpoint", names)
        waiting.appendleft(work)
        return
    error = SoftPromptError(f"its worker died {_TRIES} times: see Ray's logs for the reason, and go on with --resume")
    yield from _told([failure(entry.file.name, entry.path, error) for entry in work.group], [], watcher)


def _told(results: list[dict[str, Any]], said: list[str], watcher: Watcher) -> Iterator[dict[str, Any]]:
    for line in said:
        logger.info("%s", line)
    for one in results:
        watcher.tell(one["name"], "failed" if one["status"] == "failed" else "done")
        yield one
