"""Prompt tuning beside its peers on one task: what is run, in which order, and which settings are chosen.

Owns the order, the choice of a setting by validation, and that nothing finished is done twice. A job is done elsewhere
(`worker`), in a process of its own; what the rows of the table hold is `rows`'.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.comparison import processes
from softprompt.comparison.jobs import Job
from softprompt.comparison.methods import METHODS, check_methods
from softprompt.comparison.plan import (
    Plan,
    artifact,
    make_plan,
    open_folder,
    read_result,
    result_file,
)
from softprompt.comparison.report import html, markdown
from softprompt.comparison.rows import Outcome, make_rows
from softprompt.errors import SoftPromptError
from softprompt.evaluation.evaluate import Evaluation
from softprompt.files import write_file
from softprompt.prompts.json_text import with_short_lists
from softprompt.training.taskfile import TaskFile

# What is not tried again: it would end the same way.
_FINAL = ("done", "diverged")
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        name: the task file's.
        metric: the task's.
        rows: one for each method, see `make_rows`.
        notes: what a reader of the figures has to know.
        folder: where it is kept: `comparison.json`, `comparison.md`, `comparison.html` and what was trained.
    """

    name: str
    metric: str
    rows: list[dict[str, Any]]
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
            "rows": self.rows,
            "notes": self.notes,
            "report": str(self.report),
        }


def compare(
    file: TaskFile,
    methods: Sequence[str] = tuple(METHODS),
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
        methods: of `METHODS`.
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
    chosen = check_methods(methods)
    if seeds < 1:
        raise SoftPromptError(f"seeds is {seeds}: at least 1")
    folder = Path(output)
    plan = make_plan(file, quick=quick, one_setting=one_setting)
    open_folder(folder, plan, force=force)
    runner = _Runner(plan, folder, chosen, seeds, progress or (lambda what, share: None))
    outcomes = [runner.settle(method, seed) for seed in range(seeds) for method in chosen]
    comparison = Comparison(
        plan.name, plan.task.metric, make_rows(plan, outcomes), [_budget(plan, seeds), *plan.notes], folder
    )
    for name, text in (
        ("comparison.json", with_short_lists(json.dumps(comparison.to_json(), indent=1)) + "\n"),
        ("comparison.md", markdown(comparison.name, comparison.metric, comparison.rows, comparison.notes)),
        ("comparison.html", html(comparison.name, comparison.metric, comparison.rows, comparison.notes)),
    ):
        write_file(folder / name, text)
    return comparison


class _Runner:
    """Does the jobs that are not finished, one after the other."""

    def __init__(self, plan: Plan, folder: Path, methods: Sequence[str], seeds: int, progress: Progress) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._settings = {method: METHODS[method].settings(plan.recipe, one=plan.one_setting) for method in methods}
        # A process for each setting and, where there are several, one more for the test of the best.
        self._total = seeds * sum(len(settings) + (len(settings) > 1) for settings in self._settings.values())
        self._begun = 0

    def settle(self, method: str, seed: int) -> Outcome:
        """One method with one seed: every setting trained, the one that validates best tested."""
        jobs = [Job(method, setting, seed) for setting in self._settings[method]]
        parts = ["trained", "tested"] if len(jobs) == 1 else ["trained"]
        trained = [self._do(job, parts)["trained"] for job in jobs]
        done = [i for i, found in enumerate(trained) if found["status"] == "done"]
        if not done:
            return Outcome(trained[0], None, trained)
        best = max(done, key=lambda i: Evaluation(**trained[i]["validation"]).merit(self._plan.task.metric))
        tested = self._do(jobs[best], ["tested"], begins=len(jobs) > 1)["tested"]
        for i, job in enumerate(jobs):  # a full copy of the base for each rate would fill the disk
            if i != best:
                shutil.rmtree(artifact(self._folder, job.name), ignore_errors=True)
        return Outcome(trained[best], tested, trained)

    def _do(self, job: Job, parts: Sequence[str], *, begins: bool = True) -> dict[str, dict[str, Any]]:
        """A job's results; what is finished is not done again."""
        what = f"{job.method}, seed {job.seed}" if job.setting is None else f"{job.method} {job.setting:.3g}"
        self._begun += begins
        before = (self._begun - 1) / self._total
        missing = [part for part in parts if not self._is_final(job, part)]
        if missing and not any(self._result(job, part)["status"] == "diverged" for part in parts):
            self._progress(what, before)

            def told(done: int, of: int) -> None:
                self._progress(what, before + min(done / max(of, 1), 1.0) / self._total)

            processes.run_job(self._folder, job, missing, told)
        results = {part: self._result(job, part) for part in parts}
        for found in results.values():
            if found["status"] == "unusable":
                raise SoftPromptError(found["message"])
        return results

    def _is_final(self, job: Job, part: str) -> bool:
        return self._result(job, part)["status"] in _FINAL

    def _result(self, job: Job, part: str) -> dict[str, Any]:
        found = read_result(result_file(self._folder, part, job.name))
        return found or {"status": "missing", "message": "it was not run"}


def _budget(plan: Plan, seeds: int) -> str:
    """What every method was given."""
    recipe = plan.recipe
    tried = "one learning rate" if plan.one_setting else "three learning rates, the best by validation kept"
    return (
        f"Every trained method: {len(plan.train)} training rows, {recipe.max_steps} steps of {recipe.batch_size} rows "
        f"in the same order, validated on {len(plan.validation)} rows every {recipe.evaluate_every} steps, {tried}; "
        f"{seeds} seed{'s' if seeds > 1 else ''}. Measured on {len(plan.test)} rows."
    )
