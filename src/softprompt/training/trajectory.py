"""The trajectory: what was measured of every virtual token while a prompt learned, and the file that keeps it.

Owns `monitor.jsonl`: one JSON object a line, the start first, then steps and validations as they come. A line that a
kill has left half written is passed over. Does not know how anything is measured (`monitor`) nor what it means
(`diagnosis`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softprompt.errors import SoftPromptError
from softprompt.files import append_to, write_file

# Percentiles of the vocabulary's norms that a start keeps.
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


class Start(BaseModel):
    """The prompt before its first step, and the words it stands among.

    Attributes:
        norm: `[P]` Euclidean norm of each virtual token.
        z: `[P]` how many of the vocabulary's standard deviations that is above the vocabulary's mean norm.
        trained: whether the prompt knew the task before, by training, so that its norms are not those of an
            initialisation, or by worked examples.
        learning_rate: the run's peak rate.
        steps_per_pass: steps in which every training row is seen once.
        vocabulary_mean, vocabulary_deviation: of the norms of the base's word embeddings.
        vocabulary_percentiles: of the same, at `PERCENTILES`.
    """

    model_config = ConfigDict(frozen=True)

    norm: list[float]
    z: list[float]
    trained: bool
    learning_rate: float
    steps_per_pass: float
    vocabulary_mean: float
    vocabulary_deviation: float
    vocabulary_percentiles: list[float] = Field(min_length=len(PERCENTILES), max_length=len(PERCENTILES))


class Measurement(BaseModel):
    """The prompt at one logged step; every list is `[P]`.

    Attributes:
        step: optimiser steps done.
        loss: mean training loss since the entry before, in nats.
        learning_rate: of this step.
        gradient: norm of the loss's gradient, before clipping.
        update: norm of what the step added, divided by the norm before the step.
        norm: after the step.
        z: the same against the vocabulary's norms, as in `Start`.
        drift: Euclidean distance from the start.
        cosine: cosine with the start.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float
    learning_rate: float
    gradient: list[float]
    update: list[float]
    norm: list[float]
    z: list[float]
    drift: list[float]
    cosine: list[float]


class Validated(BaseModel):
    """One validation: its step and its figures, such as `accuracy` and `log_loss`."""

    model_config = ConfigDict(frozen=True)

    step: int
    figures: dict[str, float]


_KINDS: dict[str, type[BaseModel]] = {"start": Start, "measurement": Measurement, "validation": Validated}


@dataclass
class Trajectory:
    """A run as the monitor saw it.

    Attributes:
        start: None where the file does not tell.
        measurements: in the order of their steps, no step twice.
        validations: likewise.
    """

    start: Start | None = None
    measurements: list[Measurement] = field(default_factory=list)
    validations: list[Validated] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """What a file holds; nothing where there is none. Lines that are not whole are passed over.

        Raises:
            SoftPromptError: the file cannot be read.
        """
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise SoftPromptError(f"{path}: cannot be read: {error.strerror}") from error
        start: Start | None = None
        found: dict[type[BaseModel], dict[int, Any]] = {Measurement: {}, Validated: {}}
        for line in lines:
            entry = _parse(line)
            if isinstance(entry, Start):
                start = entry
            elif isinstance(entry, Measurement | Validated):
                found[type(entry)][entry.step] = entry
        ordered = {kind: [entries[step] for step in sorted(entries)] for kind, entries in found.items()}
        return cls(start, ordered[Measurement], ordered[Validated])

    def until(self, step: int) -> Trajectory:
        """The trajectory up to and with `step`."""
        return Trajectory(
            self.start,
            [one for one in self.measurements if one.step <= step],
            [one for one in self.validations if one.step <= step],
        )

    def write(self, path: Path) -> None:
        """Replace the file by this trajectory, at once or not at all.

        Raises:
            SoftPromptError: the file cannot be written.
        """
        stepped: list[Measurement | Validated] = [*self.measurements, *self.validations]
        entries = [*([] if self.start is None else [self.start]), *sorted(stepped, key=lambda entry: entry.step)]
        write_file(path, "".join(map(_line, entries)))

    def add(self, entry: Measurement | Validated, path: Path | None) -> None:
        """Take an entry in, and append it to the file where one is given.

        Raises:
            SoftPromptError: the file cannot be written.
        """
        if isinstance(entry, Measurement):
            self.measurements.append(entry)
        else:
            self.validations.append(entry)
        if path is not None:
            append_to(path, _line(entry))


def _line(entry: BaseModel) -> str:
    kind = next(name for name, kind in _KINDS.items() if isinstance(entry, kind))
    return json.dumps({"kind": kind} | entry.model_dump()) + "\n"


def _parse(line: bytes) -> BaseModel | None:
    try:
        content = json.loads(line)
        kind = _KINDS.get(str(content.get("kind"))) if isinstance(content, Mapping) else None
        return None if kind is None else kind.model_validate(content)
    except (ValueError, ValidationError, RecursionError):
        return None
