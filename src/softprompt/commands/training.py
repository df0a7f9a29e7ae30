"""The commands that make a prompt, `train` and `demo`, and `report`, which shows how it was made."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from softprompt.commands.ensemble import train_members
from softprompt.commands.options import Force, Json, Overrides, Resume, TaskOrTable
from softprompt.commands.tables import answers_table, figures_table, labels_table, lengths_table
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError
from softprompt.text import counted, printable

if TYPE_CHECKING:
    from softprompt.evaluation import Evaluation
    from softprompt.prompts import SoftPrompt
    from softprompt.training.growth import Growth

_ANSWERS_SHOWN = 10


def train(
    task: TaskOrTable,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The run's folder. Default: runs/ and the task's name.",
            show_default=False,
        ),
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="K",
            help="Train K prompts side by side, which vote on the label. Default: one prompt.",
            show_default=False,
        ),
    ] = None,
    resume: Resume = False,
    force: Force = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train a prompt as a task file says, and measure it on the test rows."""
    check_choice(resume, force)
    if ensemble is not None:
        if resume:
            raise typer.BadParameter("an ensemble's training is not resumed: leave out --resume or --ensemble")
        train_members(task, ensemble, output, force=force, overrides=overrides or [], as_json=as_json)
        return
    with reporting(libraries=True) as out:
        from softprompt.bases.load import load_base
        from softprompt.evaluation import evaluate, predict
        from softprompt.progress import TrainingProgress
        from softprompt.reporting.run_report import REPORT, look, write_report
        from softprompt.training import processes
        from softprompt.training.folder import RECORD, recorded_dtype
        from softprompt.training.growth import grow
        from softprompt.training.heads import choose_answer
        from softprompt.training.run import rows_around, train
        from softprompt.training.shares import ask
        from softprompt.training.taskfile import load_task_file, make_prompt

        overrides = overrides or []
        processes.start()
        mesh = processes.mesh()
        with processes.together():
            if task.suffix.lower() not in (".yaml", ".yml"):
                task = _from_table(task)
            file = load_task_file(task, overrides)
            folder = output or Path("runs") / file.name
            parts = file.rows()
            rows, validation, test_rows = parts["training"], parts.get("validation"), parts.get("test", [])
            dtype: str = file.recipe.dtype
            if resume and dtype == "auto":  # what it was for the run, which another machine may have begun
                dtype = recorded_dtype(folder) or dtype
            base = load_base(file.base, mesh=mesh, **file.recipe.loading(dtype))
        console = Console(stderr=True)
        checks = len(validation or [])
        before, after = rows_around(choose_answer(file.task, rows, family=base.family), file.recipe, len(rows), checks)
        after += len(test_rows) + checks  # which the report looks for mistakes in
        progress = TrainingProgress(console, file.task.metric, checks, before=before, after=after)
        common: dict[str, Any] = {
            "train": rows,
            "validation": validation,
            "test": test_rows or None,
            "recipe": file.recipe,
            "output": folder,
            "resume": resume,
            "force": force,
            "callbacks": [progress],
            "progress": progress.answered,
            "diagnosed": lambda found: progress.diagnosed([diagnosis.sentence for diagnosis in found]),
        }

        def make(count: int | None) -> SoftPrompt:
            start = file.prompt.model_copy(update={"num_virtual_tokens": count})
            made = make_prompt(base, start, file.task, rows)
            return replace(made, card=made.card.replace(data=file.data.for_card()))

        growth: Growth | None = None
        test: Evaluation | None = None
        try:
            with progress:
                if file.prompt.num_virtual_tokens == "auto":
                    growth = grow(base, make, file.task, **common)
                    run = growth.run
                else:
                    run = train(base, make(file.prompt.num_virtual_tokens), file.task, **common)
                if test_rows:
                    test = evaluate(base, run.prompt, file.task, test_rows, progress=progress.answered, ask=ask)
                # The first one writes and prints; of a spread base all compute what it asks.
                if not (processes.is_first() or base.sharded):
                    return
                # Of several lengths each has a run, and so a report, of its own.
                reported = folder if growth is None or growth.folder is None else growth.folder
                report = reported / REPORT
                tell = write_report if processes.is_first() else look
                tell(reported, base=base, validation=validation, test=test, progress=progress.answered)
        except KeyboardInterrupt:
            if not (folder / RECORD).exists():
                raise
            settings = [word for override in overrides for word in ("--set", override)]
            again = ["softprompt", "train", str(task), *settings, "--output", str(folder), "--resume"]
            raise SoftPromptError(f"interrupted at step {progress.step}; go on with: {shlex.join(again)}") from None
        measured = test or run.validation
        # Of free text a few answers, since no figure says what they are like.
        some = [] if file.task.labels else list(test_rows or validation or [])[:_ANSWERS_SHOWN]
        answers = predict(base, run.prompt, file.task, some)
        if not processes.is_first():
            return
        document = (run if growth is None else growth).to_json()
        document |= {"test": None if test is None else test.to_json(), "report": str(report)}
        cut = (
            f"; {counted(run.truncated, 'training text was', 'training texts were')} cut to fit the context"
            if run.truncated
            else ""
        )
        calibrated = "" if run.prompt.card.calibration is None else " and calibrated"
        print_result(
            out,
            document if as_json else None,
            *([] if growth is None else [lengths_table(growth, file.task.metric)]),
            *([figures_table({"validation": run.validation, "test": test})] if run.validation or test else []),
            *([labels_table(measured.per_label)] if measured and measured.per_label else []),
            *([answers_table(file.task, some, answers)] if some else []),
            *(f"{problem.about}: {problem.text}" for problem in run.problems),
            *(f"{diagnosis.name}: {diagnosis.sentence}" for diagnosis in run.diagnoses),
            f"{counted(run.steps, 'step', 'steps')} in {run.seconds:.0f} s; the prompt is from step {run.best_step}"
            f"{calibrated}{cut}",
            f"{document['trainable_parameters']:,} parameters, {document['artifact_bytes']:,} bytes in {run.path}",
            f"The whole run, for a browser: {report}",
            f"Next: softprompt predict {shlex.quote(str(run.path))} TEXT",
            f"      softprompt predict {shlex.quote(str(run.path))} --input FILE --output answers.csv",
            f"      softprompt library add {file.name} {shlex.quote(str(run.path))} && softprompt serve",
        )


def _from_table(table: Path) -> Path:
    """The task file of a table, as `init` writes it, said."""
    from softprompt.commands.init import draft
    from softprompt.tasks.survey import survey

    path, lines = draft(survey(str(table)), None)
    typer.echo("\n".join(printable(line) for line in lines), err=True)
    return path


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write a run's report.html again, also of a run that was stopped or is under way."""
    with reporting() as out:
        from softprompt.reporting.run_report import write_report

        path = write_report(run)
        print_result(out, {"report": str(path)} if as_json else None, f"The run, for a browser: {path}")


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the data, the task file and the run.")
    ] = Path("softprompt-demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps. Default: a few minutes' worth.", show_default=False)
    ] = None,
    resume: Resume = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The whole story on real data: train a prompt on movie reviews, in a few minutes on two CPU cores."""
    check_choice(resume, force)
    with reporting(libraries=True) as out:
        from softprompt.demo import show

        document = show(Console(file=sys.stderr if as_json else out), output, steps, resume=resume, force=force)
        print_result(out, document if as_json else None)


def check_choice(resume: bool, force: bool) -> None:
    if resume and force:
        raise typer.BadParameter("give either --resume or --force")
