"""Several processes that train one prompt: which one writes, and how the failure of one ends them all.

Owns what a launcher (torchrun, `accelerate launch`) says in the environment. Knows nothing of what is trained.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from softprompt.errors import EndedElsewhereError, SoftPromptError

logger = logging.getLogger(__name__)

# What the libraries that carry gradients say where a peer no longer answers.
_LOST = re.compile(r"gloo|NCCL|connection (reset|closed)|broken pipe", re.IGNORECASE)


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes: the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def start(device: torch.device | None = None) -> None:
    """Meet the other processes, where a launcher has started several; "cuda" is this process's own GPU from then on.

    Args:
        device: where the base is; None: where `load_base` will put it.
    """
    if count() > 1:
        PartialState(cpu=device.type == "cpu" if device is not None else not torch.cuda.is_available())
    elif "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        logger.warning(
            "accelerate launch was asked for several processes but started one, as it does without GPUs: use "
            "torchrun --nproc_per_node N"
        )


@contextmanager
def together() -> Iterator[None]:
    """Within it each process does its part; no process goes on before all are through, and all end where one fails.

    Nothing inside may wait for another process.

    Raises:
        Exception: in the first process, what it met itself, or a SoftPromptError that names the process that failed.
        EndedElsewhereError: in the others.
    """
    if count() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = gather(None if failure is None else str(failure) or type(failure).__name__)
    if not any(failures):
        return
    who = next(rank for rank, message in enumerate(failures) if message)
    message = f"process {who} of {count()}: {failures[who]}"
    if not is_first():
        raise EndedElsewhereError(message) from failure
    raise failure or SoftPromptError(message)


class _EndedError(RuntimeError):
    """The launcher ends this process, as it does with those that are left when one is gone."""


@contextmanager
def none_lost() -> Iterator[None]:
    """Within it processes wait for each other.

    Raises:
        SoftPromptError: one of them is gone, or the launcher ends them. SIGTERM is ignored from then on, so that this
            can be told.
    """
    listens = count() > 1 and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end) if listens else None
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not (isinstance(error, _EndedError) or _LOST.search(str(error))):
            raise
        if listens:
            before = signal.SIG_IGN
        raise SoftPromptError(
            "another process of this run is gone, killed or with its machine; what was learned until the last "
            "checkpoint is kept: start all again with --resume"
        ) from error
    finally:
        if listens:
            signal.signal(signal.SIGTERM, before)


def _end(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _EndedError("ended by the launcher")


def gather(what: Any) -> list[Any]:
    """What each process has, in their order; each one calls this."""
    found: list[Any] = gather_object([what])
    with suppress(RuntimeError):  # one that ends now would cut off those that are still reading; all know by then
        PartialState().wait_for_everyone()
    return found
