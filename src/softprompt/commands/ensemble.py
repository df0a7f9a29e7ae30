"""`softprompt train --ensemble K`: several prompts for one task, trained side by side, which vote."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from softprompt.commands.tables import figures_table
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompt.prompts import SoftPrompt


def train_members(
    task: Path, count: int, output: Path | None, *, force: bool, overrides: Sequence[str], as_json: bool
) -> None:
    """Train an ensemble as a task file says, and measure it on the validation and the test rows.

    Member k starts with the task file's `prompt.seed + k`, and sees the rows in the order of `recipe.seed + k`.
    """
    with reporting(libraries=True) as out:
        from softprompt.bases.load import load_base
        from softprompt.evaluation import evaluate
        from softprompt.progress import TrainingProgress
        from softprompt.training.ensemble import train_ensemble
        from softprompt.training.folder import PROMPT, locked
        from softprompt.training.heads import choose_answer
        from softprompt.training.run import rows_around
        from softprompt.training.taskfile import load_task_file, make_prompt

        file = load_task_file(task, overrides)
        folder = (output or Path("runs") / file.name) / PROMPT
        if folder.exists() and not force:  # before the work and not after it
            raise SoftPromptError(f"{folder} exists: choose another --output, or replace it with --force")
        parts = file.rows()
        rows, validation = parts["training"], parts.get("validation")
        recipe = file.recipe.for_rows(len(rows))
        asked = {part: some for part, some in parts.items() if part != "training"}
        base = load_base(file.base, **file.recipe.loading())
        starts = [file.prompt.model_copy(update={"seed": file.prompt.seed + k}) for k in range(count)]
        console = Console(stderr=True)

        def with_data(prompt: SoftPrompt) -> SoftPrompt:
            return replace(prompt, card=prompt.card.replace(data=file.data.for_card()))

        kind = choose_answer(file.task, rows, family=base.family)
        before, _ = rows_around(kind, recipe, len(rows), 0)
        after = sum(map(len, asked.values()))
        shown = count * len(validation or [])
        figures: dict[str, Any] = {}
        progress = TrainingProgress(console, file.task.metric, shown, before=count * before, after=after)
        with locked(folder.parent), progress:
            ensemble = train_ensemble(
                base,
                [with_data(make_prompt(base, start, file.task, rows)) for start in starts],
                kind,
                train=rows,
                validation=validation,
                recipe=recipe,
                callbacks=[progress],
                progress=progress.answered,
            )
            ensemble.save(folder, force=force)
            for name, some in asked.items():
                figures[name] = evaluate(base, ensemble, kind, some, progress=progress.answered) if some else None
        document = {
            "prompt": str(folder),
            "members": [prompt.card.metrics for prompt in ensemble.prompts],
            "trainable_parameters": sum(prompt.trainable_parameters for prompt in ensemble.prompts),
            "artifact_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            **{name: None if (one := figures.get(name)) is None else one.to_json() for name in ("validation", "test")},
        }
        print_result(
            out,
            document if as_json else None,
            *([figures_table(figures)] if any(figures.values()) else []),
            f"{count} prompts, which vote: {document['trainable_parameters']:,} parameters, "
            f"{document['artifact_bytes']:,} bytes in {folder}",
            f"Next: softprompt predict {shlex.quote(str(folder))} TEXT",
        )
