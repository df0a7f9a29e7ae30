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
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from softprompt.errors import EndedElsewhereError, SoftPromptError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)

# What the libraries that carry gradients say where a peer no longer answers.
_LOST = re.compile(r"gloo|NCCL|connection (reset|closed)|broken pipe", re.IGNORECASE)
# What Accelerate's configuration may ask of FSDP, and what to do instead.
_NOT_TAKEN = {
    ("FSDP_OFFLOAD_PARAMS", "true"): "the weights stay on the device: leave it out",
    ("FSDP_RESHARD_AFTER_FORWARD", "false"): "weights are given up after each layer: leave it out",
    ("FSDP_ACTIVATION_CHECKPOINTING", "true"): "set recipe.gradient_checkpointing in its place",
}
_wants_shards = False  # whether Accelerate's configuration asks for FSDP, once it has been read


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes: the only one, or the first of several."""
    return rank() == 0


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def start(device: torch.device | None = None) -> None:
    """Meet the other processes, where a launcher has started several; "cuda" is this process's own GPU from then on.

    Args:
        device: where the base is; None: where `load_base` will put it.

    Raises:
        SoftPromptError: Accelerate's configuration asks for what is not done.
    """
    _read_configuration()
    if count() > 1:
        PartialState(cpu=device.type == "cpu" if device is not None else not torch.cuda.is_available())
    elif "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        logger.warning(
            "accelerate launch was asked for several processes but started one, as it does without GPUs: use "
            "torchrun --nproc_per_node N"
        )


def _read_configuration() -> None:
    """Take note of the shards that Accelerate's configuration asks for, and take them from the environment.

    Accelerate would spread what is trained, which is the prompt; the base is no part of that: `load_base` spreads it.
    """
    global _wants_shards
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise SoftPromptError(
            "Accelerate's configuration asks for DeepSpeed, which spreads the weights that it trains, and the base is "
            "not trained: ask for distributed_type FSDP with fsdp_version 2, which spreads the base"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise SoftPromptError("Accelerate's configuration asks for FSDP of version 1: set fsdp_version: 2")
    for (name, value), instead in _NOT_TAKEN.items():
        if os.environ.get(name, "").lower() == value:
            raise SoftPromptError(f"Accelerate's configuration has {name.lower()} {value}: {instead}")
    del os.environ["ACCELERATE_USE_FSDP"]
    _wants_shards = count() > 1
    if not _wants_shards:
        logger.warning("Accelerate's configuration asks for FSDP, but there is one process: the base is whole in it")


def mesh() -> DeviceMesh | None:
    """The processes over which `load_base` is to spread the base, where Accelerate's configuration asks for that.

    Each process calls this, after `start`.
    """
    if not _wants_shards:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    logger.info(
        "the base's layers are spread over %s processes (FSDP2, a layer at a time); each process asks all validation "
        "rows, since all have to compute in step",
        count(),
    )
    return init_device_mesh(PartialState().device.type, (count(),))


def check_base(sharded: bool, name: str) -> None:
    """Make sure that the base is spread where that was asked for.

    Raises:
        SoftPromptError: it is whole.
    """
    if _wants_shards and not sharded:
        raise SoftPromptError(
            f"Accelerate's configuration asks for FSDP, and base {name!r} is whole: load it with "
            "load_base(..., mesh=processes.mesh()) after processes.start(), both of softprompt.training"
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
