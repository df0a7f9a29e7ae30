"""Prompt tuning beside its peers on one task: what is run, in which order, and which settings are chosen.

Owns the order, the choice of a setting by validation, and that nothing finished is done twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.comparison.folder import Folder
from softprompt.comparison.jobs import Job, run_job
from softprompt.comparison.methods import METHODS
from softprompt.comparison.methods.method import Method
from softprompt.comparison.plan import Plan, make_plan
from softprompt.comparison.report import html, markdown
from softprompt.comparison.results import Fault, Part, Result, Trained
from softprompt.comparison.table import Outcome, TableRow, make_rows
from softprompt.errors import SoftPromptError
from softprompt.files import write_file
from softprompt.prompts.json_text import with_short_lists
from softprompt.training.taskfile import TaskFile

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        name: the task file's.
        metric: the task's.
        rows: one for each method.
        notes: what a reader of the figures has to know.
        folder: where it is kept: `comparison.json`, `comparison.md`, `comparison.html` and what was trained.
    """

    name: str
    metric: str
    rows: list[TableRow]
    notes: list[str]
    folder: Path

    @property
    def report(self) -> Path:
        """The page for a browser."""
        return self.folder / "comparison.html"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints, and `comparison.json` holds."""
        return {
            "name": self.name,
            "metric": self.metric,
            "rows": [row.to_json() for row in self.rows],
            "notes": self.notes,
            "report": str(self.report),
        }


def compare(
    file: TaskFile,
    methods: Sequence[str] | None = None,
    *,
    output: str | Path,
    seeds: int = 1,
    quick: bool = False,
    one_setting: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure methods on one task: the same rows, steps, batches and validation, and as many settings for each.

    Args:
        file: the task file; its recipe gives the steps and batches of every method.
        methods: names of `METHODS`; None: all of them.
        output: the comparison's folder. What is finished in it is not repeated.
        seeds: how often each method is trained.
        quick: one setting for each method, few steps, few rows to measure on.
        one_setting: one setting for each method, but all steps and rows.
        force: replace another comparison in `output`.
        progress: called with what is being done and the share of all work that is done, from 0 to 1.

    Raises:
        SoftPromptError: the rows, the base or the prompt can't be used, a method is unknown, or `output` holds
            something else. A method that fails does not raise: its row says so.
    """
    asked = METHODS if methods is None else methods
    unknown = [name for name in asked if name not in METHODS]
    if unknown or not asked:
        raise SoftPromptError(f"methods: {', '.join(unknown) or 'none'}: choose of {', '.join(METHODS)}")
    if seeds < 1:
        raise SoftPromptError(f"seeds is {seeds}: at least 1")
    chosen = [method for name, method in METHODS.items() if name in asked]
    folder, plan = Folder(Path(output)), make_plan(file, quick=quick, one_setting=one_setting)
    folder.open(plan, force=force)
    runner = _Runner(plan, folder, chosen, seeds, progress or (lambda what, share: None))
    rows = make_rows(plan, [runner.settle(method, seed) for seed in range(seeds) for method in chosen])
    found = Comparison(plan.name, plan.task.metric, rows, [_budget(plan, seeds), *plan.notes], folder.path)
    document = with_short_lists(json.dumps(found.to_json(), indent=1)) + "\n"
    write_file(folder.path / "comparison.json", document)
    write_file(folder.path / "comparison.md", markdown(found.name, found.metric, rows, found.notes))
    write_file(found.report, html(found.name, found.metric, rows, found.notes))
    return found


class _Runner:
    """Does the jobs that are not finished, one after the other."""

    def __init__(self, plan: Plan, folder: Folder, methods: Sequence[Method], seeds: int, progress: Progress) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._grids = {method: method.grid(plan.recipe.rate, one=plan.one_setting) for method in methods}
        # A process for each setting and, where there are several, one more for the test of the best.
        self._total = seeds * sum(len(grid) + (len(grid) > 1) for grid in self._grids.values())
        self._begun = 0

    def settle(self, method: Method, seed: int) -> Outcome:
        """One method with one seed: every setting trained, the one that validates best tested."""
        jobs = [Job(method, setting, seed) for setting in self._grids[method]]
        alone: list[Part] = ["trained", "tested"] if len(jobs) == 1 else ["trained"]
        found = {job: self._do(job, *alone) for job in jobs}
        tried = {job: parts["trained"] for job, parts in found.items()}
        best: tuple[Job, Trained] | None = None
        for job, result in tried.items():
            metric = self._plan.task.metric
            if isinstance(result, Trained) and result.validation.better_than(best and best[1].validation, metric):
                best = job, result
        if best is None:
            return Outcome(jobs[0], next(result for result in tried.values() if isinstance(result, Fault)), tried)
        job, trained = best
        tested = (found[job] if len(jobs) == 1 else self._do(job, "tested"))["tested"]
        for other in jobs:  # a full copy of the base for each rate would fill the disk
            if other != job:
                shutil.rmtree(self._folder.artifact(other.name), ignore_errors=True)
        assert not isinstance(tested, Trained), "each part has its kind of result"
        return Outcome(job, tested if isinstance(tested, Fault) else (trained, tested), tried)

    def _do(self, job: Job, *parts: Part) -> dict[Part, Result]:
        """A job's results; what is finished is not done again, nor what would end the same way."""
        before = self._begun / self._total
        self._begun += 1

        def tell(done: int, of: int) -> None:
            self._progress(str(job), before + min(done / max(of, 1), 1.0) / self._total)

        kept = {part: self._folder.read(job.name, part) for part in parts}
        found = {part: result for part, result in kept.items() if result is not None}
        faults = {part: result for part, result in found.items() if isinstance(result, Fault)}
        missing = [part for part in parts if part not in found or part in faults]
        if missing and not any(fault.status == "diverged" for fault in faults.values()):
            tell(0, 1)
            found |= run_job(self._plan, job, self._folder, missing, tell)
        for result in found.values():
            if isinstance(result, Fault) and result.status == "unusable":
                raise SoftPromptError(result.message)
        return found


def _budget(plan: Plan, seeds: int) -> str:
    """What every method was given."""
    recipe = plan.recipe
    tried = "one learning rate" if plan.one_setting else "three learning rates, the best by validation kept"
    return (
        f"Every trained method: {len(plan.train)} training rows, {recipe.max_steps} steps of {recipe.batch_size} rows "
        f"in the same order, validated on {len(plan.validation)} rows every {recipe.evaluate_every} steps, {tried}; "
        f"{seeds} seed{'s' if seeds > 1 else ''}. Measured on {len(plan.test)} rows."
    )
