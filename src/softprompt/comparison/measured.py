"""The figures of the repository's benchmarks, shipped in `measured.json` so that advice can quote them.

Owns the file's form and the few sums that are quoted. `python -m benchmarks.figures` writes the file from
`benchmarks/results`; knows nothing of whom the figures are told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Figures):
    """A training step: milliseconds of softprompt's on `base`, with P virtual tokens and B rows."""

    base: str
    num_virtual_tokens: int
    batch_size: int
    milliseconds: float


class Method(_Figures):
    """A method of the comparison on a task: its test score by the task's metric."""

    task: str
    metric: str
    method: str
    score: float
    trainable_parameters: int
    base_parameters: int


class Variant(_Figures):
    """A way of prompt tuning on a task, trained with a budget such as "160 steps of 8".

    Its test score is the mean over the seeds, on n rows.
    """

    part: str
    task: str
    budget: str
    variant: str
    score: float
    seeds: int
    n: int


class Measured(_Figures):
    """What is known. A benchmark that was not run has nothing to say.

    Attributes:
        steps: of `training_step.json`.
        methods, variants: of `quality.json`.
    """

    steps: list[Step] = []
    methods: list[Method] = []
    variants: list[Variant] = []

    def scores(self, part: str, variants: Sequence[str] | None = None) -> dict[str, float]:
        """Each variant's mean score over the tasks on which all of them were measured; empty where there is none.

        Args:
            part: of the quality benchmark.
            variants: which; default all of the part.
        """
        found = self._found(part)
        wanted = list(dict.fromkeys(variant for variant, _ in found)) if variants is None else list(variants)
        tasks = self._tasks(part, wanted)
        return {variant: fmean(found[variant, task].score for task in tasks) for variant in wanted} if tasks else {}

    def tasks(self, part: str, variants: Sequence[str]) -> list[str]:
        """The tasks on which all of these variants were measured, each with its budget."""
        return [f"{task} ({budget})" for task, budget in self._tasks(part, variants)]

    def rows(self, part: str, variants: Sequence[str]) -> int:
        """The test rows of these tasks together."""
        return sum(self._found(part)[variants[0], task].n for task in self._tasks(part, variants))

    def _found(self, part: str) -> dict[tuple[str, tuple[str, str]], Variant]:
        return {(one.variant, (one.task, one.budget)): one for one in self.variants if one.part == part}

    def _tasks(self, part: str, variants: Sequence[str]) -> list[tuple[str, str]]:
        found = self._found(part)
        tasks = dict.fromkeys(task for _, task in found)
        return [task for task in tasks if all((variant, task) in found for variant in variants)]


def read_measured() -> Measured:
    """What this version of the package was shipped with."""
    content: Any = json.loads(files("softprompt.comparison").joinpath("measured.json").read_text(encoding="utf-8"))
    return Measured.model_validate(content)
