"""`softprompt train --ensemble K`: several prompts for one task, trained side by side, which vote."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from softprompt.commands.tables import figures_table
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError


def train_members(
    task: Path, count: int, output: Path | None, *, force: bool, overrides: Sequence[str], as_json: bool
) -> None:
    """Train an ensemble as a task file says, and measure it on the validation and the test rows.

    Member k starts with the task file's `prompt.seed + k`, and sees the rows in the order of `recipe.seed + k`.
    """
    with reporting() as out:
        from softprompt.bases.load import load_base
        from softprompt.evaluation import evaluate
        from softprompt.progress import TrainingProgress, progress_bar
        from softprompt.tasks import load_rows, with_validation
        from softprompt.training.ensemble import train_ensemble
        from softprompt.training.folder import PROMPT
        from softprompt.training.taskfile import load_task_file, make_prompt

        file = load_task_file(task, overrides)
        folder = (output or Path("runs") / file.name) / PROMPT
        if folder.exists() and not force:  # before the work and not after it
            raise SoftPromptError(f"{folder} exists: choose another --output, or replace it with --force")
        rows, validation = with_validation(file.data.train, file.data.validation, file.task, file.recipe.seed)
        asked = {"validation": validation or []}
        if file.data.test is not None:
            asked["test"] = load_rows(file.data.test, file.task)
        base = load_base(file.base, dtype=file.recipe.dtype)
        starts = [file.prompt.model_copy(update={"seed": file.prompt.seed + k}) for k in range(count)]
        console = Console(stderr=True)
        progress = TrainingProgress(console, file.task.metric, count * len(validation or []))
        with progress:
            ensemble = train_ensemble(
                base,
                [make_prompt(base, start, file.task, rows) for start in starts],
                file.task,
                train=rows,
                validation=validation,
                recipe=file.recipe,
                callbacks=[progress],
                progress=progress.validated,
            )
        ensemble.save(folder, force=force)
        figures = {}
        for name, some in asked.items():
            with progress_bar(console, "Testing", len(some)) as advance:
                figures[name] = evaluate(base, ensemble, file.task, some, progress=advance) if some else None
        document = {
            "prompt": str(folder),
            "members": [prompt.card.metrics for prompt in ensemble.prompts],
            "trainable_parameters": sum(prompt.embeddings.numel() for prompt in ensemble.prompts),
            "artifact_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "validation": None if figures["validation"] is None else figures["validation"].to_json(),
            "test": None if (test := figures.get("test")) is None else test.to_json(),
        }
        print_result(
            out,
            document if as_json else None,
            *([figures_table(figures)] if any(figures.values()) else []),
            f"{count} prompts, which vote: {document['trainable_parameters']:,} parameters, "
            f"{document['artifact_bytes']:,} bytes in {folder}",
            f"Next: softprompt predict {shlex.quote(str(folder))} TEXT",
        )
