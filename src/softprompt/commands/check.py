"""The command that looks at a task before anything is trained: `check`."""

from __future__ import annotations

from rich.console import Console

from softprompt.commands.options import Json, Overrides, TaskArgument
from softprompt.commands.terminal import print_result, reporting


def check(
    task: TaskArgument,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Look at a task before training: what is wrong with its data and its template, and what a run costs here."""
    with reporting(libraries=True) as out:
        from softprompt.comparison import check
        from softprompt.comparison.report import seconds, size
        from softprompt.progress import share_bar
        from softprompt.training.taskfile import load_task_file

        file = load_task_file(task, overrides or [])
        with share_bar(Console(stderr=True)) as progress:
            found = check(file, progress=progress)
        costs = found.costs
        counts = ", ".join(f"{count:,} {part}" for part, count in found.rows.items())
        lines = [f"{problem.about}: {problem.text}" for problem in found.problems] or ["No problem was found."]
        print_result(
            out,
            found.to_json() if as_json else None,
            f"rows: {counts}.",
            *lines,
            f"costs: {found.num_virtual_tokens} virtual tokens are {costs.trainable_parameters:,} trained numbers "
            f"({costs.trainable_parameters / costs.base_parameters:.3%} of the base's), about "
            f"{size(costs.artifact_bytes)} on disk.",
            f"costs: a run takes about {seconds(costs.train_seconds)} on this machine ({file.recipe.max_steps} steps "
            f"of {costs.step_seconds:.2g} s, an answer in {costs.row_seconds:.2g} s) and "
            f"{size(costs.peak_memory_bytes)} of memory, the base included; less if it stops early.",
        )
