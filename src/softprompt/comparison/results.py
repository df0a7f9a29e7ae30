"""What a job found: the two halves of it, or what went wrong. Owns their keys in the comparison's folder."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from softprompt.evaluation.evaluate import Evaluation

Curve = list[dict[str, int | float]]


class Fault(BaseModel, frozen=True):
    """What went wrong. Diverged: another try would end alike. Unusable: so would every other method."""

    status: Literal["diverged", "out of memory", "failed", "unusable"]
    message: str


class Trained(BaseModel, frozen=True):
    """What was learned, at what price. Bytes are of the base's weights, of the artifact on disk, of the process."""

    status: Literal["done"] = "done"
    trainable_parameters: int
    base_parameters: int
    base_bytes: int
    artifact_bytes: int
    peak_memory_bytes: int
    train_seconds: float  # in steps, as `best_seconds`, those up to the best validation
    best_seconds: float
    best_step: int
    validation: Evaluation
    curve: Curve
    losses: Curve
    examples: int | None = None


class Measured(BaseModel, frozen=True):
    """How good it is, with its answer to each test row, and how fast it is put in place; see `Method.switch`."""

    status: Literal["done"] = "done"
    test: Evaluation
    answers: list[int] | list[str]
    switch_seconds: float
    switch_in_memory_seconds: float | None = None


Result = Trained | Measured | Fault
Part = Literal["trained", "tested"]
