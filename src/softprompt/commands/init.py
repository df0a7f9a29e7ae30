"""The command that makes a task file from a table: `init`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.commands.options import TABLE, Json
from softprompt.commands.terminal import print_result, reporting
from softprompt.text import counted, listed, shorten

if TYPE_CHECKING:
    from softprompt.tasks.survey import Survey

BASE = "smollm2-135m"
_MOST_SHOWN = 8


def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"The rows: {TABLE}.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The task file. Default: the table's name and .yaml."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="The text's column; several may be given.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The label's column.")] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Instead of labels: the column of texts to generate.")
    ] = None,
    base: Annotated[str, typer.Option(metavar="BASE", help="Hub id, folder or GGUF file.")] = BASE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take what is found.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a task file that is already there.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a table and write a task file for it."""
    if label is not None and answer is not None:
        raise typer.BadParameter("give either --label or --answer")
    with reporting() as out:
        from softprompt.tasks.survey import survey

        found = survey(data, texts=text or [], label=label, answer=answer)
        if not yes and _is_terminal() and found.form is None:
            found = _ask(found, ask_text=not text, ask_label=label is None and answer is None)
        path, lines = draft(found, output, base=base, force=force)
        document = {
            "task_file": str(path),
            "rows": found.rows,
            "text": found.texts,
            "label": found.label,
            "answer": found.answer,
            "form": found.form,
            "said": lines,
        }
        print_result(out, document if as_json else None, *lines, f"Next: softprompt train {shlex.quote(str(path))}")


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def draft(found: Survey, output: Path | None, *, base: str = BASE, force: bool = False) -> tuple[Path, list[str]]:
    """Write a table's task file, and tell what is in the table."""
    from softprompt.tasks.problems import in_rows
    from softprompt.training.draft import draft_name, write_draft
    from softprompt.training.taskfile import load_task_file

    path = output or Path(f"{draft_name(found.source)}.yaml")
    lines = _describe(found)
    write_draft(found, path, base=base, force=force)
    file = load_task_file(path)
    parts = file.rows()
    counts = ", ".join(f"{len(rows):,} {part}" for part, rows in parts.items())
    problems = [f"{problem.about}: {problem.text}" for problem in in_rows(parts, file.task)]
    return path, [*lines, f"rows: {counts}", *problems, f"{path} is written."]


def _describe(found: Survey) -> list[str]:
    size = f"{counted(found.rows, 'row', 'rows')}; {counted(len(found.columns), 'column', 'columns')}"
    lines = [f"{found.source}: {size}: {listed(found.columns)}"]
    if found.form is not None:
        return [*lines, f"rows of the form {found.form}"]
    for name in found.texts:
        column = found.columns[name]
        lines.append(f"text: {name} (half of them have {column.words:g} words or fewer, the longest {column.longest})")
    if found.label is not None:
        counts, mapping = found.labels()
        common = sorted(counts.items(), key=lambda pair: -pair[1])
        named = listed([f"{shorten(value, 30)} {count:,}" for value, count in common], _MOST_SHOWN)
        lines.append(f"label: {found.label} ({len(counts)} labels: {named})")
        lines += [f"label: {other!r} is taken for {label!r}" for other, label in mapping.items()]
    else:
        lines.append(f"answer: {found.answer}, to be generated; choose --label for a column of labels")
    return lines


def _ask(found: Survey, *, ask_text: bool, ask_label: bool) -> Survey:
    """The survey with the columns that are chosen at the terminal."""
    from softprompt.tasks.survey import survey

    typer.echo(f"columns: {listed(found.columns)}", err=True)
    text, label, answer = found.texts, found.label, found.answer
    if ask_text:
        said = typer.prompt("Which columns are the text? (with commas between)", ", ".join(text), err=True)
        text = [name.strip() for name in said.split(",")] if said not in found.columns else [said]
    if ask_label:
        said = typer.prompt("Which column is to be learned?", label or answer, err=True)
        is_label = found.columns[said].may_be_label if said in found.columns else True
        label, answer = (said, None) if is_label else (None, said)
    return survey(found.source, texts=text, label=label, answer=answer)
